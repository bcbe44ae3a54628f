"""The protocol state of one client of an NBD server, without I/O.

::

    socket -> buffer(), received() -> next_request() -> the disk
    socket <- output, sent()       <- reply()        <-

Replies may be in any order. Flow control: while a client has too many requests or
unread replies, ``is_full`` is true and nothing more is received from it.
"""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass, field
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.common.nbd import (
    CHUNK,
    CHUNK_DONE,
    CHUNK_MAGIC,
    PAYLOAD,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    NbdChunk,
    NbdCommand,
    NbdCommandFlag,
)
from aoe.errors import (
    AccessError,
    AoEError,
    BusyError,
    DecodeError,
    UnsupportedError,
    UsageError,
)
from initiator.export.nbd.handshake import Handshake, NbdExport, discard

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TypeAlias

    Parser: TypeAlias = Generator[int | bytearray, bytes, None]

REQUESTS_LIMIT: Final = 128
"""Limit of a client's outstanding requests plus unsent replies."""
BYTES_LIMIT: Final = 64 << 20
"""Limit of their data in bytes. The request that crosses it is still accepted."""
_BUFFER_SIZE: Final = 64 << 10
_MESSAGE_LIMIT: Final = 1024
_OFFSET: Final = Struct("!Q")
_ERROR: Final = Struct("!IH")
_WRITES: Final = (NbdCommand.WRITE, NbdCommand.TRIM, NbdCommand.WRITE_ZEROES)
_DATA_COMMANDS: Final = (NbdCommand.READ, NbdCommand.WRITE)
# ints: operators on IntFlag cost more than the rest of a request.
_FUA: Final = int(NbdCommandFlag.FUA)
_FAST_ZERO: Final = int(NbdCommandFlag.FAST_ZERO)
_NO_HOLE: Final = int(NbdCommandFlag.NO_HOLE)
_FLAGS: Final[dict[int, int]] = {
    NbdCommand.READ: _FUA | int(NbdCommandFlag.DONT_FRAGMENT),
    NbdCommand.WRITE: _FUA,
    NbdCommand.FLUSH: _FUA,
    NbdCommand.TRIM: _FUA,
    NbdCommand.WRITE_ZEROES: _FUA | _NO_HOLE | _FAST_ZERO,
}
"""Valid flags of each command. The protocol allows FUA with all of them."""


def nbd_errno(error: AoEError) -> int:
    """Return the NBD error number that matches an error."""
    kinds: tuple[tuple[type[AoEError], int], ...] = (
        (AccessError, errno.EPERM),
        (BusyError, errno.EPERM),
        (UsageError, errno.EINVAL),
        (UnsupportedError, errno.EOPNOTSUPP),
    )
    return next((no for kind, no in kinds if isinstance(error, kind)), errno.EIO)


@dataclass(slots=True, eq=False)
class NbdRequest:
    """A valid request of a client; a WRITE with its data."""

    command: NbdCommand
    cookie: int
    offset: int
    length: int
    flags: int
    data: bytearray = field(default_factory=bytearray, repr=False)

    @property
    def fua(self) -> bool:
        """Return True if data must be durable before the reply (NBD_CMD_FLAG_FUA)."""
        return bool(self.flags & _FUA)

    @property
    def allows_holes(self) -> bool:
        """Return True if zeroes may be deallocated (no NBD_CMD_FLAG_NO_HOLE)."""
        return not self.flags & _NO_HOLE


