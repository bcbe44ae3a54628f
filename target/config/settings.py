"""The settings of a target: one validated tree.

It is built from the command line or a configuration file; the rest of the program does
not depend on the source.
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

ENGINE: Final = "struct"
"""The default engine."""
ENGINES: Final = (ENGINE, "scapy")
"""The engines that need no file."""
_FRAMES: Final = 256
"""Minimum number of receive buffers of an interface, for bursts of many clients."""
_ROTATIONS: Final = frozenset({0, 1, *range(0x401, 0xFFFF)})
_PHYSICAL_BLOCKS: Final = (512, 4096)
_TEXT_LIMITS: Final = {"serial": 20, "model": 40}


class ExportSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one export.

    Args:
        address: the shelf and slot.
        interfaces: names of the interfaces, at least one.
        path: the disk image, block device or NBD URI.
        disk: how to open it.
        overlay: a copy-on-write file that takes all writes; ``path`` is only read.
        buffers: requests that a client may have outstanding (P60).
        serial: at most 20 ASCII characters; derived from address, host and file if
            empty.
        model: at most 40 ASCII characters.
        mask: MAC addresses of the clients that are served; empty leaves the list as
            clients have set it.
        state_dir: directory of the state file; by default that of the image.
        keep_state: save the state that clients set.
        wwn: the 64-bit world wide name; 0 derives one from address and serial.
        rotation: revolutions per minute, 1 for a non-rotating disk.
        physical_block: the physical sector size, 512 or 4096 bytes.
        filters: the filters, the one nearest to the wire first.
        engine: what executes the requests: ``struct``, the implementation for use;
            ``scapy``, the reference in scapy packets; or a Python file with a subclass
            of that, ``FILE.py`` or ``FILE.py:CLASS``.

    Raises:
        UsageError: a value is out of range.
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
    engine: str = ENGINE

    def __post_init__(self) -> None:
        self._check_interfaces()
        self._check_window()
        self._check_clients()
        self._check_identity()
        self._check_engine()

    def _check_interfaces(self) -> None:
        if not self.interfaces or not all(self.interfaces):
            raise UsageError(
                str(self.address), "no interface", "Name one, or several: eth0,eth1"
            )
        if len(set(self.interfaces)) < len(self.interfaces):
            raise UsageError(
                ",".join(self.interfaces), "duplicate interface", "Name each only once"
            )

    def _check_window(self) -> None:
        for name in ("offset", "length"):
            if (getattr(self.disk, name) or 0) < 0:
                raise UsageError(
                    f"--{name} {getattr(self.disk, name)}",
                    "must not be negative",
                    "Write a number of bytes, or a size such as 1M",
                )

    def _check_clients(self) -> None:
        if not BUFFER_MINIMUM <= self.buffers <= BUFFER_LIMIT:
            raise UsageError(
                f"--buffers {self.buffers}",
                "the Linux driver needs at least 2"
                if self.buffers < BUFFER_MINIMUM
                else "more than the protocol allows",
                f"Choose {BUFFER_MINIMUM} to {BUFFER_LIMIT}",
            )
        if len(self.mask) > LIST_LIMIT:
            raise UsageError(
                "--mask", f"{len(self.mask)} addresses", f"Use at most {LIST_LIMIT}"
            )
        if self.state_dir is not None and not self.keep_state:
            raise UsageError("--state-dir", "conflicts with --no-state", "Choose one")

    def _check_identity(self) -> None:
        if self.rotation not in _ROTATIONS:
            raise UsageError(
                f"--rotation {self.rotation}",
                "not a valid rotation rate",
                "Use 1 for a non-rotating disk, 1025 to 65534 for revolutions per "
                "minute, or 0 for not reported",
            )
        if self.physical_block not in _PHYSICAL_BLOCKS:
            raise UsageError(
                f"--physical-block {self.physical_block}",
                "not a supported sector size",
                "Use 512 or 4096",
            )
        for name, limit in _TEXT_LIMITS.items():
            text = getattr(self, name)
            if len(text) > limit or not (text.isascii() and text.isprintable()):
                raise UsageError(
                    f"--{name} {text}",
                    "does not fit in the IDENTIFY data",
                    f"Use at most {limit} printable ASCII characters",
                )

    def _check_engine(self) -> None:
        if self.engine not in ENGINES and not self.engine.partition(":")[0].endswith(
            ".py"
        ):
            raise UsageError(
                f"--engine {self.engine}",
                "no such engine",
                "Use struct, scapy, or a Python file: FILE.py, FILE.py:CLASS",
            )


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a process.

    Args:
        exports: the exports; an address is unique on each interface.
        rings: True requires packet rings, False disables them, None uses them if
            possible.
        force: serve although an address or a disk seems to be in use.
        source: the configuration file, if there is one.
        control: an additional control socket for ``aoe-target status`` and the like;
            there is always one for the network namespace.
        metrics: address and port of the Prometheus metrics.
        capture: a pcapng file to record all frames in.

    Raises:
        UsageError: no exports, or a duplicate address on an interface.
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
                        "duplicate address",
                        "Give each export its own",
                    )
                seen.add(place)

    def frames(self) -> dict[str, int]:
        """Return the number of receive buffers for each interface.

        All requests that the exports allow to be outstanding fit in them (P60).
        """
        wanted: Counter[str] = Counter()
        for export in self.exports:
            for name in export.interfaces:
                wanted[name] += export.buffers
        return {name: max(frames, _FRAMES) for name, frames in wanted.items()}
