"""A disk as a Python file: for ``io``, ``shutil``, ``zipfile`` and the like."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from aoe.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from initiator.disk.disk import Disk


class DiskFile(io.RawIOBase):
    """A disk as a raw binary file, which begins at its first byte and cannot grow.

    ``io.BufferedRandom`` makes one with a buffer of it. Closing flushes what was
    written, if anything was; the disk stays open.

    Args:
        disk: the disk.
    """

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self._disk = disk
        self._at = 0
        self._is_dirty = False

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is, unless the disk is read-only."""
        return not self._disk.read_only

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go somewhere, beyond the end too; return where that is.

        Raises:
            UsageError: in front of the disk, or by another way to count.
        """
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._disk.size}
        if whence not in start or start[whence] + offset < 0:
            raise UsageError(str(self._disk.address), f"cannot seek to {offset}")
        self._at = start[whence] + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer as far as the disk goes; return how many bytes that were."""
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._disk.size - self._at))
        if length:
            self._disk.read_into(self._at, view[:length])
        self._at += length
        return length

    def write(self, data: ReadableBuffer) -> int:
        """Write as far as the disk goes; return how many bytes that were.

        Raises:
            UsageError: at the end of the disk.
        """
        view = memoryview(data).cast("B")
        length = max(0, min(len(view), self._disk.size - self._at))
        if len(view) and not length:
            raise UsageError(str(self._disk.address), "the disk ends here")
        if length:
            self._disk.write(self._at, view[:length])
            self._is_dirty = True
        self._at += length
        return length

    def flush(self) -> None:
        """Make what was written durable; raises as ``Disk.flush``."""
        super().flush()
        if self._is_dirty:
            self._is_dirty = False
            self._disk.flush()
