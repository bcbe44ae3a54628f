"""SMART attributes: the 512-byte page of SMART READ DATA (ATA command B0h).

::

    0       2     3       5      6      7         13  14      362          511
    +-------+-----+-------+------+------+---------+---+-- - - +--- - - ----+---+
    |version|id   |flags  |value |worst |raw value| 0 | 29    |capabilities|sum|
    |       |     |       |      |      |6 bytes  |   | more  |            |   |
    +-------+-----+-------+------+------+---------+---+-- - - +--- - - ----+---+

Numbers are little-endian. An entry with id 0 is unused.
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
"""lba1 and lba2 of a SMART command; in RETURN STATUS responses: within thresholds."""
SMART_FAILING: Final = 0x2CF4
"""lba1 and lba2 of a RETURN STATUS response: a threshold was exceeded."""

_VERSION: Final = Struct("<H")
_ATTRIBUTE: Final = Struct("<BHBB6sx")
_ATTRIBUTES: Final = 30
_PREFAILURE: Final = 0x0001

_NAMES: Final = {
    1: "raw read error rate",
    2: "throughput performance",
    3: "spin-up time",
    4: "start/stop count",
    5: "reallocated sector count",
    7: "seek error rate",
    8: "seek time performance",
    9: "power-on hours",
    10: "spin-up retry count",
    11: "calibration retry count",
    12: "power cycle count",
    177: "wear leveling count",
    179: "used reserved blocks",
    181: "program fail count",
    182: "erase fail count",
    183: "SATA downshift count",
    184: "end-to-end errors",
    187: "reported uncorrectable",
    188: "command timeouts",
    189: "high fly writes",
    190: "airflow temperature",
    191: "G-sense error rate",
    192: "power-off retract count",
    193: "load cycle count",
    194: "temperature",
    195: "hardware ECC recovered",
    196: "reallocation event count",
    197: "current pending sectors",
    198: "offline uncorrectable",
    199: "UDMA CRC error count",
    200: "multi-zone error rate",
    231: "SSD life left",
    233: "media wearout indicator",
    240: "head flying hours",
    241: "total LBAs written",
    242: "total LBAs read",
}


class Attribute(NamedTuple):
    """A SMART attribute.

    Args:
        number: attribute id, 1 to 255. The meaning is vendor-specific by the standard,
            but most ids are common to all vendors.
        flags: status flags; bit 0 marks a pre-failure attribute.
        value: normalized value, from 253 (best) to 1 (worst).
        worst: the lowest normalized value so far.
        raw: the raw value, 48 bits, in a vendor-specific unit.
    """

    number: int
    flags: int
    value: int
    worst: int
    raw: int

    @property
    def name(self) -> str:
        """The common name of the attribute; empty if unknown."""
        return _NAMES.get(self.number, "")

    @property
    def is_prefailure(self) -> bool:
        """Whether a low value predicts a failure."""
        return bool(self.flags & _PREFAILURE)


def pack_attributes(attributes: Iterable[Attribute]) -> bytes:
    """Build the page that SMART READ DATA returns, with at most 30 attributes."""
    page = bytearray(SECTOR)
    _VERSION.pack_into(page, 0, 0x10)
    for place, (number, flags, value, worst, raw) in enumerate(attributes):
        offset = _VERSION.size + place * _ATTRIBUTE.size
        packed = raw.to_bytes(6, "little")
        _ATTRIBUTE.pack_into(page, offset, number, flags, value, worst, packed)
    page[511] = -sum(page) & 0xFF
    return bytes(page)


def unpack_attributes(page: ReadBuffer) -> tuple[Attribute, ...]:
    """Decode the attributes of a page.

    Raises:
        DecodeError: the page is shorter than 512 bytes, or its checksum is wrong.
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
