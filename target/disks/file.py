"""Disks in image files and on block devices, through the page cache.

``opening.py`` opens them, ``direct.py`` bypasses the page cache.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from target.disks.holes import punch_hole

log: Final = logging.getLogger("aoe-target")

_ZERO_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFlags:
    """How to open a file or block device.

    Args:
        read_only: open for reading only.
        sync: a write returns when the data is on stable storage (O_DSYNC).
        direct: bypass the page cache (O_DIRECT).
        offset: start of the disk in the file, bytes.
        length: length of the disk, bytes; None means up to the end of the file.
        create: create a sparse file of this size if the file does not exist.
        force: open it although it is mounted or served by another process.
    """

    read_only: bool = False
    sync: bool = False
    direct: bool = False
    offset: int = 0
    length: int | None = None
    create: int | None = None
    force: bool = False


class FileDisk:
    """A window of a file or a block device.

    Args:
        fd: a file descriptor with the access mode needed; the disk closes it.
        offset: start of the window, bytes.
        size: length of the window, bytes.
        read_only: True if writes are refused.
    """

    def __init__(self, fd: int, offset: int, size: int, *, read_only: bool) -> None:
        self.fd = fd
        self.offset = offset
        self.size = size
        self.read_only = read_only
        self._end = offset + size
        self.fault = ""
        """Why the file must be opened again, as ``find_fault`` found out last."""
        self._least_end = self._end
        """The smallest size of the file that was seen: what is beyond it is lost."""
        self._is_sync = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DSYNC)
        # A memfd has no name from the beginning, a container may have no /sys.
        self._existed = _exists(fd)

    def is_intact(self) -> bool:
        """Return True if the file still has all of the window, and no other fault.

        pwrite(2) would extend a truncated file, and the lost part would read as zeros:
        call it before and after a batch that writes, and discard all results of the
        batch if it returns False. One lseek(2), which is cheaper than fstat(2).
        """
        return not self.fault and os.lseek(self.fd, 0, os.SEEK_END) >= self._end

    def find_fault(self) -> str:
        """Return why the file must be opened again; see ``Disk.find_fault``."""
        try:
            end = os.lseek(self.fd, 0, os.SEEK_END)
            self._least_end = min(self._least_end, end)
            if end < self._end:
                self._set_fault(f"was truncated to {end:,} bytes")
            elif self._existed and not _exists(self.fd):
                self._set_fault("was removed or replaced")
        except OSError as error:
            self._set_fault(f"can no longer be examined: {error.strerror}")
        return self.fault

    def _set_fault(self, why: str) -> None:
        if self.fault:
            return
        self.fault = why
        name = str(Path(f"/proc/self/fd/{self.fd}").readlink())
        log.error(
            "%s: %s while it was served: writes, flushes, and reads of lost data fail. "
            "Restore it, then run: aoe-target reload",
            name.removesuffix(" (deleted)"),
            why,
        )

    def fail_reads(self) -> None:
        """Fail all reads: a write may have extended the file after a truncation."""
        self.find_fault()
        self._least_end = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``; a file that was truncated meanwhile raises EIO."""
        position = self.offset + offset
        length = os.preadv(self.fd, [buffer], position)
        while length < len(buffer):
            got = os.preadv(self.fd, [buffer[length:]], position + length)
            if not got:
                self.find_fault()
                raise OSError(errno.EIO, "unexpected end of file")
            length += got
        if not self.is_intact():
            self.find_fault()
            if position + length > self._least_end:
                raise self._error()

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``; a file that was truncated meanwhile raises EIO."""
        self._check_intact()
        position = self.offset + offset
        length = os.pwritev(self.fd, [data], position)
        while length < len(data):
            put = os.pwritev(self.fd, [data[length:]], position + length)
            if not put:
                raise OSError(errno.EIO, "nothing was written")
            length += put
        if not self.is_intact():
            self.fail_reads()
            raise self._error()
        if self._is_sync:
            self._check_fault()

    def flush(self) -> None:
        """Make all completed writes stable, with fdatasync(2).

        The data of a file that was deleted or truncated is lost, even if fdatasync
        succeeds: this raises EIO. A device that has vanished is EIO, too: it has lost
        the writes, and "device unavailable" would make the client repeat the flush
        (P41).
        """
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            raise OSError(errno.EIO, error.strerror) from error
        if not self.read_only:
            self._check_fault()

    def _check_intact(self) -> None:
        if not self.is_intact():
            self._check_fault()

    def _check_fault(self) -> None:
        if self.find_fault():
            raise self._error()

    def _error(self) -> OSError:
        return OSError(errno.EIO, self.fault or "truncated while it was written")

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole, or write zeros if the file system does not support holes.

        With O_DSYNC the hole is flushed, as a write would be.
        """
        if not punch_hole(self.fd, self.offset + offset, length):
            self._write_zeros(offset, length)
        elif self._is_sync:
            self.flush()
        self._check_intact()

    def _write_zeros(self, offset: int, length: int) -> None:
        zeros = memoryview(bytes(min(length, _ZERO_CHUNK)))
        for done in range(0, length, _ZERO_CHUNK):
            self.write_from(offset + done, zeros[: length - done])

    def close(self) -> None:
        """Close the file, which releases its lock."""
        os.close(self.fd)


def _exists(fd: int) -> bool:
    # False for a file without a name, and for a block device that was unplugged.
    info = os.fstat(fd)
    if not stat.S_ISBLK(info.st_mode):
        return info.st_nlink > 0
    number = info.st_rdev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").exists()
