"""The target under test: its known properties, and requests to it."""

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
    """A target under test on one interface.

    Args:
        address: shelf and slot.
        mac: MAC address of the target.
        client: MAC address of the local interface.
        mtu: MTU of the local interface, in bytes.
        config: its response to a query config.
        tag_base: the ten bits that all tags of this process share (P11).

    Attributes:
        frame_limit: the longest frame that the interface sends, in bytes.
        advertised: sectors per frame by the query config response.
        frame_sectors: sectors per frame that target and interface support.
        identity_page: the IDENTIFY page, empty if unknown.
        identity: the decoded page, None if unknown or without sectors.
        mask_before, holders_before: lists as they were, None if not supported.
        is_read_only: the target aborts writes.
        scratch: sectors that checks may write.
        scratch_before: their contents, to be restored.
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
        """The original config string."""
        return self.config_before.string

    @property
    def disk(self) -> Identity:
        """The decoded IDENTIFY page.

        Raises:
            Skip: it is unknown, or the target is reserved for others.
        """
        return self._require_disk()

    def _require_disk(self) -> Identity:
        if self.identity is None:
            raise Skip("IDENTIFY reports no disk with sectors")
        self._require_unreserved()
        return self.identity

    def _require_unreserved(self) -> None:
        if self.holders_before and self.client not in self.holders_before:
            raise Skip(f"the target is reserved for {_names(self.holders_before)}")

    @property
    def sectors(self) -> int:
        """The size of the disk in sectors.

        Raises:
            Skip: as ``disk``.
        """
        return self.disk.sectors

    def word(self, number: int) -> int:
        """Return a word of the IDENTIFY page.

        Raises:
            Skip: as ``disk``.
        """
        self._require_disk()
        return int.from_bytes(self.identity_page[2 * number :][:2], "little")

    def require(self, feature_set: FeatureSet) -> None:
        """Skip the check unless IDENTIFY claims the feature set.

        Raises:
            Skip: it does not, or as ``disk``.
        """
        if feature_set not in self.disk.feature_sets:
            raise Skip(
                f"IDENTIFY does not claim {str(feature_set.name).replace('_', ' ')}"
            )

    @property
    def mask(self) -> tuple[bytes, ...]:
        """The original MAC mask list.

        Raises:
            Skip: the target does not support the command.
        """
        if self.mask_before is None:
            raise Skip("the target does not support the MAC mask list command")
        return self.mask_before

    @property
    def holders(self) -> tuple[bytes, ...]:
        """The original holders of the reservation.

        Raises:
            Skip: the target does not support the command.
        """
        if self.holders_before is None:
            raise Skip("the target does not support the reserve/release command")
        return self.holders_before

    def ata(
        self,
        opcode: int,
        lba: int = 0,
        count: int = 0,
        **overrides: Unpack[AtaOverrides],
    ) -> bytes:
        """Build an ATA request with these registers.

        Raises:
            Skip: the opcode is not IDENTIFY and the target is reserved for others
                (P74).
        """
        if opcode != Opcode.IDENTIFY:
            self._require_unreserved()
        return super().ata(opcode, lba, count, **overrides)

    def read(
        self, lba: int = 0, count: int = 1, **overrides: Unpack[AtaOverrides]
    ) -> bytes:
        """Build a READ, or a READ EXT if the disk has 48-bit addresses.

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
        """Build a WRITE with the W flag, or a WRITE EXT for 48-bit addresses.

        Args:
            lba: the first sector.
            sectors: the data.
            count: the sector count, by default that of the data.
            overrides: other fields that differ from their defaults.

        Raises:
            Skip: the disk is read-only, or as ``disk``.
        """
        opcode = Opcode.WRITE_EXT if self.disk.lba48 else Opcode.WRITE
        if self.is_read_only:
            raise Skip("the target is read-only: it aborts writes")
        overrides["data"] = sectors
        overrides["aflags"] = overrides.get("aflags", AFlag.WRITE)
        whole = len(sectors) // SECTOR
        return self.transfer(
            opcode, lba, whole if count is None else count, **overrides
        )

    # Scratch sectors.

    def original(self, index: int = 0, count: int = 1) -> bytes:
        """Return the original contents of scratch sectors."""
        return self.scratch_before[index * SECTOR : (index + count) * SECTOR]

    def inverted(self, index: int = 0, count: int = 1) -> bytes:
        """Return the bitwise complement of the original contents."""
        return bytes(byte ^ 0xFF for byte in self.original(index, count))

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Split the scratch sectors into frames: yield index and count."""
        step, total = self.frame_sectors, len(self.scratch)
        return ((index, min(step, total - index)) for index in range(0, total, step))


def _names(macs: tuple[bytes, ...]) -> str:
    return ", ".join(map(format_mac, macs))


def probe(t: Subject) -> Steps:
    """Query the properties of a target, without changing it."""
    response = yield t.identify(), ANYTHING
    if len(response) >= ATA_DATA + SECTOR and not is_failure(response):
        t.identity_page = response[ATA_DATA : ATA_DATA + SECTOR]
        identity = Identity.unpack(t.identity_page)
        t.identity = identity if 0 < identity.sectors < LBA48_LIMIT else None
    response = yield t.mask_list(), ANYTHING
    if _is_supported(response, Command.MASK, MASK_LENGTH):
        listed = MaskList.unpack_from(response).directives
        t.mask_before = tuple(mac for _, mac in listed)
    response = yield t.reserve(), ANYTHING
    if _is_supported(response, Command.RESERVE, RESERVE_LENGTH):
        t.holders_before = Reserve.unpack_from(response).macs


def _is_supported(response: bytes, command: Command, length: int) -> bool:
    if len(response) < HEADER_LENGTH + length:
        return False
    return response[19] == command and not response[14] & Flag.ERROR
