"""READ commands: registers, counts, ranges, addresses (P26 to P38, P42, P43)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.ata import (
    ATA_DATA,
    DEVICE_LBA,
    LBA28_LIMIT,
    LBA48_LIMIT,
    AFlag,
    AtaError,
    Opcode,
)
from initiator.check.expect import (
    ANY_FAILURE,
    NO_SUCCESS,
    AnyOf,
    Satisfies,
    fails,
    succeeds,
)
from initiator.check.model import Skip, Table

if TYPE_CHECKING:
    from initiator.check.model import Steps
    from initiator.check.subject import Subject

table: Final = Table()

RESERVED_OPCODES: Final = (0x00, 0x02, 0x04)
"""NOP, and two opcodes that no version of ATA defines."""
COUNT_LIMIT: Final = 255


@table.must("P26 P32")
def read(t: Subject) -> Steps:
    """READ returns a sector, and the same data when repeated."""
    data = (yield t.read(), succeeds(sectors=1))[ATA_DATA:]
    yield t.read(), succeeds(data)
    yield t.read(t.sectors - 1), succeeds(sectors=1)


@table.must("P30 P31")
def read28(t: Subject) -> Steps:
    """READ has a 28-bit address; the device bits in lba3 are ignored."""
    last = min(t.sectors, LBA28_LIMIT) - 1
    for lba in (0, last):
        data = (yield t.read(lba), succeeds(sectors=1))[ATA_DATA:]
        for device in (0x00, 0xA0, DEVICE_LBA, 0xF0):
            yield t.ata(Opcode.READ, device << 24 | lba, 1), succeeds(data)


@table.must("P30")
def read48(t: Subject) -> Steps:
    """READ and READ EXT return the same data."""
    if not t.disk.lba48:
        raise Skip("IDENTIFY does not claim 48-bit addresses")
    data = (yield t.transfer(Opcode.READ, 0), succeeds(sectors=1))[ATA_DATA:]
    yield t.transfer(Opcode.READ_EXT, 0), succeeds(data)


@table.must("P29")
def several_sectors(t: Subject) -> Steps:
    """READ of several sectors returns the same data as single reads."""
    count = min(t.frame_sectors, t.sectors)
    if count < 2:
        raise Skip("a frame or the disk holds only one sector")
    data = b""
    for lba in range(count):
        data += (yield t.read(lba), succeeds(sectors=1))[ATA_DATA:]
    yield t.read(0, count), succeeds(data)


@table.advice("P31")
def opcode_decides(t: Subject) -> Steps:
    """An EXT opcode has a 48-bit address even without the E flag."""
    lba = beyond_28_bits(t)
    yield t.ata(Opcode.READ_EXT, lba, 1), fails(AtaError.NOT_FOUND)


@table.advice("P31")
def flag_decides(t: Subject) -> Steps:
    """The E flag gives a 28-bit opcode a 48-bit address."""
    lba = beyond_28_bits(t)
    request = t.ata(Opcode.READ, lba, 1, aflags=AFlag.EXTENDED)
    yield request, fails(AtaError.NOT_FOUND)


def beyond_28_bits(t: Subject) -> int:
    """Return an address beyond the end whose low 28 bits are on the disk."""
    if not t.disk.lba48 or t.sectors > LBA28_LIMIT:
        raise Skip("needs a disk with 48-bit addresses and at most 2**28 sectors")
    return LBA28_LIMIT


@table.advice("P33 P35")
def registers(t: Subject) -> Steps:
    """A successful READ returns status 0x40, count 0 and the LBA."""
    request = t.read(0)
    want = b"\x00\x00\x40" + request[28:34]
    expected = Satisfies(
        "error 0, count 0, status 0x40, LBA 0", lambda r: r[25:34] == want
    )
    yield request, expected


@table.must("P38")
def beyond_end(t: Subject) -> Steps:
    """READ beyond the end fails with sector not found, without data."""
    limit = LBA48_LIMIT if t.disk.lba48 else LBA28_LIMIT
    for lba in (t.sectors, t.sectors + 1, limit - 1):
        if t.sectors <= lba < limit:
            yield t.read(lba), fails(AtaError.NOT_FOUND)


@table.must("P38")
def across_end(t: Subject) -> Steps:
    """READ across the end fails with sector not found, without data."""
    if t.frame_sectors < 2:
        raise Skip("a frame holds only one sector")
    yield t.read(t.sectors - 1, 2), fails(AtaError.NOT_FOUND)


@table.must("P38")
def lba48_wraparound(t: Subject) -> Steps:
    """READ at the end of the 48-bit range does not wrap around."""
    if not t.disk.lba48 or t.frame_sectors < 2:
        raise Skip("needs 48-bit addresses and two sectors per frame")
    yield t.read(LBA48_LIMIT - 1, 2), fails(AtaError.NOT_FOUND)


@table.advice("P32 P33")
def failed_registers(t: Subject) -> Steps:
    """A failed READ returns status 0x41, the count and the LBA."""
    yield t.read(t.sectors), fails(AtaError.NOT_FOUND, exact_status=True)


@table.must("P36")
def zero_count(t: Subject) -> Steps:
    """READ with count 0, which is 256 in ATA, does not succeed."""
    yield t.transfer(Opcode.READ, 0, 0), NO_SUCCESS
    if t.disk.lba48:
        yield t.transfer(Opcode.READ_EXT, 0, 0), NO_SUCCESS


@table.must("P37")
def too_many(t: Subject) -> Steps:
    """READ of more sectors than a frame holds reports failure."""
    yield t.read(0, count_too_large(t)), ANY_FAILURE


@table.advice("P15 P36 P37")
def counts_aborted(t: Subject) -> Steps:
    """READ with a count that fits no frame is aborted."""
    yield t.read(0, count_too_large(t)), fails(AtaError.ABORTED)
    yield t.read(0, 0), fails(AtaError.ABORTED)


def count_too_large(t: Subject) -> int:
    """Return a sector count that fits on the disk, but not in a frame."""
    if t.sectors < COUNT_LIMIT or t.advertised == COUNT_LIMIT:
        raise Skip(f"needs {COUNT_LIMIT} sectors on the disk and fewer per frame")
    return COUNT_LIMIT


@table.must("P28")
def read_with_w(t: Subject) -> Steps:
    """READ with the W flag is aborted, or returns all its data."""
    request = t.read(0, aflags=AFlag.WRITE)
    yield request, AnyOf(fails(AtaError.ABORTED), succeeds(sectors=1))


@table.advice("P28")
def read_with_w_aborted(t: Subject) -> Steps:
    """READ with the W flag is aborted."""
    yield t.read(0, aflags=AFlag.WRITE), fails(AtaError.ABORTED)


@table.must("P42")
def async_flag(t: Subject) -> Steps:
    """READ with the A flag is answered."""
    yield t.read(0, aflags=AFlag.ASYNC), succeeds(sectors=1)


@table.must("P14 P43")
def unknown_opcodes(t: Subject) -> Steps:
    """An unknown ATA opcode is aborted, without an AoE error."""
    for opcode in RESERVED_OPCODES:
        yield t.ata(opcode), fails(AtaError.ABORTED)
