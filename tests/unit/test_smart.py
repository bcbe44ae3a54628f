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
def test_a_page_holds_its_attributes(attributes: list[Attribute]) -> None:
    page = pack_attributes(attributes)
    assert len(page) == 512
    assert sum(page) % 256 == 0
    assert unpack_attributes(page) == tuple(attributes)


def test_a_page_of_a_real_kind_is_read() -> None:
    # Two attributes as disks send them, with a hole between them.
    page = bytearray(512)
    page[2:14] = bytes.fromhex("05 3300 64 63 070000000000 00".replace(" ", ""))
    page[26:38] = bytes.fromhex("c2 2200 1e 2d 1e0000002d00 00".replace(" ", ""))
    page[511] = -sum(page) & 0xFF
    first, second = unpack_attributes(page)
    assert (first.name, first.is_prefailure) == ("reallocated sector count", True)
    assert (first.value, first.worst, first.raw) == (100, 99, 7)
    assert (second.name, second.is_prefailure) == ("temperature", False)
    assert second.raw == 0x2D_0000_001E


def test_a_damaged_page_is_not_believed() -> None:
    page = bytearray(pack_attributes([Attribute(5, 0, 100, 100, 0)]))
    page[2] ^= 1
    with pytest.raises(DecodeError, match="wrong checksum"):
        unpack_attributes(page)
    with pytest.raises(DecodeError, match="needs 512 bytes"):
        unpack_attributes(page[:511])
