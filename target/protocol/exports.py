"""One export: a disk, the address it is served at, and what clients set on it."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Protocol

from aoe.address import MAC_BROADCAST
from aoe.ata import SECTOR
from aoe.config import STRING_LIMIT
from aoe.errors import UsageError
from aoe.identify import FeatureSet, Identity
from target.protocol.disk import GONE

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.address import Address
    from target.protocol.disk import Disk

MODEL: Final = "pyaoe"
BUFFER_COUNT: Final = 64
"""As many as the Linux driver ever keeps outstanding (P60)."""
BUFFER_MINIMUM: Final = 2
"""With less than this the Linux driver never brings the device up (P60)."""
BUFFER_LIMIT: Final = 0xFFFF
LIST_LIMIT: Final = 255
"""MAC addresses in a mask list or a reservation (P61, P76)."""
UNCORRECTABLE_LIMIT: Final = 1 << 16
"""Sectors that can be marked as unreadable at a time."""
_DOUBT: Final = 5.0
"""Seconds for which a client that got no answer to a flush may ask again."""
_UNCHANGING: Final = (
    FeatureSet.DMA
    | FeatureSet.SMART
    | FeatureSet.POWER
    | FeatureSet.WRITE_CACHE
    | FeatureSet.LOOK_AHEAD
)
_ALL: Final = _UNCHANGING | FeatureSet.TRIM | FeatureSet.UNCORRECTABLE
_SWITCHED_ON: Final = (
    FeatureSet.SMART
    | FeatureSet.POWER
    | FeatureSet.LOOK_AHEAD
    | FeatureSet.UNCORRECTABLE
)
_FIRST_DMA: Final = 0x20
_TRANSFER: Final = 0x46
"""Ultra DMA 6, as SET FEATURES numbers it."""
_ANY: Final = Identity(0, model=MODEL, rotation=1)
_LOCAL_WWN: Final = 3 << 60
"""A world wide name that nobody has assigned."""


def make_wwn(address: Address, serial: str) -> int:
    """Make a world wide name that is the same whenever these two are."""
    digest = sha256(f"{address} {serial}".encode()).digest()
    return _LOCAL_WWN | int.from_bytes(digest[:8], "big") >> 4


@dataclass(frozen=True, slots=True)
class ClientState:
    """What clients set on an export, and expect to find again.

    Args:
        config_string: at most 1024 bytes of anything (P58).
        mask: the MAC addresses that are served, in the order they came; none means
            everybody (P61).
        holders: the MAC addresses that the target is reserved for; none means
            everybody (P72).
        write_cache: whether a write may be answered before it is stable; None is for
            the target to decide.

    Raises:
        UsageError: a string or a list that is too long.
    """

    config_string: bytes = b""
    mask: tuple[bytes, ...] = ()
    holders: tuple[bytes, ...] = ()
    write_cache: bool | None = None
    listed: frozenset[bytes] = field(init=False, repr=False, compare=False)
    """The mask, to look addresses up in."""
    members: frozenset[bytes] = field(init=False, repr=False, compare=False)
    """The holders, to look addresses up in."""

    def __post_init__(self) -> None:
        if len(self.config_string) > STRING_LIMIT:
            raise UsageError(
                "config string",
                f"{len(self.config_string)} bytes are too long",
                f"Keep to {STRING_LIMIT}",
            )
        for name, macs in (("mask list", self.mask), ("reservation", self.holders)):
            if len(macs) > LIST_LIMIT:
                raise UsageError(
                    name, f"{len(macs)} addresses are too many", f"Name {LIST_LIMIT}"
                )
        object.__setattr__(self, "listed", frozenset(self.mask))
        object.__setattr__(self, "members", frozenset(self.holders))


class FilterStack(Protocol):
    """The filters of an export; ``target.filters.stack`` implements it."""

    def strikes(self) -> list[tuple[str, int | None]]:
        """Return how often each has acted; None for one that always does."""
        ...


class Export:
    """A disk under an AoE address, on as many interfaces as one likes.

    What clients set is shared by all interfaces: it belongs to the export.

    Args:
        address: the shelf and slot.
        disk: where the bytes live.
        identity: what the disk says of itself; its size, its abilities and, where there
            is none, its serial number and its world wide name are filled in.
        firmware_number: the firmware for the query config reply, 16 bits.
        buffer_count: messages that a client may have outstanding.
        state: what clients had set before.
        sync: the disk makes every write stable by itself.

    Raises:
        UsageError: a buffer count below 2 or above 65535.
    """

    def __init__(
        self,
        address: Address,
        disk: Disk,
        *,
        identity: Identity = _ANY,
        firmware_number: int = 0,
        buffer_count: int = BUFFER_COUNT,
        state: ClientState | None = None,
        sync: bool = False,
    ) -> None:
        if not BUFFER_MINIMUM <= buffer_count <= BUFFER_LIMIT:
            raise UsageError(
                f"{buffer_count} buffers",
                "clients need room for two messages at least",
                f"Choose {BUFFER_MINIMUM} to {BUFFER_LIMIT}",
            )
        self.address = address
        self.disk = disk
        self.sectors = disk.size // SECTOR
        self.buffer_count = buffer_count
        self.firmware_number = firmware_number
        self.state = state or ClientState()
        self.changed: Callable[[ClientState], None] | None = None
        """Called with what the state is about to become, before it does. An OSError of
        it leaves everything as it was."""
        self.filters: FilterStack | None = None
        """What stands between its interfaces and it. Those for disks are in ``disk``
        already."""
        self.sync = sync
        self.uncorrectable: set[int] = set()
        """Sectors whose reading fails until they are written."""
        self._unheard = False
        self._doubtful_until = 0.0
        serial = identity.serial or str(address)[1:]
        self.identity = replace(
            identity,
            sectors=self.sectors,
            serial=serial,
            wwn=identity.wwn or make_wwn(address, serial),
            feature_sets=_UNCHANGING if disk.read_only else _ALL,
            enabled=_SWITCHED_ON,
            transfer=_TRANSFER,
        )
        self._describe()

    def _describe(self) -> None:
        # The write cache follows what clients said, and else what the disk does. Where
        # the disk makes writes stable by itself there is nothing left to do for it.
        wanted = self.state.write_cache
        has_cache = not self.sync if wanted is None else wanted
        self.write_through = not (has_cache or self.sync)
        enabled = self.identity.enabled & ~FeatureSet.WRITE_CACHE
        if has_cache:
            enabled |= FeatureSet.WRITE_CACHE
        self.identity = replace(self.identity, enabled=enabled)
        self.identity_page = self.identity.pack()

    def make_stable(self) -> None:
        """Flush the disk, for a write that answers for itself alone.

        Raises:
            OSError: it failed; the next ``settle`` will, too.
        """
        try:
            self.disk.flush()
        except OSError as error:
            self._unheard = self._unheard or error.errno not in GONE
            raise

    def settle(self, now: float) -> None:
        """Flush the disk, for a client that asks whether all before is stable (P46).

        A disk tells of what it could not make stable once. A client whose answer is
        lost asks again and must hear the same (P2), and so must others who share the
        disk: for five seconds all are told.

        Args:
            now: seconds.

        Raises:
            OSError: it failed, or has failed so that somebody may not have heard.
        """
        try:
            self.make_stable()
        except OSError as error:
            if error.errno in GONE:
                raise
        if self._unheard:
            self._unheard = False
            self._doubtful_until = now + _DOUBT
        if now < self._doubtful_until:
            raise OSError(errno.EIO, "not all that was written is stable")

    @property
    def enabled(self) -> FeatureSet:
        """What of the disk's abilities is switched on."""
        return self.identity.enabled

    def enable(self, feature_set: FeatureSet) -> None:
        """Switch an ability on, until the program ends; all of them are at first."""
        self.identity = replace(self.identity, enabled=self.enabled | feature_set)
        self._describe()

    def disable(self, feature_set: FeatureSet) -> None:
        """Switch an ability off, until the program ends."""
        self.identity = replace(self.identity, enabled=self.enabled & ~feature_set)
        self._describe()

    def select_transfer(self, mode: int) -> None:
        """Have the identity page show another transfer mode, none for PIO."""
        selected = mode if mode >= _FIRST_DMA else 0
        self.identity = replace(self.identity, transfer=selected)
        self._describe()

    @property
    def config_string(self) -> bytes:
        """What a client claimed the target with, if any did."""
        return self.state.config_string

    @property
    def audience(self) -> tuple[bytes, ...]:
        """Whom to tell that the target is ready: those in the mask, or all (P48)."""
        return self.state.mask or (MAC_BROADCAST,)

    def claim(self, string: bytes) -> bool:
        """Set the config string if there is none, and tell whether it is now this one.

        Saying the same again succeeds, as a retransmitted request must (P2, P54).

        Raises:
            OSError: it could not be kept, and is not set.
        """
        if not self.config_string:
            self.change(replace(self.state, config_string=string))
        return self.config_string == string

    def force(self, string: bytes) -> None:
        """Set the config string whatever it was; the empty one clears it (P55).

        Raises:
            OSError: it could not be kept, and is not set.
        """
        self.change(replace(self.state, config_string=string))

    def change(self, after: ClientState) -> None:
        """Set all that clients can set; it is kept first, if it is not the same.

        Raises:
            OSError: it could not be kept, and nothing has changed.
        """
        if after == self.state:
            return
        if self.changed is not None:
            self.changed(after)
        self.state = after
        self._describe()
