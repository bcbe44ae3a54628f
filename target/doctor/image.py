"""Diagnosis of a disk image: access, direct I/O, file system and free space."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aoe.common.doctor.findings import Finding, Verdict, fail, from_error, ok, warn
from aoe.common.sizes import format_size, short_size
from aoe.common.uses import find_use
from aoe.errors import AccessError, AoEError, BusyError
from target.disks import open_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

_OCTAL: Final = re.compile(r"\\([0-7]{3})")
"""The escape for white space in the paths of mountinfo."""
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs"})
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


def check_image(path: str) -> Iterator[Finding]:
    """Check a disk image, block device or NBD URI; nothing is written to it."""
    try:
        disk = open_disk(path)
    except (AccessError, BusyError) as error:
        # It exists, and may be served by another user or be served already.
        yield from_error("opening", error, Verdict.WARN, path)
    except AoEError as error:
        yield from_error("opening", error, subject=path)
        return
    else:
        disk.close()
        yield ok(path, "opening", f"can be served: {format_size(disk.size)}")
    if "://" in path:
        return
    mode = Path(path).stat().st_mode
    yield from _check_local_use(path)
    yield from _check_direct(path)
    if stat.S_ISREG(mode):
        yield diagnose_filesystem(path, filesystem_of(path))
        yield _check_free_space(path)


def _check_direct(path: str) -> Iterator[Finding]:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except PermissionError:
        return
    except OSError:
        yield ok(path, "O_DIRECT", "not supported here: serve it without --direct")
    else:
        yield ok(path, "O_DIRECT", "supported: --direct can bypass the page cache")


def filesystem_of(path: str, table: str = "") -> str:
    """Return the type of the file system that a file is on, empty if unknown.

    Args:
        path: the file.
        table: text to use instead of /proc/self/mountinfo.
    """
    try:
        lines = table or Path("/proc/self/mountinfo").read_text("utf-8")
    except OSError:
        return ""
    real = Path(path).resolve()
    best, kind = -1, ""
    for line in lines.splitlines():
        # proc(5): the fifth field is the mount point, the first after " - " the type.
        left, _, right = line.partition(" - ")
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), left.split()[4])
        # >=: a later mount at the same mount point hides the earlier one.
        if real.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), right.split()[0]
    return kind


def diagnose_filesystem(path: str, kind: str) -> Finding:
    """Diagnose the file system that an image is stored on.

    Args:
        path: the image.
        kind: the type of the file system, empty if unknown.
    """
    check = "file system"
    if kind in _REMOTE:
        text = f"{kind}: if its server hangs, all disks of this process hang"
        return warn(path, check, text, "run the target on the file server itself")
    if kind in _MEMORY:
        text = f"{kind}: lost on power failure, even after a FLUSH"
        return warn(path, check, text, "move it to a disk if its data must persist")
    return ok(path, check, kind or "unknown")


def _check_free_space(path: str) -> Finding:
    status = os.stat(path)  # noqa: PTH116 - one call for both sizes
    missing = max(status.st_size - status.st_blocks * 512, 0)
    system = os.statvfs(path)
    free = system.f_bavail * system.f_frsize
    return diagnose_free_space(path, missing, free)


def diagnose_free_space(path: str, missing: int, free: int) -> Finding:
    """Diagnose whether the holes of a sparse file could be filled.

    Args:
        path: the file.
        missing: bytes of the file that are not allocated.
        free: bytes available on its file system.
    """
    check = "free space"
    if not missing:
        return ok(path, check, "the file is fully allocated")
    holes = f"{short_size(missing)} not allocated"
    if missing <= free:
        return ok(path, check, f"{holes}, {short_size(free)} free on its file system")
    text = (
        f"{holes}, but only {short_size(free)} free on its file system: when that is "
        "full, writes fail with a device fault"
    )
    return warn(path, check, text, "free some space, or serve a smaller disk")


def _check_local_use(path: str) -> Iterator[Finding]:
    info = Path(path).stat()
    use = find_use(info, 0, info.st_size)
    if use:
        text = f"{use}: writes from both sides corrupt it"
        fix = "unmount and detach it, or serve it with --read-only"
        yield fail(path, "local use", text, fix)
