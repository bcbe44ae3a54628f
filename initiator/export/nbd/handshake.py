"""The handshake phase of an NBD server: greeting and option haggling, without I/O.

The handshake is a generator: it yields how many bytes it needs next and is sent those
bytes. Replies go through a callback. See ``aoe.common.nbd`` for the layouts.
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
_DISCARD_SIZE: Final = 32 << 10
_BLOCK_SIZES: Final = INFO_BLOCKS.pack(NbdInfo.BLOCK_SIZE, 1, 4096, PAYLOAD)
"""Minimum 1: smaller than a sector, requests take a read-modify-write. 4096 preferred,
as the block size of file systems."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdExport:
    """The export that a server offers.

    Args:
        name: its name; the empty name is an alias.
        size: bytes.
        read_only: refuse writes.
        can_flush: the disk supports FLUSH, and so FUA.
        can_trim: the disk supports TRIM.
        trims_to_zeroes: trimmed sectors always read as zeroes.
    """

    name: str
    size: int
    read_only: bool = False
    can_flush: bool = True
    can_trim: bool = False
    discard_zeroes_data: bool = False

    def flags(self, *, structured: bool) -> NbdFlag:
        """Return the transmission flags.

        MULTI_CONN: a flush covers the writes of all connections, because they share
        one driver.
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


def discard(length: int) -> Generator[int, bytes, None]:
    """Receive ``length`` bytes and discard them, in pieces that fit the buffer."""
    while length:
        piece = min(length, _DISCARD_SIZE)
        yield piece
        length -= piece


class Handshake:
    """The handshake with one client.

    Args:
        export: the export that is offered.
        send: called with each message to the client.

    Attributes:
        structured: the client has negotiated structured replies.
    """

    def __init__(self, export: NbdExport, send: Callable[[bytes], None]) -> None:
        self.structured = False
        self._export = export
        self._send = send

    def run(self) -> Generator[int, bytes, bool]:
        """Negotiate options until the client selects the export or aborts.

        Returns:
            True if the transmission phase follows, False after NBD_OPT_ABORT.

        Raises:
            DecodeError: the client violates the protocol, or the option has no error
                reply; the connection must be closed.
        """
        greeting = FIXED_NEWSTYLE | NO_ZEROES
        self._send(GREETING.pack(INIT, HAVE_OPTION, greeting))
        flags = int.from_bytes((yield 4), "big")
        if flags & ~greeting:
            raise DecodeError("NBD client", f"unknown client flags {flags:#x}")
        while True:
            magic, option, length = OPTION.unpack((yield OPTION.size))
            if magic != HAVE_OPTION:
                raise DecodeError("NBD client", "wrong magic of an option")
            if option == NbdOption.EXPORT_NAME:
                self._reply_export_name((yield from _receive_name(length)), flags)
                return True
            if length > _OPTION_LIMIT:
                yield from discard(length)
                self._reply(option, NbdOptionReply.TOO_BIG, b"option too long")
                continue
            data = (yield length) if length else b""
            if option == NbdOption.ABORT:
                self._reply(option, NbdOptionReply.ACK)
                return False
            if self._negotiate(option, data):
                return True

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        head = OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data))
        self._send(head + data)

    def _reply_export_name(self, name: bytes, flags: int) -> None:
        # NBD_OPT_EXPORT_NAME has no error reply: the server closes the connection.
        if not self._is_known(name):
            raise DecodeError("NBD client", "unknown export name")
        export_flags = self._export.flags(structured=self.structured)
        info = INFO_EXPORT.pack(0, self._export.size, export_flags)
        self._send(info[2:] + bytes(0 if flags & NO_ZEROES else 124))

    def _is_known(self, name: bytes) -> bool:
        return name in (b"", self._export.name.encode())

    def _negotiate(self, option: int, data: bytes) -> bool:
        # Returns True if the transmission phase follows.
        if option in (NbdOption.INFO, NbdOption.GO):
            return self._reply_info(option, data) and option == NbdOption.GO
        if option not in (NbdOption.LIST, NbdOption.STRUCTURED_REPLY):
            self._reply(option, NbdOptionReply.UNSUPPORTED, b"unsupported option")
        elif data:
            self._reply(option, NbdOptionReply.INVALID, b"unexpected data")
        else:
            if option == NbdOption.LIST:
                name = self._export.name.encode()
                entry = len(name).to_bytes(4, "big") + name
                self._reply(option, NbdOptionReply.SERVER, entry)
            else:
                self.structured = True
            self._reply(option, NbdOptionReply.ACK)
        return False

    def _reply_info(self, option: int, data: bytes) -> bool:
        end = 4 + int.from_bytes(data[:4], "big")
        count = int.from_bytes(data[end : end + 2], "big")
        if len(data) != end + 2 + 2 * count:
            self._reply(option, NbdOptionReply.INVALID, b"inconsistent lengths")
            return False
        if not self._is_known(data[4:end]):
            self._reply(option, NbdOptionReply.UNKNOWN, b"unknown export")
            return False
        flags = self._export.flags(structured=self.structured)
        size = INFO_EXPORT.pack(NbdInfo.EXPORT, self._export.size, flags)
        self._reply(option, NbdOptionReply.INFO, size)
        for info in _requested_info(data[end + 2 :]):
            self._reply(option, NbdOptionReply.INFO, self._info_payload(info))
        self._reply(option, NbdOptionReply.ACK)
        return True

    def _info_payload(self, info: NbdInfo) -> bytes:
        if info == NbdInfo.BLOCK_SIZE:
            return _BLOCK_SIZES
        prefix = "AoE disk " if info == NbdInfo.DESCRIPTION else ""
        return info.to_bytes(2, "big") + f"{prefix}{self._export.name}".encode()


def _requested_info(data: bytes) -> list[NbdInfo]:
    # Each known type once. NBD_INFO_EXPORT is sent in any case.
    numbers = {
        int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)
    }
    return [info for info in NbdInfo if info in numbers and info != NbdInfo.EXPORT]


def _receive_name(length: int) -> Generator[int, bytes, bytes]:
    if length > _OPTION_LIMIT:
        raise DecodeError("NBD client", "export name too long")
    return (yield length) if length else b""
