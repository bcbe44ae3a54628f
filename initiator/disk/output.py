"""Files and block devices as the destination of a copy.

A file is written under a temporary name, which replaces the file once the copy is
complete and stable: until then, an existing backup is what it was. ``commit`` does
that; ``close`` without ``commit`` removes the temporary file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aoe.common.files import sync_directory
from aoe.common.uses import check_unused, find_use, is_read_only_device
from aoe.errors import AccessError, AoEError, BusyError, UsageError, from_os_error
from initiator.disk.files import (
    FileSource,
    StreamEndpoint,
    check_is_file,
    flush_file,
    is_stream,
    translated_errors,
)

if TYPE_CHECKING:
    from initiator.disk.copy import Chunk

_USE_FIX: Final = "Unmount or detach it, or use --force"
_LOCK_FIX: Final = "Stop it first, or use --force"
_NAME_PART: Final = 40
"""Characters of the file's name in the temporary name, which may have 255 bytes."""


class _Output:
    # What files and block devices have in common.

    path: Path
    _fd: int
    _keeps_holes = False

    def write(self, chunk: Chunk) -> int:
        """Write a chunk, which is done on return; zeroes of files stay holes."""
        runs = list(chunk.data_runs()) if self._keeps_holes else [(0, chunk.length)]
        if not self._keeps_holes:
            chunk.fill_hole()
        for start, end in runs:
            done = start
            while done < end:
                view = chunk.view[done:end]
                with translated_errors(str(self.path)):
                    done += os.pwritev(self._fd, [view], chunk.offset + done)
        chunk.is_done = True
        return sum(end - start for start, end in runs)

    def run_once(self) -> None:
        """Do nothing: files are written synchronously."""

    def finish(self) -> None:
        """Make the data stable.

        Raises:
            AoEError: part of the data did not reach the disk.
        """
        flush_file(self._fd, str(self.path))

    def _open_written(self, path: Path) -> FileSource:
        # Pages that are clean are dropped, so that the data is read from the disk.
        with suppress(OSError):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return FileSource(path, any_size=True)