class NbdSession:
    """The protocol state of a client.

    Args:
        export: the export that is offered.

    Attributes:
        output: data to send, in order.
        outstanding: requests returned by ``next_request`` without a reply yet.
        is_closing: no more requests are received.
        is_shutting_down: new requests are refused with ESHUTDOWN.
    """

    def __init__(self, export: NbdExport) -> None:
        self.output: deque[memoryview] = deque()
        self.outstanding = 0
        self.is_closing = False
        self.is_shutting_down = False
        self._export = export
        self._outstanding_bytes = self._unsent_bytes = 0
        self._buffer = memoryview(bytearray(_BUFFER_SIZE))
        self._start = self._end = 0
        self._parsed: NbdRequest | None = None
        self._handshake = Handshake(export, self._send)
        self._parser = self._parse()
        # What the parser waits for: a number of bytes, or a payload to be filled.
        self._wanted: int | bytearray = next(self._parser)
        self._filled = 0

    # --- receiving ----------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Return True if a limit is reached: receive nothing for now."""
        return (
            self.outstanding + len(self.output) >= REQUESTS_LIMIT
            or self._outstanding_bytes + self._unsent_bytes >= BYTES_LIMIT
        )

    @property
    def is_finished(self) -> bool:
        """Return True if all replies are sent and no more requests come."""
        return self.is_closing and not self.outstanding and not self.output

    def buffer(self) -> memoryview:
        """Return the buffer for the next recv; call ``received`` afterwards.

        A payload is received directly into its final place.
        """
        if isinstance(self._wanted, bytearray) and self._start == self._end:
            return memoryview(self._wanted)[self._filled :]
        if self._start:
            left = self._end - self._start
            self._buffer[:left] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, left
        return self._buffer[self._end :]

    def received(self, count: int) -> None:
        """Record that ``count`` bytes were received into ``buffer``."""
        if isinstance(self._wanted, bytearray) and self._start == self._end:
            self._filled += count
        else:
            self._end += count

    def on_eof(self) -> None:
        """Record that the client sends nothing more."""
        self.is_closing = True

    def next_request(self) -> NbdRequest | None:
        """Return the next complete request; None if there is none or it is full."""
        while self._parsed is None and not self.is_closing and not self.is_full:
            if not self._advance():
                break
        request, self._parsed = self._parsed, None
        return request

    def _advance(self) -> bool:
        # Resumes the parser if the data it waits for is complete.
        if isinstance(self._wanted, bytearray):
            data = self._fill(self._wanted)
        elif self._end - self._start >= self._wanted:
            data = bytes(self._buffer[self._start : self._start + self._wanted])
            self._start += self._wanted
        else:
            data = None
        if data is None:
            return False
        try:
            self._wanted = self._parser.send(data)
        except (StopIteration, DecodeError):
            self.is_closing = True
        self._filled = 0
        return True

    def _fill(self, payload: bytearray) -> bytes | None:
        count = min(len(payload) - self._filled, self._end - self._start)
        piece = self._buffer[self._start : self._start + count]
        payload[self._filled : self._filled + count] = piece
        self._start += count
        self._filled += count
        return b"" if self._filled == len(payload) else None

    def _parse(self) -> Parser:
        has_export = yield from self._handshake.run()
        while has_export:
            magic, flags, command, cookie, offset, length = REQUEST.unpack(
                (yield REQUEST.size)
            )
            if magic != REQUEST_MAGIC:
                raise DecodeError("NBD client", "wrong magic of a request")
            if command == NbdCommand.DISCONNECT:
                return
            data = bytearray()
            if command == NbdCommand.WRITE and length > PAYLOAD:
                yield from discard(length)
            elif command == NbdCommand.WRITE and length:
                data = bytearray(length)
                yield data
            refusal = self._check(command, flags, offset, length)
            if refusal is not None:
                self._reply_error(cookie, *refusal)
                continue
            self._parsed = NbdRequest(
                NbdCommand(command), cookie, offset, length, flags, data
            )
            self.outstanding += 1
            if command in _DATA_COMMANDS:
                self._outstanding_bytes += length

    def _check(
        self, command: int, flags: int, offset: int, length: int
    ) -> tuple[int, str] | None:
        export = self._export
        is_flush = command == NbdCommand.FLUSH
        is_write = command in (NbdCommand.WRITE, NbdCommand.WRITE_ZEROES)
        is_beyond = not is_flush and offset + length > export.size
        cases = (
            (self.is_shutting_down, errno.ESHUTDOWN, "the server is shutting down"),
            (flags & ~_FLAGS.get(command, -1), errno.EINVAL, "unknown flags"),
            (command not in _FLAGS, errno.EINVAL, "unknown command"),
            (
                command == NbdCommand.TRIM and not export.can_trim,
                errno.EINVAL,
                "the disk does not support TRIM",
            ),
            (
                (is_flush or flags & _FUA) and not export.can_flush,
                errno.EINVAL,
                "the disk does not support FLUSH",
            ),
            (export.read_only and command in _WRITES, errno.EPERM, "read-only"),
            (is_beyond, errno.ENOSPC if is_write else errno.EINVAL, "beyond the end"),
            (
                command in _DATA_COMMANDS and length > PAYLOAD,
                errno.EINVAL,
                "request too large",
            ),
            (
                flags & _FAST_ZERO
                and (flags & _NO_HOLE or not export.discard_zeroes_data),
                errno.EOPNOTSUPP,
                "zeroing is not faster than writing",
            ),
        )
        return next(((number, why) for case, number, why in cases if case), None)

    # --- sending ------------------------------------------------------------------

    def reply(
        self,
        request: NbdRequest,
        error: AoEError | None,
        data: bytearray | None = None,
    ) -> None:
        """Queue the reply to a request; call it once for each request.

        Args:
            request: a request that ``next_request`` has returned.
            error: why it failed, or None.
            data: the data of a successful READ.
        """
        self.outstanding -= 1
        if request.command in _DATA_COMMANDS:
            self._outstanding_bytes -= request.length
        if error is not None:
            self._reply_error(request.cookie, nbd_errno(error), str(error))
        elif data is None or not self._handshake.structured:
            self._send(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie))
        else:
            kind = NbdChunk.DATA if data else NbdChunk.NONE
            offset = _OFFSET.pack(request.offset) if data else b""
            self._send_chunk(kind, request.cookie, offset, len(data))
        if error is None and data:
            self._send(data)

    def _reply_error(self, cookie: int, number: int, why: str) -> None:
        if not self._handshake.structured:
            self._send(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, number, cookie))
            return
        message = why.encode()[:_MESSAGE_LIMIT]
        payload = _ERROR.pack(number, len(message)) + message
        self._send_chunk(NbdChunk.ERROR, cookie, payload)

    def _send_chunk(self, kind: int, cookie: int, data: bytes, more: int = 0) -> None:
        length = len(data) + more
        self._send(CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, kind, cookie, length) + data)

    def _send(self, data: bytes | bytearray) -> None:
        self.output.append(memoryview(data))
        self._unsent_bytes += len(data)

    def sent(self, count: int) -> None:
        """Remove ``count`` bytes, which were sent, from the start of ``output``."""
        self._unsent_bytes -= count
        while count:
            first = self.output[0]
            if count < len(first):
                self.output[0] = first[count:]
                return
            count -= len(first)
            self.output.popleft()
