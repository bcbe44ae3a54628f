"""READ and its kin: registers, counts, ranges, addresses (P26 to P38, P42, P43)."""

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
"""NOP, and two that no version of ATA has used."""
COUNT_LIMIT: Final = 255


@table.must("P26 P32")
def read(t: Subject) -> Steps:
    """READ gives a sector; the same sector gives the same data."""
    data = (yield t.read(), succeeds(sectors=1))[ATA_DATA:]
    yield t.read(), succeeds(data)
    yield t.read(t.sectors - 1), succeeds(sectors=1)


@table.must("P30 P31")
def read28(t: Subject) -> Steps:
    """READ takes 28 bits, the device bits in lba3 are none of them."""
    last = min(t.sectors, LBA28_LIMIT) - 1
    for lba in (0, last):
        data = (yield t.read(lba), succeeds(sectors=1))[ATA_DATA:]
        for device in (0x00, 0xA0, DEVICE_LBA, 0xF0):
            yield t.ata(Opcode.READ, device << 24 | lba, 1), succeeds(data)


@table.must("P30")
def read48(t: Subject) -> Steps:
    """READ and READ EXT give the same."""
    if not t.disk.lba48:
        raise Skip("IDENTIFY does not claim 48-bit addresses")
    data = (yield t.transfer(Opcode.READ, 0), succeeds(sectors=1))[ATA_DATA:]
    yield t.transfer(Opcode.READ_EXT, 0), succeeds(data)


@table.must("P29")
def several_sectors(t: Subject) -> Steps:
    """Several sectors at once are the same as one by one."""
    count = min(t.frame_sectors, t.sectors)
    if count < 2:
        raise Skip("a frame, or the disk, has room for one sector only")
    data = b""
    for lba in range(count):
        data += (yield t.read(lba), succeeds(sectors=1))[ATA_DATA:]
    yield t.read(0, count), succeeds(data)


@table.advice("P31")
def opcode_decides(t: Subject) -> Steps:
    """An opcode of 48 bits has them without the E flag, too."""
    lba = beyond_28_bits(t)
    yield t.ata(Opcode.READ_EXT, lba, 1), fails(AtaError.NOT_FOUND)


@table.advice("P31")
def flag_decides(t: Subject) -> Steps:
    """The E flag gives an opcode of 28 bits the other 20."""
    lba = beyond_28_bits(t)
    asked = t.ata(Opcode.READ, lba, 1, aflags=AFlag.EXTENDED)
    yield asked, fails(AtaError.NOT_FOUND)


def beyond_28_bits(t: Subject) -> int:
    """An address that is beyond the end, but not if its high bits are dropped."""
    if not t.disk.lba48 or t.sectors > LBA28_LIMIT:
        raise Skip("it takes 48-bit addresses, on a disk that needs but 28")
    return LBA28_LIMIT


@table.advice("P33 P35")
def registers(t: Subject) -> Steps:
    """A READ that succeeds: status 0x40, count 0, the LBA echoed."""
    asked = t.read(0)
    want = b"\x00\x00\x40" + asked[28:34]
    told = Satisfies("error 0, count 0, status 0x40, LBA 0", lambda r: r[25:34] == want)
    yield asked, told


@table.must("P38")
def beyond_end(t: Subject) -> Steps:
    """READ beyond the end: sector not found, and no data."""
    limit = LBA48_LIMIT if t.disk.lba48 else LBA28_LIMIT
    for lba in (t.sectors, t.sectors + 1, limit - 1):
        if t.sectors <= lba < limit:
            yield t.read(lba), fails(AtaError.NOT_FOUND)


@table.must("P38")
def across_end(t: Subject) -> Steps:
    """READ across the end: sector not found, and no data."""
    if t.frame_sectors < 2:
        raise Skip("a frame has room for one sector only")
    yield t.read(t.sectors - 1, 2), fails(AtaError.NOT_FOUND)


@table.must("P38")
def lba48_wraparound(t: Subject) -> Steps:
    """READ at the end of 48 bits does not come around to the beginning."""
    if not t.disk.lba48 or t.frame_sectors < 2:
        raise Skip("it takes two sectors in a frame, and 48-bit addresses")
    yield t.read(LBA48_LIMIT - 1, 2), fails(AtaError.NOT_FOUND)


@table.advice("P32 P33")
def failed_registers(t: Subject) -> Steps:
    """A failed READ: status 0x41, the count and the LBA echoed."""
    yield t.read(t.sectors), fails(AtaError.NOT_FOUND, exact_status=True)


@table.must("P36")
def zero_count(t: Subject) -> Steps:
    """READ of no sectors, 256 in ATA, is not called a success."""
    yield t.transfer(Opcode.READ, 0, 0), NO_SUCCESS
    if t.disk.lba48:
        yield t.transfer(Opcode.READ_EXT, 0, 0), NO_SUCCESS


@table.must("P37")
def too_many(t: Subject) -> Steps:
    """READ of more than a frame holds: a failure that is told."""
    yield t.read(0, more_than_fits(t)), ANY_FAILURE


@table.advice("P15 P36 P37")
def counts_aborted(t: Subject) -> Steps:
    """READ of a count that fits no frame: aborted."""
    yield t.read(0, more_than_fits(t)), fails(AtaError.ABORTED)
    yield t.read(0, 0), fails(AtaError.ABORTED)


def more_than_fits(t: Subject) -> int:
    """A sector count that the target cannot serve, on a disk that has as many."""
    if t.sectors < COUNT_LIMIT or t.advertised == COUNT_LIMIT:
        raise Skip(f"it takes a disk, and no frame, of {COUNT_LIMIT} sectors")
    return COUNT_LIMIT


@table.must("P28")
def read_with_w(t: Subject) -> Steps:
    """READ with the W flag: aborted, or else with all its data."""
    asked = t.read(0, aflags=AFlag.WRITE)
    yield asked, AnyOf(fails(AtaError.ABORTED), succeeds(sectors=1))


@table.advice("P28")
def read_with_w_aborted(t: Subject) -> Steps:
    """READ with the W flag: aborted."""
    yield t.read(0, aflags=AFlag.WRITE), fails(AtaError.ABORTED)


@table.must("P42")
def async_flag(t: Subject) -> Steps:
    """READ with the A flag is answered all the same."""
    yield t.read(0, aflags=AFlag.ASYNC), succeeds(sectors=1)


@table.must("P14 P43")
def unknown_opcodes(t: Subject) -> Steps:
    """An unknown ATA opcode: aborted, and no AoE error."""
    for opcode in RESERVED_OPCODES:
        yield t.ata(opcode), fails(AtaError.ABORTED)
