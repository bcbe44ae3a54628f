"""Where the bytes of an export live.

Every kind of disk is a ``Disk``, and the protocol core knows nothing else of it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from aoe.errors import UsageError
from target.disks.direct import DirectDisk, direct_block
from target.disks.file import FileDisk, OpenFlags, measure_file, open_file
from target.disks.overlay.format import MAGIC
from target.protocol.disk import Disk

__all__ = ["Disk", "OpenFlags", "measure_disk", "open_disk"]


def open_disk(
    path: str | Path, flags: OpenFlags | None = None, overlay: str = ""
) -> Disk:
    """Open a disk image, a block device, or the export of an NBD server.

    Args:
        path: where it is; ``nbd://host[:port]/name`` or
            ``nbd+unix:///name?socket=/path`` for NBD.
        flags: how to open it.
        overlay: a file that takes what is written, so that the disk is only read.

    Raises:
        AoEError: one of its children, with the fix; ``open_file``, ``direct_block``,
            ``open_nbd`` and ``open_overlay`` list them.
    """
    flags = flags or OpenFlags()
    if not overlay:
        return _open_base(path, flags)
    from target.disks.overlay.files import identify_base, open_overlay

    if flags.direct:
        raise UsageError(overlay, "an overlay has no O_DIRECT", "Leave out --direct")
    base = _open_base(path, replace(flags, read_only=True, force=False))
    try:
        identity = identify_base(str(path), flags.offset, base.size)
        return open_overlay(overlay, base, identity, flags)
    except BaseException:
        base.close()
        raise


def measure_disk(path: str, flags: OpenFlags, overlay: str = "") -> int | None:
    """Say how large a disk would be if it were opened now, in bytes.

    Returns:
        The size; None where only opening it would tell.

    Raises:
        AoEError: it is not there any more, or cannot be served as it is now.
    """
    from target.disks.nbd.address import is_nbd
    from target.disks.nbd.disk import measure_nbd

    if overlay:
        return None
    return measure_nbd(path) if is_nbd(path) else measure_file(Path(path), flags)


def _open_base(path: str | Path, flags: OpenFlags) -> Disk:
    from target.disks.nbd.address import is_nbd
    from target.disks.nbd.disk import open_nbd

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
    # Served as it is, its first sectors would be a client's boot record.
    if os.pread(fd, len(MAGIC), 0) == MAGIC:
        raise UsageError(
            str(path),
            "an overlay is no disk by itself",
            f"Name its base, and --overlay {path}",
        )
