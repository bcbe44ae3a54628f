from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.errors import DecodeError
from aoe.smart import Attribute, pack_attributes, unpack_attributes

ATTRIBUTES = st.builds(
    Attribute,
    st.integers(1, 255),
    st.integers(0, 0xFFFF),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, (1 << 48) - 1),
)


@given(st.lists(ATTRIBUTES, max_size=30))
def test_pack_and_unpack_round_trip(attributes: list[Attribute]) -> None:
    page = pack_attributes(attributes)
    assert len(page) == 512
    assert sum(page) % 256 == 0
    assert unpack_attributes(page) == tuple(attributes)


def test_a_page_with_unused_entries_is_decoded() -> None:
    # Two attributes as sent by a disk, with an unused entry between them.
    page = bytearray(512)
    page[2:14] = bytes.fromhex("05 3300 64 63 070000000000 00".replace(" ", ""))
    page[26:38] = bytes.fromhex("c2 2200 1e 2d 1e0000002d00 00".replace(" ", ""))
    page[511] = -sum(page) & 0xFF
    first, second = unpack_attributes(page)
    assert (first.name, first.is_prefailure) == ("reallocated sector count", True)
    assert (first.value, first.worst, first.raw) == (100, 99, 7)
    assert (second.name, second.is_prefailure) == ("temperature", False)
    assert second.raw == 0x2D_0000_001E


def test_a_corrupt_page_is_refused() -> None:
    page = bytearray(pack_attributes([Attribute(5, 0, 100, 100, 0)]))
    page[2] ^= 1
    with pytest.raises(DecodeError, match="wrong checksum"):
        unpack_attributes(page)
    with pytest.raises(DecodeError, match="needs 512 bytes"):
        unpack_attributes(page[:511])
