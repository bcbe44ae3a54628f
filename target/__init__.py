"""The AoE target: serves disks over raw Ethernet.

The names below are the public interface; modules below this package may change with any
release. Each name is imported when it is first used.

    Target              the protocol without I/O: request frame in, response frame out
    Export              a disk, its address, and the state that clients have set
    AoETarget           the same in scapy packets, to be changed in a subclass
    Disk                the interface that a disk implements
    MemoryDisk, open_disk   a disk in memory; a disk by path, device or NBD URI
    Settings, ExportSettings, load_settings   what to serve; the same from a TOML file
    open_service        opens the disks and interfaces of settings
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.common.public_names import import_on_use

if TYPE_CHECKING:
    from target.config.settings import ExportSettings, Settings
    from target.config.toml import load_settings
    from target.disks import open_disk
    from target.disks.memory import MemoryDisk
    from target.protocol.disk import Disk
    from target.protocol.exports import Export
    from target.protocol.target import Target
    from target.reference.machine import AoETarget
    from target.server.startup import open_service

__all__ = [
    "AoETarget",
    "Disk",
    "Export",
    "ExportSettings",
    "MemoryDisk",
    "Settings",
    "Target",
    "load_settings",
    "open_disk",
    "open_service",
]

_MODULES: Final = {
    "AoETarget": "target.reference.machine",
    "Disk": "target.protocol.disk",
    "Export": "target.protocol.exports",
    "ExportSettings": "target.config.settings",
    "MemoryDisk": "target.disks.memory",
    "Settings": "target.config.settings",
    "Target": "target.protocol.target",
    "load_settings": "target.config.toml",
    "open_disk": "target.disks",
    "open_service": "target.server.startup",
}


__getattr__, __dir__ = import_on_use(__name__, _MODULES)
