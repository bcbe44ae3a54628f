"""Sector access to disks whose requests must be whole blocks (read-modify-write).

A request that does not begin and end at a block boundary is extended to whole blocks. A
write then reads the blocks, modifies them and writes them back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.errors import UsageError

if TYPE_CHECKING:
    from target.protocol.disk import Disk


class BlockDisk:
    """A disk with 512-byte sectors on one that transfers only whole blocks.

    Args:
        disk: the underlying disk; closed with this one.
        block: the block size in bytes, a multiple of 512.
        what: the disk's name in error messages.

    Raises:
        UsageError: the size is not a multiple of the block size.
    """

    def __init__(self, disk: Disk, block: int, what: str) -> None:
        if disk.size % block:
            raise UsageError(
                what,
                f"{disk.size:,} bytes is not a multiple of the block size, {block:,}",
                f"Make it {disk.size // block * block + block} bytes",
            )
        self._disk = disk
        self._block = block
        self.size = disk.size
        self.read_only = disk.read_only

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``, through a bounce buffer if it is not block-aligned."""
        skip, span = self._span(offset, len(buffer))
        if span == len(buffer):
            self._disk.read_into(offset, buffer)
            return
        blocks = self._read(offset - skip, span)
        buffer[:] = blocks[skip : skip + len(buffer)]

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write ``data``, with a read-modify-write if it is not block-aligned."""
        skip, span = self._span(offset, len(data))
        if span == len(data):
            self._disk.write_from(offset, data)
            return
        blocks = self._read(offset - skip, span)
        blocks[skip : skip + len(data)] = data
        self._disk.write_from(offset - skip, blocks)

    def discard(self, offset: int, length: int) -> None:
        """Discard whole blocks, and write zeros to the partial blocks at the ends."""
        end = offset + length
        first = min(-(-offset // self._block) * self._block, end)
        last = max(end // self._block * self._block, first)
        if first > offset:
            self.write_from(offset, memoryview(bytes(first - offset)))
        if last > first:
            self._disk.discard(first, last - first)
        if end > last:
            self.write_from(last, memoryview(bytes(end - last)))

    def flush(self) -> None:
        """Flush the underlying disk."""
        self._disk.flush()

    def find_fault(self) -> str:
        """Return why the underlying disk must be opened again."""
        return self._disk.find_fault()

    def close(self) -> None:
        """Close the underlying disk."""
        self._disk.close()

    def _span(self, offset: int, length: int) -> tuple[int, int]:
        # The offset of a transfer in its first block, and the length of all its blocks.
        skip = offset % self._block
        return skip, -(-(skip + length) // self._block) * self._block

    def _read(self, offset: int, length: int) -> memoryview:
        blocks = memoryview(bytearray(length))
        self._disk.read_into(offset, blocks)
        return blocks
