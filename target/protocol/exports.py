"""An export: a disk, its AoE address, and the state that clients set on it."""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Protocol

from aoe.address import MAC_BROADCAST
from aoe.ata import SECTOR
from aoe.config import STRING_LIMIT
from aoe.errors import UsageError
from aoe.identify import FeatureSet, Identity
from target.protocol.disk import DEVICE_GONE

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.address import Address
    from target.protocol.disk import Disk

MODEL: Final = "pyaoe"
BUFFER_COUNT: Final = 64
"""The most requests that the Linux driver keeps outstanding (P60)."""
BUFFER_MINIMUM: Final = 2
"""With a smaller count the Linux driver never brings the device up (P60)."""
BUFFER_LIMIT: Final = 0xFFFF
LIST_LIMIT: Final = 255
"""MAC addresses in a mask list or a reservation (P61, P76)."""
UNCORRECTABLE_LIMIT: Final = 1 << 16
"""Most sectors that can be marked uncorrectable at a time."""
_READ_ONLY_FEATURE_SETS: Final = (
    FeatureSet.DMA
    | FeatureSet.SMART
    | FeatureSet.POWER
    | FeatureSet.WRITE_CACHE
    | FeatureSet.LOOK_AHEAD
)
_ALL_FEATURE_SETS: Final = (
    _READ_ONLY_FEATURE_SETS | FeatureSet.TRIM | FeatureSet.UNCORRECTABLE
)
_ENABLED_AT_START: Final = (
    FeatureSet.SMART
    | FeatureSet.POWER
    | FeatureSet.LOOK_AHEAD
    | FeatureSet.UNCORRECTABLE
)
_FIRST_DMA_MODE: Final = 0x20
_DEFAULT_TRANSFER_MODE: Final = 0x46
"""Ultra DMA 6, as SET FEATURES numbers it."""
_DEFAULT_IDENTITY: Final = Identity(0, model=MODEL, rotation=1)
_LOCAL_WWN: Final = 3 << 60
"""NAA 3, locally assigned."""


def make_wwn(address: Address, serial: str) -> int:
    """Derive a world wide name from an address and a serial number."""
    digest = sha256(f"{address} {serial}".encode()).digest()
    return _LOCAL_WWN | int.from_bytes(digest[:8], "big") >> 4


@dataclass(frozen=True, slots=True)
class ClientState:
    """The persistent state of an export that clients set.

    Args:
        config_string: at most 1024 arbitrary bytes (P58).
        mask: the MAC addresses that are served, in the order they were added; empty
            means all (P61).
        holders: the MAC addresses that the target is reserved for; empty means no
            reservation (P72).
        write_cache: True if a write may be answered before it is stable; None selects
            the target's default.
        losses: incremented when a flush fails, and again when the disk is reopened
            after that: odd while flushes fail. Part of the epoch (P84).

    Raises:
        UsageError: the string or a list is too long.
    """

    config_string: bytes = b""
    mask: tuple[bytes, ...] = ()
    holders: tuple[bytes, ...] = ()
    write_cache: bool | None = None
    losses: int = 0
    mask_set: frozenset[bytes] = field(init=False, repr=False, compare=False)
    """The mask as a set, for lookups."""
    holder_set: frozenset[bytes] = field(init=False, repr=False, compare=False)
    """The holders as a set, for lookups."""

    def __post_init__(self) -> None:
        if len(self.config_string) > STRING_LIMIT:
            raise UsageError(
                "config string",
                f"{len(self.config_string)} bytes are too long",
                f"Use at most {STRING_LIMIT} bytes",
            )
        for name, macs in (("mask list", self.mask), ("reservation", self.holders)):
            if len(macs) > LIST_LIMIT:
                raise UsageError(
                    name,
                    f"{len(macs)} addresses are too many",
                    f"List at most {LIST_LIMIT}",
                )
        object.__setattr__(self, "mask_set", frozenset(self.mask))
        object.__setattr__(self, "holder_set", frozenset(self.holders))


class FilterStack(Protocol):
    """The filters of an export; ``target.filters.stack`` implements it."""

    def trigger_counts(self) -> list[tuple[str, int | None]]:
        """Return each filter and how often it has triggered; None if not counted."""
        ...


