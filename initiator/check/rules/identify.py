"""IDENTIFY DEVICE and the features that it claims (P44 to P47, P80 to P83)."""

from __future__ import annotations

from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.address import MAC_BROADCAST, SHELF_ALL, SLOT_ALL
from aoe.ata import (
    ATA_DATA,
    LBA28_LIMIT,
    SECTOR,
    AtaError,
    Feature,
    Opcode,
    SmartFeature,
)
from aoe.identify import FeatureSet
from initiator.check.expect import (
    AnyOf,
    Satisfies,
    fails,
    is_failure,
    succeeds,
    succeeds_exactly,
)
from initiator.check.model import Needs, Skip, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.check.expect import Expectation
    from initiator.check.model import Steps
    from initiator.check.subject import Subject

table: Final = Table()

WORDS: Final = Struct("<256H")
STRINGS: Final = {
    "serial": slice(20, 40),
    "firmware": slice(46, 54),
    "model": slice(54, 94),
}
"""Positions of strings in the page, in bytes."""
SUMMED: Final = 0xA5
SMART_KEY: Final = 0xC24F << 8
"""lba1 and lba2 of SMART commands and of a status without failure."""
POWER_ACTIVE: Final = 0xFF
FLUSH_EXT: Final = 0x2000
"""The bit of word 83 that claims FLUSH CACHE EXT."""


def page(text: str, holds: Callable[[tuple[int, ...]], bool]) -> Expectation:
    """Expect an IDENTIFY page whose 256 words satisfy a predicate."""

    def satisfied(response: bytes) -> bool:
        if len(response) < ATA_DATA + SECTOR or is_failure(response):
            return False
        return holds(WORDS.unpack_from(response, ATA_DATA))

    return Satisfies(text, satisfied)


@table.must("P44 P45")
def identify(t: Subject) -> Steps:
    """IDENTIFY is answered, also to broadcast addresses and MACs."""
    broadcast = (SHELF_ALL, SLOT_ALL)
    yield t.identify(), succeeds(sectors=1)
    yield t.identify(address=broadcast), succeeds(sectors=1)
    yield t.identify(address=broadcast, dst=MAC_BROADCAST), succeeds(sectors=1)


@table.advice("P15 P45")
def identify_counts(t: Subject) -> Steps:
    """IDENTIFY with a count other than 1 is aborted."""
    for count in (0, 2):
        yield t.identify(count), fails(AtaError.ABORTED)


@table.must("P82")
def ata_disk(t: Subject) -> Steps:
    """IDENTIFY reports an ATA disk with LBA."""
    yield t.identify(), page("word 0 bit 15 clear", lambda w: not w[0] & 0x8000)
    yield t.identify(), page("word 49 bit 9 set", lambda w: bool(w[49] & 0x0200))
    yield t.identify(), page("word 83 is valid", lambda w: w[83] >> 14 == 1)


@table.must("P81 P82 P83")
def size(t: Subject) -> Steps:
    """IDENTIFY has the size, low word first, in both places."""
    yield t.identify(), page("1 to 2**48 - 1 sectors", lambda _: t.identity is not None)
    small = min(t.disk.sectors, LBA28_LIMIT - 1)
    text = f"words 60 and 61 are {small}"
    yield t.identify(), page(text, lambda w: w[60] | w[61] << 16 == small)
    if t.disk.lba48:
        # The size is correct if the last sector exists and the next does not.
        yield t.read(t.sectors - 1), succeeds(sectors=1)
        yield t.read(t.sectors), fails(AtaError.NOT_FOUND)


def is_ascii(place: slice, words: tuple[int, ...]) -> bool:
    """Return True if the bytes are printable ASCII, including spaces."""
    return all(0x20 <= byte < 0x7F for byte in WORDS.pack(*words)[place])


@table.advice("P80")
def strings(t: Subject) -> Steps:
    """The strings in IDENTIFY are ASCII, padded with spaces."""
    for name, place in STRINGS.items():
        yield t.identify(), page(f"{name} of ASCII", partial(is_ascii, place))


