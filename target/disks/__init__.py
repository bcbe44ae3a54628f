"""The disks that an export can serve.

Each kind implements ``Disk``, the only interface that the protocol core uses.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from aoe.errors import UsageError
from target.disks.direct import DirectDisk, direct_block
from target.disks.file import FileDisk, OpenFlags, measure_file, open_file
from target.disks.nbd.address import is_nbd
from target.disks.nbd.disk import measure_nbd, open_nbd
from target.disks.overlay.files import identify_base, open_overlay
from target.disks.overlay.format import MAGIC
from target.protocol.disk import Disk

__all__ = ["Disk", "OpenFlags", "measure_disk", "open_disk"]


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
    if flags.direct:
        raise UsageError(
            overlay, "an overlay does not support O_DIRECT", "Omit --direct"
        )
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
    return measure_nbd(path) if is_nbd(path) else measure_file(Path(path), flags)


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
