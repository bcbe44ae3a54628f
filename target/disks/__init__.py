"""Where the bytes of an export live.

Every kind of disk is a ``Disk``, and the protocol core knows nothing else of it.
"""

from __future__ import annotations

import os
from pathlib import Path

from target.disks.base import Disk
from target.disks.direct import DirectDisk, direct_block
from target.disks.file import FileDisk, OpenFlags, open_file

__all__ = ["Disk", "OpenFlags", "open_disk"]


def open_disk(path: str | Path, flags: OpenFlags | None = None) -> Disk:
    """Open a disk image or a block device.

    Raises:
        AoEError: one of its children, with the cure; ``open_file`` and
            ``direct_block`` list them.
    """
    flags = flags or OpenFlags()
    path = Path(path)
    fd, size = open_file(path, flags)
    if not flags.direct:
        return FileDisk(fd, flags.offset, size, read_only=flags.read_only)
    try:
        block = direct_block(path, fd, flags.offset, size)
    except BaseException:
        os.close(fd)
        raise
    return DirectDisk(fd, flags.offset, size, read_only=flags.read_only, block=block)
