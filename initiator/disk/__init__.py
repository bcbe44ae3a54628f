"""Disks for programs: blocking, asyncio, as a file; copying and benchmarks."""
