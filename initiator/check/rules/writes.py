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
from initiator.check.rules.reads import more_than_fits

if TYPE_CHECKING:
    from initiator.check.model import Steps
    from initiator.check.subject import Subject

table: Final = Table()

DISK: Final = Needs.DISK
HAZARD: Final = Needs.DISK | Needs.HAZARD
TRIM: Final = 1
TRIM_RANGE: Final = Struct("<Q")
ZEROES: Final = 0x4020
"""The bits of word 69 that promise zeroes where something was trimmed."""
PSEUDO: Final = 0x55
"""WRITE UNCORRECTABLE: the sector fails until it is written again."""


def unchanged(t: Subject, index: int = 0, count: int = 1) -> Steps:
    """The scratch sectors hold what they held."""
    for each in range(index, index + count):
        yield t.read(t.scratch[each]), succeeds(t.original(each))


@table.must("P27", DISK)
def write(t: Subject) -> Steps:
    """WRITE writes its sector, and no other."""
    need(t, 3)
    yield t.write(t.scratch[1], t.inverted(1)), succeeds()
    yield t.read(t.scratch[1]), succeeds(t.inverted(1))
    yield from unchanged(t, 0)
    yield from unchanged(t, 2)


def need(t: Subject, count: int) -> None:
    """Go on if there are so many scratch sectors."""
    if len(t.scratch) < count:
        raise Skip(f"it takes --sectors {count}")


@table.must("P30", DISK)
def write28(t: Subject) -> Steps:
    """WRITE takes 28 bits, the device bits in lba3 are none of them."""
    lba = t.scratch[0]
    if lba >= 1 << 28:
        raise Skip("the scratch sectors are beyond 28 bits")
    data = t.inverted()
    t.write(lba, data)
    yield t.transfer(Opcode.WRITE, lba, data=data, aflags=AFlag.WRITE), succeeds()
    yield t.read(lba), succeeds(data)


@table.must("P2", DISK)
def write_twice(t: Subject) -> Steps:
    """WRITE may come twice."""
    asked = t.write(t.scratch[0], t.inverted())
    yield asked, succeeds()
    yield asked, succeeds()
    yield t.read(t.scratch[0]), succeeds(t.inverted())


@table.must("P22 P29", DISK)
def write_full(t: Subject) -> Steps:
    """WRITE takes as many sectors as a frame carries."""
    count = min(t.frame_sectors, len(t.scratch))
    if count < 2:
        raise Skip("a frame has room for one sector only")
    data = t.inverted(0, count)
    yield t.write(t.scratch[0], data), succeeds()
    yield t.read(t.scratch[0], count), succeeds(data)


@table.must("P19 P34", DISK)
def write_response(t: Subject) -> Steps:
    """The reply to WRITE: 60 bytes, zeroes behind the registers."""
    # All ones, so that none of it is taken for padding.
    asked = t.write(t.scratch[0], b"\xff" * SECTOR)
    yield asked, is_long(60)
    yield asked, is_blank_from(ATA_DATA)


@table.must("P20", DISK)
def write_trailing_bytes(t: Subject) -> Steps:
    """WRITE ignores what stands behind its sectors."""
    need(t, 2)
    if t.frame_sectors < 2:
        raise Skip("a frame has room for one sector only")
    yield t.write(t.scratch[0], t.inverted(), tail=t.inverted(1)), succeeds()
    yield t.read(t.scratch[0]), succeeds(t.inverted())
    yield from unchanged(t, 1)


@table.advice("P33 P35", DISK)
def write_registers(t: Subject) -> Steps:
    """The reply to WRITE: status 0x40, count 0, the LBA echoed."""
    yield t.write(t.scratch[0], t.inverted()), succeeds_exactly()


@table.must("P42", DISK)
def write_async(t: Subject) -> Steps:
    """WRITE with the A flag is answered all the same."""
    asynchronous = AFlag.WRITE | AFlag.ASYNC
    yield t.write(t.scratch[0], t.inverted(), aflags=asynchronous), succeeds()
    yield t.read(t.scratch[0]), succeeds(t.inverted())


@table.advice("P28", DISK)
def write_without_w(t: Subject) -> Steps:
    """WRITE without the W flag: aborted, and nothing is written."""
    yield t.write(t.scratch[0], t.inverted(), aflags=0), fails(AtaError.ABORTED)
    yield from unchanged(t)


@table.must("P36", DISK)
def write_zero_count(t: Subject) -> Steps:
    """WRITE of no sectors is no success, and writes nothing."""
    yield t.write(t.scratch[0], t.inverted(), 0), NO_SUCCESS
    yield from unchanged(t)


