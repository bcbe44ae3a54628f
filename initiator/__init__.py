"""The AoE initiator: sends block I/O requests as AoE frames, as the Linux driver does.

The names below are the public interface; modules below this package may change with any
release. Each name is imported when it is first used.

    Disk, AsyncDisk     one AoE device, for blocking code and for asyncio
    DiskFile            a ``Disk`` as a Python file
    Host                links, one driver and the loop that runs them
    Options             options of the driver
    Bio, Op, bio_for    block I/O requests, as ``Disk.submit_bio`` takes them
    Address             shelf and slot
    Wire                two network namespaces joined by a veth pair, for tests
    AoEError            the base of all errors, each of which has an exit code
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.common.public_names import import_on_use

if TYPE_CHECKING:
    from aoe.address import Address
    from aoe.errors import AoEError
    from aoe.net.netns import Wire
    from initiator.disk.async_disk import AsyncDisk
    from initiator.disk.disk import Disk
    from initiator.disk.file_view import DiskFile
    from initiator.driver.bio import Bio, Op, bio_for
    from initiator.driver.options import Options
    from initiator.io.host import Host

__all__ = [
    "Address",
    "AoEError",
    "AsyncDisk",
    "Bio",
    "Disk",
    "DiskFile",
    "Host",
    "Op",
    "Options",
    "Wire",
    "bio_for",
]

_MODULES: Final = {
    "Address": "aoe.address",
    "AoEError": "aoe.errors",
    "AsyncDisk": "initiator.disk.async_disk",
    "Bio": "initiator.driver.bio",
    "Disk": "initiator.disk.disk",
    "DiskFile": "initiator.disk.file_view",
    "Host": "initiator.io.host",
    "Op": "initiator.driver.bio",
    "Options": "initiator.driver.options",
    "Wire": "aoe.net.netns",
    "bio_for": "initiator.driver.bio",
}


__getattr__, __dir__ = import_on_use(__name__, _MODULES)
