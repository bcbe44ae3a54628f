"""WRITE and TRIM, on sectors that are saved before and restored after each check."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.address import SHELF_ALL, SLOT_ALL
from aoe.ata import ATA_DATA, SECTOR, AFlag, AtaError, Opcode
from aoe.identify import FeatureSet
from initiator.check.expect import (
    ANY_FAILURE,
    NO_SUCCESS,
    fails,
    is_blank_from,
    is_long,
    succeeds,
    succeeds_exactly,
)
from initiator.check.model import Needs, Skip, Table
from initiator.check.rules.reads import count_too_large

if TYPE_CHECKING:
    from initiator.check.model import Steps
    from initiator.check.subject import Subject

table: Final = Table()

DISK: Final = Needs.DISK
HAZARD: Final = Needs.DISK | Needs.HAZARD
TRIM: Final = 1
TRIM_RANGE: Final = Struct("<Q")
ZEROES: Final = 0x4020
"""The bits of word 69 that promise zeros after TRIM."""
PSEUDO: Final = 0x55
"""WRITE UNCORRECTABLE: pseudo-uncorrectable error, until the next write."""


def expect_unchanged(t: Subject, index: int = 0, count: int = 1) -> Steps:
    """Check that scratch sectors have their original contents."""
    for each in range(index, index + count):
        yield t.read(t.scratch[each]), succeeds(t.original(each))


@table.must("P27", DISK)
def write(t: Subject) -> Steps:
    """WRITE writes its sector and no other."""
    require_sectors(t, 3)
    yield t.write(t.scratch[1], t.inverted(1)), succeeds()
    yield t.read(t.scratch[1]), succeeds(t.inverted(1))
    yield from expect_unchanged(t, 0)
    yield from expect_unchanged(t, 2)


def require_sectors(t: Subject, count: int) -> None:
    """Skip the check unless there are that many scratch sectors."""
    if len(t.scratch) < count:
        raise Skip(f"needs --sectors {count}")


@table.must("P30", DISK)
def write28(t: Subject) -> Steps:
    """WRITE has a 28-bit address; the device bits in lba3 are ignored."""
    lba = t.scratch[0]
    if lba >= 1 << 28:
        raise Skip("the scratch sectors are beyond the 28-bit range")
    data = t.inverted()
    t.write(lba, data)
    yield t.transfer(Opcode.WRITE, lba, data=data, aflags=AFlag.WRITE), succeeds()
    yield t.read(lba), succeeds(data)


@table.must("P2", DISK)
def write_twice(t: Subject) -> Steps:
    """A repeated WRITE succeeds."""
    request = t.write(t.scratch[0], t.inverted())
    yield request, succeeds()
    yield request, succeeds()
    yield t.read(t.scratch[0]), succeeds(t.inverted())


@table.must("P22 P29", DISK)
def write_full(t: Subject) -> Steps:
    """WRITE of as many sectors as a frame carries succeeds."""
    count = min(t.frame_sectors, len(t.scratch))
    if count < 2:
        raise Skip("a frame holds only one sector")
    data = t.inverted(0, count)
    yield t.write(t.scratch[0], data), succeeds()
    yield t.read(t.scratch[0], count), succeeds(data)


@table.must("P19 P34", DISK)
def write_response(t: Subject) -> Steps:
    """The response to WRITE has 60 bytes, zeros after the registers."""
    # Data of all ones is distinguishable from padding.
    request = t.write(t.scratch[0], b"\xff" * SECTOR)
    yield request, is_long(60)
    yield request, is_blank_from(ATA_DATA)


@table.must("P20", DISK)
def write_trailing_bytes(t: Subject) -> Steps:
    """WRITE ignores bytes after its sectors."""
    require_sectors(t, 2)
    if t.frame_sectors < 2:
        raise Skip("a frame holds only one sector")
    yield t.write(t.scratch[0], t.inverted(), tail=t.inverted(1)), succeeds()
    yield t.read(t.scratch[0]), succeeds(t.inverted())
    yield from expect_unchanged(t, 1)


@table.advice("P33 P35", DISK)
def write_registers(t: Subject) -> Steps:
    """A successful WRITE returns status 0x40, count 0 and the LBA."""
    yield t.write(t.scratch[0], t.inverted()), succeeds_exactly()


@table.must("P42", DISK)
def write_async(t: Subject) -> Steps:
    """WRITE with the A flag is answered."""
    asynchronous = AFlag.WRITE | AFlag.ASYNC
    yield t.write(t.scratch[0], t.inverted(), aflags=asynchronous), succeeds()
    yield t.read(t.scratch[0]), succeeds(t.inverted())


@table.advice("P28", DISK)
def write_without_w(t: Subject) -> Steps:
    """WRITE without the W flag is aborted and writes nothing."""
    yield t.write(t.scratch[0], t.inverted(), aflags=0), fails(AtaError.ABORTED)
    yield from expect_unchanged(t)


@table.must("P36", DISK)
def write_zero_count(t: Subject) -> Steps:
    """WRITE with count 0 does not succeed and writes nothing."""
    yield t.write(t.scratch[0], t.inverted(), 0), NO_SUCCESS
    yield from expect_unchanged(t)


@table.advice("P15 P36", DISK)
def write_zero_count_aborted(t: Subject) -> Steps:
    """WRITE with count 0 is aborted."""
    yield t.write(t.scratch[0], t.inverted(), 0), fails(AtaError.ABORTED)


@table.must("P39", DISK)
def write_short(t: Subject) -> Steps:
    """WRITE with less data than its count fails and writes nothing."""
    for data, count in short_writes(t):
        yield t.write(t.scratch[0], data, count), NO_SUCCESS
        yield from expect_unchanged(t, 0, count)


def short_writes(t: Subject) -> list[tuple[bytes, int]]:
    """Return data and a sector count that it is too short for."""
    require_sectors(t, 2)
    cases = [(t.inverted()[:-1], 1), (b"", 1)]
    if t.frame_sectors > 1:
        cases.append((t.inverted(), 2))
    return cases


@table.advice("P15 P39", DISK)
def write_short_aborted(t: Subject) -> Steps:
    """WRITE with less data than its count is aborted."""
    for data, count in short_writes(t):
        yield t.write(t.scratch[0], data, count), fails(AtaError.ABORTED)


@table.must("P40", DISK)
def read_only(t: Subject) -> Steps:
    """WRITE to a read-only disk is aborted."""
    if not t.is_read_only:
        raise Skip("the target is not read-only")
    opcode = Opcode.WRITE_EXT if t.disk.lba48 else Opcode.WRITE
    data = t.inverted()
    request = t.transfer(opcode, t.scratch[0], aflags=AFlag.WRITE, data=data)
    yield request, fails(AtaError.ABORTED, exact_status=True)
    yield from expect_unchanged(t)


@table.must("P46", DISK)
def flush(t: Subject) -> Steps:
    """FLUSH CACHE after WRITE succeeds."""
    yield t.write(t.scratch[0], t.inverted()), succeeds()
    yield t.ata(Opcode.FLUSH), succeeds()
    yield t.read(t.scratch[0]), succeeds(t.inverted())


@table.must("P82", DISK)
def dma(t: Subject) -> Steps:
    """WRITE DMA works if IDENTIFY claims DMA."""
    t.require(FeatureSet.DMA)
    lba, data = t.scratch[0], t.inverted()
    t.write(lba, data)
    opcode = Opcode.WRITE_DMA_EXT if t.disk.lba48 else Opcode.WRITE_DMA
    yield t.transfer(opcode, lba, data=data, aflags=AFlag.WRITE), succeeds()
    yield t.read(lba), succeeds(data)


@table.must("P82", DISK)
def trim(t: Subject) -> Steps:
    """Trimmed sectors read as zeros if IDENTIFY claims so."""
    t.require(FeatureSet.TRIM)
    require_sectors(t, 3)
    yield t.write(t.scratch[1], t.inverted(1)), succeeds()
    ranges = TRIM_RANGE.pack(1 << 48 | t.scratch[1]).ljust(SECTOR, b"\0")
    yield (
        t.ata(
            Opcode.DATA_SET_MANAGEMENT,
            count=1,
            aflags=AFlag.EXTENDED | AFlag.WRITE,
            feature=TRIM,
            data=ranges,
        ),
        succeeds(),
    )
    if t.word(69) & ZEROES == ZEROES:
        yield t.read(t.scratch[1]), succeeds(bytes(SECTOR))
    yield from expect_unchanged(t, 0)
    yield from expect_unchanged(t, 2)


@table.must("P82", DISK)
def write_uncorrectable(t: Subject) -> Steps:
    """WRITE UNCORRECTABLE makes READ fail until the next WRITE."""
    t.require(FeatureSet.UNCORRECTABLE)
    lba = t.scratch[0]
    opcode = Opcode.WRITE_UNCORRECTABLE_EXT
    t.write(lba, b"")
    yield t.transfer(opcode, lba, feature=PSEUDO), succeeds()
    yield t.read(lba), fails(AtaError.UNCORRECTABLE)
    yield t.write(lba, t.inverted()), succeeds()
    yield t.read(lba), succeeds(t.inverted())


@table.must("P38", HAZARD)
def write_beyond(t: Subject) -> Steps:
    """WRITE beyond the end fails with sector not found."""
    yield t.write(t.sectors, bytes(SECTOR)), fails(AtaError.NOT_FOUND)
    yield t.read(t.sectors), fails(AtaError.NOT_FOUND)


@table.must("P38", HAZARD)
def write_across(t: Subject) -> Steps:
    """WRITE across the end fails with sector not found, writes nothing."""
    if t.frame_sectors < 2 or t.scratch.stop != t.sectors:
        raise Skip("needs the last sector for scratch and two sectors per frame")
    last = len(t.scratch) - 1
    data = t.inverted(last) * 2
    yield t.write(t.sectors - 1, data), fails(AtaError.NOT_FOUND)
    yield from expect_unchanged(t, last)


@table.must("P37", HAZARD)
def write_too_many(t: Subject) -> Steps:
    """WRITE of more sectors than a frame holds reports failure."""
    yield t.write(t.scratch[0], t.inverted(), count_too_large(t)), ANY_FAILURE
    yield from expect_unchanged(t)


@table.advice("P44", HAZARD)
def write_broadcast(t: Subject) -> Steps:
    """WRITE to a broadcast address is aborted and writes nothing."""
    shelf, slot = t.address
    for address in ((SHELF_ALL, SLOT_ALL), (SHELF_ALL, slot), (shelf, SLOT_ALL)):
        request = t.write(t.scratch[0], t.inverted(), address=address)
        yield request, fails(AtaError.ABORTED)
        yield from expect_unchanged(t)
