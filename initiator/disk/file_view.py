"""A Python file object for a disk, for use with ``io``, ``shutil``, ``zipfile`` ..."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from aoe.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from initiator.disk.disk import Disk


class DiskFile(io.RawIOBase):
    """A raw binary file of a disk's contents, of fixed size.

    Wrap it in ``io.BufferedRandom`` for buffering. ``close`` flushes the disk if
    anything was written, and leaves it open.

    Args:
        disk: the disk.
    """

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self._disk = disk
        self._at = 0
        self._is_dirty = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return False if the disk is known to be read-only."""
        return not self._disk.read_only

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, which may be beyond the end; return it.

        Raises:
            UsageError: the position is negative, or ``whence`` is not supported.
        """
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._disk.size}
        if whence not in start or start[whence] + offset < 0:
            raise UsageError(str(self._disk.address), f"cannot seek to {offset}")
        self._at = start[whence] + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read into ``buffer``, up to the end of the disk; return the length."""
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._disk.size - self._at))
        if length:
            self._disk.read_into(self._at, view[:length])
        self._at += length
        return length

    def write(self, data: ReadableBuffer) -> int:
        """Write ``data``, up to the end of the disk; return the length.

        Raises:
            UsageError: the position is at or beyond the end of the disk.
        """
        view = memoryview(data).cast("B")
        length = max(0, min(len(view), self._disk.size - self._at))
        if len(view) and not length:
            raise UsageError(
                str(self._disk.address), "write beyond the end of the disk"
            )
        if length:
            self._disk.write(self._at, view[:length])
            self._is_dirty = True
        self._at += length
        return length

    def flush(self) -> None:
        """Make what was written durable; raises as ``Disk.flush``.

        After an error, the next call flushes again: closing the file must not report
        success for what was not flushed.
        """
        super().flush()
        if self._is_dirty:
            self._disk.flush()
            self._is_dirty = False
