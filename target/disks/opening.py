"""Open, measure and check files and block devices that are to be served.

All problems with a path are reported when it is opened.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from dataclasses import replace
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.ata import SECTOR
from aoe.common.sizes import check_sectors, format_size
from aoe.common.uses import check_unused, find_use, is_read_only_device
from aoe.errors import AccessError, BusyError, NotFoundError, UsageError, from_os_error

if TYPE_CHECKING:
    from target.disks.file import OpenFlags

log: Final = logging.getLogger("aoe-target")

_FLOCK: Final = Struct("@hhqqi4x")
"""struct flock: l_type, l_whence, l_start, l_len, l_pid."""
_DEVICES: Final = Path("/dev")


class Advice(NamedTuple):
    """What error messages advise, which depends on the options of the command.

    Args:
        in_use: for a file or device with a local user.
        locked: for a file that another program has locked.
        not_writable: added to the advice to get the permission.
        missing: for a file that does not exist.
    """

    in_use: str = "Unmount or detach it"
    locked: str = "Stop it first"
    not_writable: str = ""
    missing: str = "Restore it"


SERVE: Final = Advice(
    "Unmount or detach it, or use --read-only. With --force, writes from both sides "
    "corrupt it",
    "Stop it first. With --force, writes from both sides corrupt it",
    ", or use --read-only",
    "Make one with --create 1G",
)
NO_OPTIONS: Final = Advice()
"""For files to which the options of the command do not apply."""


def open_file(path: Path, flags: OpenFlags, advice: Advice = SERVE) -> tuple[int, int]:
    """Open a file or a block device and lock the part of it that will be served.

    Args:
        path: the path.
        flags: how to open it.
        advice: for error messages.

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
    mode = _check_mode(path, flags, advice)
    fd = _open(path, flags, advice, is_device=stat.S_ISBLK(mode))
    try:
        size = _check_open(path, fd, flags, advice)
        if not flags.force:
            _lock(path, fd, flags, size, advice)
    except BaseException:
        os.close(fd)
        raise
    return fd, size


def measure_file(path: Path, flags: OpenFlags) -> int:
    """Return the current size of a window of a file or block device, in bytes.

    Raises:
        AoEError: as ``open_file``, except for locks and missing permissions to write.
    """
    _check_type(path, SERVE)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(str(path), error) from error
    try:
        size = _window(path, os.lseek(fd, 0, os.SEEK_END), flags)
        _check_in_use(path, fd, flags, size, SERVE)
        return size
    finally:
        os.close(fd)


def try_file(
    path: Path, flags: OpenFlags, advice: Advice = SERVE
) -> tuple[int | None, int]:
    """Check whether ``open_file`` can succeed; nothing is created, locked or written.

    Returns:
        A descriptor for reading, None if ``flags.create`` would create the file, and
        the size of the window in bytes.

    Raises:
        AoEError: as ``open_file``, except for locks.
    """
    if flags.create is not None and not path.exists():
        check_sectors(str(path), flags.create)
        check_directory(path)
        return None, _check_window(path, flags.create, flags)
    mode = _check_mode(path, flags, advice)
    if not flags.read_only and not os.access(path, os.W_OK, effective_ids=True):
        raise _no_permission(path, flags, advice)
    reading = replace(flags, read_only=True)
    fd = _open(path, reading, advice, is_device=stat.S_ISBLK(mode))
    try:
        return fd, _check_open(path, fd, flags, advice)
    except BaseException:
        os.close(fd)
        raise


def check_directory(path: Path) -> None:
    """Check whether a file could be created.

    Raises:
        NotFoundError: its directory does not exist.
        AccessError: no permission to write to the directory.
    """
    if not path.parent.is_dir():
        raise NotFoundError(
            str(path), f"no directory {path.parent}", "Create it, or correct the path"
        )
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
        raise AccessError(
            str(path),
            f"not allowed to write to the directory {path.parent}",
            "Choose another path, or run as a user with access to it",
        )


