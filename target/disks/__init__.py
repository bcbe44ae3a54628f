"""The disks that an export can serve.

Each kind implements ``Disk``, the only interface that the protocol core uses.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

from aoe.errors import UsageError, from_os_error
from target.disks.direct import DirectDisk, direct_block
from target.disks.file import FileDisk, OpenFlags
from target.disks.nbd.address import is_nbd
from target.disks.nbd.opening import check_nbd, measure_nbd, open_nbd
from target.disks.opening import measure_file, open_file, try_file
from target.disks.overlay.files import check_overlay, identify_base, open_overlay
from target.disks.overlay.format import MAGIC
from target.protocol.disk import Disk

__all__ = [
    "Disk",
    "OpenFlags",
    "check_disk",
    "identify_files",
    "measure_disk",
    "open_disk",
]


def open_disk(
    path: str | Path, flags: OpenFlags | None = None, overlay: str = ""
) -> Disk:
    """Open a disk image, a block device, or the export of an NBD server.

    Args:
        path: a path, or ``nbd://host[:port]/name`` or
            ``nbd+unix:///name?socket=/path`` for NBD.
        flags: how to open it.
        overlay: a copy-on-write file that takes all writes; the disk is only read.

    Raises:
        AoEError: see ``open_file``, ``direct_block``, ``open_nbd`` and
            ``open_overlay``.
    """
    flags = flags or OpenFlags()
    if not overlay:
        return _open_base(path, flags)
    _refuse_direct(overlay, flags)
    base = _open_base(path, replace(flags, read_only=True, force=False))
    try:
        identity = identify_base(str(path), flags.offset, base.size)
        return open_overlay(overlay, base, identity, flags)
    except BaseException:
        base.close()
        raise


def measure_disk(path: str, flags: OpenFlags, overlay: str = "") -> int | None:
    """Return the size that a disk has now, in bytes, without opening it for I/O.

    Returns:
        The size; None if it is known only after opening the disk.

    Raises:
        AoEError: the disk no longer exists, or cannot be served as it is now.
    """
    if overlay:
        return None
    if not is_nbd(path):
        return measure_file(Path(path), flags)
    return measure_nbd(path)


def check_disk(path: str, flags: OpenFlags, overlay: str = "") -> None:
    """Check that ``open_disk`` can succeed; nothing is created, locked or written.

    Raises:
        AoEError: as ``open_disk``, except for locks.
    """
    if not overlay:
        _check_base(path, flags)
        return
    _refuse_direct(overlay, flags)
    size = _check_base(path, replace(flags, read_only=True, force=False))
    if size is not None and (is_nbd(path) or Path(path).exists()):
        check_overlay(overlay, identify_base(path, flags.offset, size), flags)


def _check_base(path: str, flags: OpenFlags) -> int | None:
    if is_nbd(path):
        return check_nbd(path, flags)
    fd, size = try_file(Path(path), flags)
    if fd is None:
        return size
    try:
        if flags.direct:
            direct_block(Path(path), fd, flags.offset, size)
        else:
            _refuse_overlay(Path(path), fd)
    finally:
        os.close(fd)
    return size


def _refuse_direct(overlay: str, flags: OpenFlags) -> None:
    if flags.direct:
        raise UsageError(
            overlay, "an overlay does not support O_DIRECT", "Omit --direct"
        )


def identify_files(path: str, overlay: str = "") -> tuple[tuple[int, int], ...]:
    """Return what identifies the files or devices that a disk's paths name now.

    A file that was replaced by rename(2) has another inode, and a link below
    /dev/disk another device.

    Raises:
        AoEError: a file does not exist, or its directory cannot be searched.
    """
    found = []
    for each in (path, overlay):
        if each and not is_nbd(each):
            try:
                info = Path(each).stat()
            except OSError as error:
                raise from_os_error(each, error) from error
            is_device = stat.S_ISBLK(info.st_mode)
            found.append((0, info.st_rdev) if is_device else (info.st_dev, info.st_ino))
    return tuple(found)


def _open_base(path: str | Path, flags: OpenFlags) -> Disk:
    if is_nbd(str(path)):
        return open_nbd(str(path), flags)
    return _open_image(Path(path), flags)


def _open_image(path: Path, flags: OpenFlags) -> Disk:
    fd, size = open_file(path, flags)
    try:
        if not flags.direct:
            _refuse_overlay(path, fd)
            return FileDisk(fd, flags.offset, size, read_only=flags.read_only)
        block = direct_block(path, fd, flags.offset, size)
    except BaseException:
        os.close(fd)
        raise
    return DirectDisk(fd, flags.offset, size, read_only=flags.read_only, block=block)


def _refuse_overlay(path: Path, fd: int) -> None:
    # A raw overlay file would present its header as the first sectors of the disk.
    if os.pread(fd, len(MAGIC), 0) == MAGIC:
        raise UsageError(
            str(path),
            "this is an overlay, not a disk image",
            f"Serve its base with --overlay {path}",
        )
