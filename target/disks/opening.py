"""Open, measure and check files and block devices that are to be served.

All problems with a path are reported when it is opened.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.ata import SECTOR
from aoe.common.sizes import check_sectors, format_size
from aoe.common.uses import check_unused, find_use, is_read_only_device
from aoe.errors import AccessError, BusyError, NotFoundError, UsageError, from_os_error

if TYPE_CHECKING:
    from pathlib import Path

    from target.disks.file import OpenFlags

log: Final = logging.getLogger("aoe-target")

_FLOCK: Final = Struct("@hhqqi4x")
"""struct flock: l_type, l_whence, l_start, l_len, l_pid."""
_BUSY_FIX: Final = "Unmount or detach it, or use --read-only or --force"


def open_file(path: Path, flags: OpenFlags) -> tuple[int, int]:
    """Open a file or a block device and lock the part of it that will be served.

    Returns:
        The file descriptor, and the size of the window in bytes.

    Raises:
        UsageError: neither a file nor a block device, not a multiple of 512 bytes, the
            window is not within the file, or ``create`` differs from its size.
        NotFoundError: the path does not exist.
        AccessError: no permission to read or write it.
        BusyError: it is mounted, or locked by another process.
    """
    if flags.create is not None:
        _create(path, flags.create)
    mode = _check_type(path)
    if not mode & 0o222 and not flags.read_only:
        raise AccessError(str(path), "no user may write to it", "Use --read-only")
    fd = _open(path, flags, is_device=stat.S_ISBLK(mode))
    try:
        _check_writable(path, fd, flags)
        size = _window(path, os.lseek(fd, 0, os.SEEK_END), flags)
        _check_in_use(path, fd, flags, size)
        if not flags.force:
            _lock(path, fd, flags, size)
    except BaseException:
        os.close(fd)
        raise
    return fd, size


def measure_file(path: Path, flags: OpenFlags) -> int:
    """Return the current size of a window of a file or block device, in bytes.

    Raises:
        AoEError: as ``open_file``, except for locks.
    """
    _check_type(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(str(path), error) from error
    try:
        size = _window(path, os.lseek(fd, 0, os.SEEK_END), flags)
        _check_in_use(path, fd, flags, size)
        return size
    finally:
        os.close(fd)


def _create(path: Path, size: int) -> None:
    check_sectors(str(path), size)
    mode = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, mode, 0o666)
    except FileExistsError:
        return
    except OSError as error:
        raise from_os_error(str(path), error) from error
    try:
        os.truncate(fd, size)
    except OSError as error:
        path.unlink()
        raise from_os_error(str(path), error, "Choose a smaller size") from error
    finally:
        os.close(fd)


def _check_type(path: Path) -> int:
    # The file type is checked before opening: opening a FIFO would block.
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise NotFoundError(
            str(path), "no such file", "Make one with --create 1G"
        ) from None
    except OSError as error:
        raise from_os_error(str(path), error) from error
    if stat.S_ISDIR(mode):
        why = "is a directory"
    elif stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return mode
    else:
        why = "neither a file nor a block device"
    raise UsageError(str(path), why, "Name a disk image or a block device")


def _open(path: Path, flags: OpenFlags, *, is_device: bool) -> int:
    mode = os.O_CLOEXEC | (os.O_RDONLY if flags.read_only else os.O_RDWR)
    if flags.sync:
        mode |= os.O_DSYNC
    if flags.direct:
        mode |= os.O_DIRECT
    if is_device and not flags.read_only and not flags.force:
        # For a block device O_EXCL fails while it is mounted or has a holder.
        mode |= os.O_EXCL
    try:
        return os.open(path, mode)
    except OSError as error:
        raise _open_error(path, flags, error) from error


def _open_error(path: Path, flags: OpenFlags, error: OSError) -> Exception:
    if error.errno == errno.EBUSY:
        in_use = find_use(path.stat(), 0, 0) or "mounted or in use"
        return BusyError(str(path), in_use, _BUSY_FIX)
    if error.errno == errno.EINVAL and flags.direct:
        return UsageError(
            str(path), "this file system does not support O_DIRECT", "Omit --direct"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        readable = not flags.read_only and os.access(path, os.R_OK)
        why = "not allowed to write" if readable else "not allowed to read"
        fix = "Use --read-only" if readable else "Run as a user with access to it"
        return AccessError(str(path), why, fix)
    return from_os_error(str(path), error)


def _check_writable(path: Path, fd: int, flags: OpenFlags) -> None:
    if not flags.read_only and is_read_only_device(fd):
        raise AccessError(
            str(path), "the device is set to read-only", "Use --read-only"
        )


def _window(path: Path, size: int, flags: OpenFlags) -> int:
    if flags.create is not None and flags.create != size:
        raise UsageError(
            str(path),
            f"already exists with {format_size(size)}",
            "Omit --create, or choose another path",
        )
    if flags.offset % SECTOR:
        check_sectors(f"--offset {flags.offset}", flags.offset)
    length = size - flags.offset if flags.length is None else flags.length
    if flags.offset + length > size or length < 0:
        raise UsageError(
            str(path),
            f"the window ends at {flags.offset + max(length, 0):,} bytes, "
            f"the file at {size:,}",
            "Choose a smaller --offset or --length",
        )
    if not length:
        raise UsageError(
            str(path),
            "the disk is empty: 0 bytes",
            f"Give it a size: truncate -s 1G {path}",
        )
    return check_sectors(str(path), length)


def _check_in_use(path: Path, fd: int, flags: OpenFlags, size: int) -> None:
    info = os.fstat(fd)
    if not flags.read_only and not flags.force:
        check_unused(path, info, flags.offset, size, _BUSY_FIX)
    elif in_use := find_use(info, flags.offset, size):
        log.warning(
            "%s: %s: clients and the local user do not see each other's changes",
            path,
            in_use,
        )


def _lock(path: Path, fd: int, flags: OpenFlags, size: int) -> None:
    # An open file description lock on the window: the kernel releases it when the
    # process ends, and locks on different windows of a file do not conflict.
    kind = fcntl.F_RDLCK if flags.read_only else fcntl.F_WRLCK
    lock = _FLOCK.pack(kind, os.SEEK_SET, flags.offset, size, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return  # The file system does not support locks.
        raise BusyError(
            str(path),
            "served or in use by another program",
            "Stop it first, or use --force",
        ) from error
