"""A disk as a file, through FUSE.

The file system has no directory: its root is the file, and it is mounted over a file.
libfuse calls us in threads of its own; each waits for the disk, not for the others.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from aoe.errors import (
    AccessError,
    AoEError,
    BusyError,
    NotFoundError,
    UnsupportedError,
    UsageError,
    from_os_error,
)
from initiator.export.mounts import is_mounted, unmount

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from initiator.export.disk_thread import DiskThread

_DEVICE: Final = "/dev/fuse"
_INSTALL: Final = "Install it with: pip install 'pyaoe[fuse]', apt install fuse3"
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_BACKGROUND: Final = 64
"""Requests that the kernel may have under way that nobody waits for: readahead, and
what a loop device hands on."""
_THREADS: Final = 32
"""Operations under way at a time."""
_POOL: Final = ("max_threads", "max_idle_threads")
_WHO_MAY: Final = "Run as root, or as a user who may open /dev/fuse"
_ERRNO: Final = (
    (UsageError, errno.EINVAL),
    (AccessError, errno.EROFS),
    (BusyError, errno.EBUSY),
    (NotFoundError, errno.ETIMEDOUT),
    (UnsupportedError, errno.EOPNOTSUPP),
)


def _os_error(error: AoEError) -> OSError:
    known = (number for kind, number in _ERRNO if isinstance(error, kind))
    number = next(known, errno.EIO)
    return OSError(number, os.strerror(number))


class DiskFile:
    """What libfuse calls: one file, the disk's bytes. ``mfusepy.Operations`` by shape.

    Args:
        disk: where the bytes are.
        read_only: whether opening it for writing is refused.
        ready: called when it is mounted.
        closed: called when nobody has the file open any more.
    """

    use_ns = True
    """Times are whole nanoseconds."""

    def __init__(
        self,
        disk: DiskThread,
        *,
        read_only: bool,
        ready: Callable[[], None],
        closed: Callable[[], None],
    ) -> None:
        self._disk = disk
        self._read_only = read_only
        self._ready = ready
        self._closed = closed
        self._users = threading.Condition()
        self._opened = 0
        self._unflushed = False
        self._made = time.time_ns()

    def init_with_config(self, connection: Any, _: object) -> None:  # noqa: ANN401 - ctypes
        """Say how much we take at a time: we are mounted."""
        connection.max_background = _BACKGROUND
        connection.congestion_threshold = _BACKGROUND
        self._ready()

    def getattr(self, path: str, _: int | None = None) -> dict[str, int]:
        """Describe the file, which is the root."""
        if path != "/":
            raise OSError(errno.ENOENT, path)
        return {
            "st_mode": stat.S_IFREG | (0o400 if self._read_only else 0o600),
            "st_nlink": 1,
            "st_uid": os.geteuid(),
            "st_gid": os.getegid(),
            "st_size": self._disk.size,
            "st_blocks": self._disk.size // 512,
            "st_atime": self._made,
            "st_mtime": self._made,
            "st_ctime": self._made,
        }

    def open(self, _: str, flags: int) -> int:
        """Open it; a handle says nothing."""
        if self._read_only and flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only")
        with self._users:
            self._opened += 1
        return 0

    def release(self, _: str, __: int) -> int:
        """Close it."""
        with self._users:
            self._opened -= 1
            closed = self._opened == 0
            self._users.notify_all()
        if closed:
            self._closed()
        return 0

    def wait_closed(self, seconds: float) -> bool:
        """Wait until nobody has it open; tell whether that came in time."""
        with self._users:
            return self._users.wait_for(lambda: self._opened == 0, seconds)

    def truncate(self, _: str, length: int, __: int | None = None) -> int:
        """Leave its size, as that of a block device; it cannot be made longer."""
        if length > self._disk.size:
            raise OSError(errno.EFBIG, "a disk has its size")
        return 0

    def read(self, _: str, size: int, offset: int, __: int) -> ctypes.Array[Any] | None:
        """Read up to the end of the disk."""
        length = min(size, self._disk.size - offset)
        if length <= 0:
            return None
        try:
            data = self._disk.read(offset, length)
        except AoEError as error:
            raise _os_error(error) from error
        # What the caller copies from: of a bytearray it takes no address.
        return (ctypes.c_char * length).from_buffer(data)

    def write(self, _: str, data: bytes, offset: int, __: int) -> int:
        """Write up to the end of the disk."""
        length = min(len(data), self._disk.size - offset)
        if length <= 0:
            raise OSError(errno.ENOSPC, "the disk ends here")
        self._unflushed = True
        try:
            self._disk.write(offset, data[:length])
        except AoEError as error:
            raise _os_error(error) from error
        return length

    def fallocate(self, _: str, mode: int, offset: int, length: int, __: int) -> int:
        """Let go of what is punched out, if it then reads as zeroes as it has to.

        Of everything else the disk has room already, or others write the zeroes.
        """
        if offset + length > self._disk.size:
            raise OSError(errno.ENOSPC, "the disk ends here")
        if not mode & ~_KEEP_SIZE:
            return 0
        if not mode & _PUNCH_HOLE or not self._disk.disk.discard_zeroes_data:
            raise OSError(errno.EOPNOTSUPP, "no such thing")
        self._unflushed = True
        try:
            self._disk.trim(offset, length)
        except AoEError as error:
            raise _os_error(error) from error
        return 0

    def flush(self, _: str, __: int) -> int:
        """Make durable what was written, as somebody closes the file."""
        return self._flush() if self._unflushed else 0

    def fsync(self, _: str, __: int, ___: int) -> int:
        """Make durable what was written."""
        return self._flush()

    def _flush(self) -> int:
        self._unflushed = False
        try:
            self._disk.flush()
        except UnsupportedError:
            # It has taken the data as well as it can; whoever attached it was told.
            return 0
        except AoEError as error:
            self._unflushed = True
            raise _os_error(error) from error
        return 0


class FuseMount:
    """A file that is the disk, for as long as it is mounted.

    Args:
        disk: where the bytes are.
        file: to be mounted over; made, and taken away again, if it is not there.
        read_only: whether it can only be read.
        closed: called when nobody has it open any more.
        ended: called when it is mounted no longer, whoever unmounted it.

    Raises:
        NotFoundError: mfusepy, libfuse or the kernel's FUSE is not there.
        AccessError: we may not mount.
        BusyError: something is mounted there.
        UsageError: it is there, and holds something.
    """

    def __init__(
        self,
        disk: DiskThread,
        file: Path,
        *,
        read_only: bool,
        closed: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self.file = file
        self._ended = ended
        self._mfusepy = _load()
        self._options = {"fsname": f"aoe:{disk.disk.address}", "ro": read_only}
        if self._version() >= (3, 12):
            # Not told how many, 3.14.0 grumbles about what it assumes itself.
            self._options |= dict.fromkeys(_POOL, _THREADS)
        self._mounted = False
        self._settled = threading.Event()
        self._operations = DiskFile(
            disk, read_only=read_only, ready=self._ready, closed=closed
        )
        self._made = _make_room(file)
        self._thread = threading.Thread(target=self._serve, name="fuse", daemon=True)
        self._thread.start()
        self._settled.wait()
        if not self._mounted:
            self._thread.join()
            self._take_away()
            raise AccessError(str(file), "could not be mounted", _WHO_MAY)

    def _version(self) -> tuple[int, int]:
        return self._mfusepy.fuse_version_major, self._mfusepy.fuse_version_minor

    def _ready(self) -> None:
        self._mounted = True
        self._settled.set()

    def _serve(self) -> None:
        # libfuse has said by itself what is wrong, on standard error.
        with suppress(RuntimeError):
            self._mfusepy.FUSE(
                self._operations,
                str(self.file),
                foreground=True,
                subtype="aoe",
                default_permissions=True,
                **self._options,
            )
        self._settled.set()
        if self._mounted:
            self._ended()

    def unmount(self, *, lazy: bool = False) -> None:
        """Let nobody open it any more; no data is on its way then. Safe to call twice.

        Args:
            lazy: not to mind that it is open. ``join`` waits for those who have it.

        Raises:
            BusyError: somebody has it open; it remains.
        """
        if self._thread.is_alive():
            unmount(self.file, lazy=lazy)

    def wait(self, seconds: float) -> bool:
        """Wait until nobody has it open; tell whether that came in time."""
        return self._operations.wait_closed(seconds)

    def join(self) -> None:
        """Wait until the last who had it open is done, and take the file away."""
        self._thread.join()
        self._take_away()

    def _take_away(self) -> None:
        if self._made:
            self._made = False
            self.file.unlink(missing_ok=True)


def _load() -> Any:  # noqa: ANN401 - a module without types
    try:
        import mfusepy
    except (ImportError, OSError) as error:
        # It looks for libfuse when it is imported.
        what = "libfuse" if isinstance(error, OSError) else "mfusepy"
        raise NotFoundError(what, "not installed", _INSTALL) from error
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        fix = "Load it: modprobe fuse" if missing else _WHO_MAY
        raise from_os_error(_DEVICE, error, fix) from error
    return mfusepy


def _make_room(file: Path) -> bool:
    """Make sure that there is an empty file; tell whether it was made."""
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if is_mounted(file):
            raise BusyError(str(file), "something is mounted there") from None
        if not file.is_file() or file.stat().st_size:
            raise UsageError(
                str(file),
                "there is something already",
                "Name an empty file, or one that is not there",
            ) from None
        return False
    except OSError as error:
        raise from_os_error(str(file), error) from error
    return True
