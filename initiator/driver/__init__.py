"""The kernel's AoE driver: bios in, frames out. No I/O, no clock."""
