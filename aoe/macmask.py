"""AoE command 2: the MAC mask list, the clients that a target serves.

::

    24      25     26      27     28
    +-------+------+-------+------+-------------------------------- - -
    |0      |mcmd  |merror |dir   |n times: 0 (1), dcmd (1), mac (6)
    |       |      |       |count |
    +-------+------+-------+------+-------------------------------- - -
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from aoe.errors import DecodeError
from aoe.header import HEADER_LENGTH

if TYPE_CHECKING:
    from aoe.buffers import ReadBuffer, WriteBuffer

MASK_LENGTH: Final = 1 + 1 + 1 + 1
DIRECTIVE_LENGTH: Final = 1 + 1 + 6
MASK: Final = Struct("!xBBB")
"""reserved byte, mcmd, merror, directive count."""
DIRECTIVE: Final = Struct("!xB6s")
"""reserved byte, dcmd, mac."""


class MaskCommand(IntEnum):
    """MCmd, byte 25."""

    READ = 0
    EDIT = 1


class MaskError(IntEnum):
    """MError, byte 26 of a response (P64)."""

    NONE = 0
    UNSPECIFIED = 1
    BAD_DIRECTIVE = 2
    FULL = 3


class DirectiveCommand(IntEnum):
    """DCmd: the operation of a directive on its MAC address."""

    NONE = 0
    ADD = 1
    DELETE = 2


class Directive(NamedTuple):
    """An entry of the list: a ``DirectiveCommand`` and a MAC address."""

    command: int
    mac: bytes


@dataclass(frozen=True, slots=True)
class MaskList:
    """A MAC mask list message, without the AoE header.

    Args:
        mcmd: a ``MaskCommand``, or any other byte.
        directives: the complete directives in the frame.
        merror: a ``MaskError``; 0 in requests.
        declared: the count field, if it differs from ``len(directives)``. In an error
            response it is the index of the directive that failed (P64).
    """

    mcmd: int = MaskCommand.READ
    directives: tuple[Directive, ...] = ()
    merror: int = MaskError.NONE
    declared: int | None = None

    @classmethod
    def unpack_from(cls, buffer: ReadBuffer, offset: int = HEADER_LENGTH) -> Self:
        """Decode the message. Bytes after the last directive are padding (P20).

        Raises:
            DecodeError: the buffer holds fewer than 4 bytes.
        """
        available = len(buffer) - offset - MASK_LENGTH
        if available < 0:
            raise DecodeError("MAC mask list", f"needs {MASK_LENGTH} bytes")
        mcmd, merror, count = MASK.unpack_from(buffer, offset)
        complete = min(count, available // DIRECTIVE_LENGTH)
        start = offset + MASK_LENGTH
        directives = tuple(
            Directive(*DIRECTIVE.unpack_from(buffer, start + DIRECTIVE_LENGTH * i))
            for i in range(complete)
        )
        return cls(mcmd, directives, merror, None if complete == count else count)

    def pack_into(self, buffer: WriteBuffer, offset: int = HEADER_LENGTH) -> int:
        """Encode the message. Return its length, 4 plus 8 per directive."""
        count = len(self.directives) if self.declared is None else self.declared
        MASK.pack_into(buffer, offset, self.mcmd, self.merror, count)
        position = offset + MASK_LENGTH
        for directive in self.directives:
            DIRECTIVE.pack_into(buffer, position, *directive)
            position += DIRECTIVE_LENGTH
        return position - offset