def _check_mode(path: Path, flags: OpenFlags, advice: Advice) -> int:
    mode = _check_type(path, advice)
    if not mode & 0o222 and not flags.read_only:
        raise AccessError(
            str(path),
            "no user may write to it",
            f"chmod u+w {path}{advice.not_writable}",
        )
    return mode


def _check_open(path: Path, fd: int, flags: OpenFlags, advice: Advice) -> int:
    # Returns the size of the window.
    if not flags.read_only and is_read_only_device(fd):
        raise AccessError(
            str(path),
            "the device is set to read-only",
            f"To allow writes: blockdev --setrw {path}{advice.not_writable}",
        )
    size = _window(path, os.lseek(fd, 0, os.SEEK_END), flags)
    _check_in_use(path, fd, flags, size, advice)
    return size


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


def _check_type(path: Path, advice: Advice) -> int:
    # The file type is checked before opening: opening a FIFO would block.
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise _missing(path, advice) from None
    except OSError as error:
        raise from_os_error(str(path), error) from error
    if stat.S_ISDIR(mode):
        why = "is a directory"
    elif stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return mode
    else:
        why = "neither a file nor a block device"
    raise UsageError(str(path), why, "Name a disk image or a block device")


def _missing(path: Path, advice: Advice) -> NotFoundError:
    if path.absolute().is_relative_to(_DEVICES):
        # A file there would be in memory.
        return NotFoundError(str(path), "no such device", "List them with: lsblk")
    if not path.parent.is_dir():
        why = f"no directory {path.parent}"
        return NotFoundError(str(path), why, "Create it, or correct the path")
    return NotFoundError(str(path), "no such file", advice.missing)


def _open(path: Path, flags: OpenFlags, advice: Advice, *, is_device: bool) -> int:
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
        raise _open_error(path, flags, advice, error) from error


def _open_error(
    path: Path, flags: OpenFlags, advice: Advice, error: OSError
) -> Exception:
    if error.errno == errno.EBUSY:
        in_use = find_use(path.stat(), 0, 0) or "mounted or in use"
        return BusyError(str(path), in_use, advice.in_use)
    if error.errno == errno.EINVAL and flags.direct:
        return UsageError(
            str(path), "this file system does not support O_DIRECT", "Omit --direct"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _no_permission(path, flags, advice)
    return from_os_error(str(path), error)


def _no_permission(path: Path, flags: OpenFlags, advice: Advice) -> AccessError:
    if flags.read_only or not os.access(path, os.R_OK, effective_ids=True):
        why, fix = "not allowed to read", "Run as a user with access to it"
    elif os.statvfs(path).f_flag & os.ST_RDONLY:
        why = "on a file system that is mounted read-only"
        fix = f"Mount it for writing{advice.not_writable}"
    else:
        why = "not allowed to write"
        fix = f"Run as a user that may write to it{advice.not_writable}"
    return AccessError(str(path), why, fix)


def _window(path: Path, size: int, flags: OpenFlags) -> int:
    if flags.create is not None and flags.create != size:
        raise UsageError(
            str(path),
            f"already exists with {format_size(size)}",
            "Omit --create, or choose another path",
        )
    return _check_window(path, size, flags)


def _check_window(path: Path, size: int, flags: OpenFlags) -> int:
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
            "Insert a medium, or choose another device"
            if path.is_block_device()
            else f"Give it a size: truncate -s 1G {path}",
        )
    return check_sectors(str(path), length)


def _check_in_use(
    path: Path, fd: int, flags: OpenFlags, size: int, advice: Advice
) -> None:
    info = os.fstat(fd)
    if not flags.read_only and not flags.force:
        check_unused(path, info, flags.offset, size, advice.in_use)
    elif in_use := find_use(info, flags.offset, size):
        log.warning(
            "%s: %s: clients and the local user do not see each other's changes",
            path,
            in_use,
        )


def _lock(path: Path, fd: int, flags: OpenFlags, size: int, advice: Advice) -> None:
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
            advice.locked,
        ) from error
