"""Detect local users of a disk: mounts, swap, and devices stacked on it.

Every command that overwrites a file or a block device calls ``check_unused`` first, and
opens a block device with O_EXCL. The sources are /proc/self/mountinfo, /proc/swaps
(proc(5)) and /sys. The check is best effort: mounts in other mount namespaces are not
visible.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aoe.common.files import read_attribute
from aoe.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MOUNTS: Final = Path("/proc/self/mountinfo")
_DEVICES: Final = Path("/sys/dev/block")
_DISKS: Final = Path("/sys/block")
_SWAPS: Final = Path("/proc/swaps")
_BLKROGET: Final = 0x125E


def check_unused(
    path: str | Path, info: os.stat_result, offset: int, size: int, fix: str
) -> None:
    """Check that a file or a block device has no local user before overwriting it.

    Args:
        path: its path, for the message.
        info: of the device or file.
        offset: start of the window that will be written, bytes.
        size: length of the window, bytes.
        fix: how to solve it, with the options of the command.

    Raises:
        BusyError: it is mounted, swap, attached to a loop device, or part of another
            device.
    """
    use = find_use(info, offset, size)
    if use:
        raise BusyError(str(path), use, fix)


def is_read_only_device(fd: int) -> bool:
    """Return True if the kernel refuses writes to an open block device (BLKROGET).

    Opening such a device for writing succeeds for most drivers; the writes fail later.
    """
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return False
    value = bytearray(4)
    fcntl.ioctl(fd, _BLKROGET, value)
    return any(value)


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
        number = info.st_rdev
        device = next(_device_uses(number, _mounts()), "")
        return device or next(_sibling_uses(number), "")
    return next(_file_uses(info, offset, offset + size), "")


def _device_uses(number: int, mounts: Mapping[str, list[str]]) -> Iterator[str]:
    # A mounted partition makes the whole disk busy, and vice versa.
    name = _device_name(number)
    device = (_DEVICES / name).resolve()
    relatives = [path.parent for path in sorted(device.glob("*/partition"))]
    if (device / "partition").exists():
        relatives.append(device.parent)
    for point in mounts.get(name, ()):
        yield f"mounted on {point}"
    for relative in relatives:
        for point in mounts.get(read_attribute(relative / "dev"), ()):
            yield f"/dev/{relative.name} is mounted on {point}"
    swaps = {_device_name(swap.st_rdev) for swap in _swaps()}
    if name in swaps:
        yield "in use as swap"
    for relative in relatives:
        if read_attribute(relative / "dev") in swaps:
            yield f"/dev/{relative.name} is in use as swap"
    for path in (device, *relatives):
        for holder in sorted(path.glob("holders/*")):
            yield f"in use by /dev/{holder.name}"


def _sibling_uses(number: int) -> Iterator[str]:
    # Several loop devices can share a backing file; other stacked devices claim theirs.
    device = (_DEVICES / _device_name(number)).resolve()
    with suppress(OSError, ValueError):
        info = Path(read_attribute(device / "loop" / "backing_file")).stat()
        first, limit = _loop_window(device / "loop")
        end = first + limit if limit else info.st_size
        for use in _loop_uses(info, first, end, besides=device.name):
            yield f"its file is {use}"


def _file_uses(info: os.stat_result, begin: int, end: int) -> Iterator[str]:
    if any(os.path.samestat(swap, info) for swap in _swaps()):
        yield "in use as swap"
    yield from _loop_uses(info, begin, end)


def _loop_uses(
    info: os.stat_result, begin: int, end: int, besides: str = ""
) -> Iterator[str]:
    for loop in sorted(_DISKS.glob("loop*/loop")):
        with suppress(OSError, ValueError):
            if loop.parent.name == besides or not os.path.samestat(
                Path(read_attribute(loop / "backing_file")).stat(), info
            ):
                continue
            first, limit = _loop_window(loop)
            if first >= end or (limit and first + limit <= begin):
                continue
            device = loop.parent.name
            major, minor = map(int, read_attribute(loop.parent / "dev").split(":"))
            use = next(_device_uses(os.makedev(major, minor), _mounts()), "")
            yield f"attached to /dev/{device}" + (use and f", {use}")


def _loop_window(loop: Path) -> tuple[int, int]:
    # Start and length of the part of the file that a loop device maps; 0 is unlimited.
    return int(read_attribute(loop / "offset")), int(read_attribute(loop / "sizelimit"))


def _mounts() -> dict[str, list[str]]:
    # Mount points by device number. Btrfs reports an anonymous device number, so the
    # number of the mount source is added.
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in read_attribute(_MOUNTS).splitlines():
        left, _, right = line.partition(" - ")
        _, _, number, _, point, *_ = left.split(" ")
        found[number].append(_unescape(point))
        source = _unescape(right.split(" ")[1])
        with suppress(OSError):
            if source.startswith("/dev/") and (device := Path(source).stat().st_rdev):
                name = _device_name(device)
                if name != number:
                    found[name].append(_unescape(point))
    return found


def _swaps() -> Iterator[os.stat_result]:
    for line in read_attribute(_SWAPS).splitlines()[1:]:
        with suppress(OSError, IndexError):
            yield Path(_unescape(line.split()[0])).stat()


def _device_name(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def _unescape(text: str) -> str:
    # Spaces and other special characters are octal escapes: backslash, three digits.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
