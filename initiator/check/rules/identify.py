"""IDENTIFY DEVICE, and that what it claims works (P44 to P47, P80 to P82)."""

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
"""Where they are, in bytes."""
SUMMED: Final = 0xA5
SMART_KEY: Final = 0xC24F << 8
"""lba1 and lba2 of every SMART command, and of a status that is good."""
POWER_ACTIVE: Final = 0xFF
FLUSH_EXT: Final = 0x2000
"""The bit of word 83 that claims it."""


def page(words: str, holds: Callable[[tuple[int, ...]], bool]) -> Expectation:
    """An identity page whose 256 words have this in common."""

    def right(response: bytes) -> bool:
        if len(response) < ATA_DATA + SECTOR or is_failure(response):
            return False
        return holds(WORDS.unpack_from(response, ATA_DATA))

    return Satisfies(words, right)


@table.must("P44 P45")
def identify(t: Subject) -> Steps:
    """IDENTIFY is answered, to broadcast addresses and MACs too."""
    everybody = (SHELF_ALL, SLOT_ALL)
    yield t.identify(), succeeds(sectors=1)
    yield t.identify(address=everybody), succeeds(sectors=1)
    yield t.identify(address=everybody, dst=MAC_BROADCAST), succeeds(sectors=1)


@table.advice("P15 P45")
def identify_counts(t: Subject) -> Steps:
    """IDENTIFY of another count than 1: aborted."""
    for count in (0, 2):
        yield t.identify(count), fails(AtaError.ABORTED)


@table.must("P82")
def ata_disk(t: Subject) -> Steps:
    """IDENTIFY tells of an ATA disk with LBA."""
    yield t.identify(), page("word 0 bit 15 clear", lambda w: not w[0] & 0x8000)
    yield t.identify(), page("word 49 bit 9 set", lambda w: bool(w[49] & 0x0200))
    yield t.identify(), page("word 83 is valid", lambda w: w[83] >> 14 == 1)


@table.must("P81 P82 P83")
def size(t: Subject) -> Steps:
    """IDENTIFY tells the size, low word first, in both places."""
    yield t.identify(), page("1 to 2**48 - 1 sectors", lambda _: t.identity is not None)
    small = min(t.disk.sectors, LBA28_LIMIT - 1)
    words = f"words 60 and 61 are {small}"
    yield t.identify(), page(words, lambda w: w[60] | w[61] << 16 == small)
    if t.disk.lba48:
        # The last sector is where the size says, and none behind it.
        yield t.read(t.sectors - 1), succeeds(sectors=1)
        yield t.read(t.sectors), fails(AtaError.NOT_FOUND)


def is_text(place: slice, words: tuple[int, ...]) -> bool:
    """Printable characters, and spaces for the rest."""
    return all(0x20 <= byte < 0x7F for byte in WORDS.pack(*words)[place])


@table.advice("P80")
def strings(t: Subject) -> Steps:
    """The strings in IDENTIFY are ASCII, filled up with spaces."""
    for name, place in STRINGS.items():
        yield t.identify(), page(f"{name} of ASCII", partial(is_text, place))


@table.advice("P82")
def checksum(t: Subject) -> Steps:
    """IDENTIFY ends with a checksum."""

    def sums_up(words: tuple[int, ...]) -> bool:
        return words[255] & 0xFF == SUMMED and not sum(WORDS.pack(*words)) & 0xFF

    yield t.identify(), page("signature a5 and a sum of zero", sums_up)


@table.must("P82")
def dma(t: Subject) -> Steps:
    """READ DMA works, if IDENTIFY claims DMA."""
    t.require(FeatureSet.DMA)
    data = (yield t.read(), succeeds(sectors=1))[ATA_DATA:]
    yield t.transfer(Opcode.READ_DMA, 0), succeeds(data)
    if t.disk.lba48:
        yield t.transfer(Opcode.READ_DMA_EXT, 0), succeeds(data)


@table.must("P82")
def smart(t: Subject) -> Steps:
    """SMART tells status and data, if IDENTIFY claims SMART."""
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
    """FLUSH CACHE is no failure."""
    yield t.ata(Opcode.FLUSH), succeeds()


@table.advice("P33 P46")
def flush_registers(t: Subject) -> Steps:
    """FLUSH CACHE: status 0x40, no error, sector count 0."""
    yield t.ata(Opcode.FLUSH), succeeds_exactly()


@table.must("P46 P82")
def flush_ext_claimed(t: Subject) -> Steps:
    """FLUSH CACHE EXT works, if IDENTIFY claims it."""
    if not t.word(83) & FLUSH_EXT:
        raise Skip("IDENTIFY does not claim FLUSH CACHE EXT")
    yield t.ata(Opcode.FLUSH_EXT, aflags=0x40), succeeds()


@table.advice("P46")
def flush_ext(t: Subject) -> Steps:
    """FLUSH CACHE EXT: status 0x40, no error, sector count 0."""
    yield t.ata(Opcode.FLUSH_EXT, aflags=0x40), succeeds_exactly()


@table.must("P47")
def check_power(t: Subject) -> Steps:
    """CHECK POWER MODE says active, or is aborted; any count will do."""
    for count in (0, 1, 255):
        asked = t.ata(Opcode.CHECK_POWER_MODE, count=count)
        yield asked, AnyOf(succeeds(count=POWER_ACTIVE), fails(AtaError.ABORTED))


@table.must("P82", Needs.CACHE)
def write_cache(t: Subject) -> Steps:
    """The write cache is switched off and on."""
    yield t.ata(Opcode.SET_FEATURES, feature=Feature.WRITE_CACHE_OFF), succeeds()
    yield t.identify(), page("word 85 bit 5 clear", lambda w: not w[85] & 0x20)
    yield t.ata(Opcode.SET_FEATURES, feature=Feature.WRITE_CACHE_ON), succeeds()
    yield t.identify(), page("word 85 bit 5 set", lambda w: bool(w[85] & 0x20))
