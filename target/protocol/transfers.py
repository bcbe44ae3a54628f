"""ATA commands that read, write, verify, discard or mark sectors uncorrectable.

Each operation returns the number of data bytes that it wrote after the response's
registers, and the sector count register of a successful response (P35).
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

# Plain integers: one operation on an enum flag costs more than unpacking the header.
_EXTENDED: Final = int(AFlag.EXTENDED)
_WRITE: Final = int(AFlag.WRITE)
_FAILED: Final = int(Status.READY | Status.ERROR)
_LONG_OPCODES: Final = frozenset(map(int, LBA48_OPCODES))
_LBA28_MASK: Final = 0x0FFF_FFFF
_LBA48_MASK: Final = 0xFFFF_FFFF_FFFF
_COUNT_LIMIT: Final = 255
_FEATURE: Final = 25
"""Offset of the feature register in a request, which few operations read."""
_TRIM: Final = 1
"""The feature register of DATA SET MANAGEMENT for TRIM."""
_UNCORRECTABLE_FEATURES: Final = frozenset({0x55, 0x5A, 0xA5, 0xAA})
"""The feature registers of WRITE UNCORRECTABLE EXT; all are treated alike."""
_RANGES: Final = Struct("<Q")
"""A range to trim: a 48-bit LBA, and the sector count in the upper 16 bits."""


class CommandError(Exception):
    """An ATA command that ends with ERR set, reported in the response's registers.

    Args:
        error: the error register.
        status: the status register.
        kind: the name of the error counter.
    """

    def __init__(
        self, error: AtaError, status: int = _FAILED, kind: str | None = None
    ) -> None:
        super().__init__(error, status)
        self.error = int(error)
        self.status = status
        self.kind = kind or str(error.name).lower()


class OversizedError(Exception):
    """A transfer that exceeds the MTU now, but fitted before an MTU reduction.

    It is dropped instead of aborted: the client retransmits after the announcement
    with the smaller sector count, and its bio does not fail (P37, P48).
    """


def read(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute READ SECTORS (EXT) and READ DMA (EXT), without an intermediate copy.

    Data after the request's registers is the padding of a path MTU probe and is
    ignored (P23).
    """
    del request
    _, _, _, _, _, _, _, aflags, count, opcode, low, high = fields
    if aflags & _WRITE:
        raise CommandError(AtaError.ABORTED)  # P28
    offset = _byte_offset(target, aflags, count, opcode, low, high)
    length = count * SECTOR
    export = target.export
    if export.uncorrectable:
        _check_readable(export.uncorrectable, offset, count)
    export.disk.read_into(offset, response[ATA_DATA : ATA_DATA + length])
    target.reads += 1
    target.read_bytes += length
    return length, 0


def write(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute WRITE SECTORS (EXT) and WRITE DMA (EXT), without an intermediate copy.

    With the write cache disabled the response is sent when the data is stable. Aborted
    before the disk is accessed: no W flag (P28), a broadcast address (P44), a read-only
    disk (P40), less data than the sector count (P39).
    """
    del response
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
    offset = _byte_offset(target, aflags, count, opcode, low, high)
    disk.write_from(offset, request[ATA_DATA : ATA_DATA + length])
    if export.write_through:
        export.flush()
    if export.uncorrectable:
        first = offset // SECTOR
        export.uncorrectable.difference_update(range(first, first + count))
    target.writes += 1
    target.written_bytes += length
    return 0, 0


def _byte_offset(
    target: Target,
    aflags: int,
    count: int,
    opcode: int,
    low: int,
    high: int,
    limit: int | None = None,
) -> int:
    # The byte offset of a transfer of `count` sectors. A count of zero means 256 or
    # 65536 sectors, more than any frame (P36, P37); the device bits are not part of a
    # 28-bit LBA (P30, P31); no transfer may extend past the end (P38).
    if not 0 < count <= (limit or target.sector_limit):
        if 0 < count <= target.largest_advertised:
            raise OversizedError
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
    # Commands that change data are refused like a write (P40, P44).
    _, _, _, shelf, slot, *_ = fields
    if shelf == SHELF_ALL or slot == SLOT_ALL or target.export.disk.read_only:
        raise CommandError(AtaError.ABORTED)


def write_fua(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute WRITE DMA FUA EXT: the response is sent when the data is stable."""
    result = write(target, fields, request, response)
    export = target.export
    if not (export.write_through or export.sync):
        export.flush()
    return result


def verify(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute READ VERIFY SECTORS (EXT): read the sectors, return no data.

    The response carries no data, so the MTU does not limit the count: 1 to 255.
    """
    del request, response
    _, _, _, _, _, _, _, aflags, count, opcode, low, high = fields
    if aflags & _WRITE:
        raise CommandError(AtaError.ABORTED)
    offset = _byte_offset(target, aflags, count, opcode, low, high, _COUNT_LIMIT)
    _check_readable(target.export.uncorrectable, offset, count)
    target.export.disk.read_into(offset, memoryview(bytearray(count * SECTOR)))
    return 0, 0


def write_uncorrectable(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute WRITE UNCORRECTABLE EXT: reads of the sectors fail until a write.

    This is for tests of a client's error handling. The data is not changed, and the
    marks are lost when the program ends.
    """
    del response
    _, _, _, _, _, _, _, aflags, count, opcode, low, high = fields
    _check_writable(target, fields)
    if request[_FEATURE] not in _UNCORRECTABLE_FEATURES:
        raise CommandError(AtaError.ABORTED)
    offset = _byte_offset(target, aflags, count, opcode, low, high, _COUNT_LIMIT)
    bad, first = target.export.uncorrectable, offset // SECTOR
    if len(bad) + count > UNCORRECTABLE_LIMIT:
        raise CommandError(AtaError.ABORTED)
    bad.update(range(first, first + count))
    return 0, 0


def trim(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute DATA SET MANAGEMENT with TRIM: trimmed sectors read as zeros.

    Nothing is trimmed if one of the ranges extends past the end. The sector count is
    the number of 512-byte blocks of 64 ranges, which must all be in the frame.
    """
    del response
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
        export.flush()
    return 0, 0


def flush(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute FLUSH CACHE (EXT): the response is sent when the data is stable (P46)."""
    del fields, request, response
    target.export.flush()
    target.flushes += 1
    return 0, 0
