"""How the target's hot path lays out a frame, and what every reply has in common."""

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
"""The 36 bytes of an ATA request at one go: src, ethertype, version << 4 | flags,
shelf, slot, command, tag, aflags, count, opcode, lba low 32, lba high 16.

All of it is little-endian: the LBA is so on the wire, and the big-endian fields in
front of it are only compared with numbers swapped beforehand, or echoed.
"""
REPLY_DATA: Final = Struct("<6s14sIBBBBIH2x")
"""The 36 bytes in front of a reply's data: dst, the bytes of ``REPLY_HEAD``, tag,
aflags, error, count, status, lba low 32, lba high 16."""
REPLY: Final = Struct(REPLY_DATA.format + "24x")
"""The same without data, and with the zeroes that fill it up to 60 bytes (P19)."""
REPLY_HEAD: Final = Struct("!6sHBBHBB")
"""The 14 bytes that are the same in all good replies to command 0: src, ethertype,
version << 4 | flags, error, shelf, slot, command."""
ETHERTYPE: Final = swap16(ETH_P_AOE)
"""The EtherType as ``REQUEST`` sees it."""
Fields: TypeAlias = tuple[bytes, int, int, int, int, int, int, int, int, int, int, int]
"""What ``REQUEST`` unpacks: a plain tuple, for there is one a frame."""


class Drop(StrEnum):
    """Why a frame was met with silence."""

    SHORT = "short"
    FOREIGN = "foreign_ethertype"
    RESPONSE = "response"
    ADDRESS = "other_address"
    MASKED = "not_in_mask"
    NO_MATCH = "config_differs"
    OUTGROWN = "larger_than_mtu"


def pad(reply: WriteBuffer, length: int) -> int:
    """Fill a short reply with zeroes up to 60 bytes, and return its length (P19)."""
    if length >= FRAME_MINIMUM:
        return length
    reply[length:FRAME_MINIMUM] = bytes(FRAME_MINIMUM - length)
    return FRAME_MINIMUM
