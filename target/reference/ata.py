"""ATA commands of the reference target, one method each.

A method gets the ATA layers of request and response. The response has the registers of
a success; the method sets ``data``, or another register. It raises ``CommandError`` for
a failure, which is reported in status and error registers (P15).
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final

from aoe.address import SHELF_ALL, SLOT_ALL, parse_mac
from aoe.ata import (
    ATA_DATA,
    ATA_LENGTH,
    SECTOR,
    AFlag,
    AtaError,
    Feature,
    Opcode,
    SmartFeature,
    Status,
)
from aoe.header import ETHERNET_LENGTH, ErrorCode
from aoe.identify import FeatureSet
from aoe.layers import AoEATA
from aoe.smart import SMART_KEY, Attribute, pack_attributes
from target.protocol.disk import DEVICE_GONE
from target.protocol.exports import UNCORRECTABLE_LIMIT
from target.protocol.frames import Drop

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from scapy.packet import Packet

    from target.protocol.exports import Export

_AFLAGS: Final = AFlag.EXTENDED | AFlag.DEVICE | AFlag.ASYNC | AFlag.WRITE
_COUNT_LIMIT: Final = 255
_POWER_ACTIVE: Final = 0xFF
_TRIM: Final = 1
_UNCORRECTABLE_FEATURES: Final = (0x55, 0x5A, 0xA5, 0xAA)
_TRANSFER_MODES: Final = (0, 1, *range(8, 13), *range(0x20, 0x23), *range(0x40, 0x47))


class NoResponse(Exception):  # noqa: N818 - it is not an error
    """A request is dropped; the argument is the ``Drop``."""


class CommandError(Exception):
    """An ATA command fails.

    Args:
        error: the error register.
        fault: set the device fault bit in the status register, too.
    """

    def __init__(self, error: AtaError, *, fault: bool = False) -> None:
        super().__init__(error)
        self.error = error
        self.status = Status.READY | Status.ERROR
        self.kind = str(error.name).lower()
        if fault:
            self.status |= Status.DEVICE_FAULT
            self.kind = "device_fault"


class AtaCommands:
    """Command 0 of ``AoETarget``, which has the attributes."""

    export: Export
    clock: Callable[[], float]
    counts: Counter[str]
    errors: Counter[str]
    mtu: int
    largest_advertised: int
    header: Callable[..., Packet]
    refuse: Callable[..., Packet]

    OPERATIONS: ClassVar[dict[int, str]] = {
        Opcode.DATA_SET_MANAGEMENT: "trim",
        Opcode.READ: "read",
        Opcode.READ_EXT: "read",
        Opcode.READ_DMA: "read",
        Opcode.READ_DMA_EXT: "read",
        Opcode.WRITE: "write",
        Opcode.WRITE_EXT: "write",
        Opcode.WRITE_DMA: "write",
        Opcode.WRITE_DMA_EXT: "write",
        Opcode.WRITE_DMA_FUA_EXT: "write_fua",
        Opcode.READ_VERIFY: "verify",
        Opcode.READ_VERIFY_EXT: "verify",
        Opcode.WRITE_UNCORRECTABLE_EXT: "write_uncorrectable",
        Opcode.SMART: "smart",
        Opcode.STANDBY_IMMEDIATE: "standby",
        Opcode.STANDBY: "standby",
        Opcode.SLEEP: "standby",
        Opcode.IDLE_IMMEDIATE: "idle",
        Opcode.IDLE: "idle",
        Opcode.CHECK_POWER_MODE: "check_power_mode",
        Opcode.FLUSH: "flush",
        Opcode.FLUSH_EXT: "flush",
        Opcode.IDENTIFY: "identify",
        Opcode.SET_FEATURES: "set_features",
    }
    """ATA opcode: the name of its method, called with request and response."""

    def ata(self, req: Packet) -> Packet:
        """Execute an ATA command, and report its result in the registers (P15)."""
        if AoEATA not in req:
            raise NoResponse(Drop.SHORT)  # P17
        ata = req[AoEATA]
        if self.is_reserved(req) and ata.cmd_status != Opcode.IDENTIFY:
            return self.refuse(req, ErrorCode.RESERVED, ATA_LENGTH)  # P74
        registers = {"aflags": int(ata.aflags) & _AFLAGS, "lba": ata.lba}
        response = AoEATA(**registers, count=0, cmd_status=Status.READY)  # P26, P35
        try:
            getattr(self, self.OPERATIONS.get(ata.cmd_status, "abort"))(ata, response)
        except (CommandError, OSError) as failure:
            if isinstance(failure, OSError) and failure.errno in DEVICE_GONE:
                return self.refuse(req, ErrorCode.DEVICE_UNAVAILABLE, ATA_LENGTH)  # P41
            response = self.failed(ata, failure, registers)
        return self.header(req) / response

    def is_reserved(self, req: Packet) -> bool:
        """Return True if the target is reserved, and not for this client (P72)."""
        holders = self.export.state.holders
        return bool(holders) and parse_mac(req.src) not in holders

    def failed(
        self, ata: Packet, failure: CommandError | OSError, registers: dict[str, Any]
    ) -> Packet:
        """Return the response to a command that failed, without data (P32, P41)."""
        if isinstance(failure, OSError):
            is_read = self.OPERATIONS.get(ata.cmd_status) in {"read", "verify"}
            failure = (
                CommandError(AtaError.UNCORRECTABLE)
                if is_read
                else CommandError(AtaError.ABORTED, fault=True)
            )
        self.errors[failure.kind] += 1
        return AoEATA(
            **registers,
            count=ata.count,
            cmd_status=failure.status,
            err_feature=failure.error,
        )

    def abort(self, ata: Packet, response: Packet) -> None:
        """Abort an unknown opcode (P43)."""
        raise CommandError(AtaError.ABORTED)

    def offset(self, ata: Packet, limit: int | None = None) -> int:
        """Return the byte offset of a transfer that is within the disk (P36 to P38).

        Args:
            ata: the request.
            limit: most sectors; default: those that a frame has room for.
        """
        room = (ETHERNET_LENGTH + self.mtu - ATA_DATA) // SECTOR
        if not 0 < ata.count <= (limit or min(room, _COUNT_LIMIT)):
            if 0 < ata.count <= self.largest_advertised:
                # It fitted before the MTU was reduced: the client sends it again in
                # smaller parts when it gets the announcement.
                raise NoResponse(Drop.OVERSIZED)
            raise CommandError(AtaError.ABORTED)
        if ata.sector + ata.count > self.export.sectors:
            raise CommandError(AtaError.NOT_FOUND)
        return int(ata.sector) * SECTOR

    def check_write(self, ata: Packet) -> None:
        """Check that a command may change the disk (P40, P44)."""
        aoe = ata.underlayer
        is_broadcast = aoe.shelf == SHELF_ALL or aoe.slot == SLOT_ALL
        if is_broadcast or self.export.disk.read_only:
            raise CommandError(AtaError.ABORTED)

    # --- transfers ----------------------------------------------------------------

    def read(self, ata: Packet, response: Packet) -> None:
        """Execute READ SECTORS (EXT) and READ DMA (EXT)."""
        if ata.aflags.write:
            raise CommandError(AtaError.ABORTED)  # P28
        response.data = self.read_disk(self.offset(ata), ata.count)
        self.counts["reads"] += 1
        self.counts["read_bytes"] += len(response.data)

    def verify(self, ata: Packet, response: Packet) -> None:
        """Execute READ VERIFY SECTORS (EXT): read without returning the data."""
        if ata.aflags.write:
            raise CommandError(AtaError.ABORTED)
        self.read_disk(self.offset(ata, _COUNT_LIMIT), ata.count)

    def read_disk(self, offset: int, sectors: int) -> bytes:
        """Read from the disk, except for sectors that are marked uncorrectable."""
        first = offset // SECTOR
        if not self.export.uncorrectable.isdisjoint(range(first, first + sectors)):
            raise CommandError(AtaError.UNCORRECTABLE)
        data = bytearray(sectors * SECTOR)
        self.export.disk.read_into(offset, memoryview(data))
        return bytes(data)

    def write(self, ata: Packet, response: Packet) -> None:
        """Execute WRITE SECTORS (EXT) and WRITE DMA (EXT)."""
        self.check_write(ata)
        length = ata.count * SECTOR
        if not ata.aflags.write or len(ata.data) < length:
            raise CommandError(AtaError.ABORTED)  # P28, P39
        offset = self.offset(ata)
        self.export.disk.write_from(offset, memoryview(ata.data)[:length])
        if self.export.write_through:
            self.export.flush()
        first = offset // SECTOR
        self.export.uncorrectable.difference_update(range(first, first + ata.count))
        self.counts["writes"] += 1
        self.counts["written_bytes"] += length

    def write_fua(self, ata: Packet, response: Packet) -> None:
        """Execute WRITE DMA FUA EXT: the response is sent when the data is stable."""
        self.write(ata, response)
        if not (self.export.write_through or self.export.sync):
            self.export.flush()

    def write_uncorrectable(self, ata: Packet, response: Packet) -> None:
        """Execute WRITE UNCORRECTABLE EXT: reads of the sectors fail until a write."""
        self.check_write(ata)
        if ata.err_feature not in _UNCORRECTABLE_FEATURES:
            raise CommandError(AtaError.ABORTED)
        first = self.offset(ata, _COUNT_LIMIT) // SECTOR
        if len(self.export.uncorrectable) + ata.count > UNCORRECTABLE_LIMIT:
            raise CommandError(AtaError.ABORTED)
        self.export.uncorrectable.update(range(first, first + ata.count))

    def trim(self, ata: Packet, response: Packet) -> None:
        """Execute DATA SET MANAGEMENT with TRIM: all ranges, or none."""
        self.check_write(ata)
        room = (ETHERNET_LENGTH + self.mtu - ATA_DATA) // SECTOR
        if (
            not ata.aflags.write
            or ata.err_feature != _TRIM
            or not 0 < ata.count <= min(room, _COUNT_LIMIT)
            or len(ata.data) < ata.count * SECTOR
        ):
            raise CommandError(AtaError.ABORTED)
        entries = struct.iter_unpack("<Q", ata.data[: ata.count * SECTOR])
        ranges = [(n & (1 << 48) - 1, n >> 48) for (n,) in entries if n >> 48]
        if any(first + sectors > self.export.sectors for first, sectors in ranges):
            raise CommandError(AtaError.NOT_FOUND)
        for first, sectors in ranges:
            self.export.disk.discard(first * SECTOR, sectors * SECTOR)
            self.export.uncorrectable.difference_update(range(first, first + sectors))
        if self.export.write_through:
            self.export.flush()

    def flush(self, ata: Packet, response: Packet) -> None:
        """Execute FLUSH CACHE (EXT): the response is sent when the data is stable."""
        self.export.flush_barrier(self.clock())  # P46
        self.counts["flushes"] += 1

    # --- the device -----------------------------------------------------------------

    def identify(self, ata: Packet, response: Packet) -> None:
        """Execute IDENTIFY DEVICE, also for a broadcast address (P44, P45)."""
        if ata.count != 1 or ata.aflags.write:
            raise CommandError(AtaError.ABORTED)
        response.data = self.export.identity_page

    def check_power_mode(self, ata: Packet, response: Packet) -> None:
        """Execute CHECK POWER MODE: always active (P47)."""
        response.count = _POWER_ACTIVE

    def standby(self, ata: Packet, response: Packet) -> None:
        """Execute STANDBY (IMMEDIATE) and SLEEP: flush the disk."""
        self.export.flush_barrier(self.clock())

    def idle(self, ata: Packet, response: Packet) -> None:
        """Execute IDLE (IMMEDIATE): do nothing."""

    def set_features(self, ata: Packet, response: Packet) -> None:
        """Execute SET FEATURES: write cache, look-ahead, transfer mode."""
        export = self.export
        match ata.err_feature:
            case Feature.WRITE_CACHE_ON:
                export.update_state(replace(export.state, write_cache=True))
            case Feature.WRITE_CACHE_OFF:
                export.update_state(replace(export.state, write_cache=False))
                export.flush_barrier(self.clock())
            case Feature.LOOK_AHEAD_ON:
                export.enable(FeatureSet.LOOK_AHEAD)
            case Feature.LOOK_AHEAD_OFF:
                export.disable(FeatureSet.LOOK_AHEAD)
            case Feature.TRANSFER_MODE if ata.count in _TRANSFER_MODES:
                export.select_transfer(ata.count)
            case _:
                raise CommandError(AtaError.ABORTED)

    def smart(self, ata: Packet, response: Packet) -> None:
        """Execute SMART: read data, enable, disable, return status (always good)."""
        has_key = ata.lba >> 8 & 0xFFFF == SMART_KEY
        is_enabled = FeatureSet.SMART in self.export.enabled
        is_allowed = is_enabled or ata.err_feature == SmartFeature.ENABLE
        if not (has_key and is_allowed) or ata.aflags.write:
            raise CommandError(AtaError.ABORTED)
        match ata.err_feature:
            case SmartFeature.READ_DATA:
                response.data = self.smart_page()
            case SmartFeature.ENABLE:
                self.export.enable(FeatureSet.SMART)
            case SmartFeature.DISABLE:
                self.export.disable(FeatureSet.SMART)
            case SmartFeature.RETURN_STATUS:
                pass  # The key in the LBA register is echoed: no threshold exceeded.
            case _:
                raise CommandError(AtaError.ABORTED)

    def smart_page(self) -> bytes:
        """Return the SMART attributes: errors and transfers of this target."""
        counts = {
            187: self.errors["uncorrectable"],
            241: self.counts["written_bytes"] // SECTOR,
            242: self.counts["read_bytes"] // SECTOR,
        }
        return pack_attributes(
            Attribute(number, 0x0032, 100, 100, value & (1 << 48) - 1)
            for number, value in counts.items()
        )
