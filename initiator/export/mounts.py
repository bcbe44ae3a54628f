"""Mount, unmount, list mounts, and find the processes that use a path."""

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
"""Exit code of mount(8) for wrong usage and missing permission."""
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_LOOP_FIX: Final = "Attach it with --loop instead of --mount, then: "
_FIXES: Final = {
    "LVM2_member": f"{_LOOP_FIX}vgchange --activate y, and mount a logical volume",
    "crypto_LUKS": f"{_LOOP_FIX}cryptsetup open {{device}} NAME, and mount "
    "/dev/mapper/NAME",
    "linux_raid_member": f"{_LOOP_FIX}mdadm --assemble --scan, and mount the array",
}
"""How to use what is not a file system, by the type that blkid(8) detects."""
_SHOWN: Final = 5
"""How many users of a path a message names."""


def mount(
    device: Path, directory: Path, *, fstype: str, options: str, read_only: bool
) -> None:
    """Mount a device on a directory.

    Args:
        device: a block device.
        directory: an existing directory.
        fstype: type of the file system; empty: mount(8) detects it.
        options: mount options, separated by commas.
        read_only: mount read-only.

    Raises:
        AccessError: not permitted.
        AoEError: mount(8) failed; with its message.
    """
    given = [*filter(None, options.split(",")), *(["ro"] if read_only else [])]
    args = ["-t", fstype] if fstype else []
    args += ["-o", ",".join(given)] if given else []
    done = _run("mount", *args, str(device), str(directory))
    if done.returncode == 0:
        return
    why = _error_text(done, f"mount: {directory}: ")
    if done.returncode == _NOT_PERMITTED or "denied" in why:
        raise AccessError(str(directory), why, "Run as root")
    content, fix = _describe_contents(device)
    raise AoEError(str(directory), f"not mounted: {content or why}", fix)


def _describe_contents(device: Path) -> tuple[str, str]:
    """Return why the contents of a device cannot be mounted, and how to use them.

    The reason is empty if blkid(8) recognizes a file system or nothing at all.
    """
    try:
        done = _run("blkid", "--probe", "--output", "export", str(device))
    except NotFoundError:
        return "", "Give --fstype TYPE"
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    kind = found.get("TYPE", "")
    if found.get("USAGE") == "filesystem":
        return "", f"It has a file system of type {kind}; see also: dmesg"
    if kind:
        fix = _FIXES.get(kind, "").format(device=device)
        return f"the disk contains {kind}, not a file system", fix
    if table := found.get("PTTYPE"):
        fix = f"{_LOOP_FIX}partx --update {device}, and mount one such as {device}p1"
        return f"the disk has a partition table ({table}), not a file system", fix
    return "", "Give --fstype TYPE"


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmount a mount point.

    Args:
        path: the mount point.
        lazy: detach it now, and finish after the last close, as ``umount --lazy``.

    Raises:
        BusyError: it is in use; it stays mounted.
        AoEError: umount failed; with its message.
    """
    # umount(2) needs root; fusermount3 is setuid and unmounts a user's own FUSE mounts.
    args = ["umount", *(["--lazy"] if lazy else [])]
    if os.geteuid() != 0:
        args = ["fusermount3", "-u", *(["-z"] if lazy else [])]
    done = _run(*args, str(path))
    if done.returncode == 0 or not is_mounted(path):
        return
    why = _error_text(done, f"umount: {path}: ")
    if "busy" not in why:
        raise AoEError(str(path), f"not unmounted: {why}")
    raise busy_error(path)


def busy_error(path: Path) -> BusyError:
    """Return an error that names the users of a file, device or directory tree."""
    inside = [each.point for each in _mounts() if path in each.point.parents]
    mounts = [f"a mount on {each}" for each in (*inside, *mounts_of(path))]
    found = [*mounts, *_holders(path), *_processes(path)]
    named = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    why = f"in use by {named}" if named else "in use, maybe in another mount namespace"
    return BusyError(str(path), why, "Stop using it, or: aoe detach --lazy")


def is_in_use(path: Path, except_mount: Path | None) -> bool:
    """Return True if a process has it open, or it is mounted other than there.

    Also if another device uses it, as LVM and LUKS do.
    """
    is_mounted = any(each != except_mount for each in mounts_of(path))
    return is_mounted or any(_holders(path)) or any(_processes(path))


def is_mounted(path: Path) -> bool:
    """Return True if the path is a mount point."""
    return any(each.point == path for each in _mounts())


def mounts_of(device: Path | None) -> list[Path]:
    """Return the mount points of a block device and its partitions.

    Only those in this mount namespace.
    """
    if device is None or not device.is_block_device():
        return []
    entry = _sysfs_entry(device)
    names = {str(device), entry.name}
    for partition in (each.parent for each in entry.glob("*/partition")):
        names |= {f"/dev/{partition.name}", (partition / "dev").read_text().strip()}
    return [each.point for each in _mounts() if {each.number, each.source} & names]


def _sysfs_entry(device: Path) -> Path:
    number = device.stat().st_rdev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")


def _holders(path: Path) -> Iterator[str]:
    """Yield the devices that use a block device or a partition of it."""
    if path.is_block_device():
        entry = _sysfs_entry(path)
        for pattern in ("holders/*", "*/holders/*"):
            yield from (f"/dev/{each.name}" for each in sorted(entry.glob(pattern)))


class _Mount(NamedTuple):
    # Fields of a line of mountinfo: mount point, major:minor and mount source. btrfs
    # and others show an anonymous device number, so callers compare the source too.
    point: Path
    number: str
    source: str


def _mounts() -> Iterator[_Mount]:
    table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    for line in table.splitlines():
        # Whitespace and backslashes are octal escapes.
        fields = [_ESCAPED.sub(lambda o: chr(int(o[1], 8)), w) for w in line.split(" ")]
        # Optional fields end with "-"; type and source follow.
        yield _Mount(Path(fields[4]), fields[2], fields[fields.index("-", 6) + 2])


def _processes(path: Path) -> Iterator[str]:
    """Yield name and pid of each other process that uses the path or a file below."""
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
            # Not stat(): it would block in a mount whose server does not respond.
            target = os.readlink(link)  # noqa: PTH115 - Path() would normalize it
        except OSError:
            continue
        yield target == path or target.startswith(f"{path}/")


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "process"


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    try:
        # A new session: Ctrl-C at the terminal must not interrupt it.
        return subprocess.run(
            args, capture_output=True, text=True, check=False, start_new_session=True
        )
    except FileNotFoundError as error:
        package = "fuse3" if args[0].startswith("fuse") else "mount"
        fix = f"Install it with: apt install {package}"
        raise NotFoundError(args[0], "not installed", fix) from error


def _error_text(done: subprocess.CompletedProcess[str], prefix: str) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    first = lines[0] if lines else f"exit code {done.returncode}"
    return first.removeprefix(prefix).rstrip(".")
