"""AoE addresses (shelf and slot) and MAC addresses."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Self

from aoe.errors import UsageError

SHELF_ALL: Final = 0xFFFF
SLOT_ALL: Final = 0xFF
MAC_BROADCAST: Final = b"\xff" * 6

_NAME = re.compile(r"(?:aoe:|/dev/etherd/|etherd/)?e?(\d+)[. ](\d+)", re.ASCII)
_FIX = "Write it as e0.0 (shelf 0-65534, slot 0-254)"


class Address(NamedTuple):
    """An AoE address: shelf (major, 16 bits) and slot (minor, 8 bits).

    >>> Address.parse("e7.3")
    Address(shelf=7, slot=3)
    >>> str(Address(0, 0))
    'e0.0'
    """

    shelf: int
    slot: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``e0.0``, ``0.0``, ``0 0``, ``aoe:e0.0`` or ``/dev/etherd/e0.0``.

        Raises:
            UsageError: the text has another form, or a number is out of range. The
                broadcast values, shelf 65535 and slot 255, are out of range.
        """
        match = _NAME.fullmatch(text.strip())
        if match is None:
            raise UsageError(text, "not an AoE address", _FIX)
        address = cls(int(match[1]), int(match[2]))
        if address.shelf >= SHELF_ALL or address.slot >= SLOT_ALL:
            raise UsageError(text, "AoE address out of range", _FIX)
        return address

    def matches(self, shelf: int, slot: int) -> bool:
        """Return True if a request for ``shelf`` and ``slot`` matches (P8)."""
        return shelf in (self.shelf, SHELF_ALL) and slot in (self.slot, SLOT_ALL)

    def __str__(self) -> str:
        return f"e{self.shelf}.{self.slot}"


BROADCAST: Final = Address(SHELF_ALL, SLOT_ALL)


def parse_mac(text: str) -> bytes:
    """Parse a MAC address such as ``52:54:00:ae:00:01`` into six bytes.

    Raises:
        UsageError: the text is not six hexadecimal octets.
    """
    digits = text.replace("-", ":").split(":")
    if len(digits) == 6 and all(re.fullmatch("[0-9a-fA-F]{1,2}", d) for d in digits):
        return bytes(int(digit, 16) for digit in digits)
    raise UsageError(text, "not a MAC address", "Write it as 52:54:00:ae:00:01")


def parse_macs(text: str) -> tuple[bytes, ...]:
    """Parse a comma-separated list of MAC addresses.

    Colons within an address are optional, as in vblade's ``-m``.

    Returns:
        The addresses without duplicates, in order.

    Raises:
        UsageError: an element is not a MAC address.
    """
    macs = (re.sub(r"^((?:\w\w){6})$", _with_colons, mac) for mac in text.split(","))
    return tuple(dict.fromkeys(map(parse_mac, macs)))


def _with_colons(match: re.Match[str]) -> str:
    return ":".join(re.findall("..", match[1]))


def format_mac(mac: bytes | bytearray | memoryview) -> str:
    """Format six bytes as ``52:54:00:ae:00:01``."""
    return bytes(mac).hex(":")
