"""IDENTIFY DEVICE data: a page of 256 little-endian 16-bit words (P80-P84)."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Final, Self

from aoe.ata import LBA28_LIMIT, SECTOR
from aoe.errors import DecodeError, UsageError

if TYPE_CHECKING:
    from aoe.buffers import ReadBuffer

_WORDS: Final = struct.Struct("<256H")
_SERIAL: Final = slice(10, 20)
_FIRMWARE: Final = slice(23, 27)
_MODEL: Final = slice(27, 47)
_CYCLES: Final = slice(65, 69)
_EPOCH_MARK: Final = slice(129, 133)
_EPOCH: Final = slice(133, 137)
_WWN: Final = slice(108, 112)

_HEADS: Final = 16
_TRACK_SECTORS: Final = 63
_CYLINDER_LIMIT: Final = 16383
_CHECKSUM_SIGNATURE: Final = 0xA5
_CYCLE_TIME: Final = 120
"""Minimum cycle time in nanoseconds of multiword DMA mode 2 and PIO mode 4."""
_EPOCH_TEXT: Final = "AoEepoch"
"""Marks the epoch: other vendors put other data in the vendor-specific words."""
_WORD_VALID: Final = 0x4000
"""Bit 14 set and bit 15 clear mark the content of an optional word as valid."""

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


class FeatureSet(IntFlag):
    """Optional feature sets and commands of a disk."""

    NONE = 0
    DMA = 1
    SMART = 2
    POWER = 4
    WRITE_CACHE = 8
    LOOK_AHEAD = 16
    TRIM = 32
    UNCORRECTABLE = 64
    """The WRITE UNCORRECTABLE EXT command."""


_SUPPORTED: Final = {
    FeatureSet.DMA: (49, 0x0100),
    FeatureSet.SMART: (82, 0x0001),
    FeatureSet.POWER: (82, 0x0008),
    FeatureSet.WRITE_CACHE: (82, 0x0020),
    FeatureSet.LOOK_AHEAD: (82, 0x0040),
    FeatureSet.TRIM: (169, 0x0001),
    FeatureSet.UNCORRECTABLE: (119, 0x0004),
}
_ENABLED: Final = {
    FeatureSet.SMART: (85, 0x0001),
    FeatureSet.POWER: (85, 0x0008),
    FeatureSet.WRITE_CACHE: (85, 0x0020),
    FeatureSet.LOOK_AHEAD: (85, 0x0040),
    FeatureSet.UNCORRECTABLE: (120, 0x0004),
}
_IMPLIED: Final = {
    FeatureSet.DMA: {
        49: 0x0800,  # IORDY
        53: 0x0006,  # words 64 to 70 and 88 are valid
        63: 0x0007,  # multiword DMA 0 to 2
        64: 0x0003,  # PIO 3 and 4
        88: 0x007F,  # Ultra DMA 0 to 6
    },
    FeatureSet.TRIM: {
        69: 0x4020,  # DRAT and RZAT: trimmed sectors read as zeroes
        105: 1,  # blocks of ranges per command; one fits in a frame of any usable MTU
    },
    FeatureSet.UNCORRECTABLE: {86: 0x8000, 119: _WORD_VALID, 120: _WORD_VALID},
}
"""Further bits, by word, that a page with a feature set has."""
_MULTIWORD: Final = (63, 0x20)
_ULTRA: Final = (88, 0x40)
"""Word with the selected mode in its high byte, and the type code of SET FEATURES."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The fields of an IDENTIFY DEVICE page that pyaoe uses.

    Args:
        sectors: number of 512-byte sectors.
        serial: serial number, at most 20 ASCII characters.
        firmware: firmware revision, at most 8 ASCII characters.
        model: model number, at most 40 ASCII characters.
        lba48: the disk supports 48-bit addresses.
        feature_sets: supported feature sets.
        enabled: enabled feature sets. ``DMA`` and ``TRIM`` have no enabled bit and are
            never included.
        transfer: the selected DMA mode in the encoding of SET FEATURES: 0x20 plus the
            number of a multiword mode, 0x40 plus that of an Ultra mode, 0 for none.
        physical_block: physical block size in bytes, 512 times a power of two.
        wwn: the 64-bit world wide name; 0 for none.
        rotation: rotation rate in rpm; 1 for a non-rotating medium, 0 for not reported.
        epoch: a 64-bit number that changes when answered writes that were not flushed
            may have been lost; 0 for not reported (P84).
    """

    sectors: int
    serial: str = ""
    firmware: str = ""
    model: str = ""
    lba48: bool = True
    feature_sets: FeatureSet = FeatureSet.NONE
    enabled: FeatureSet = FeatureSet.NONE
    transfer: int = 0
    physical_block: int = SECTOR
    wwn: int = 0
    rotation: int = 0
    epoch: int = 0

    def pack(self) -> bytes:
        """Build the page, including its checksum (P82).

        The 28-bit size in words 60 and 61 is limited to 2**28 - 1, as ATA requires.
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
        self._pack_sizes(words)
        self._pack_feature_sets(words)
        if self.wwn:
            words[84] |= 0x0100
            words[87] |= 0x0100
            words[_WWN] = reversed(_number_words(self.wwn, 4))
        if self.epoch:
            words[_EPOCH_MARK] = _string_words(_EPOCH_TEXT, len(_EPOCH_TEXT))
            words[_EPOCH] = _number_words(self.epoch, 4)
        words[217] = self.rotation
        words[255] = _CHECKSUM_SIGNATURE
        page = bytearray(_WORDS.pack(*words))
        page[511] = -sum(page) & 0xFF
        return bytes(page)

    def _pack_sizes(self, words: list[int]) -> None:
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
        if self.physical_block > SECTOR:
            exponent = (self.physical_block // SECTOR).bit_length() - 1
            words[106] = 0x6000 | exponent
            words[209] = _WORD_VALID  # logical sector 0 is aligned

    def _pack_feature_sets(self, words: list[int]) -> None:
        for present, bits in (
            (self.feature_sets, _SUPPORTED),
            (self.enabled & self.feature_sets, _ENABLED),
        ):
            for feature_set, (index, bit) in bits.items():
                if feature_set in present:
                    words[index] |= bit
        for feature_set, values in _IMPLIED.items():
            if feature_set in self.feature_sets:
                for index, value in values.items():
                    words[index] |= value
        if FeatureSet.DMA in self.feature_sets:
            words[_CYCLES] = [_CYCLE_TIME] * 4
            for index, kind in (_MULTIWORD, _ULTRA):
                if self.transfer & 0xF8 == kind:
                    words[index] |= 0x0100 << (self.transfer & 0x07)

    def describe(self) -> str:
        """Return model, serial number and size, for messages."""
        name = f"serial {self.serial!r}" if self.serial else "no serial number"
        return f"{self.model or 'a disk'} ({name}, {self.sectors * SECTOR} bytes)"

    def is_same_disk(self, other: Self) -> bool:
        """Return True if both describe one disk, whose size may have changed.

        Serial number, model and world wide name have to be equal. The firmware
        revision and the features may change. Without serial number and world wide name,
        only the size tells disks apart.
        """
        mine, others = (
            (self.serial, self.model, self.wwn),
            (
                other.serial,
                other.model,
                other.wwn,
            ),
        )
        has_name = bool(self.serial or self.wwn)
        return mine == others and (has_name or self.sectors == other.sectors)

    @classmethod
    def unpack(cls, page: ReadBuffer) -> Self:
        """Decode a page as the Linux driver does (K21, P83).

        ``lba48`` is set if bit 10 is set in word 83 or in word 86. The checksum is not
        verified, because few targets compute one.

        Raises:
            DecodeError: the page is shorter than 512 bytes.
        """
        if len(page) < SECTOR:
            raise DecodeError("IDENTIFY page", f"needs {SECTOR} bytes")
        words = _WORDS.unpack_from(page)
        lba48 = bool((words[83] | words[86]) & 1 << 10)
        size = words[100:104] if lba48 else words[60:62]
        feature_sets = _unpack_feature_sets(words, _SUPPORTED)
        return cls(
            sectors=_words_number(size),
            serial=_words_string(words[_SERIAL]),
            firmware=_words_string(words[_FIRMWARE]),
            model=_words_string(words[_MODEL]),
            lba48=lba48,
            feature_sets=feature_sets,
            enabled=_unpack_feature_sets(words, _ENABLED) & feature_sets,
            transfer=_transfer(words) if FeatureSet.DMA in feature_sets else 0,
            physical_block=SECTOR << (words[106] & 0xF if words[106] >> 13 == 3 else 0),
            wwn=_words_number(words[_WWN][::-1])
            if words[87] >> 8 & 0xC1 == 0x41
            else 0,
            rotation=words[217],
            epoch=_words_number(words[_EPOCH])
            if _words_string(words[_EPOCH_MARK]) == _EPOCH_TEXT
            else 0,
        )


def _unpack_feature_sets(
    words: tuple[int, ...], bits: dict[FeatureSet, tuple[int, int]]
) -> FeatureSet:
    found = FeatureSet.NONE
    for feature_set, (index, bit) in bits.items():
        if words[index] & bit:
            found |= feature_set
    return found


def _transfer(words: tuple[int, ...]) -> int:
    for index, kind in (_ULTRA, _MULTIWORD):
        if selected := words[index] >> 8 & 0xFF:
            return kind | selected.bit_length() - 1
    return 0


def _string_words(text: str, length: int) -> list[int]:
    # The first character of each pair is in the high byte of its word (P80).
    raw = text.encode("ascii", "replace")[:length].ljust(length)
    return list(struct.unpack(f">{length // 2}H", raw))


def _words_string(words: tuple[int, ...]) -> str:
    raw = struct.pack(f">{len(words)}H", *words)
    return raw.decode("ascii", "replace").strip("\0 ")


def _number_words(number: int, count: int) -> list[int]:
    # Least significant word first (P81).
    return [number >> 16 * place & 0xFFFF for place in range(count)]


def _words_number(words: tuple[int, ...]) -> int:
    return sum(word << 16 * place for place, word in enumerate(words))


def trim_blocks(page: ReadBuffer) -> int:
    """Return the maximum number of 512-byte range blocks per TRIM, at least 1."""
    blocks: int = _WORDS.unpack_from(page)[105]
    return max(1, blocks)


def discard_zeroes_data(page: ReadBuffer) -> bool:
    """Return True if trimmed sectors always read as zeroes (DRAT and RZAT)."""
    word, mask = _WORDS.unpack_from(page)[69], _IMPLIED[FeatureSet.TRIM][69]
    return bool(word & mask == mask)


def parse_wwn(text: str) -> int:
    """Parse a world wide name: 16 hexadecimal digits, optionally prefixed with 0x.

    Raises:
        UsageError: the text has another form, or all digits are zero.
    """
    match = re.fullmatch("(?:0x)?([0-9a-fA-F]{16})", text)
    if match is None or not int(match[1], 16):
        raise UsageError(text, "not a world wide name", "Write 16 hexadecimal digits")
    return int(match[1], 16)
