"""All that a target can be told, as one validated tree.

The command line fills it; nothing behind it knows where a value came from.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from aoe.ata import SECTOR
from aoe.errors import UsageError
from target.disks import OpenFlags
from target.protocol.exports import (
    BUFFER_COUNT,
    BUFFER_LIMIT,
    BUFFER_MINIMUM,
    LIST_LIMIT,
    MODEL,
)

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.address import Address
    from target.filters.settings import FilterSettings

_FRAMES: Final = 256
"""Receive buffers of an interface at least: several clients come at once."""
_ROTATIONS: Final = frozenset({0, 1, *range(0x401, 0xFFFF)})
_PHYSICAL_BLOCKS: Final = (512, 4096)
_TEXT_LIMITS: Final = {"serial": 20, "model": 40}


class ExportSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One disk, and where and how it is served.

    Args:
        address: the shelf and slot.
        interfaces: names of the interfaces, at least one.
        path: the disk image, block device or NBD URI.
        disk: how to open it.
        overlay: a file that takes what is written, so that ``path`` is only read.
        buffers: messages that a client may have outstanding (P60).
        serial: at most 20 ASCII characters; made of address and host if empty.
        model: at most 40 ASCII characters.
        mask: MAC addresses of the clients that are served; none leaves it to clients.
        state_dir: where to keep what clients set; beside the image where not given.
        keep_state: keep it at all.
        wwn: the disk's 64-bit world wide name; 0 makes one of address and serial.
        rotation: turns a minute, 1 for a disk that does not turn.
        physical_block: bytes, 512 or 4096, that the disk had best be written in.
        filters: faults on purpose and the like, the one nearest to the wire first.

    Raises:
        UsageError: a value out of range.
    """

    address: Address
    interfaces: tuple[str, ...]
    path: str
    disk: OpenFlags = OpenFlags()
    overlay: str = ""
    buffers: int = BUFFER_COUNT
    serial: str = ""
    model: str = MODEL
    mask: tuple[bytes, ...] = ()
    state_dir: Path | None = None
    keep_state: bool = True
    wwn: int = 0
    rotation: int = 1
    physical_block: int = SECTOR
    filters: tuple[FilterSettings, ...] = ()

    def __post_init__(self) -> None:
        self._check_interfaces()
        self._check_window()
        self._check_clients()
        self._check_identity()

    def _check_interfaces(self) -> None:
        if not self.interfaces or not all(self.interfaces):
            raise UsageError(
                str(self.address), "no interface", "Name one, or several as eth0,eth1"
            )
        if len(set(self.interfaces)) < len(self.interfaces):
            raise UsageError(
                ",".join(self.interfaces), "an interface twice", "Name each once"
            )

    def _check_window(self) -> None:
        for name in ("offset", "length"):
            if (getattr(self.disk, name) or 0) < 0:
                raise UsageError(
                    f"--{name} {getattr(self.disk, name)}",
                    "less than nothing",
                    "Write bytes, or a size such as 1M",
                )

    def _check_clients(self) -> None:
        if not BUFFER_MINIMUM <= self.buffers <= BUFFER_LIMIT:
            raise UsageError(
                f"--buffers {self.buffers}",
                "Linux brings no disk up with fewer than 2"
                if self.buffers < BUFFER_MINIMUM
                else "more than the protocol can say",
                f"Choose {BUFFER_MINIMUM} to {BUFFER_LIMIT}",
            )
        if len(self.mask) > LIST_LIMIT:
            raise UsageError(
                "--mask", f"{len(self.mask)} addresses", f"Name at most {LIST_LIMIT}"
            )
        if self.state_dir is not None and not self.keep_state:
            raise UsageError("--state-dir", "there is --no-state too", "Choose one")

    def _check_identity(self) -> None:
        if self.rotation not in _ROTATIONS:
            raise UsageError(
                f"--rotation {self.rotation}",
                "cannot be told to clients",
                "Write 1 for a disk that does not turn, 1025 to 65534 turns a minute, "
                "or 0 to tell nothing",
            )
        if self.physical_block not in _PHYSICAL_BLOCKS:
            raise UsageError(
                f"--physical-block {self.physical_block}",
                "cannot be told to clients",
                "Write 512 or 4096",
            )
        for name, limit in _TEXT_LIMITS.items():
            text = getattr(self, name)
            if len(text) > limit or not (text.isascii() and text.isprintable()):
                raise UsageError(
                    f"--{name} {text}",
                    "does not fit the disk's identity page",
                    f"Use at most {limit} printable ASCII characters",
                )


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one process serves.

    Args:
        exports: the disks, no address twice on one interface.
        rings: True insists on packet rings, False does without, None tries them.
        force: serve although an address or a disk seems to be in use.
        source: the file that all this was read from, if it was.
        control: a socket to listen on for ``aoe-target status`` and the like, beside
            the one that the network namespace has.
        metrics: an address and a port to show statistics to Prometheus at.
        capture: a pcapng file that every frame is recorded in.

    Raises:
        UsageError: nothing to serve, or an address twice on one interface.
    """

    exports: tuple[ExportSettings, ...]
    rings: bool | None = None
    force: bool = False
    capture: Path | None = None
    source: Path | None = None
    control: Path | None = None
    metrics: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        if not self.exports:
            raise UsageError("settings", "nothing to serve", "Name a disk")
        seen: set[tuple[str, Address]] = set()
        for export in self.exports:
            for place in ((name, export.address) for name in export.interfaces):
                if place in seen:
                    raise UsageError(
                        f"{export.address} on {place[0]}",
                        "two disks at one address",
                        "Give each its own",
                    )
                seen.add(place)

    def frames(self) -> dict[str, int]:
        """Say how many receive buffers each interface needs, in order of mention.

        What clients are told that they may have outstanding finds room (P60).
        """
        wanted: Counter[str] = Counter()
        for export in self.exports:
            for name in export.interfaces:
                wanted[name] += export.buffers
        return {name: max(frames, _FRAMES) for name, frames in wanted.items()}
