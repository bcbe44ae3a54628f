"""AoE command 3: reserve/release, an advisory lock held by a list of MAC addresses.

::

    24     25     26
    +------+------+---------------- - -
    |rcmd  |nmacs |n times: mac (6)
    +------+------+---------------- - -
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

RESERVE_LENGTH: Final = 1 + 1
RESERVE: Final = Struct("!BB")
"""rcmd, number of MAC addresses."""


class ReserveCommand(IntEnum):
    """RCmd, byte 24."""

    READ = 0
    SET = 1
    FORCE = 2


@dataclass(frozen=True, slots=True)
class Reserve:
    """A reserve/release message, without the AoE header.

    Args:
        rcmd: a ``ReserveCommand``, or any other byte.
        macs: the complete addresses in the frame, in order; none releases (P72).
        declared: the count field, if it differs from ``len(macs)``.
    """

    rcmd: int = ReserveCommand.READ
    macs: tuple[bytes, ...] = ()
    declared: int | None = None

    @classmethod
    def unpack_from(cls, buffer: ReadBuffer, offset: int = HEADER_LENGTH) -> Self:
        """Decode the message. Bytes after the last address are padding (P79).

        Raises:
            DecodeError: the buffer holds fewer than 2 bytes.
        """
        available = len(buffer) - offset - RESERVE_LENGTH
        if available < 0:
            raise DecodeError("reserve/release", f"needs {RESERVE_LENGTH} bytes")
        rcmd, count = RESERVE.unpack_from(buffer, offset)
        complete = min(count, available // 6)
        start = offset + RESERVE_LENGTH
        macs = tuple(
            bytes(buffer[start + 6 * i : start + 6 * i + 6]) for i in range(complete)
        )
        return cls(rcmd, macs, None if complete == count else count)

    def pack_into(self, buffer: WriteBuffer, offset: int = HEADER_LENGTH) -> int:
        """Encode the message. Return its length, 2 plus 6 per address."""
        count = len(self.macs) if self.declared is None else self.declared
        RESERVE.pack_into(buffer, offset, self.rcmd, count)
        start = offset + RESERVE_LENGTH
        joined = b"".join(self.macs)
        buffer[start : start + len(joined)] = joined
        return RESERVE_LENGTH + len(joined)
