"""Disks around the page cache: O_DIRECT, through a page-aligned buffer of our own.

The memory, the offset and the length of direct I/O must be multiples of the device's
logical block, 512 or 4096 bytes. Sectors that are no whole block are read with their
block, and written by reading it, changing it and writing it back. The window must begin
and end at a block, so no such block ever reaches beyond it.
"""

from __future__ import annotations

import errno
import os
from mmap import PAGESIZE, mmap
from typing import TYPE_CHECKING, Final

from aoe.errors import UsageError, from_os_error
from target.disks.file import FileDisk

if TYPE_CHECKING:
    from pathlib import Path

_BUFFER: Final = 64 * PAGESIZE
_BLOCKS: Final = (512, 4096)


class DirectDisk(FileDisk):
    """A window of a file or block device that was opened with O_DIRECT.

    Args:
        fd: open for what is asked of it; the disk closes it.
        offset: where the window begins, bytes, a multiple of ``block``.
        size: how long it is, bytes, a multiple of ``block``.
        read_only: writing is refused.
        block: the unit of direct I/O, bytes.
    """

    def __init__(
        self, fd: int, offset: int, size: int, *, read_only: bool, block: int
    ) -> None:
        super().__init__(fd, offset, size, read_only=read_only)
        self._block = block
        # Anonymous memory begins at a page; the view stays until the process ends.
        self._memory = memoryview(mmap(-1, _BUFFER))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` by way of the aligned memory."""
        done = 0
        while done < len(buffer):
            start, skip, length = self._span(offset + done, len(buffer) - done)
            super().read_into(start, self._memory[: self._round(skip + length)])
            buffer[done : done + length] = self._memory[skip : skip + length]
            done += length

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write ``data`` by way of the aligned memory, whole blocks at a time."""
        done = 0
        while done < len(data):
            start, skip, length = self._span(offset + done, len(data) - done)
            blocks = self._memory[: self._round(skip + length)]
            if len(blocks) != length:
                super().read_into(start, blocks)
            blocks[skip : skip + length] = data[done : done + length]
            super().write_from(start, blocks)
            done += length

    def _span(self, offset: int, length: int) -> tuple[int, int, int]:
        # The block where a transfer begins, the bytes to skip in it, and how many bytes
        # of the transfer the aligned memory takes.
        skip = offset % self._block
        return offset - skip, skip, min(length, _BUFFER - skip)

    def _round(self, length: int) -> int:
        return -(-length // self._block) * self._block


def direct_block(path: Path, fd: int, offset: int, size: int) -> int:
    """Find the unit of direct I/O by trying, and hold the window to it.

    Raises:
        UsageError: the window does not begin or end at a block, or no block works.
    """
    memory = memoryview(mmap(-1, PAGESIZE))
    for block in _BLOCKS:
        try:
            os.preadv(fd, [memory[:block]], 0)
        except OSError as error:
            if error.errno == errno.EINVAL:
                continue
            raise from_os_error(str(path), error) from error
        if offset % block or size % block:
            raise UsageError(
                str(path),
                f"O_DIRECT works in blocks of {block} bytes here, and this disk does "
                "not begin and end at one",
                "Leave out --direct, or change --offset and --length",
            )
        return block
    raise UsageError(
        str(path), "no usable block size for O_DIRECT", "Leave out --direct"
    )
