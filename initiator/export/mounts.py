"""What is mounted where, by mount(8) and umount(8), and who is in the way."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.errors import AccessError, AoEError, BusyError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOT_PERMITTED: Final = 1
"""Exit code of mount(8) for wrong usage, and for users who may not."""
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_SHOWN: Final = 5
"""Users in the way that are named."""


def mount(
    device: Path, directory: Path, *, fstype: str, options: str, read_only: bool
) -> None:
    """Mount a device on a directory.

    Args:
        device: a block device.
        directory: where; it is there.
        fstype: of what kind the file system is; empty is what mount(8) finds.
        options: mount options, separated by commas.
        read_only: whether nothing may be written.

    Raises:
        AccessError: we may not mount.
        AoEError: mount(8) failed, in its words.
    """
    given = [*filter(None, options.split(",")), *(["ro"] if read_only else [])]
    words = ["-t", fstype] if fstype else []
    words += ["-o", ",".join(given)] if given else []
    done = _run("mount", *words, str(device), str(directory))
    if done.returncode == 0:
        return
    why = _said(done, f"mount: {directory}: ")
    if done.returncode == _NOT_PERMITTED or "denied" in why:
        raise AccessError(str(directory), why, "Run as root")
    raise AoEError(str(directory), f"not mounted: {why}", "Give --fstype, or mkfs")


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmount what is mounted there.

    Args:
        path: a mount point.
        lazy: not to mind who uses it: it is gone when they are.

    Raises:
        BusyError: somebody uses it; it remains.
        AoEError: umount failed, in its words.
    """
    # A user's own mount is undone by the program that made it.
    words = ["umount", *(["--lazy"] if lazy else [])]
    if os.geteuid() != 0:
        words = ["fusermount3", "-u", *(["-z"] if lazy else [])]
    done = _run(*words, str(path))
    if done.returncode == 0 or not is_mounted(path):
        return
    why = _said(done, f"umount: {path}: ")
    if "busy" not in why:
        raise AoEError(str(path), f"not unmounted: {why}")
    raise busy(path)


def busy(path: Path) -> BusyError:
    """Say who uses a file, a block device, or what is below a directory."""
    inside = [each.point for each in _mounts() if path in each.point.parents]
    mounts = [f"a mount on {each}" for each in (*inside, *mounts_of(path))]
    found = [*mounts, *_processes(path)]
    named = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    why = f"in use by {named}" if named else "in use, maybe in another mount namespace"
    return BusyError(str(path), why, "End that, or: aoe detach --lazy")


def has_users(path: Path, but: Path | None) -> bool:
    """Tell whether a process uses a file, or a mount a device; one mount may."""
    return any(_processes(path)) or any(each != but for each in mounts_of(path))


def is_mounted(path: Path) -> bool:
    """Tell whether something is mounted there."""
    return any(each.point == path for each in _mounts())


def mounts_of(device: Path | None) -> list[Path]:
    """Return where a block device is mounted, in this mount namespace."""
    if device is None or not device.is_block_device():
        return []
    number = device.stat().st_rdev
    names = {str(device), f"{os.major(number)}:{os.minor(number)}"}
    return [each.point for each in _mounts() if {each.number, each.source} & names]


class _Mount(NamedTuple):
    # Of a line in mountinfo: the number of the device, and its name. Some file systems
    # have a number of their own there.
    point: Path
    number: str
    source: str


def _mounts() -> Iterator[_Mount]:
    table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    for line in table.splitlines():
        # What would end a word is written in octal.
        words = [_ESCAPED.sub(lambda o: chr(int(o[1], 8)), w) for w in line.split(" ")]
        # Behind a varying number of words and a dash: the kind, and the source.
        yield _Mount(Path(words[4]), words[2], words[words.index("-", 6) + 2])


def _processes(path: Path) -> Iterator[str]:
    """Name the processes, but for us, that use a file, or what is below a directory."""
    for process in sorted(
        Path("/proc").glob("[0-9]*"), key=lambda each: int(each.name)
    ):
        if int(process.name) != os.getpid() and any(_uses(process, str(path))):
            yield f"{_name(process)} ({process.name})"


def _uses(process: Path, path: str) -> Iterator[bool]:
    links = [process / name for name in ("cwd", "root", "exe")]
    try:
        links += (process / "fd").iterdir()
    except OSError:
        return
    for link in links:
        try:
            # Never followed: who looks into a mount that is stuck is stuck as well.
            target = os.readlink(link)  # noqa: PTH115 - a Path would eat "..", if any
        except OSError:
            continue
        yield target == path or target.startswith(f"{path}/")


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "process"


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        # A session of its own: an interrupt from the keyboard is for us.
        return subprocess.run(
            words, capture_output=True, text=True, check=False, start_new_session=True
        )
    except FileNotFoundError as error:
        package = "fuse3" if words[0].startswith("fuse") else "mount"
        fix = f"Install it with: apt install {package}"
        raise NotFoundError(words[0], "not installed", fix) from error


def _said(done: subprocess.CompletedProcess[str], prefix: str) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    first = lines[0] if lines else f"exit code {done.returncode}"
    return first.removeprefix(prefix).rstrip(".")
