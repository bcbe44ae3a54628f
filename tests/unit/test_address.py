from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.address import BROADCAST, Address, format_mac, parse_mac
from aoe.errors import UsageError

SHELVES = st.integers(0, 65534)
SLOTS = st.integers(0, 254)


@given(SHELVES, SLOTS)
def test_str_and_parse_round_trip(shelf: int, slot: int) -> None:
    address = Address(shelf, slot)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["e7.3", "7.3", "7 3", "aoe:e7.3", "/dev/etherd/e7.3", "etherd/e7.3", " e7.3\n"],
)
def test_all_notations_are_parsed(text: str) -> None:
    assert Address.parse(text) == Address(7, 3)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not an AoE address"),
        ("e7", "not an AoE address"),
        ("e7.3.1", "not an AoE address"),
        ("e7.3p1", "not an AoE address"),
        ("-1.0", "not an AoE address"),
        ("e0x7.3", "not an AoE address"),
        ("e\u0667.3", "not an AoE address"),
        ("eth0", "not an AoE address"),
        ("e65536.0", "out of range"),
        ("e0.256", "out of range"),
        # The broadcast values.
        ("e65535.0", "out of range"),
        ("e0.255", "out of range"),
    ],
)
def test_an_invalid_address_is_refused_with_a_fix(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        Address.parse(text)
    assert caught.value.what == text
    assert "e0.0" in caught.value.fix
    assert caught.value.exit_code == 2


@given(SHELVES, SLOTS)
def test_p8_an_address_matches_itself_and_broadcast(shelf: int, slot: int) -> None:
    """P8: shelf and slot are compared independently."""
    address = Address(shelf, slot)
    assert address.matches(shelf, slot)
    assert address.matches(0xFFFF, slot)
    assert address.matches(shelf, 0xFF)
    assert address.matches(*BROADCAST)


@given(SHELVES, SLOTS, SHELVES, SLOTS)
def test_p8_an_address_matches_no_other(
    shelf: int, slot: int, other_shelf: int, other_slot: int
) -> None:
    """P8."""
    address = Address(shelf, slot)
    assert address.matches(other_shelf, other_slot) == (
        (other_shelf, other_slot) == (shelf, slot)
    )
    assert address.matches(0xFFFF, other_slot) == (other_slot == slot)
    assert address.matches(other_shelf, 0xFF) == (other_shelf == shelf)


@given(st.binary(min_size=6, max_size=6))
def test_format_mac_and_parse_mac_round_trip(mac: bytes) -> None:
    text = format_mac(mac)
    assert len(text) == 17
    assert parse_mac(text) == parse_mac(text.upper().replace(":", "-")) == mac
    assert format_mac(memoryview(mac)) == format_mac(bytearray(mac)) == text


def test_leading_zeroes_of_a_mac_are_optional() -> None:
    assert parse_mac("0:1:2:a:b:c") == bytes([0, 1, 2, 10, 11, 12])


@pytest.mark.parametrize(
    "text",
    ["", "00:11:22:33:44", "00:11:22:33:44:55:66", "00:11:22:33:44:5g", "001122334455"],
)
def test_an_invalid_mac_is_refused_with_a_fix(text: str) -> None:
    with pytest.raises(UsageError, match="not a MAC address") as caught:
        parse_mac(text)
    assert "52:54:00:ae:00:01" in caught.value.fix
