"""Frame layouts of the target's hot path, and the fields common to all responses."""

from __future__ import annotations

from enum import StrEnum
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeAlias

from aoe.header import ETH_P_AOE, FRAME_MINIMUM

if TYPE_CHECKING:
    from aoe.buffers import WriteBuffer


def swap16(number: int) -> int:
    """Swap the two bytes of a 16-bit number."""
    return (number & 0xFF) << 8 | number >> 8


REQUEST: Final = Struct("<6x6sHBxHBBIBxBBIH2x")
"""The 36 bytes of an ATA request in one unpack: src, ethertype, version << 4 | flags,
shelf, slot, command, tag, aflags, count, opcode, lba low 32, lba high 16.

All fields are read as little-endian: the LBA is little-endian on the wire, and the
big-endian fields before it are only compared with byte-swapped constants, or echoed.
"""
RESPONSE_DATA: Final = Struct("<6s14sIBBBBIH2x")
"""The 36 bytes before a response's data: dst, the bytes of ``RESPONSE_HEAD``, tag,
aflags, error, count, status, lba low 32, lba high 16."""
RESPONSE: Final = Struct(RESPONSE_DATA.format + "24x")
"""The same without data, padded with zeros to 60 bytes (P19)."""
RESPONSE_HEAD: Final = Struct("!6sHBBHBB")
"""The 14 bytes common to all successful responses to command 0: src, ethertype,
version << 4 | flags, error, shelf, slot, command."""
ETHERTYPE: Final = swap16(ETH_P_AOE)
"""The EtherType as ``REQUEST`` unpacks it."""
Fields: TypeAlias = tuple[bytes, int, int, int, int, int, int, int, int, int, int, int]
"""What ``REQUEST`` unpacks: a plain tuple, because one is made for each frame."""


class Drop(StrEnum):
    """Why a frame was dropped without a response."""

    SHORT = "short"
    FOREIGN = "foreign_ethertype"
    RESPONSE = "response"
    ADDRESS = "other_address"
    MASKED = "not_in_mask"
    NO_MATCH = "config_differs"
    OVERSIZED = "larger_than_mtu"


def pad(response: WriteBuffer, length: int) -> int:
    """Pad a short response with zeros to 60 bytes and return its length (P19)."""
    if length >= FRAME_MINIMUM:
        return length
    response[length:FRAME_MINIMUM] = bytes(FRAME_MINIMUM - length)
    return FRAME_MINIMUM