@table.advice("P15 P36", DISK)
def write_zero_count_aborted(t: Subject) -> Steps:
    """WRITE of no sectors: aborted."""
    yield t.write(t.scratch[0], t.inverted(), 0), fails(AtaError.ABORTED)


@table.must("P39", DISK)
def write_short(t: Subject) -> Steps:
    """WRITE with less data than it says: no success, no part of it."""
    for data, count in short_writes(t):
        yield t.write(t.scratch[0], data, count), NO_SUCCESS
        yield from unchanged(t, 0, count)


def short_writes(t: Subject) -> list[tuple[bytes, int]]:
    """Data, and a count of sectors that it is too short for."""
    need(t, 2)
    cases = [(t.inverted()[:-1], 1), (b"", 1)]
    if t.frame_sectors > 1:
        cases.append((t.inverted(), 2))
    return cases


@table.advice("P15 P39", DISK)
def write_short_aborted(t: Subject) -> Steps:
    """WRITE with less data than it says: aborted."""
    for data, count in short_writes(t):
        yield t.write(t.scratch[0], data, count), fails(AtaError.ABORTED)


@table.must("P40", DISK)
def read_only(t: Subject) -> Steps:
    """WRITE to a disk that is read-only: aborted."""
    if not t.is_read_only:
        raise Skip("it is not read-only")
    opcode = Opcode.WRITE_EXT if t.disk.lba48 else Opcode.WRITE
    data = t.inverted()
    asked = t.transfer(opcode, t.scratch[0], aflags=AFlag.WRITE, data=data)
    yield asked, fails(AtaError.ABORTED, exact_status=True)
    yield from unchanged(t)


@table.must("P46", DISK)
def flush(t: Subject) -> Steps:
    """FLUSH CACHE after a WRITE is no failure."""
    yield t.write(t.scratch[0], t.inverted()), succeeds()
    yield t.ata(Opcode.FLUSH), succeeds()
    yield t.read(t.scratch[0]), succeeds(t.inverted())


@table.must("P82", DISK)
def dma(t: Subject) -> Steps:
    """WRITE DMA works, if IDENTIFY claims DMA."""
    t.require(FeatureSet.DMA)
    lba, data = t.scratch[0], t.inverted()
    t.write(lba, data)
    opcode = Opcode.WRITE_DMA_EXT if t.disk.lba48 else Opcode.WRITE_DMA
    yield t.transfer(opcode, lba, data=data, aflags=AFlag.WRITE), succeeds()
    yield t.read(lba), succeeds(data)


@table.must("P82", DISK)
def trim(t: Subject) -> Steps:
    """What TRIM trims reads as zeroes, if IDENTIFY claims it."""
    t.require(FeatureSet.TRIM)
    need(t, 3)
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
    yield from unchanged(t, 0)
    yield from unchanged(t, 2)


@table.must("P82", DISK)
def write_uncorrectable(t: Subject) -> Steps:
    """WRITE UNCORRECTABLE spoils its sector until the next WRITE."""
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
    """WRITE beyond the end: sector not found."""
    yield t.write(t.sectors, bytes(SECTOR)), fails(AtaError.NOT_FOUND)
    yield t.read(t.sectors), fails(AtaError.NOT_FOUND)


@table.must("P38", HAZARD)
def write_across(t: Subject) -> Steps:
    """WRITE across the end: sector not found, and no part of it."""
    if t.frame_sectors < 2 or t.scratch.stop != t.sectors:
        raise Skip("it takes the last sector for scratch, and two in a frame")
    last = len(t.scratch) - 1
    data = t.inverted(last) * 2
    yield t.write(t.sectors - 1, data), fails(AtaError.NOT_FOUND)
    yield from unchanged(t, last)


@table.must("P37", HAZARD)
def write_too_many(t: Subject) -> Steps:
    """WRITE of more than a frame holds: a failure that is told."""
    yield t.write(t.scratch[0], t.inverted(), more_than_fits(t)), ANY_FAILURE
    yield from unchanged(t)


@table.advice("P44", HAZARD)
def write_broadcast(t: Subject) -> Steps:
    """WRITE to a broadcast address: aborted, nothing written."""
    shelf, slot = t.address
    for asked in ((SHELF_ALL, SLOT_ALL), (SHELF_ALL, slot), (shelf, SLOT_ALL)):
        request = t.write(t.scratch[0], t.inverted(), address=asked)
        yield request, fails(AtaError.ABORTED)
        yield from unchanged(t)
