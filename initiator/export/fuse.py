"""A disk as a file, through FUSE.

The root of the file system is a regular file, not a directory, and is mounted over a
file. libfuse calls the operations from several threads; each blocks only its own.
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
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_BACKGROUND: Final = 64
"""Limit of outstanding background requests (``max_background``): readahead, and
asynchronous I/O such as a loop device's."""
_THREADS: Final = 32
"""Threads of libfuse: operations that run at the same time."""
_POOL: Final = ("max_threads", "max_idle_threads")
_PERMISSION_FIX: Final = "Run as root, or as a user that may open /dev/fuse"
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


class FuseOperations:
    """The FUSE operations of one file, with the interface of ``mfusepy.Operations``.

    Args:
        disk: the contents of the file.
        read_only: refuse to open it for writing.
        on_mount: called when it is mounted.
        on_last_close: called when no process has it open any more.
    """

    use_ns = True
    """Tells mfusepy that times are in nanoseconds."""

    def __init__(
        self,
        disk: DiskThread,
        *,
        read_only: bool,
        on_mount: Callable[[], None],
        on_last_close: Callable[[], None],
    ) -> None:
        self._disk = disk
        self._read_only = read_only
        self._on_mount = on_mount
        self._on_last_close = on_last_close
        self._condition = threading.Condition()
        self._open_count = 0
        self._is_dirty = False
        self._created = time.time_ns()

    def init_with_config(self, connection: Any, _: object) -> None:  # noqa: ANN401 - ctypes
        """Set the request limits; the kernel has completed the mount."""
        connection.max_background = _BACKGROUND
        connection.congestion_threshold = _BACKGROUND
        self._on_mount()

    def getattr(self, path: str, _: int | None = None) -> dict[str, int]:
        """Return the attributes of the root, the only file."""
        if path != "/":
            raise OSError(errno.ENOENT, path)
        return {
            "st_mode": stat.S_IFREG | (0o400 if self._read_only else 0o600),
            "st_nlink": 1,
            "st_uid": os.geteuid(),
            "st_gid": os.getegid(),
            "st_size": self._disk.size,
            "st_blocks": self._disk.size // 512,
            "st_atime": self._created,
            "st_mtime": self._created,
            "st_ctime": self._created,
        }

    def open(self, _: str, flags: int) -> int:
        """Count an open; the file handle is not used."""
        if self._read_only and flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "read-only")
        with self._condition:
            self._open_count += 1
        return 0

    def release(self, _: str, __: int) -> int:
        """Count the last close of a file handle."""
        with self._condition:
            self._open_count -= 1
            is_last = self._open_count == 0
            self._condition.notify_all()
        if is_last:
            self._on_last_close()
        return 0

    def wait_closed(self, seconds: float) -> bool:
        """Wait until no process has it open; return False on timeout."""
        with self._condition:
            return self._condition.wait_for(lambda: self._open_count == 0, seconds)

    def truncate(self, _: str, length: int, __: int | None = None) -> int:
        """Ignore a smaller size, as a block device does; refuse a larger one."""
        if length > self._disk.size:
            raise OSError(errno.EFBIG, "the size is fixed")
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
        # mfusepy copies from a ctypes array; it cannot take a bytearray's address.
        return (ctypes.c_char * length).from_buffer(data)

    def write(self, _: str, data: bytes, offset: int, __: int) -> int:
        """Write up to the end of the disk."""
        length = min(len(data), self._disk.size - offset)
        if length <= 0:
            raise OSError(errno.ENOSPC, "beyond the end")
        self._is_dirty = True
        try:
            self._disk.write(offset, data[:length])
        except AoEError as error:
            raise _os_error(error) from error
        return length

    def fallocate(self, _: str, mode: int, offset: int, length: int, __: int) -> int:
        """Trim the range of FALLOC_FL_PUNCH_HOLE; allocation alone has no effect.

        A hole must read as zeroes, so it is supported only if trimmed sectors do. For
        other modes the caller falls back to writing zeroes.
        """
        if offset + length > self._disk.size:
            raise OSError(errno.ENOSPC, "beyond the end")
        if not mode & ~_KEEP_SIZE:
            return 0
        if not mode & _PUNCH_HOLE or not self._disk.disk.discard_zeroes_data:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        self._is_dirty = True
        try:
            self._disk.trim(offset, length)
        except AoEError as error:
            raise _os_error(error) from error
        return 0

    def flush(self, _: str, __: int) -> int:
        """Flush the disk at a close, if it was written to."""
        return self._flush() if self._is_dirty else 0

    def fsync(self, _: str, __: int, ___: int) -> int:
        """Flush the disk."""
        return self._flush()

    def _flush(self) -> int:
        # Cleared before the flush: a write that runs meanwhile is not covered by it.
        self._is_dirty = False
        try:
            self._disk.flush()
        except UnsupportedError:
            # fsync would fail for good and with it every file system; a warning was
            # given when the disk was attached.
            return 0
        except AoEError as error:
            self._is_dirty = True
            raise _os_error(error) from error
        return 0