class DeviceDestination(_Output):
    """A block device as destination.

    Args:
        path: the path.
        force: write to it although it is in use.

    Raises:
        BusyError: it is mounted, or in use by another device or program.
        AccessError: it is read-only.
        AoEError: it cannot be opened.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        self.path = path
        # O_EXCL fails if it is in use, and keeps it from being mounted meanwhile.
        flags = os.O_RDWR | os.O_CLOEXEC | (0 if force else os.O_EXCL)
        try:
            self._fd = os.open(path, flags)
        except OSError as error:
            if error.errno == errno.EBUSY:
                use = find_use(path.stat(), 0, 0) or "mounted or in use"
                raise BusyError(str(path), use, _USE_FIX) from error
            raise from_os_error(str(path), error) from error
        try:
            self._size = os.lseek(self._fd, 0, os.SEEK_END)
            _check_writable(path, self._fd)
            if not force:
                _check_unused(path, self._fd, self._size)
        except BaseException:
            self.close()
            raise

    def prepare(self, size: int | None) -> None:
        """Check that the device is large enough.

        Raises:
            UsageError: it is not.
        """
        if size is not None and size > self._size:
            raise UsageError(str(self.path), f"is too small for {size} bytes")

    def open_written(self) -> FileSource:
        """Open the device to read back what was written."""
        return self._open_written(self.path)

    def commit(self) -> None:
        """Do nothing: the data is where it belongs."""

    def close(self) -> None:
        """Close the device."""
        os.close(self._fd)


class FileDestination(_Output):
    """A regular file as destination, new or replaced.

    Args:
        path: the path. Symbolic links are followed.
        in_place: overwrite an existing file itself. It is emptied when the first data
            has been read.
        force: replace it although it is in use.

    Raises:
        UsageError: it is a directory.
        BusyError: it is being served, or attached to a loop device, or used as swap.
        AoEError: it cannot be opened or created.
    """

    _keeps_holes = True

    def __init__(
        self, path: Path, *, in_place: bool = False, force: bool = False
    ) -> None:
        self.path = path
        self._real = Path(os.path.realpath(path))
        self._temporary: Path | None = None
        self._size = 0
        self._must_empty = False
        self._existing = -1
        with translated_errors(str(path)):
            check_is_file(path)
            if self._real.exists():
                self._existing = os.open(self._real, os.O_RDWR | os.O_CLOEXEC)
        try:
            if self._existing >= 0 and not force:
                end = os.fstat(self._existing).st_size
                _check_unused(path, self._existing, end)
            if in_place:
                self._open_in_place()
            else:
                self._create_temporary()
        except BaseException:
            if self._existing >= 0:
                os.close(self._existing)
            raise

    def _open_in_place(self) -> None:
        with translated_errors(str(self.path)):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(self._real, flags, 0o666)
        self._must_empty = True

    def _create_temporary(self) -> None:
        name = f".{self._real.name[:_NAME_PART]}.{secrets.token_hex(4)}.part"
        temporary = self._real.with_name(name)
        # The data of a private file must not be readable meanwhile.
        mode = 0o600 if self._existing >= 0 else 0o666
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._fd = os.open(temporary, flags, mode)
        except OSError as error:
            fix = ""
            if self._existing >= 0:
                fix = "To overwrite the file itself, use --in-place"
            what = str(self.path) if self._existing < 0 else str(self._real.parent)
            raise from_os_error(what, error, fix) from error
        self._temporary = temporary

    def prepare(self, size: int | None) -> None:
        """Check that the file may have ``size`` bytes, and extend a temporary file.

        Raises:
            AoEError: it may not: RLIMIT_FSIZE, or the limit of the file system.
        """
        self._size = size or 0
        with translated_errors(str(self.path)):
            before = os.fstat(self._fd).st_size
            if self._size > before:
                os.ftruncate(self._fd, self._size)
            if self._must_empty:
                os.ftruncate(self._fd, before)

    def write(self, chunk: Chunk) -> int:
        """Write a chunk, which is done on return; zeroes stay holes."""
        self._empty()
        try:
            return super().write(chunk)
        except AoEError as error:
            cause = error.__cause__
            if (
                self._existing < 0
                or self._temporary is None
                or not isinstance(cause, OSError)
                or cause.errno not in (errno.ENOSPC, errno.EDQUOT)
            ):
                raise
            fix = "The old file is unchanged; make room for both, or use --in-place"
            raise AoEError(error.what, error.why, fix) from cause

    def _empty(self) -> None:
        if not self._must_empty:
            return
        self._must_empty = False
        with translated_errors(str(self.path)):
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, self._size)

    def finish(self) -> None:
        """Make the data stable, as yet under the temporary name."""
        self._empty()
        super().finish()

    def open_written(self) -> FileSource:
        """Open the file to read back what was written, before ``commit``."""
        return self._open_written(self._temporary or self._real)

    def commit(self) -> None:
        """Give the temporary file its name, with mode and owner of the replaced one.

        Raises:
            AoEError: it cannot be renamed; the temporary file stays.
        """
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            self._copy_attributes()
            try:
                temporary.replace(self._real)
            except OSError as error:
                fix = f"The copy is complete: {temporary}"
                raise from_os_error(str(self.path), error, fix) from error
        self._flush_directory()

    def _copy_attributes(self) -> None:
        if self._existing < 0:
            return
        info = os.fstat(self._existing)
        # Access control lists are extended attributes. Only root may change the owner.
        with suppress(OSError):
            os.fchown(self._fd, info.st_uid, info.st_gid)
        with suppress(OSError):
            os.fchmod(self._fd, stat.S_IMODE(info.st_mode))
        with suppress(OSError):
            for name in os.listxattr(self._existing):
                os.setxattr(self._fd, name, os.getxattr(self._existing, name))

    def _flush_directory(self) -> None:
        # Without it, a crash of the host may undo the rename.
        try:
            sync_directory(self._real.parent)
        except PermissionError:
            return  # It may be written to, but not read.
        except OSError as error:
            # EINVAL: the file system has no fsync of directories.
            if error.errno != errno.EINVAL:
                raise from_os_error(str(self._real.parent), error) from error

    def close(self) -> None:
        """Close the file. Without ``commit``, remove the temporary file."""
        os.close(self._fd)
        if self._existing >= 0:
            os.close(self._existing)
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
            self._temporary = None


def open_destination(
    path: Path, *, in_place: bool = False, force: bool = False
) -> FileDestination | DeviceDestination | StreamEndpoint:
    """Open a file, block device, pipe or character device to write to.

    Raises:
        AoEError: as ``FileDestination`` and ``DeviceDestination``.
    """
    with translated_errors(str(path)):
        if path.exists() and is_stream(path):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            return StreamEndpoint(fd, str(path))
        return open_storage(path, in_place=in_place, force=force)


def open_standard_output(fd: int, *, force: bool = False) -> StreamEndpoint:
    """Return standard output as a destination; it may be redirected.

    Raises:
        BusyError: it is a block device in use. A file is empty already.
    """
    info = os.fstat(fd)
    if stat.S_ISBLK(info.st_mode) and not force:
        check_unused("standard output", info, 0, 0, _USE_FIX)
    return StreamEndpoint(fd, "standard output")


def open_storage(
    path: Path, *, in_place: bool = False, force: bool = False
) -> FileDestination | DeviceDestination:
    """Open a file or block device to write to, and refuse anything else.

    Raises:
        AoEError: as ``FileDestination`` and ``DeviceDestination``.
    """
    if path.is_block_device():
        return DeviceDestination(path, force=force)
    return FileDestination(path, in_place=in_place, force=force)


def _check_writable(path: Path, fd: int) -> None:
    """Check that the kernel accepts writes to an open block device.

    Raises:
        AccessError: it does not.
    """
    if is_read_only_device(fd):
        fix = f"To allow writes: blockdev --setrw {path}"
        raise AccessError(str(path), "the device is set to read-only", fix)


def _check_unused(path: Path, fd: int, size: int) -> None:
    """Check that neither this host nor a target uses a file or device, and lock it.

    Raises:
        BusyError: one does.
    """
    check_unused(path, os.fstat(fd), 0, size, _USE_FIX)
    # A target locks the files it serves.
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            why = "served or in use by another program"
            raise BusyError(str(path), why, _LOCK_FIX) from error
        # The file system does not support locks: go on without.
