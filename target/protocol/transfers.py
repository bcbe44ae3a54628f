"""ATA commands that move, check, discard or spoil sectors.

Each operation does its work and returns the bytes of data that it put behind the
reply's registers, and the sector count register of a success (P35).
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.address import SHELF_ALL, SLOT_ALL
from aoe.ata import ATA_DATA, LBA48_OPCODES, SECTOR, AFlag, AtaError, Status
from target.protocol.exports import UNCORRECTABLE_LIMIT

if TYPE_CHECKING:
    from target.protocol.frames import Fields
    from target.protocol.target import Target

# Plain numbers: one operator of an enum costs more than the rest of a frame's header.
_EXTENDED: Final = int(AFlag.EXTENDED)
_WRITE: Final = int(AFlag.WRITE)
_FAILED: Final = int(Status.READY | Status.ERROR)
_LONG_OPCODES: Final = frozenset(map(int, LBA48_OPCODES))
_LBA28_MASK: Final = 0x0FFF_FFFF
_LBA48_MASK: Final = 0xFFFF_FFFF_FFFF
_COUNT_LIMIT: Final = 255
_FEATURE: Final = 25
"""Offset of the feature register in a request, which few operations look at."""
_TRIM: Final = 1
"""The one feature of DATA SET MANAGEMENT."""
_SPOIL: Final = frozenset({0x55, 0x5A, 0xA5, 0xAA})
"""The features of WRITE UNCORRECTABLE: to us they are all one."""
_RANGES: Final = Struct("<Q")
"""A range to trim: the address in 48 bits, the count of sectors above them."""


class CommandError(Exception):
    """An ATA command that ends with an error: a status on the wire, no fault of ours.

    Args:
        error: the error register.
        status: the status register.
        kind: the name under which it is counted.
    """

    def __init__(
        self, error: AtaError, status: int = _FAILED, kind: str | None = None
    ) -> None:
        super().__init__(error, status)
        self.error = int(error)
        self.status = status
        self.kind = kind or str(error.name).lower()


class OutgrownError(Exception):
    """A transfer as long as was advertised before the MTU became smaller.

    To refuse it would fail what the client asked for in good faith. It gets silence,
    and has been told by now what fits (P37, P48).
    """


def read(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """READ SECTORS and READ DMA, EXT too: from the disk straight into the reply.

    Data behind the registers is a size probe's ballast and ignored (P23).
    """
    del request
    _, _, _, _, _, _, _, aflags, count, opcode, low, high = fields
    if aflags & _WRITE:
        raise CommandError(AtaError.ABORTED)  # P28
    offset = _locate(target, aflags, count, opcode, low, high)
    length = count * SECTOR
    export = target.export
    if export.uncorrectable:
        _check_readable(export.uncorrectable, offset, count)
    export.disk.read_into(offset, reply[ATA_DATA : ATA_DATA + length])
    target.reads += 1
    target.read_bytes += length
    return length, 0


def write(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """WRITE SECTORS and WRITE DMA, EXT too: straight from the request to the disk.

    With the write cache switched off it is answered when the data is stable. Refused
    before the disk is touched: no W flag (P28), a broadcast address (P44), a read-only
    disk (P40), less data than the sector count says (P39).
    """
    del reply
    _, _, _, shelf, slot, _, _, aflags, count, opcode, low, high = fields
    length = count * SECTOR
    export = target.export
    disk = export.disk
    if (
        not aflags & _WRITE
        or shelf == SHELF_ALL
        or slot == SLOT_ALL
        or disk.read_only
        or len(request) < ATA_DATA + length
    ):
        raise CommandError(AtaError.ABORTED)
    offset = _locate(target, aflags, count, opcode, low, high)
    disk.write_from(offset, request[ATA_DATA : ATA_DATA + length])
    if export.write_through:
        export.make_stable()
    if export.uncorrectable:
        first = offset // SECTOR
        export.uncorrectable.difference_update(range(first, first + count))
    target.writes += 1
    target.written_bytes += length
    return 0, 0


def _locate(
    target: Target,
    aflags: int,
    count: int,
    opcode: int,
    low: int,
    high: int,
    limit: int | None = None,
) -> int:
    # The byte where a transfer of `count` sectors begins. A count of zero means 256 or
    # 65536 sectors, which fit no frame (P36, P37); device bits are no part of a 28-bit
    # address (P30, P31); no transfer may reach beyond the end (P38).
    if not 0 < count <= (limit or target.sector_limit):
        if 0 < count <= target.sectors_once:
            raise OutgrownError
        raise CommandError(AtaError.ABORTED)
    if aflags & _EXTENDED or opcode in _LONG_OPCODES:
        sector = high << 32 | low
    else:
        sector = low & _LBA28_MASK
    if sector + count > target.export.sectors:
        raise CommandError(AtaError.NOT_FOUND)
    return sector * SECTOR


def _check_readable(bad: set[int], offset: int, count: int) -> None:
    first = offset // SECTOR
    if not bad.isdisjoint(range(first, first + count)):
        raise CommandError(AtaError.UNCORRECTABLE)


def _check_writable(target: Target, fields: Fields) -> None:
    # What changes the disk is refused where a write is (P40, P44).
    _, _, _, shelf, slot, *_ = fields
    if shelf == SHELF_ALL or slot == SLOT_ALL or target.export.disk.read_only:
        raise CommandError(AtaError.ABORTED)


def write_stable(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """WRITE DMA FUA EXT: answered when the data is stable, cache or no cache."""
    result = write(target, fields, request, reply)
    export = target.export
    if not (export.write_through or export.sync):
        export.make_stable()
    return result


def verify(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """READ VERIFY SECTORS, EXT too: read, and send nothing.

    No data has to fit the frame, so any count from 1 to 255 is served.
    """
    del request, reply
    _, _, _, _, _, _, _, aflags, count, opcode, low, high = fields
    if aflags & _WRITE:
        raise CommandError(AtaError.ABORTED)
    offset = _locate(target, aflags, count, opcode, low, high, _COUNT_LIMIT)
    _check_readable(target.export.uncorrectable, offset, count)
    target.export.disk.read_into(offset, memoryview(bytearray(count * SECTOR)))
    return 0, 0


def spoil(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """WRITE UNCORRECTABLE EXT: reading these sectors fails until they are written.

    It is there for tests of what clients do then. The bytes stay as they are, and the
    end of the program makes them readable again.
    """
    del reply
    _, _, _, _, _, _, _, aflags, count, opcode, low, high = fields
    _check_writable(target, fields)
    if request[_FEATURE] not in _SPOIL:
        raise CommandError(AtaError.ABORTED)
    offset = _locate(target, aflags, count, opcode, low, high, _COUNT_LIMIT)
    bad, first = target.export.uncorrectable, offset // SECTOR
    if len(bad) + count > UNCORRECTABLE_LIMIT:
        raise CommandError(AtaError.ABORTED)
    bad.update(range(first, first + count))
    return 0, 0


def trim(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """DATA SET MANAGEMENT, TRIM: what is trimmed reads as zeroes from now on.

    Nothing is trimmed if one of the ranges reaches beyond the end. The sector count is
    of blocks of 64 ranges, and all of them are in the frame.
    """
    del reply
    _, _, _, _, _, _, _, aflags, count, *_ = fields
    _check_writable(target, fields)
    length = count * SECTOR
    if (
        not aflags & _WRITE
        or request[_FEATURE] != _TRIM
        or not 0 < count <= target.sector_limit
        or len(request) < ATA_DATA + length
    ):
        raise CommandError(AtaError.ABORTED)
    export = target.export
    ranges = [
        (entry & _LBA48_MASK, entry >> 48)
        for (entry,) in _RANGES.iter_unpack(request[ATA_DATA : ATA_DATA + length])
        if entry >> 48
    ]
    if any(first + sectors > export.sectors for first, sectors in ranges):
        raise CommandError(AtaError.NOT_FOUND)
    for first, sectors in ranges:
        export.disk.discard(first * SECTOR, sectors * SECTOR)
        end = first + sectors
        bad = {sector for sector in export.uncorrectable if first <= sector < end}
        export.uncorrectable -= bad
    if export.write_through:
        export.make_stable()
    return 0, 0


def flush(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """FLUSH CACHE and FLUSH CACHE EXT: answered when the data is stable (P46)."""
    del fields, request, reply
    target.export.settle(target.now)
    target.flushes += 1
    return 0, 0
