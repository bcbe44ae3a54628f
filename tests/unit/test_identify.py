"""Encoding and decoding of the IDENTIFY DEVICE page."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.errors import DecodeError
from aoe.identify import FeatureSet, Identity

VBLADE = Path(__file__).parent.parent / "golden" / "vblade-25-identify.bin"
LBA28_SECTORS = 2**28 - 1


def words(page: bytes) -> tuple[int, ...]:
    return struct.unpack("<256H", page)


def number(parts: tuple[int, ...]) -> int:
    return sum(part << 16 * place for place, part in enumerate(parts))


def texts(limit: int) -> st.SearchStrategy[str]:
    """Return printable ASCII without surrounding spaces, which are padding."""
    characters = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
    return st.text(characters, max_size=limit).map(str.strip)


WITH_ENABLED_BIT = (
    FeatureSet.SMART | FeatureSet.POWER | FeatureSet.WRITE_CACHE | FeatureSet.LOOK_AHEAD
)


def with_features(
    plain: Identity, feature_sets: int, enabled: int, transfer: int
) -> Identity:
    # Only supported features that have an enabled bit can be enabled.
    supported = FeatureSet(feature_sets)
    on = FeatureSet(enabled) & supported & (WITH_ENABLED_BIT | FeatureSet.UNCORRECTABLE)
    mode = transfer if FeatureSet.DMA in supported else 0
    return replace(plain, feature_sets=supported, enabled=on, transfer=mode)


PLAIN = st.builds(
    Identity,
    physical_block=st.sampled_from([512, 4096, 512 << 15]),
    wwn=st.integers(0, 2**64 - 1),
    rotation=st.sampled_from([0, 1, 7200, 0xFFFE]),
    sectors=st.integers(0, 2**48 - 1),
    serial=texts(20),
    firmware=texts(8),
    model=texts(40),
)
IDENTITIES = st.builds(
    with_features,
    PLAIN,
    st.integers(0, 127),
    st.integers(0, 127),
    st.sampled_from([0, 0x20, 0x22, 0x40, 0x46]),
)


@given(IDENTITIES)
def test_pack_and_unpack_round_trip(identity: Identity) -> None:
    page = identity.pack()
    assert len(page) == 512
    assert Identity.unpack(page) == identity
    assert Identity.unpack(memoryview(page)) == identity


@given(IDENTITIES)
def test_strings_are_byte_swapped_and_padded_with_spaces(
    identity: Identity,
) -> None:
    """P80: the first character of a pair is in the high byte of its word."""
    page = identity.pack()
    for text, start, length in (
        (identity.serial, 20, 20),
        (identity.firmware, 46, 8),
        (identity.model, 54, 40),
    ):
        field = bytearray(page[start : start + length])
        field[::2], field[1::2] = field[1::2], field[::2]
        assert field.decode("ascii") == text.ljust(length)


def test_p80_encoding_of_a_string() -> None:
    """P80."""
    page = Identity(0, serial="ABCDE").pack()
    assert page[20:40] == b"BADC E".ljust(20)


@given(st.integers(0, 2**48 - 1))
def test_sizes_are_stored_low_word_first(sectors: int) -> None:
    """P81, P82: 28-bit size in words 60 and 61, 48-bit size in words 100 to 103."""
    found = words(Identity(sectors).pack())
    assert number(found[100:104]) == sectors
    assert number(found[60:62]) == min(sectors, LBA28_SECTORS)


@pytest.mark.parametrize(
    ("sectors", "clamped"),
    [
        (2**28 - 2, 2**28 - 2),
        (2**28 - 1, 2**28 - 1),
        (2**28, 2**28 - 1),
        (2**32 + 5, 2**28 - 1),
    ],
)
def test_the_28_bit_size_is_clamped(sectors: int, clamped: int) -> None:
    """P82: the size neither wraps around nor is the reserved value 2**28."""
    identity = Identity(sectors, lba48=False)
    assert number(words(identity.pack())[60:62]) == clamped
    assert Identity.unpack(identity.pack()).sectors == clamped


@given(IDENTITIES)
def test_the_page_ends_with_its_checksum(identity: Identity) -> None:
    """P82: signature 0xA5, and the sum of all bytes is zero."""
    page = identity.pack()
    assert page[510] == 0xA5
    assert sum(page) % 256 == 0


@pytest.mark.parametrize("lba48", [True, False])
def test_only_supported_features_are_reported(*, lba48: bool) -> None:
    """P82: LBA and FLUSH CACHE; LBA48 only together with FLUSH CACHE EXT."""
    found = words(Identity(2048, lba48=lba48).pack())
    supported = 0x7400 if lba48 else 0x5000
    assert found[49] == 0x0200
    assert found[83] == supported
    assert found[86] == supported & ~0x4000
    assert Identity.unpack(struct.pack("<256H", *found)).lba48 is lba48


def test_a_large_physical_block_is_reported_with_its_alignment() -> None:
    """P82: the exponent is in word 106, the alignment in word 209."""
    found = words(Identity(2048, physical_block=4096).pack())
    assert (found[106], found[209]) == (0x6003, 0x4000)
    found = words(Identity(2048).pack())
    assert (found[106], found[209]) == (0, 0)


def test_a_world_wide_name_is_stored_high_word_first() -> None:
    """P82: words 108 to 111, marked as valid by bit 8 of words 84 and 87."""
    found = words(Identity(2048, wwn=0x3111_2222_3333_4444).pack())
    assert found[108:112] == (0x3111, 0x2222, 0x3333, 0x4444)
    assert found[84] == found[87] == 0x4100
    assert words(Identity(2048).pack())[84] == 0x4000


@pytest.mark.parametrize(
    ("sectors", "cylinders"), [(0, 1), (1008, 1), (2016, 2), (2**40, 16383)]
)
def test_geometry_stays_within_its_limits(sectors: int, cylinders: int) -> None:
    """P82: words 1, 3 and 6, repeated with the capacity in 54 to 58."""
    found = words(Identity(sectors).pack())
    assert (found[1], found[3], found[6]) == (cylinders, 16, 63)
    assert found[54:57] == (cylinders, 16, 63)
    assert number(found[57:59]) == cylinders * 16 * 63
    assert found[53] & 1


@pytest.mark.parametrize("word", [83, 86])
def test_lba48_is_read_from_either_word(word: int) -> None:
    """P83, K21."""
    page = bytearray(512)
    struct.pack_into("<H", page, 2 * word, 1 << 10)
    struct.pack_into("<I", page, 2 * 60, 7)
    struct.pack_into("<Q", page, 2 * 100, 2**40)
    assert Identity.unpack(page).sectors == 2**40
    struct.pack_into("<H", page, 2 * word, 0)
    assert Identity.unpack(page).sectors == 7


def test_long_and_non_ascii_strings_are_truncated_and_replaced() -> None:
    identity = Identity(1, serial="S" * 30, firmware="ü", model="M" * 50)
    read = Identity.unpack(identity.pack())
    assert (read.serial, read.firmware, read.model) == ("S" * 20, "?", "M" * 40)


def test_the_page_of_vblade_is_decoded() -> None:
    """As vblade 25 sent it for a file of 512 MiB to Linux 6.1."""
    assert Identity.unpack(VBLADE.read_bytes()) == Identity(
        sectors=2**20,
        serial="0.0:vm",
        firmware="V25",
        model="Coraid EtherDrive vblade",
    )


@given(st.binary(min_size=512, max_size=512))
def test_any_page_is_decoded(page: bytes) -> None:
    """A page of another target may have any content."""
    assert Identity.unpack(page).sectors >= 0


@pytest.mark.parametrize("length", [0, 511])
def test_a_short_page_is_refused(length: int) -> None:
    with pytest.raises(DecodeError, match="needs 512 bytes"):
        Identity.unpack(bytes(length))
