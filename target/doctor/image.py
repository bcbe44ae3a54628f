"""A disk image before it is served: may it be, how, and is there room for all of it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aoe.common.doctor.findings import Finding, Verdict, fail, from_error, ok, warn
from aoe.common.sizes import format_size, short_size
from aoe.errors import AccessError, AoEError, BusyError
from target.disks import open_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

_OCTAL: Final = re.compile(r"\\([0-7]{3})")
"""How the kernel writes blanks in a path."""
_REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs"})
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})


def examine_image(path: str) -> Iterator[Finding]:
    """Look at what ``serve`` would be given as PATH; nothing is written to it."""
    try:
        disk = open_disk(path)
    except (AccessError, BusyError) as error:
        # It is there, and may be served in another way, or is already.
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
    yield from _examine_direct(path)
    if stat.S_ISREG(mode):
        yield judge_filesystem(path, filesystem_of(path))
        yield _examine_room(path)
        yield from _examine_loops(path)


def _examine_direct(path: str) -> Iterator[Finding]:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except PermissionError:
        return
    except OSError:
        yield ok(path, "O_DIRECT", "not to be had here: serve it without --direct")
    else:
        yield ok(path, "O_DIRECT", "--direct works: around the page cache")


def filesystem_of(path: str, table: str = "") -> str:
    """Return the kind of file system that a file is on, empty where nobody knows.

    Args:
        path: the file.
        table: what to read in place of /proc/self/mountinfo.
    """
    try:
        lines = table or Path("/proc/self/mountinfo").read_text("utf-8")
    except OSError:
        return ""
    real = Path(path).resolve()
    best, kind = -1, ""
    for line in lines.splitlines():
        # ... mount point is the fifth word, the kind the first behind a dash.
        left, _, right = line.partition(" - ")
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), left.split()[4])
        # The last one mounted at a place hides those before it.
        if real.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), right.split()[0]
    return kind


def judge_filesystem(path: str, kind: str) -> Finding:
    """Judge where an image lies."""
    check = "file system"
    if kind in _REMOTE:
        text = (
            f"{kind}: when its server hangs, everything that this process serves does"
        )
        return warn(path, check, text, "serve it where it lies")
    if kind in _MEMORY:
        text = f"{kind}: gone with the power, whatever a FLUSH was answered"
        return warn(path, check, text, "move it to a disk, if it is to last")
    return ok(path, check, kind or "unknown")


def _examine_room(path: str) -> Finding:
    found = os.stat(path)  # noqa: PTH116 - one look for both
    missing = max(found.st_size - found.st_blocks * 512, 0)
    system = os.statvfs(path)
    free = system.f_bavail * system.f_frsize
    return judge_room(path, missing, free)


def judge_room(path: str, missing: int, free: int) -> Finding:
    """Judge a sparse file.

    Args:
        path: the file.
        missing: bytes of holes in it.
        free: bytes that the file system has left for us.
    """
    if not missing:
        return ok(path, "room", "all of it is allocated")
    holes = f"{short_size(missing)} of holes"
    if missing <= free:
        return ok(path, "room", f"{holes}, {short_size(free)} free for them")
    text = (
        f"{holes}, and {short_size(free)} free: writes fail with a device fault when "
        "that is used up"
    )
    return warn(path, "room", text, "make room, or give clients a smaller disk")


def _examine_loops(path: str) -> Iterator[Finding]:
    real = Path(path).resolve()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            used = backing.read_text("utf-8").rstrip("\n")
        except OSError:
            continue
        if used == str(real):
            device = f"/dev/{backing.parts[3]}"
            text = f"is {device} as well: two that write to it destroy it"
            yield fail(path, "loop device", text, f"losetup -d {device}")
