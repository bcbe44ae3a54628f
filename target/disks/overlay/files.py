"""Overlay files: create, open and lock, inspect, commit, reset."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from aoe.common.files import sync_directory
from aoe.common.sizes import format_size
from aoe.errors import (
    AoEError,
    BusyError,
    DecodeError,
    NotFoundError,
    UsageError,
    from_os_error,
)
from target.disks.file import FileDisk, OpenFlags
from target.disks.opening import NO_OPTIONS, check_directory, open_file, try_file
from target.disks.overlay.disk import OverlayDisk, this_boot
from target.disks.overlay.format import (
    HEADER_SLOT,
    BaseIdentity,
    OverlayHeader,
    find_header,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from target.protocol.disk import Disk

_FIX_BASE: Final = (
    "Restore the old base, or discard the overlay with: aoe-target overlay reset {}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayStatus:
    """The status of an overlay.

    Args:
        path: the overlay file.
        base: the path of the base image.
        base_state: ``unchanged``, ``changed`` or ``missing``.
        state: ``ready``, or ``committing`` or ``resetting`` after an interruption.
        in_use: True if a process has it open.
        size: size of the disk in bytes.
        cluster_size: size of a cluster in bytes.
        clusters: number of clusters of the disk.
        used: number of clusters that the overlay has allocated.
        disk_bytes: space that the overlay uses on its file system, bytes.
    """

    path: str
    base: str
    base_state: str
    state: str
    in_use: bool
    size: int
    cluster_size: int
    clusters: int
    used: int
    disk_bytes: int


def identify_base(path: str, offset: int, size: int) -> BaseIdentity:
    """Return the properties that identify a base; a device has no usable mtime."""
    if "://" in path:
        return BaseIdentity(path=path, offset=offset, size=size, mtime_ns=0)
    info = Path(path).stat()
    mtime = info.st_mtime_ns if stat.S_ISREG(info.st_mode) else 0
    where = str(Path(path).absolute())
    return BaseIdentity(path=where, offset=offset, size=size, mtime_ns=mtime)


def open_overlay(
    path: str | Path, base: Disk, identity: BaseIdentity, flags: OpenFlags
) -> OverlayDisk:
    """Open an overlay with an exclusive lock; create it if it does not exist.

    Args:
        path: the overlay file.
        base: the base disk; the overlay closes it, unless this function raises.
        identity: the identity of the base.
        flags: only read_only, sync and force are used. Force accepts a base that has
            changed since the overlay was made.

    Raises:
        AoEError: the file is not an overlay, was made for another base, its base has
            changed, it is in use, or a commit or reset was interrupted.
    """
    path = Path(path)
    if not flags.read_only and not path.exists():
        _create(path, OverlayHeader(base=identity))
    with ExitStack() as stack:
        fd, header = _open(path, flags)
        store = FileDisk(fd, 0, header.file_size, read_only=flags.read_only)
        stack.callback(store.close)
        _check_state(path, header)
        if not header.base.is_like(identity):
            _check_base(path, header.base, identity, force=flags.force)
        try:
            disk = OverlayDisk(
                base,
                store,
                header,
                read_only=flags.read_only,
                sync=flags.sync,
                boot=this_boot(),
            )
            if header.base != identity and not flags.read_only:
                disk.write_header(base=identity)
        except OSError as error:
            raise from_os_error(str(path), error) from error
        stack.pop_all()
        return disk


def check_overlay(path: str | Path, identity: BaseIdentity, flags: OpenFlags) -> None:
    """Check that ``open_overlay`` can succeed; nothing is created, locked or written.

    Args:
        path: the overlay file.
        identity: the identity of the base.
        flags: only read_only and force are used.

    Raises:
        AoEError: as ``open_overlay``, except for locks.
    """
    path = Path(path)
    if not flags.read_only and not path.exists():
        check_directory(path)
        return
    _check_exists(path)
    fd, size = try_file(path, OpenFlags(read_only=flags.read_only), NO_OPTIONS)
    if fd is None:
        return
    try:
        header = _read_header(path, fd, size)
    except OSError as error:
        raise from_os_error(str(path), error) from error
    finally:
        os.close(fd)
    _check_state(path, header)
    if not header.base.is_like(identity):
        _check_base(path, header.base, identity, force=flags.force)


def overlay_status(path: str | Path) -> OverlayStatus:
    """Return the status of an overlay, which may be in use.

    Raises:
        AoEError: the overlay does not exist or cannot be read.
    """
    path = Path(path)
    in_use = False
    try:
        fd, header = _open(path, OpenFlags(read_only=True))
    except BusyError:
        in_use = True
        fd, header = _open(path, OpenFlags(read_only=True, force=True))
    store = FileDisk(fd, 0, header.file_size, read_only=True)
    try:
        used = 0
        if header.state != "resetting":
            disk = OverlayDisk(store, store, header, read_only=True, boot=this_boot())
            used = disk.allocated_count()
        return OverlayStatus(
            path=str(path),
            base=header.base.path,
            base_state=_base_state(header.base),
            state=header.state,
            in_use=in_use,
            size=header.base.size,
            cluster_size=header.cluster,
            clusters=header.clusters,
            used=used,
            disk_bytes=os.fstat(fd).st_blocks * 512,
        )
    except OSError as error:
        raise from_os_error(str(path), error) from error
    finally:
        store.close()


def commit_overlay(
    path: str | Path, progress: Callable[[int, int], None], *, force: bool = False
) -> int:
    """Write all clusters of an overlay to its base, and empty the overlay.

    Neither may be in use. A commit that was interrupted must be repeated before the
    overlay can be served. Other overlays over the same base become invalid.

    Args:
        path: the overlay file.
        progress: called with the number of bytes written and the total.
        force: commit although the base has changed.

    Returns:
        The number of bytes written.

    Raises:
        AoEError: the overlay or its base cannot be opened, locked or written.
    """
    path = Path(path)
    with ExitStack() as stack:
        fd, header = _open(path, OpenFlags())
        store = FileDisk(fd, 0, header.file_size, read_only=False)
        stack.callback(store.close)
        base = _open_base(path, header.base, stack)
        identity = identify_base(header.base.path, header.base.offset, base.size)
        if header.state == "resetting":
            _empty_overlay(fd, header)
            return 0
        if header.state == "ready" and not header.base.is_like(identity):
            _check_base(path, header.base, identity, force=force)
        try:
            disk = OverlayDisk(base, store, header, boot=this_boot())
            done = _write_back(disk, base, progress)
            identity = identify_base(header.base.path, header.base.offset, base.size)
            disk.write_header(state="resetting", base=identity)
            _empty_overlay(fd, disk.header)
        except OSError as error:
            raise from_os_error(str(path), error) from error
        return done


def _write_back(
    disk: OverlayDisk, base: Disk, progress: Callable[[int, int], None]
) -> int:
    disk.flush()
    disk.write_header(state="committing")
    total = disk.allocated_bytes()
    done = 0

    def advance(length: int) -> None:
        nonlocal done
        done += length
        progress(done, total)

    disk.copy_to(base, advance)
    return done


def reset_overlay(path: str | Path) -> None:
    """Empty an overlay, and record the base as it is now.

    Raises:
        AoEError: the overlay cannot be opened, locked or written.
    """
    path = Path(path)
    fd, header = _open(path, OpenFlags())
    try:
        if header.state == "committing":
            _check_state(path, header)
        base = _current_base(header.base)
        header = _write_header(fd, header, state="resetting", base=base)
        _empty_overlay(fd, header)
    except OSError as error:
        raise from_os_error(str(path), error) from error
    finally:
        os.close(fd)


def _create(path: Path, header: OverlayHeader) -> None:
    # Created atomically: link(2) gives the file its name when it is complete.
    new = path.with_name(f".{path.name}.{os.getpid()}")
    mode = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(new, mode, 0o666)
        try:
            os.truncate(fd, header.file_size)
            _write_header(fd, header)
            with suppress(FileExistsError):
                os.link(new, path)
            sync_directory(path.parent)
        finally:
            os.close(fd)
            new.unlink()
    except OSError as error:
        raise from_os_error(str(path), error) from error
    except ValueError as error:
        raise UsageError(
            header.base.path, "the path is too long or not text", "Rename the base"
        ) from error


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise NotFoundError(
            str(path),
            "no such overlay",
            f"Create it with: aoe-target serve ADDRESS IFACE PATH --overlay {path}",
        )


def _open(path: Path, flags: OpenFlags) -> tuple[int, OverlayHeader]:
    _check_exists(path)
    # The lock is skipped only to read the status; --force does not skip it.
    may_share = flags.force and flags.read_only
    fd, size = open_file(
        path,
        OpenFlags(read_only=flags.read_only, sync=flags.sync, force=may_share),
        NO_OPTIONS,
    )
    try:
        return fd, _read_header(path, fd, size)
    except OSError as error:
        os.close(fd)
        raise from_os_error(str(path), error) from error
    except AoEError:
        os.close(fd)
        raise


def _read_header(path: Path, fd: int, size: int) -> OverlayHeader:
    try:
        header = find_header(os.pread(fd, 2 * HEADER_SLOT, 0))
    except DecodeError as error:
        raise UsageError(str(path), "not an overlay", "Use another file") from error
    if size < header.file_size and header.state != "resetting":
        raise AoEError(
            str(path), "the overlay is truncated", "Restore it from a backup"
        )
    return header


def _check_state(path: Path, header: OverlayHeader) -> None:
    if header.state == "ready":
        return
    verb = {"committing": "commit", "resetting": "reset"}[header.state]
    raise AoEError(
        str(path),
        f"a {verb} was interrupted",
        f"Finish it with: aoe-target overlay {verb} {path}",
    )


def _check_base(
    path: Path, recorded: BaseIdentity, found: BaseIdentity, *, force: bool
) -> None:
    if (recorded.offset, recorded.size) != (found.offset, found.size):
        raise UsageError(
            str(path),
            f"made for a base of {format_size(recorded.size)} at offset "
            f"{recorded.offset:,}, but this base has {format_size(found.size)} at "
            f"offset {found.offset:,}",
            "Use the base that it was made for, or another overlay",
        )
    if not force:
        raise UsageError(
            str(path),
            f"the base {found.path} has changed since the overlay was made",
            _FIX_BASE.format(path)
            + ". Use --force only if its content is still the same",
        )


def _open_base(path: Path, recorded: BaseIdentity, stack: ExitStack) -> FileDisk:
    if "://" in recorded.path:
        raise UsageError(
            str(path),
            f"its base {recorded.path} cannot be locked",
            "Copy the served disk instead",
        )
    window = OpenFlags(offset=recorded.offset, length=recorded.size)
    fd, size = open_file(Path(recorded.path), window, NO_OPTIONS)
    base = FileDisk(fd, recorded.offset, size, read_only=False)
    stack.callback(base.close)
    return base


def _base_state(recorded: BaseIdentity) -> str:
    if "://" not in recorded.path and not Path(recorded.path).exists():
        return "missing"
    return "unchanged" if _current_base(recorded) == recorded else "changed"


def _current_base(recorded: BaseIdentity) -> BaseIdentity:
    try:
        return identify_base(recorded.path, recorded.offset, recorded.size)
    except FileNotFoundError:
        return recorded


def _write_header(fd: int, header: OverlayHeader, **changes: object) -> OverlayHeader:
    header = msgspec.structs.replace(header, sequence=header.sequence + 1, **changes)
    at, raw = header.pack()
    os.fsync(fd)
    os.pwrite(fd, raw, at)
    os.fsync(fd)
    return header


def _empty_overlay(fd: int, header: OverlayHeader) -> OverlayHeader:
    # Truncates maps and clusters, and extends the file again with a hole.
    os.truncate(fd, header.stable_map)
    os.truncate(fd, header.file_size)
    return _write_header(fd, header, state="ready", boot="")
