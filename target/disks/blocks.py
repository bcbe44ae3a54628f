"""Disks that move whole blocks only, for those who move sectors.

A sector that is no whole block is read with its block; it is written by reading the
block, changing it and writing it back. A block never reaches beyond the disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.errors import UsageError

if TYPE_CHECKING:
    from target.protocol.disk import Disk


class BlockDisk:
    """A view in sectors of a disk whose offsets and lengths are multiples of a block.

    Args:
        disk: the disk; it is closed with the view.
        block: bytes, a multiple of 512.
        what: its name, for the error.

    Raises:
        UsageError: the disk is no whole number of blocks.
    """

    def __init__(self, disk: Disk, block: int, what: str) -> None:
        if disk.size % block:
            raise UsageError(
                what,
                f"{disk.size:,} bytes are not a whole number of {block:,}-byte blocks",
                f"Make it {disk.size // block * block + block} bytes",
            )
        self._disk = disk
        self._block = block
        self.size = disk.size
        self.read_only = disk.read_only

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``; by way of whole blocks where it is none."""
        skip, span = self._span(offset, len(buffer))
        if span == len(buffer):
            self._disk.read_into(offset, buffer)
            return
        blocks = self._read(offset - skip, span)
        buffer[:] = blocks[skip : skip + len(buffer)]

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write ``data``, with what else its blocks hold."""
        skip, span = self._span(offset, len(data))
        if span == len(data):
            self._disk.write_from(offset, data)
            return
        blocks = self._read(offset - skip, span)
        blocks[skip : skip + len(data)] = data
        self._disk.write_from(offset - skip, blocks)

    def discard(self, offset: int, length: int) -> None:
        """Discard the whole blocks, and write zeros into those at both ends."""
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
        """Have the disk put everything on stable storage."""
        self._disk.flush()

    def close(self) -> None:
        """Close the disk."""
        self._disk.close()

    def _span(self, offset: int, length: int) -> tuple[int, int]:
        # The bytes before a transfer in its first block, and all bytes of its blocks.
        skip = offset % self._block
        return skip, -(-(skip + length) // self._block) * self._block

    def _read(self, offset: int, length: int) -> memoryview:
        blocks = memoryview(bytearray(length))
        self._disk.read_into(offset, blocks)
        return blocks
