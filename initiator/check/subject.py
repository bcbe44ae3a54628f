"""The target that is checked: what is known of it, and requests for its disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Unpack

from aoe.address import format_mac
from aoe.ata import ATA_DATA, LBA48_LIMIT, SECTOR, AFlag, Opcode
from aoe.header import ETHERNET_LENGTH, HEADER_LENGTH, Command, Flag, sectors_per_frame
from aoe.identify import Identity
from aoe.macmask import MASK_LENGTH, MaskList
from aoe.reserve import RESERVE_LENGTH, Reserve
from initiator.check.expect import ANYTHING, is_failure
from initiator.check.model import Skip
from initiator.client.requests import AtaOverrides, RequestBuilder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe.address import Address
    from aoe.config import Config
    from aoe.identify import FeatureSet
    from initiator.check.model import Steps

_SECTORS_BY_DEFAULT: Final = 2
"""What a sector count of 0 in a query config means (P23)."""


class Subject(RequestBuilder):
    """One target on one interface, as far as it is known.

    Args:
        address: its shelf and slot.
        mac: its MAC address.
        client: our own.
        mtu: of our interface, in bytes.
        config: what it answered to a query config.
        tag_base: the twelve bits that our tags have in common (P11).
    """

    def __init__(
        self,
        address: Address,
        mac: bytes,
        client: bytes,
        mtu: int,
        config: Config,
        tag_base: int = 0,
    ) -> None:
        super().__init__(address, mac, client, tag_base)
        self.config_before = config
        self.frame_limit = ETHERNET_LENGTH + mtu
        self.advertised = config.sector_count or _SECTORS_BY_DEFAULT
        self.frame_sectors = min(self.advertised, sectors_per_frame(mtu))
        self.identity_page = b""
        self.identity: Identity | None = None
        self.mask_before: tuple[bytes, ...] | None = None
        self.holders_before: tuple[bytes, ...] | None = None
        self.is_read_only = False
        self.scratch = range(0)
        self.scratch_before = b""

    @property
    def string(self) -> bytes:
        """The config string as it was."""
        return self.config_before.string

    @property
    def disk(self) -> Identity:
        """What its disk says of itself.

        Raises:
            Skip: it did not say, or is reserved for others.
        """
        return self._require_disk()

    def _require_disk(self) -> Identity:
        if self.identity is None:
            raise Skip("IDENTIFY tells of no disk that has sectors")
        self._require_unreserved()
        return self.identity

    def _require_unreserved(self) -> None:
        if self.holders_before and self.client not in self.holders_before:
            raise Skip(f"it is reserved for {_names(self.holders_before)}")

    @property
    def sectors(self) -> int:
        """The size of the disk.

        Raises:
            Skip: as ``disk``.
        """
        return self.disk.sectors

    def word(self, number: int) -> int:
        """Return a word of the identity page.

        Raises:
            Skip: as ``disk``.
        """
        self._require_disk()
        return int.from_bytes(self.identity_page[2 * number :][:2], "little")

    def require(self, feature_set: FeatureSet) -> None:
        """Return if IDENTIFY claims this.

        Raises:
            Skip: it does not, or as ``disk``.
        """
        if feature_set not in self.disk.feature_sets:
            raise Skip(
                f"IDENTIFY does not claim {str(feature_set.name).replace('_', ' ')}"
            )

    @property
    def mask(self) -> tuple[bytes, ...]:
        """The MAC mask list as it was.

        Raises:
            Skip: the target has none.
        """
        if self.mask_before is None:
            raise Skip("it answers to no MAC mask list command")
        return self.mask_before

    @property
    def holders(self) -> tuple[bytes, ...]:
        """The holders of a reservation as they were.

        Raises:
            Skip: the target knows no reservations.
        """
        if self.holders_before is None:
            raise Skip("it answers to no reserve/release command")
        return self.holders_before

    def ata(
        self,
        opcode: int,
        lba: int = 0,
        count: int = 0,
        **overrides: Unpack[AtaOverrides],
    ) -> bytes:
        """Build an ATA request with just these registers.

        Raises:
            Skip: it is no IDENTIFY, and the target is reserved for others (P74).
        """
        if opcode != Opcode.IDENTIFY:
            self._require_unreserved()
        return super().ata(opcode, lba, count, **overrides)

    def read(
        self, lba: int = 0, count: int = 1, **overrides: Unpack[AtaOverrides]
    ) -> bytes:
        """Build a READ, EXT where the disk has 48-bit addresses.

        Raises:
            Skip: as ``disk``.
        """
        opcode = Opcode.READ_EXT if self.disk.lba48 else Opcode.READ
        return self.transfer(opcode, lba, count, **overrides)

    def write(
        self,
        lba: int,
        sectors: bytes,
        count: int | None = None,
        **overrides: Unpack[AtaOverrides],
    ) -> bytes:
        """Build a WRITE with the W flag, EXT where the disk has 48-bit addresses.

        Args:
            lba: the first sector.
            sectors: what to write there.
            count: the sector count, if it is not what there is.
            overrides: what else is different.

        Raises:
            Skip: the disk is read-only, or as ``disk``.
        """
        opcode = Opcode.WRITE_EXT if self.disk.lba48 else Opcode.WRITE
        if self.is_read_only:
            raise Skip("it is read-only: it aborts writes")
        overrides["data"] = sectors
        overrides["aflags"] = overrides.get("aflags", AFlag.WRITE)
        whole = len(sectors) // SECTOR
        return self.transfer(
            opcode, lba, whole if count is None else count, **overrides
        )

    # The sectors that may be written.

    def original(self, index: int = 0, count: int = 1) -> bytes:
        """Return what scratch sectors held before."""
        return self.scratch_before[index * SECTOR : (index + count) * SECTOR]

    def inverted(self, index: int = 0, count: int = 1) -> bytes:
        """Return data that differs in every bit from what scratch sectors held."""
        return bytes(byte ^ 0xFF for byte in self.original(index, count))

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Cut the scratch sectors into what a frame carries: index and count."""
        step, total = self.frame_sectors, len(self.scratch)
        return ((index, min(step, total - index)) for index in range(0, total, step))


def _names(macs: tuple[bytes, ...]) -> str:
    return ", ".join(map(format_mac, macs))


def probe(t: Subject) -> Steps:
    """Ask a target what the checks have to know of it, changing nothing."""
    response = yield t.identify(), ANYTHING
    if len(response) >= ATA_DATA + SECTOR and not is_failure(response):
        t.identity_page = response[ATA_DATA : ATA_DATA + SECTOR]
        identity = Identity.unpack(t.identity_page)
        t.identity = identity if 0 < identity.sectors < LBA48_LIMIT else None
    response = yield t.mask_list(), ANYTHING
    if _answers(response, Command.MASK, MASK_LENGTH):
        listed = MaskList.unpack_from(response).directives
        t.mask_before = tuple(mac for _, mac in listed)
    response = yield t.reserve(), ANYTHING
    if _answers(response, Command.RESERVE, RESERVE_LENGTH):
        t.holders_before = Reserve.unpack_from(response).macs


def _answers(response: bytes, command: Command, length: int) -> bool:
    if len(response) < HEADER_LENGTH + length:
        return False
    return response[19] == command and not response[14] & Flag.ERROR
