"""Disks that bypass the page cache: O_DIRECT through a page-aligned bounce buffer.

Address, offset and length of direct I/O must be multiples of the device's logical block
size, 512 or 4096 bytes. A request that is not block-aligned is extended to whole
blocks, and a write is then a read-modify-write. The window must begin and end at a
block boundary, so that no block extends past it.
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
        fd: a file descriptor with the access mode needed; the disk closes it.
        offset: start of the window in bytes, a multiple of ``block``.
        size: length of the window in bytes, a multiple of ``block``.
        read_only: True if writes are refused.
        block: the unit of direct I/O in bytes.
    """

    def __init__(
        self, fd: int, offset: int, size: int, *, read_only: bool, block: int
    ) -> None:
        super().__init__(fd, offset, size, read_only=read_only)
        self._block = block
        # Anonymous memory is page-aligned; the view lives until the process ends.
        self._memory = memoryview(mmap(-1, _BUFFER))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` through the bounce buffer."""
        done = 0
        while done < len(buffer):
            start, skip, length = self._span(offset + done, len(buffer) - done)
            super().read_into(start, self._memory[: self._round(skip + length)])
            buffer[done : done + length] = self._memory[skip : skip + length]
            done += length

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write ``data`` through the bounce buffer, in whole blocks."""
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
        # The offset of the first block, the offset of the transfer in it, and the
        # number of bytes of the transfer that fit in the bounce buffer.
        skip = offset % self._block
        return offset - skip, skip, min(length, _BUFFER - skip)

    def _round(self, length: int) -> int:
        return -(-length // self._block) * self._block


def direct_block(path: Path, fd: int, offset: int, size: int) -> int:
    """Determine the unit of direct I/O by test reads, and check the window against it.

    Raises:
        UsageError: the window is not aligned to the block size, or no size works.
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
                f"O_DIRECT needs {block}-byte blocks, and the disk does not begin and "
                "end at a block boundary",
                "Omit --direct, or change --offset and --length",
            )
        return block
    raise UsageError(str(path), "no usable block size for O_DIRECT", "Omit --direct")
