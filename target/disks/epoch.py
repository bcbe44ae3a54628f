"""What would lose the writes that a disk has answered and not flushed (P84)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from target.disks.nbd.address import is_nbd
from target.disks.overlay.disk import this_boot

if TYPE_CHECKING:
    from target.disks.file import OpenFlags


def find_epoch_source(
    path: str, flags: OpenFlags, overlay: str = "", previous: str = ""
) -> str:
    """Return a text that is the same as long as no such write can have been lost.

    The page cache has them until the boot ends, an NBD server as long as the connection
    exists. A write that is stable on return is not lost.

    Args:
        path: as for ``open_disk``.
        flags: how the disk was opened.
        overlay: as for ``open_disk``.
        previous: the text of the disk that this one replaces, which was flushed.
    """
    if flags.sync:
        return "stable on return"
    store = overlay or path
    boot = "" if is_nbd(store) else this_boot()
    if boot:
        info = Path(store).stat()
        return f"{boot} {info.st_dev} {info.st_ino} {info.st_rdev}"
    if previous.startswith(f"{store} "):
        return previous
    return f"{store} {os.urandom(8).hex()}"
