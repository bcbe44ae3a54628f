"""The 512-byte page that IDENTIFY DEVICE returns: 256 little-endian words (P80-P83)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from aoe.ata import LBA28_LIMIT, SECTOR
from aoe.errors import DecodeError

if TYPE_CHECKING:
    from aoe.buffers import ReadBuffer

_WORDS: Final = struct.Struct("<256H")
_SERIAL: Final = slice(10, 20)
_FIRMWARE: Final = slice(23, 27)
_MODEL: Final = slice(27, 47)

_HEADS: Final = 16
_TRACK_SECTORS: Final = 63
_CYLINDER_LIMIT: Final = 16383
_CHECKSUM_SIGNATURE: Final = 0xA5

_FIXED: Final = {
    0: 0x0040,  # not removable
    47: 0x8000,  # no READ MULTIPLE
    49: 0x0200,  # LBA
    50: 0x4000,
    53: 0x0001,  # words 54 to 58 are valid
    80: 0x01F0,  # ATA/ATAPI-4 to ATA8-ACS
    83: 0x7400,  # supported: LBA48, FLUSH CACHE, FLUSH CACHE EXT
    84: 0x4000,
    86: 0x3400,  # enabled: the same
    87: 0x4000,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """What a disk says of itself.

    Args:
        sectors: the size, in sectors of 512 bytes.
        serial: at most 20 ASCII characters.
        firmware: at most 8.
        model: at most 40.
        lba48: the disk takes 48-bit addresses.
    """

    sectors: int
    serial: str = ""
    firmware: str = ""
    model: str = ""
    lba48: bool = True

    def pack(self) -> bytes:
        """Build the page, with the checksum that ends it (P82).

        The 28-bit size in words 60 and 61 stops at 2**28 - 1 as ATA wants it.
        """
        words = [0] * 256
        for index, value in _FIXED.items():
            words[index] = value
        if not self.lba48:
            words[83] &= ~0x2400
            words[86] &= ~0x2400
        words[_SERIAL] = _string_words(self.serial, 20)
        words[_FIRMWARE] = _string_words(self.firmware, 8)
        words[_MODEL] = _string_words(self.model, 40)
        cylinders = min(
            max(1, self.sectors // (_HEADS * _TRACK_SECTORS)), _CYLINDER_LIMIT
        )
        geometry = cylinders * _HEADS * _TRACK_SECTORS
        words[1] = words[54] = cylinders
        words[3] = words[55] = _HEADS
        words[6] = words[56] = _TRACK_SECTORS
        words[57:59] = _number_words(geometry, 2)
        words[60:62] = _number_words(min(self.sectors, LBA28_LIMIT - 1), 2)
        if self.lba48:
            words[100:104] = _number_words(self.sectors, 4)
        words[255] = _CHECKSUM_SIGNATURE
        page = bytearray(_WORDS.pack(*words))
        page[511] = -sum(page) & 0xFF
        return bytes(page)

    @classmethod
    def unpack(cls, page: ReadBuffer) -> Self:
        """Read a page as the Linux driver does (K21, P83).

        LBA48 holds if bit 10 is set in word 83 or in word 86. The checksum is not
        looked at: few targets write one.

        Raises:
            DecodeError: fewer than 512 bytes.
        """
        if len(page) < SECTOR:
            raise DecodeError("IDENTIFY page", f"needs {SECTOR} bytes")
        words = _WORDS.unpack_from(page)
        lba48 = bool((words[83] | words[86]) & 1 << 10)
        size = words[100:104] if lba48 else words[60:62]
        return cls(
            sectors=sum(word << 16 * place for place, word in enumerate(size)),
            serial=_words_string(words[_SERIAL]),
            firmware=_words_string(words[_FIRMWARE]),
            model=_words_string(words[_MODEL]),
            lba48=lba48,
        )


def _string_words(text: str, length: int) -> list[int]:
    # The first character of a pair is in the high byte (P80).
    raw = text.encode("ascii", "replace")[:length].ljust(length)
    return list(struct.unpack(f">{length // 2}H", raw))


def _words_string(words: tuple[int, ...]) -> str:
    raw = struct.pack(f">{len(words)}H", *words)
    return raw.decode("ascii", "replace").strip("\0 ")


def _number_words(number: int, count: int) -> list[int]:
    # Low word first (P81).
    return [number >> 16 * place & 0xFFFF for place in range(count)]
