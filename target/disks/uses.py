"""Who else uses a disk: what this machine has mounted of it, or has put a device over.

From /proc/self/mountinfo and /sys, as proc(5) and the kernel's ABI documents have them.
Nothing is promised: a mount in somebody else's namespace is not seen.
"""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MOUNTS: Final = Path("/proc/self/mountinfo")
_DEVICES: Final = Path("/sys/dev/block")
_DISKS: Final = Path("/sys/block")


def find_use(info: os.stat_result, offset: int, size: int) -> str:
    """Say in words who else uses a window of a block device or a file.

    Args:
        info: of the device or file.
        offset: where the window begins, bytes.
        size: how long it is, bytes.

    Returns:
        One use of perhaps many, as in ``mounted on /mnt``; nothing where there is none.
    """
    if stat.S_ISBLK(info.st_mode):
        uses = _device_uses(info.st_rdev, _mounts())
    else:
        uses = _file_uses(info, offset, offset + size)
    return next(uses, "")


def _device_uses(number: int, mounts: Mapping[str, list[str]]) -> Iterator[str]:
    # A mounted partition takes the whole disk, and the other way round.
    name = f"{os.major(number)}:{os.minor(number)}"
    whole = (_DEVICES / name).resolve()
    relatives = [path.parent for path in sorted(whole.glob("*/partition"))]
    if (whole / "partition").exists():
        relatives.append(whole.parent)
    for point in mounts.get(name, ()):
        yield f"mounted on {point}"
    for relative in relatives:
        for point in mounts.get(_text(relative / "dev"), ()):
            yield f"/dev/{relative.name} is mounted on {point}"
    for path in (whole, *relatives):
        for holder in sorted(path.glob("holders/*")):
            yield f"in use by /dev/{holder.name}"


def _file_uses(info: os.stat_result, begin: int, end: int) -> Iterator[str]:
    for loop in sorted(_DISKS.glob("loop*/loop")):
        with suppress(OSError, ValueError):
            if not os.path.samestat(Path(_text(loop / "backing_file")).stat(), info):
                continue
            first, limit = (int(_text(loop / n)) for n in ("offset", "sizelimit"))
            if first >= end or (limit and first + limit <= begin):
                continue
            device = loop.parent.name
            major, minor = map(int, _text(loop.parent / "dev").split(":"))
            use = next(_device_uses(os.makedev(major, minor), _mounts()), "")
            yield f"attached to /dev/{device}" + (use and f", {use}")


def _mounts() -> dict[str, list[str]]:
    # Mount points by device number. Btrfs has a number of its own there, and names its
    # device beside it.
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in _text(_MOUNTS).splitlines():
        left, _, right = line.partition(" - ")
        _, _, number, _, point, *_ = left.split(" ")
        found[number].append(_plain(point))
        source = _plain(right.split(" ")[1])
        with suppress(OSError):
            if source.startswith("/dev/") and (device := Path(source).stat().st_rdev):
                name = f"{os.major(device)}:{os.minor(device)}"
                if name != number:
                    found[name].append(_plain(point))
    return found


def _plain(text: str) -> str:
    # Blanks and the like are written as three octal digits behind a backslash.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape").strip("\n")
    except OSError:
        return ""
