"""How an NBD server haggles: greeting and options, without a socket.

A generator that is sent what it yields the number of bytes of, and that hands out its
answers through a function. See ``aoe.common.nbd`` for the layouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aoe.common.nbd import (
    FIXED_NEWSTYLE,
    GREETING,
    HAVE_OPTION,
    INFO_BLOCKS,
    INFO_EXPORT,
    INIT,
    NO_ZEROES,
    OPTION,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    PAYLOAD,
    NbdFlag,
    NbdInfo,
    NbdOption,
    NbdOptionReply,
)
from aoe.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_OPTION_LIMIT: Final = 16 << 10
_SKIPPED_AT_ONCE: Final = 32 << 10
_BLOCKS: Final = INFO_BLOCKS.pack(NbdInfo.BLOCK_SIZE, 1, 4096, PAYLOAD)
"""Any byte will do, but 4096 are better; what is smaller than a sector is patched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdExport:
    """The one disk that is served.

    Args:
        name: of the export; the empty name means it too.
        size: bytes.
        read_only: writes are refused.
        can_flush: there are FLUSH and FUA.
        can_trim: there is TRIM.
        trims_to_zeroes: what was trimmed reads as zeroes, every time.
    """

    name: str
    size: int
    read_only: bool = False
    can_flush: bool = True
    can_trim: bool = False
    discard_zeroes_data: bool = False

    def flags(self, *, structured: bool) -> NbdFlag:
        """Return what clients are told that they may do.

        A flush covers the writes of all connections, since one driver does them all.
        """
        flags = NbdFlag.HAS_FLAGS | NbdFlag.MULTI_CONN
        if structured:
            flags |= NbdFlag.DONT_FRAGMENT
        if self.can_flush:
            flags |= NbdFlag.FLUSH
        if self.read_only:
            return flags | NbdFlag.READ_ONLY
        flags |= NbdFlag.WRITE_ZEROES | NbdFlag.FAST_ZERO
        if self.can_flush:
            flags |= NbdFlag.FUA
        if self.can_trim:
            flags |= NbdFlag.TRIM
        return flags


def skip(length: int) -> Generator[int, bytes, None]:
    """Take so many bytes and forget them."""
    while length:
        piece = min(length, _SKIPPED_AT_ONCE)
        yield piece
        length -= piece


class Handshake:
    """What is said before the first request.

    Args:
        export: the one that is offered.
        say: takes what goes to the client.

    Attributes:
        structured: the client wants structured replies.
    """

    def __init__(self, export: NbdExport, say: Callable[[bytes], None]) -> None:
        self.structured = False
        self._export = export
        self._say = say

    def run(self) -> Generator[int, bytes, bool]:
        """Haggle.

        Returns:
            Whether requests follow; otherwise the client has taken its leave.

        Raises:
            DecodeError: this is no client, or one that cannot be told so.
        """
        greeting = FIXED_NEWSTYLE | NO_ZEROES
        self._say(GREETING.pack(INIT, HAVE_OPTION, greeting))
        flags = int.from_bytes((yield 4), "big")
        if flags & ~greeting:
            raise DecodeError("NBD client", "wants what it was not offered")
        while True:
            magic, option, length = OPTION.unpack((yield OPTION.size))
            if magic != HAVE_OPTION:
                raise DecodeError("NBD client", "an option that is none")
            if option == NbdOption.EXPORT_NAME:
                self._old_style((yield from _name(length)), flags)
                return True
            if length > _OPTION_LIMIT:
                yield from skip(length)
                self._answer(option, NbdOptionReply.TOO_BIG, b"too long")
                continue
            data = (yield length) if length else b""
            if option == NbdOption.ABORT:
                self._answer(option, NbdOptionReply.ACK)
                return False
            if self._negotiate(option, data):
                return True

    def _answer(self, option: int, kind: int, data: bytes = b"") -> None:
        head = OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data))
        self._say(head + data)

    def _old_style(self, name: bytes, flags: int) -> None:
        # The only refusal that this option knows is to hang up.
        if not self._is_ours(name):
            raise DecodeError("NBD client", "asks for an export that there is not")
        told = self._export.flags(structured=self.structured)
        told_of_export = INFO_EXPORT.pack(0, self._export.size, told)
        self._say(told_of_export[2:] + bytes(0 if flags & NO_ZEROES else 124))

    def _is_ours(self, name: bytes) -> bool:
        return name in (b"", self._export.name.encode())

    def _negotiate(self, option: int, data: bytes) -> bool:
        # Tells whether requests follow.
        if option in (NbdOption.INFO, NbdOption.GO):
            return self._tell(option, data) and option == NbdOption.GO
        if option not in (NbdOption.LIST, NbdOption.STRUCTURED_REPLY):
            self._answer(option, NbdOptionReply.UNSUPPORTED, b"not known here")
        elif data:
            self._answer(option, NbdOptionReply.INVALID, b"carries no data")
        else:
            if option == NbdOption.LIST:
                name = self._export.name.encode()
                entry = len(name).to_bytes(4, "big") + name
                self._answer(option, NbdOptionReply.SERVER, entry)
            else:
                self.structured = True
            self._answer(option, NbdOptionReply.ACK)
        return False

    def _tell(self, option: int, data: bytes) -> bool:
        end = 4 + int.from_bytes(data[:4], "big")
        count = int.from_bytes(data[end : end + 2], "big")
        if len(data) != end + 2 + 2 * count:
            self._answer(option, NbdOptionReply.INVALID, b"lengths do not fit")
            return False
        if not self._is_ours(data[4:end]):
            self._answer(option, NbdOptionReply.UNKNOWN, b"no such export")
            return False
        flags = self._export.flags(structured=self.structured)
        size = INFO_EXPORT.pack(NbdInfo.EXPORT, self._export.size, flags)
        self._answer(option, NbdOptionReply.INFO, size)
        for wish in _wishes(data[end + 2 :]):
            self._answer(option, NbdOptionReply.INFO, self._information(wish))
        self._answer(option, NbdOptionReply.ACK)
        return True

    def _information(self, wish: NbdInfo) -> bytes:
        if wish == NbdInfo.BLOCK_SIZE:
            return _BLOCKS
        words = "AoE disk " if wish == NbdInfo.DESCRIPTION else ""
        return wish.to_bytes(2, "big") + f"{words}{self._export.name}".encode()


def _wishes(data: bytes) -> list[NbdInfo]:
    # Once each; what is unknown is left out, and the size is told in any case.
    numbers = {
        int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)
    }
    return [info for info in NbdInfo if info in numbers and info != NbdInfo.EXPORT]


def _name(length: int) -> Generator[int, bytes, bytes]:
    if length > _OPTION_LIMIT:
        raise DecodeError("NBD client", "asks for an export with an endless name")
    return (yield length) if length else b""
