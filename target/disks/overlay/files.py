"""Overlays as files: made, opened and locked, looked at, committed and reset."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from aoe.common.sizes import format_size
from aoe.errors import (
    AoEError,
    BusyError,
    DecodeError,
    NotFoundError,
    UsageError,
    from_os_error,
)
from target.disks.file import FileDisk, OpenFlags, open_file
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

_BASE_FIX: Final = (
    "Put the old one back, or empty the overlay with: aoe-target overlay reset {}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayStatus:
    """What there is to know of an overlay.

    Args:
        path: the overlay.
        base: the image below it.
        base_state: ``unchanged``, ``changed`` or ``missing``.
        state: ``ready``, or ``committing`` or ``resetting`` after an interruption.
        in_use: a program has it open.
        size: bytes of the disk.
        cluster_size: bytes of a cluster.
        clusters: how many the disk has.
        used: how many of them the overlay has.
        disk_bytes: bytes that the overlay takes on its file system.
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
    """Say what tells whether a base has changed since; a device has no such time."""
    if "://" in path:
        return BaseIdentity(path=path, offset=offset, size=size, mtime_ns=0)
    info = Path(path).stat()
    mtime = info.st_mtime_ns if stat.S_ISREG(info.st_mode) else 0
    where = str(Path(path).absolute())
    return BaseIdentity(path=where, offset=offset, size=size, mtime_ns=mtime)


def open_overlay(
    path: str | Path, base: Disk, identity: BaseIdentity, flags: OpenFlags
) -> OverlayDisk:
    """Open an overlay, made if there is none, for nobody else at the same time.

    Args:
        path: the overlay.
        base: the disk below; the overlay closes it, unless this raises.
        identity: of the base.
        flags: those of the overlay: read_only, sync and force count. Force accepts a
            base that was changed.

    Raises:
        AoEError: one of its children, with the fix: no overlay, made for another
            base, the base has changed, in use, interrupted.
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


def overlay_status(path: str | Path) -> OverlayStatus:
    """Look at an overlay, in use or not.

    Raises:
        AoEError: one of its children, with the fix.
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
            used = disk.used_count()
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
    """Write all that the overlay has into its base, and empty it.

    Neither may be in use. Interrupted, it can be repeated, and must be: until then the
    overlay is not served. Other overlays over the same base are worth nothing after it.

    Args:
        path: the overlay.
        progress: called with the bytes written and their whole number.
        force: although the base was changed.

    Returns:
        The bytes written.

    Raises:
        AoEError: one of its children, with the fix.
    """
    path = Path(path)
    with ExitStack() as stack:
        fd, header = _open(path, OpenFlags())
        store = FileDisk(fd, 0, header.file_size, read_only=False)
        stack.callback(store.close)
        base = _open_base(path, header.base, stack)
        identity = identify_base(header.base.path, header.base.offset, base.size)
        if header.state == "resetting":
            _empty(fd, header)
            return 0
        if header.state == "ready" and not header.base.is_like(identity):
            _check_base(path, header.base, identity, force=force)
        try:
            disk = OverlayDisk(base, store, header, boot=this_boot())
            done = _write_back(disk, base, progress)
            identity = identify_base(header.base.path, header.base.offset, base.size)
            disk.write_header(state="resetting", base=identity)
            _empty(fd, disk.header)
        except OSError as error:
            raise from_os_error(str(path), error) from error
        return done


def _write_back(
    disk: OverlayDisk, base: Disk, progress: Callable[[int, int], None]
) -> int:
    disk.flush()
    disk.write_header(state="committing")
    total = disk.used_bytes()
    done = 0

    def advance(length: int) -> None:
        nonlocal done
        done += length
        progress(done, total)

    disk.copy_to(base, advance)
    return done


def reset_overlay(path: str | Path) -> None:
    """Empty an overlay, and take the base as it is now.

    Raises:
        AoEError: one of its children, with the fix.
    """
    path = Path(path)
    fd, header = _open(path, OpenFlags())
    try:
        if header.state == "committing":
            _check_state(path, header)
        base = _current_base(header.base)
        header = _put(fd, header, state="resetting", base=base)
        _empty(fd, header)
    except OSError as error:
        raise from_os_error(str(path), error) from error
    finally:
        os.close(fd)


def _create(path: Path, header: OverlayHeader) -> None:
    # Whole or not at all: linked to its name when all of it is there.
    new = path.with_name(f".{path.name}.{os.getpid()}")
    mode = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(new, mode, 0o666)
        try:
            os.truncate(fd, header.file_size)
            _put(fd, header)
            with suppress(FileExistsError):
                os.link(new, path)
            _sync_folder(path.parent)
        finally:
            os.close(fd)
            new.unlink()
    except OSError as error:
        raise from_os_error(str(path), error) from error
    except ValueError as error:
        raise UsageError(
            header.base.path, "the path is too long or no text", "Give it another name"
        ) from error


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open(path: Path, flags: OpenFlags) -> tuple[int, OverlayHeader]:
    if not path.exists():
        raise NotFoundError(
            str(path),
            "no such overlay",
            f"Make it with: aoe-target serve ADDRESS IFACE PATH --overlay {path}",
        )
    # An overlay is never shared, whatever is forced, but for a look at it.
    may_share = flags.force and flags.read_only
    fd, size = open_file(
        path,
        OpenFlags(read_only=flags.read_only, sync=flags.sync, force=may_share),
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
        raise UsageError(str(path), "not an overlay", "Name another file") from error
    if size < header.file_size and header.state != "resetting":
        raise AoEError(str(path), "the overlay was cut short", "Restore it from a copy")
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
    path: Path, known: BaseIdentity, found: BaseIdentity, *, force: bool
) -> None:
    if (known.offset, known.size) != (found.offset, found.size):
        raise UsageError(
            str(path),
            f"was made over {format_size(known.size)} from byte {known.offset:,} on, "
            f"and this base is {format_size(found.size)} from {found.offset:,}",
            "Name the base that it was made for, or another overlay",
        )
    if not force:
        raise UsageError(
            str(path),
            f"the base {found.path} was changed since the overlay was made",
            _BASE_FIX.format(path) + ", or --force",
        )


def _open_base(path: Path, known: BaseIdentity, stack: ExitStack) -> FileDisk:
    if "://" in known.path:
        raise UsageError(
            str(path),
            f"its base {known.path} cannot be locked",
            "Copy the disk instead, as it is served",
        )
    window = OpenFlags(offset=known.offset, length=known.size)
    fd, size = open_file(Path(known.path), window)
    base = FileDisk(fd, known.offset, size, read_only=False)
    stack.callback(base.close)
    return base


def _base_state(known: BaseIdentity) -> str:
    if "://" not in known.path and not Path(known.path).exists():
        return "missing"
    return "unchanged" if _current_base(known) == known else "changed"


def _current_base(known: BaseIdentity) -> BaseIdentity:
    try:
        return identify_base(known.path, known.offset, known.size)
    except FileNotFoundError:
        return known


def _put(fd: int, header: OverlayHeader, **changes: object) -> OverlayHeader:
    header = msgspec.structs.replace(header, sequence=header.sequence + 1, **changes)
    at, raw = header.pack()
    os.fsync(fd)
    os.pwrite(fd, raw, at)
    os.fsync(fd)
    return header


def _empty(fd: int, header: OverlayHeader) -> OverlayHeader:
    # Behind the headers everything goes, and comes back as a hole.
    os.truncate(fd, header.stable_map)
    os.truncate(fd, header.file_size)
    return _put(fd, header, state="ready", boot="")
