"""Detect local users of a disk: mounts, and devices stacked on it.

The sources are /proc/self/mountinfo (proc(5)) and /sys. The check is best effort:
mounts in other mount namespaces are not visible.
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
    """Describe a local user of a window of a block device or a file.

    Args:
        info: of the device or file.
        offset: start of the window, bytes.
        size: length of the window, bytes.

    Returns:
        One user, such as ``mounted on /mnt``; empty if there is none.
    """
    if stat.S_ISBLK(info.st_mode):
        uses = _device_uses(info.st_rdev, _mounts())
    else:
        uses = _file_uses(info, offset, offset + size)
    return next(uses, "")


def _device_uses(number: int, mounts: Mapping[str, list[str]]) -> Iterator[str]:
    # A mounted partition makes the whole disk busy, and vice versa.
    name = f"{os.major(number)}:{os.minor(number)}"
    device = (_DEVICES / name).resolve()
    relatives = [path.parent for path in sorted(device.glob("*/partition"))]
    if (device / "partition").exists():
        relatives.append(device.parent)
    for point in mounts.get(name, ()):
        yield f"mounted on {point}"
    for relative in relatives:
        for point in mounts.get(_read_text(relative / "dev"), ()):
            yield f"/dev/{relative.name} is mounted on {point}"
    for path in (device, *relatives):
        for holder in sorted(path.glob("holders/*")):
            yield f"in use by /dev/{holder.name}"


def _file_uses(info: os.stat_result, begin: int, end: int) -> Iterator[str]:
    for loop in sorted(_DISKS.glob("loop*/loop")):
        with suppress(OSError, ValueError):
            if not os.path.samestat(
                Path(_read_text(loop / "backing_file")).stat(), info
            ):
                continue
            first, limit = (int(_read_text(loop / n)) for n in ("offset", "sizelimit"))
            if first >= end or (limit and first + limit <= begin):
                continue
            device = loop.parent.name
            major, minor = map(int, _read_text(loop.parent / "dev").split(":"))
            use = next(_device_uses(os.makedev(major, minor), _mounts()), "")
            yield f"attached to /dev/{device}" + (use and f", {use}")


def _mounts() -> dict[str, list[str]]:
    # Mount points by device number. Btrfs reports an anonymous device number, so the
    # number of the mount source is added.
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in _read_text(_MOUNTS).splitlines():
        left, _, right = line.partition(" - ")
        _, _, number, _, point, *_ = left.split(" ")
        found[number].append(_unescape(point))
        source = _unescape(right.split(" ")[1])
        with suppress(OSError):
            if source.startswith("/dev/") and (device := Path(source).stat().st_rdev):
                name = f"{os.major(device)}:{os.minor(device)}"
                if name != number:
                    found[name].append(_unescape(point))
    return found


def _unescape(text: str) -> str:
    # Spaces and other special characters are octal escapes: backslash, three digits.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape").strip("\n")
    except OSError:
        return ""