@table.advice("P82")
def checksum(t: Subject) -> Steps:
    """IDENTIFY ends with a checksum."""

    def has_checksum(words: tuple[int, ...]) -> bool:
        return words[255] & 0xFF == SUMMED and not sum(WORDS.pack(*words)) & 0xFF

    yield t.identify(), page("signature a5 and a sum of zero", has_checksum)


@table.must("P82")
def dma(t: Subject) -> Steps:
    """READ DMA works if IDENTIFY claims DMA."""
    t.require(FeatureSet.DMA)
    data = (yield t.read(), succeeds(sectors=1))[ATA_DATA:]
    yield t.transfer(Opcode.READ_DMA, 0), succeeds(data)
    if t.disk.lba48:
        yield t.transfer(Opcode.READ_DMA_EXT, 0), succeeds(data)


@table.must("P82")
def smart(t: Subject) -> Steps:
    """SMART returns status and data if IDENTIFY claims SMART."""
    t.require(FeatureSet.SMART)
    if FeatureSet.SMART not in t.disk.enabled:
        raise Skip("SMART is switched off")
    status = t.ata(Opcode.SMART, SMART_KEY, feature=SmartFeature.RETURN_STATUS)
    yield status, succeeds()
    known = Satisfies(
        "lba1 and lba2 4f c2, or f4 2c", lambda r: r[29:31] in _SMART_STATUS
    )
    yield status, known
    data = t.ata(Opcode.SMART, SMART_KEY, 1, feature=SmartFeature.READ_DATA)
    yield data, succeeds(sectors=1)
    yield (
        data,
        Satisfies("a page whose sum is zero", lambda r: not sum(r[ATA_DATA:]) & 0xFF),
    )


_SMART_STATUS: Final = (b"\x4f\xc2", b"\xf4\x2c")


@table.must("P46")
def flush(t: Subject) -> Steps:
    """FLUSH CACHE succeeds."""
    yield t.ata(Opcode.FLUSH), succeeds()


@table.advice("P33 P46")
def flush_registers(t: Subject) -> Steps:
    """FLUSH CACHE returns status 0x40, error 0, sector count 0."""
    yield t.ata(Opcode.FLUSH), succeeds_exactly()


@table.must("P46 P82")
def flush_ext_claimed(t: Subject) -> Steps:
    """FLUSH CACHE EXT works if IDENTIFY claims it."""
    if not t.word(83) & FLUSH_EXT:
        raise Skip("IDENTIFY does not claim FLUSH CACHE EXT")
    yield t.ata(Opcode.FLUSH_EXT, aflags=0x40), succeeds()


@table.advice("P46")
def flush_ext(t: Subject) -> Steps:
    """FLUSH CACHE EXT returns status 0x40, error 0, sector count 0."""
    yield t.ata(Opcode.FLUSH_EXT, aflags=0x40), succeeds_exactly()


@table.must("P47")
def check_power(t: Subject) -> Steps:
    """CHECK POWER MODE returns active or is aborted, for any count."""
    for count in (0, 1, 255):
        request = t.ata(Opcode.CHECK_POWER_MODE, count=count)
        yield request, AnyOf(succeeds(count=POWER_ACTIVE), fails(AtaError.ABORTED))


@table.must("P82", Needs.CACHE)
def write_cache(t: Subject) -> Steps:
    """SET FEATURES switches the write cache off and on."""
    yield t.ata(Opcode.SET_FEATURES, feature=Feature.WRITE_CACHE_OFF), succeeds()
    yield t.identify(), page("word 85 bit 5 clear", lambda w: not w[85] & 0x20)
    yield t.ata(Opcode.SET_FEATURES, feature=Feature.WRITE_CACHE_ON), succeeds()
    yield t.identify(), page("word 85 bit 5 set", lambda w: bool(w[85] & 0x20))