class Export:
    """A disk at an AoE address, on any number of interfaces.

    The state that clients set belongs to the export: all interfaces share it.

    Args:
        address: the shelf and slot.
        disk: the disk that stores the data.
        identity: the identity page's contents; size and feature sets are filled in, and
            the serial number and world wide name if they are empty.
        firmware_number: the firmware version in query config responses, 16 bits.
        buffer_count: requests that a client may have outstanding.
        state: the state that clients had set before.
        sync: True if every write to the disk is stable when it returns.
        epoch_source: names what would lose writes that were not flushed, such as the
            boot; empty means that IDENTIFY has no epoch (P84).

    Raises:
        UsageError: a buffer count below 2 or above 65535.
    """

    def __init__(
        self,
        address: Address,
        disk: Disk,
        *,
        identity: Identity = _DEFAULT_IDENTITY,
        firmware_number: int = 0,
        buffer_count: int = BUFFER_COUNT,
        state: ClientState | None = None,
        sync: bool = False,
        epoch_source: str = "",
    ) -> None:
        if not BUFFER_MINIMUM <= buffer_count <= BUFFER_LIMIT:
            raise UsageError(
                f"{buffer_count} buffers",
                f"must be {BUFFER_MINIMUM} to {BUFFER_LIMIT}",
                f"The Linux driver needs at least {BUFFER_MINIMUM}",
            )
        self.address = address
        self.disk = disk
        self.sectors = disk.size // SECTOR
        self.buffer_count = buffer_count
        self.firmware_number = firmware_number
        self.state = state or ClientState()
        self.on_change: Callable[[ClientState], None] | None = None
        """Called with the new state before it takes effect. If it raises ``OSError``,
        the state does not change."""
        self.filters: FilterStack | None = None
        """The filters between the interfaces and the target. Disk filters are already
        part of ``disk``."""
        self.sync = sync
        self.epoch_source = epoch_source
        self.uncorrectable: set[int] = set()
        """Sectors whose reads fail until they are written."""
        self.flush_failed = False
        """True if a flush of the disk has failed since it was opened."""
        self.on_flush_failure: Callable[[OSError], None] | None = None
        """Called with the error when ``flush_failed`` is set."""
        serial = identity.serial or str(address)[1:]
        self.identity = replace(
            identity,
            sectors=self.sectors,
            serial=serial,
            wwn=identity.wwn or make_wwn(address, serial),
            feature_sets=_READ_ONLY_FEATURE_SETS
            if disk.read_only
            else _ALL_FEATURE_SETS,
            enabled=_ENABLED_AT_START,
            transfer=_DEFAULT_TRANSFER_MODE,
        )
        self._rebuild_identity()

    def _rebuild_identity(self) -> None:
        # The write cache is as a client set it, and else as the disk is: a disk opened
        # with O_DSYNC has none. Such a disk needs no flush after a write.
        wanted = self.state.write_cache
        has_cache = not self.sync if wanted is None else wanted
        self.write_through = not (has_cache or self.sync)
        enabled = self.identity.enabled & ~FeatureSet.WRITE_CACHE
        if has_cache:
            enabled |= FeatureSet.WRITE_CACHE
        self.identity = replace(self.identity, enabled=enabled, epoch=self._epoch())
        self.identity_page = self.identity.pack()

    def _epoch(self) -> int:
        if not self.epoch_source:
            return 0
        digest = sha256(f"{self.epoch_source} {self.state.losses}".encode()).digest()
        return int.from_bytes(digest[:8], "big") or 1

    def flush(self) -> None:
        """Flush the disk: all earlier writes become stable (P46).

        The system reports lost writes only once and regards them as written afterwards.
        Therefore a flush that failed is not repeated: all flushes fail until the disk
        is reopened. An unreachable disk (``DEVICE_GONE``) has lost nothing yet.

        Raises:
            OSError: the flush failed, or an earlier one did.
        """
        if self.flush_failed:
            raise OSError(errno.EIO, "an earlier flush failed")
        try:
            self.disk.flush()
        except OSError as error:
            if error.errno not in DEVICE_GONE:
                self.flush_failed = True
                self._record_loss()
                if self.on_flush_failure is not None:
                    self.on_flush_failure(error)
            raise

    def _record_loss(self) -> None:
        # In memory also if it cannot be saved, as on a full or broken file system.
        after = replace(self.state, losses=self.state.losses + 1)
        with suppress(OSError):
            self.update_state(after)
        self.state = after
        self._rebuild_identity()

    @property
    def enabled(self) -> FeatureSet:
        """The feature sets that are enabled."""
        return self.identity.enabled

    def enable(self, feature_set: FeatureSet) -> None:
        """Enable a feature set until the program ends."""
        self.identity = replace(self.identity, enabled=self.enabled | feature_set)
        self._rebuild_identity()

    def disable(self, feature_set: FeatureSet) -> None:
        """Disable a feature set until the program ends."""
        self.identity = replace(self.identity, enabled=self.enabled & ~feature_set)
        self._rebuild_identity()

    def select_transfer(self, mode: int) -> None:
        """Set the transfer mode in the identity page; a PIO mode clears it."""
        selected = mode if mode >= _FIRST_DMA_MODE else 0
        self.identity = replace(self.identity, transfer=selected)
        self._rebuild_identity()

    @property
    def config_string(self) -> bytes:
        """The config string; empty if no client has set one."""
        return self.state.config_string

    @property
    def announcement_targets(self) -> tuple[bytes, ...]:
        """The destinations of announcements: the mask list, or broadcast (P48)."""
        return self.state.mask or (MAC_BROADCAST,)

    def claim(self, string: bytes) -> bool:
        """Set the config string if it is empty; return True if it is now ``string``.

        Setting the same string again succeeds, so that a retransmitted request does
        (P2, P54).

        Raises:
            OSError: the string could not be saved and is not set.
        """
        if not self.config_string:
            self.update_state(replace(self.state, config_string=string))
        return self.config_string == string

    def force(self, string: bytes) -> None:
        """Replace the config string; an empty string clears it (P55).

        Raises:
            OSError: the string could not be saved and is not set.
        """
        self.update_state(replace(self.state, config_string=string))

    def update_state(self, after: ClientState) -> None:
        """Replace the client state; a changed state is saved before it takes effect.

        Raises:
            OSError: the state could not be saved and has not changed.
        """
        if after == self.state:
            return
        if self.on_change is not None:
            self.on_change(after)
        self.state = after
        self._rebuild_identity()
