"""AoE command 0: ATA registers and data.

::

    24     25      26     27      28                36
    +------+-------+------+-------+-----------+-----+------------- - -
    |aflags|err/   |sector|cmd/   |lba0..lba5 | 0 0 | 512 * n bytes
    |      |feature|count |status |low first  |     | of data
    +------+-------+------+-------+-----------+-----+------------- - -

Bytes 25 and 27 are feature and command in a request, error and status in a response
(P26).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import TYPE_CHECKING, Final, Self

from aoe.errors import DecodeError
from aoe.header import HEADER_LENGTH

if TYPE_CHECKING:
    from aoe.buffers import ReadBuffer, WriteBuffer

SECTOR: Final = 512
ATA_LENGTH: Final = 1 + 1 + 1 + 1 + 6 + 2
ATA_DATA: Final = HEADER_LENGTH + ATA_LENGTH
"""Offset of the data in the frame: 36."""
LBA28_LIMIT: Final = 1 << 28
LBA48_LIMIT: Final = 1 << 48
DEVICE_LBA: Final = 0xE0
"""High nibble of lba3 for 28-bit addresses, as Linux sets it (P30, K35)."""

REGISTERS: Final = Struct("<BBBBIHH")
"""aflags, error/feature, count, status/command, lba low 32, lba high 16, reserved."""


class AFlag(IntFlag):
    """AFlags, byte 24."""

    EXTENDED = 0x40
    DEVICE = 0x10
    ASYNC = 0x02
    WRITE = 0x01


class Opcode(IntEnum):
    """ATA command opcodes, as named in ACS."""

    DATA_SET_MANAGEMENT = 0x06
    READ = 0x20
    READ_EXT = 0x24
    READ_DMA_EXT = 0x25
    WRITE = 0x30
    WRITE_EXT = 0x34
    WRITE_DMA_EXT = 0x35
    WRITE_DMA_FUA_EXT = 0x3D
    READ_VERIFY = 0x40
    READ_VERIFY_EXT = 0x42
    WRITE_UNCORRECTABLE_EXT = 0x45
    SMART = 0xB0
    READ_DMA = 0xC8
    WRITE_DMA = 0xCA
    STANDBY_IMMEDIATE = 0xE0
    IDLE_IMMEDIATE = 0xE1
    STANDBY = 0xE2
    IDLE = 0xE3
    CHECK_POWER_MODE = 0xE5
    SLEEP = 0xE6
    FLUSH = 0xE7
    FLUSH_EXT = 0xEA
    IDENTIFY = 0xEC
    SET_FEATURES = 0xEF


LBA48_OPCODES: Final = frozenset(
    {
        Opcode.READ_EXT,
        Opcode.READ_DMA_EXT,
        Opcode.WRITE_EXT,
        Opcode.WRITE_DMA_EXT,
        Opcode.WRITE_DMA_FUA_EXT,
        Opcode.READ_VERIFY_EXT,
        Opcode.WRITE_UNCORRECTABLE_EXT,
    }
)
"""Commands with a 48-bit LBA even if the E flag is clear (P31)."""
SECTOR_OPCODES: Final = LBA48_OPCODES | {
    Opcode.READ,
    Opcode.READ_DMA,
    Opcode.WRITE,
    Opcode.WRITE_DMA,
    Opcode.READ_VERIFY,
}
"""Commands whose LBA and count registers address sectors."""


class Feature(IntEnum):
    """Subcommands of SET FEATURES, in the feature register."""

    WRITE_CACHE_ON = 0x02
    TRANSFER_MODE = 0x03
    LOOK_AHEAD_OFF = 0x55
    WRITE_CACHE_OFF = 0x82
    LOOK_AHEAD_ON = 0xAA


class SmartFeature(IntEnum):
    """Subcommands of SMART, in the feature register."""

    READ_DATA = 0xD0
    ENABLE = 0xD8
    DISABLE = 0xD9
    RETURN_STATUS = 0xDA


class Status(IntFlag):
    """Bits of the status register, in a response (P33)."""

    BUSY = 0x80
    READY = 0x40
    DEVICE_FAULT = 0x20
    DATA_REQUEST = 0x08
    ERROR = 0x01


STATUS_BAD: Final = (
    Status.BUSY | Status.DEVICE_FAULT | Status.DATA_REQUEST | Status.ERROR
)
"""Mask 0xA9: the command failed if any of these bits is set (P33, K60)."""


class AtaError(IntFlag):
    """Bits of the error register; valid if ``Status.ERROR`` is set (P33)."""

    CRC = 0x80
    UNCORRECTABLE = 0x40
    MEDIA_CHANGED = 0x20
    NOT_FOUND = 0x10
    MEDIA_CHANGE_REQUEST = 0x08
    ABORTED = 0x04
    NO_MEDIA = 0x02
    ADDRESS_MARK = 0x01


_ERROR_TEXT: Final = {
    AtaError.CRC: "interface CRC error",
    AtaError.UNCORRECTABLE: "uncorrectable data",
    AtaError.MEDIA_CHANGED: "media changed",
    AtaError.NOT_FOUND: "sector not found",
    AtaError.MEDIA_CHANGE_REQUEST: "media change requested",
    AtaError.ABORTED: "command aborted",
    AtaError.NO_MEDIA: "no media",
    AtaError.ADDRESS_MARK: "address mark not found",
}


def describe_failure(status: int, error: int) -> str:
    """Format the status and error registers of a failed command.

    >>> describe_failure(0x41, 0x10)
    'sector not found (status 0x41, error 0x10)'
    """
    words = [text for bit, text in _ERROR_TEXT.items() if error & bit]
    if status & Status.DEVICE_FAULT:
        words.insert(0, "device fault")
    if status & Status.BUSY:
        words = ["device busy"]
    what = ", ".join(words) or "unspecified ATA error"
    return f"{what} (status {status:#04x}, error {error:#04x})"


@dataclass(frozen=True, slots=True)
class Registers:
    """The 12 bytes of ATA registers after the AoE header.

    Args:
        aflags: ``AFlag`` bits, including reserved bits.
        feature: feature register in a request, error register in a response.
        count: number of sectors, 0 to 255.
        command: opcode in a request, status in a response.
        lba: the six LBA bytes as a 48-bit number. In 28-bit addressing, bits 28 to 31
            are the high nibble of the device register (P30).
    """

    aflags: int
    feature: int
    count: int
    command: int
    lba: int

    @classmethod
    def unpack_from(cls, buffer: ReadBuffer, offset: int = HEADER_LENGTH) -> Self:
        """Decode the registers. Reserved bytes are ignored (P4).

        Raises:
            DecodeError: the buffer holds fewer than 12 bytes.
        """
        if len(buffer) - offset < ATA_LENGTH:
            raise DecodeError("ATA registers", f"need {ATA_LENGTH} bytes")
        aflags, feature, count, command, low, high, _ = REGISTERS.unpack_from(
            buffer, offset
        )
        return cls(aflags, feature, count, command, high << 32 | low)

    def pack_into(self, buffer: WriteBuffer, offset: int = HEADER_LENGTH) -> int:
        """Encode the registers. Return their length, 12."""
        REGISTERS.pack_into(
            buffer,
            offset,
            self.aflags,
            self.feature,
            self.count,
            self.command,
            self.lba & 0xFFFF_FFFF,
            self.lba >> 32,
            0,
        )
        return ATA_LENGTH
