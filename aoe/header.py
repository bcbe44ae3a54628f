"""The Ethernet and AoE headers.

::

     0        6        12    14      15    16    18    19    20    24
    +--------+--------+-----+-------+-----+-----+-----+-----+-----+------- - -
    | dst    | src    |88A2 |ver|flg|error|shelf|slot |cmd  | tag | arg
    +--------+--------+-----+-------+-----+-----+-----+-----+-----+------- - -

Offsets count from the first byte of the Ethernet frame throughout the package.
Multi-byte fields are big-endian (P1).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import TYPE_CHECKING, Final, Self

from aoe.errors import DecodeError

if TYPE_CHECKING:
    from aoe.buffers import ReadBuffer, WriteBuffer

ETH_P_AOE: Final = 0x88A2
ETHERNET_LENGTH: Final = 6 + 6 + 2
HEADER_LENGTH: Final = ETHERNET_LENGTH + 10
FRAME_MINIMUM: Final = 60
"""Minimum length of an Ethernet frame without FCS. Responses are padded to it (P19)."""
VERSION: Final = 1
TAG_USER: Final = 0x8000_0000
"""Bit 31 marks tags of user space; kernel drivers drop responses that have it (P11)."""
_TAG_BITS: Final = 21
TAG_COUNTER: Final = (1 << _TAG_BITS) - 1
"""The bits of a tag with which an initiator counts: many, so that tags return late."""
TAG_BASES: Final = 1 << 31 - _TAG_BITS
"""Values of the bits in between, which differ among the initiators of a host."""

HEADER: Final = Struct("!6s6sHBBHBBI")
"""dst, src, ethertype, version << 4 | flags, error, shelf, slot, command, tag."""


def tag_prefix(base: int) -> int:
    """Return a ``user`` tag with this base, and counter 0 (P11)."""
    return TAG_USER | base % TAG_BASES << _TAG_BITS


class Flag(IntFlag):
    """Flags, the low nibble of byte 14. Bits 0 and 1 are reserved (P3, P4)."""

    RESPONSE = 0x08
    ERROR = 0x04


class Command(IntEnum):
    """Command, byte 19. 0xF0 to 0xFF are vendor-specific."""

    ATA = 0
    CONFIG = 1
    MASK = 2
    RESERVE = 3


class ErrorCode(IntEnum):
    """Error, byte 15 of a response; valid if ``Flag.ERROR`` is set."""

    BAD_COMMAND = 1
    BAD_ARGUMENT = 2
    DEVICE_UNAVAILABLE = 3
    CONFIG_PRESENT = 4
    BAD_VERSION = 5
    RESERVED = 6

    @property
    def text(self) -> str:
        """The name of the code in AoEr11, section 2.4."""
        return _ERROR_TEXT[self]


_ERROR_TEXT: Final = {
    ErrorCode.BAD_COMMAND: "unrecognized command code",
    ErrorCode.BAD_ARGUMENT: "bad argument parameter",
    ErrorCode.DEVICE_UNAVAILABLE: "device unavailable",
    ErrorCode.CONFIG_PRESENT: "config string present",
    ErrorCode.BAD_VERSION: "unsupported version",
    ErrorCode.RESERVED: "target is reserved",
}


@dataclass(frozen=True, slots=True)
class Header:
    """The 24 bytes of Ethernet and AoE header.

    Args:
        dst: destination MAC address, six bytes.
        src: source MAC address, six bytes.
        shelf: major address; 0xFFFF is broadcast.
        slot: minor address; 0xFF is broadcast.
        command: a ``Command``, or any other byte.
        tag: 32 bits, opaque to the target (P10).
        flags: the low nibble of byte 14, including reserved bits.
        error: byte 15; valid if ``Flag.ERROR`` is set.
        version: the high nibble of byte 14.
    """

    dst: bytes
    src: bytes
    shelf: int
    slot: int
    command: int
    tag: int
    flags: int = 0
    error: int = 0
    version: int = VERSION

    @classmethod
    def unpack_from(cls, buffer: ReadBuffer, offset: int = 0) -> Self:
        """Decode a header of any version and with any flags.

        Raises:
            DecodeError: the buffer holds fewer than 24 bytes, or the EtherType differs.
        """
        if len(buffer) - offset < HEADER_LENGTH:
            raise DecodeError("AoE header", f"needs {HEADER_LENGTH} bytes")
        dst, src, ethertype, verfl, error, shelf, slot, command, tag = (
            HEADER.unpack_from(buffer, offset)
        )
        if ethertype != ETH_P_AOE:
            raise DecodeError("AoE header", f"EtherType is {ethertype:#06x}")
        return cls(dst, src, shelf, slot, command, tag, verfl & 0x0F, error, verfl >> 4)

    def pack_into(self, buffer: WriteBuffer, offset: int = 0) -> int:
        """Encode the header. Return its length, 24."""
        HEADER.pack_into(
            buffer,
            offset,
            self.dst,
            self.src,
            ETH_P_AOE,
            self.version << 4 | self.flags,
            self.error,
            self.shelf,
            self.slot,
            self.command,
            self.tag,
        )
        return HEADER_LENGTH


def sectors_per_frame(mtu: int) -> int:
    """Return the number of sectors that fit in a frame at this MTU (P22, K17).

    The 36 bytes subtracted include the 14 bytes of the Ethernet header, which the MTU
    does not; most implementations share this. The result is at most 255, the maximum of
    the Sector Count field, and 0 if the MTU is too small for one sector.
    """
    return max(0, min((mtu - 36) // 512, 255))
