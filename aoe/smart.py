"""SMART: what a disk says of its own health (ATA command B0h).

::

    0       2     3       5      6      7         13  14      362          511
    +-------+-----+-------+------+------+---------+---+-- - - +--- - - ----+---+
    |version|id   |flags  |value |worst |raw value| 0 | 29    |capabilities|sum|
    |       |     |       |      |      |6 bytes  |   | more  |            |   |
    +-------+-----+-------+------+------+---------+---+-- - - +--- - - ----+---+

Numbers are little-endian. An id of 0 is no attribute.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.ata import SECTOR
from aoe.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aoe.buffers import ReadBuffer

SMART_KEY: Final = 0xC24F
"""lba1 and lba2 of every SMART command; in a reply they mean: all is well."""
SMART_FAILING: Final = 0x2CF4
"""lba1 and lba2 of a reply to RETURN STATUS: a threshold is exceeded."""

_VERSION: Final = Struct("<H")
_ATTRIBUTE: Final = Struct("<BHBB6sx")
_ATTRIBUTES: Final = 30
_PREFAILURE: Final = 0x0001

_NAMES: Final = {
    1: "raw read errors",
    2: "throughput",
    3: "spin-up time",
    4: "starts and stops",
    5: "reallocated sectors",
    7: "seek errors",
    8: "seek time",
    9: "power-on hours",
    10: "spin-up retries",
    11: "calibration retries",
    12: "power cycles",
    177: "wear levelling",
    179: "reserved blocks used",
    181: "program failures",
    182: "erase failures",
    183: "downshifts",
    184: "end-to-end errors",
    187: "uncorrectable errors",
    188: "command timeouts",
    189: "high fly writes",
    190: "air flow temperature",
    191: "shocks",
    192: "power-off retracts",
    193: "load cycles",
    194: "temperature",
    195: "ECC recovered",
    196: "reallocations",
    197: "pending sectors",
    198: "offline uncorrectable",
    199: "interface CRC errors",
    200: "write errors",
    231: "life left",
    233: "media wear-out",
    240: "head flying hours",
    241: "sectors written",
    242: "sectors read",
}


class Attribute(NamedTuple):
    """One thing that a disk counts or measures.

    Args:
        number: its id, 1 to 255. Makers agree on what most of them mean.
        flags: bit 0: its value foretells a failure.
        value: how it is, from 253 for good down to 1.
        worst: the lowest value so far.
        raw: the number itself, 48 bits, in whatever unit.
    """

    number: int
    flags: int
    value: int
    worst: int
    raw: int

    @property
    def name(self) -> str:
        """What it is commonly called; empty where nobody knows."""
        return _NAMES.get(self.number, "")

    @property
    def is_prefailure(self) -> bool:
        """A low value announces a failure."""
        return bool(self.flags & _PREFAILURE)


def pack_attributes(attributes: Iterable[Attribute]) -> bytes:
    """Build the page that SMART READ DATA returns, at most 30 of them in it."""
    page = bytearray(SECTOR)
    _VERSION.pack_into(page, 0, 0x10)
    for place, (number, flags, value, worst, raw) in enumerate(attributes):
        offset = _VERSION.size + place * _ATTRIBUTE.size
        packed = raw.to_bytes(6, "little")
        _ATTRIBUTE.pack_into(page, offset, number, flags, value, worst, packed)
    page[511] = -sum(page) & 0xFF
    return bytes(page)


def unpack_attributes(page: ReadBuffer) -> tuple[Attribute, ...]:
    """Read the attributes of a page.

    Raises:
        DecodeError: fewer than 512 bytes, or a wrong checksum.
    """
    if len(page) < SECTOR:
        raise DecodeError("SMART page", f"needs {SECTOR} bytes")
    if sum(page[:SECTOR]) & 0xFF:
        raise DecodeError("SMART page", "wrong checksum")
    found = []
    for place in range(_ATTRIBUTES):
        offset = _VERSION.size + place * _ATTRIBUTE.size
        number, flags, value, worst, raw = _ATTRIBUTE.unpack_from(page, offset)
        if number:
            attribute = (number, flags, value, worst, int.from_bytes(raw, "little"))
            found.append(Attribute(*attribute))
    return tuple(found)
