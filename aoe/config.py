"""AoE command 1: query config and the config string.

::

    24      26      28     29       30      32
    +-------+-------+------+--------+-------+---------- - -
    |buffer |firm-  |sector|ver|ccmd|string |config string
    |count  |ware   |count |        |length |0 to 1024 bytes
    +-------+-------+------+--------+-------+---------- - -
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Final, Self

from aoe.errors import DecodeError
from aoe.header import HEADER_LENGTH

if TYPE_CHECKING:
    from aoe.buffers import ReadBuffer, WriteBuffer

CONFIG_LENGTH: Final = 2 + 2 + 1 + 1 + 2
CONFIG_STRING: Final = HEADER_LENGTH + CONFIG_LENGTH
"""Offset of the config string in the frame: 32."""
STRING_LIMIT: Final = 1024
CONFIG: Final = Struct("!HHBBH")
"""buffer count, firmware, sector count, version << 4 | ccmd, string length."""


class ConfigCommand(IntEnum):
    """CCmd, the low nibble of byte 29."""

    READ = 0
    TEST = 1
    PREFIX = 2
    SET = 3
    FORCE = 4


@dataclass(frozen=True, slots=True)
class Config:
    """A query config message, without the AoE header.

    Args:
        ccmd: a ``ConfigCommand``, or any other nibble.
        string: the config string, truncated if the frame is shorter than declared.
        buffer_count: number of requests that the target can queue; 0 in requests (P49).
        firmware: firmware version of the target.
        sector_count: sectors per ATA command; 0 stands for 2 (P23).
        version: the highest protocol version that the target supports.
        declared: the length field, if it differs from ``len(string)``.
    """

    ccmd: int = ConfigCommand.READ
    string: bytes = b""
    buffer_count: int = 0
    firmware: int = 0
    sector_count: int = 0
    version: int = 0
    declared: int | None = None

    @property
    def is_valid(self) -> bool:
        """Whether the string is complete and at most 1024 bytes long (P56)."""
        return self.declared is None and len(self.string) <= STRING_LIMIT

    @property
    def text(self) -> str:
        """The string as text, with non-printable characters escaped."""
        text = self.string.decode("utf-8", "backslashreplace")
        return "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode("ascii")
            for c in text
        )

    @classmethod
    def unpack_from(cls, buffer: ReadBuffer, offset: int = HEADER_LENGTH) -> Self:
        """Decode the message. Bytes after the declared string are padding (P20).

        Raises:
            DecodeError: the buffer holds fewer than 8 bytes.
        """
        if len(buffer) - offset < CONFIG_LENGTH:
            raise DecodeError("query config", f"needs {CONFIG_LENGTH} bytes")
        buffers, firmware, sectors, vercmd, length = CONFIG.unpack_from(buffer, offset)
        start = offset + CONFIG_LENGTH
        string = bytes(buffer[start : start + length])
        declared = None if len(string) == length else length
        return cls(
            vercmd & 0x0F, string, buffers, firmware, sectors, vercmd >> 4, declared
        )

    def pack_into(self, buffer: WriteBuffer, offset: int = HEADER_LENGTH) -> int:
        """Encode the message. Return its length, 8 plus that of the string."""
        length = len(self.string)
        CONFIG.pack_into(
            buffer,
            offset,
            self.buffer_count,
            self.firmware,
            self.sector_count,
            self.version << 4 | self.ccmd,
            length if self.declared is None else self.declared,
        )
        start = offset + CONFIG_LENGTH
        buffer[start : start + length] = self.string
        return CONFIG_LENGTH + length