class FuseMount:
    """A FUSE mount of a disk over a file.

    Args:
        disk: the contents of the file.
        file: where to mount; created and later removed if it does not exist.
        read_only: refuse to open it for writing.
        on_last_close: called when no process has it open any more.
        on_unmount: called when it is unmounted, also by another program.

    Raises:
        NotFoundError: mfusepy, libfuse or the kernel's FUSE is missing.
        AccessError: mounting is not permitted.
        BusyError: something is mounted on the file.
        UsageError: the file is not empty, or not a regular file.
    """

    def __init__(
        self,
        disk: DiskThread,
        file: Path,
        *,
        read_only: bool,
        on_last_close: Callable[[], None],
        on_unmount: Callable[[], None],
    ) -> None:
        self.file = file
        self._on_unmount = on_unmount
        self._mfusepy = _load()
        self._options = {"fsname": f"aoe:{disk.disk.address}", "ro": read_only}
        if self._version() >= (3, 12):
            # libfuse 3.14.0 warns about its own defaults if these are not set.
            self._options |= dict.fromkeys(_POOL, _THREADS)
        self._mounted = False
        self._mount_result = threading.Event()
        self._operations = FuseOperations(
            disk,
            read_only=read_only,
            on_mount=self._set_mounted,
            on_last_close=on_last_close,
        )
        self._created = _create_mount_point(file)
        self._thread = threading.Thread(target=self._serve, name="fuse", daemon=True)
        self._thread.start()
        self._mount_result.wait()
        if not self._mounted:
            self._thread.join()
            self._remove_file()
            raise AccessError(str(file), "could not be mounted", _PERMISSION_FIX)

    def _version(self) -> tuple[int, int]:
        return self._mfusepy.fuse_version_major, self._mfusepy.fuse_version_minor

    def _set_mounted(self) -> None:
        self._mounted = True
        self._mount_result.set()

    def _serve(self) -> None:
        # libfuse has printed the error on standard error.
        with suppress(RuntimeError):
            self._mfusepy.FUSE(
                self._operations,
                str(self.file),
                foreground=True,
                subtype="aoe",
                default_permissions=True,
                **self._options,
            )
        self._mount_result.set()
        if self._mounted:
            self._on_unmount()

    def unmount(self, *, lazy: bool = False) -> None:
        """Unmount it. Safe to call twice.

        Args:
            lazy: unmount although it is open; ``join`` waits for the last close.

        Raises:
            BusyError: a process has it open; it stays mounted.
        """
        if self._thread.is_alive():
            unmount(self.file, lazy=lazy)

    def wait(self, seconds: float) -> bool:
        """Wait until no process has it open; return False on timeout."""
        return self._operations.wait_closed(seconds)

    def join(self) -> None:
        """Wait for the last close, then remove the file if it was created here."""
        self._thread.join()
        self._remove_file()

    def _remove_file(self) -> None:
        if self._created:
            self._created = False
            self.file.unlink(missing_ok=True)


def _load() -> Any:  # noqa: ANN401 - a module without types
    try:
        import mfusepy
    except (ImportError, OSError) as error:
        # mfusepy loads libfuse when it is imported.
        is_library = isinstance(error, OSError)
        what = "libfuse" if is_library else "mfusepy"
        command = "apt install fuse3" if is_library else "pip install 'pyaoe[fuse]'"
        raise NotFoundError(
            what, "not installed", f"Install it with: {command}"
        ) from error
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        fix = "Load it: modprobe fuse" if missing else _PERMISSION_FIX
        raise from_os_error(_DEVICE, error, fix) from error
    return mfusepy


def _create_mount_point(file: Path) -> bool:
    """Create the file if it does not exist; return True if it was created."""
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if is_mounted(file):
            raise BusyError(str(file), "is a mount point already") from None
        if not file.is_file() or file.stat().st_size:
            raise UsageError(
                str(file),
                "exists and is not an empty file",
                "Name an empty file, or one that does not exist",
            ) from None
        return False
    except OSError as error:
        raise from_os_error(str(file), error) from error
    return True
