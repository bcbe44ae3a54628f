"""One client of an NBD server, without its socket.

::

    socket -> buffer(), received() -> next_request() -> the disk
    socket <- output, sent()       <- answer()       <-

Requests are answered in any order. A client that asks for more than it takes in is not
listened to for a while: what it may have outstanding is bounded.
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
from initiator.export.nbd.handshake import Handshake, NbdExport, skip

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TypeAlias

    Parser: TypeAlias = Generator[int | bytearray, bytes, None]

REQUESTS_LIMIT: Final = 128
"""Requests that a client may have outstanding, answers that it has not taken
included."""
BYTES_LIMIT: Final = 64 << 20
"""Bytes of data in them, one request more or less."""
_MEMORY: Final = 64 << 10
_TEXT_LIMIT: Final = 1024
_PLACE: Final = Struct("!Q")
_FAILURE: Final = Struct("!IH")
_WRITES: Final = (NbdCommand.WRITE, NbdCommand.TRIM, NbdCommand.WRITE_ZEROES)
_CARRIES_DATA: Final = (NbdCommand.READ, NbdCommand.WRITE)
# Plain numbers: with enums, these bits would cost more than the rest of a request.
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
"""What each command may have; FUA is allowed where it means nothing."""


def error_number(error: AoEError) -> int:
    """Choose from the errors that NBD knows."""
    kinds: tuple[tuple[type[AoEError], int], ...] = (
        (AccessError, errno.EPERM),
        (BusyError, errno.EPERM),
        (UsageError, errno.EINVAL),
        (UnsupportedError, errno.EOPNOTSUPP),
    )
    return next((no for kind, no in kinds if isinstance(error, kind)), errno.EIO)


@dataclass(slots=True, eq=False)
class NbdRequest:
    """What a client wants, found to be possible; of a WRITE, with its data."""

    command: NbdCommand
    cookie: int
    offset: int
    length: int
    flags: int
    data: bytearray = field(default_factory=bytearray, repr=False)

    @property
    def fua(self) -> bool:
        """It shall be stable when it is answered."""
        return bool(self.flags & _FUA)

    @property
    def allows_holes(self) -> bool:
        """Where zeroes are wanted, nothing need be allocated for them."""
        return not self.flags & _NO_HOLE


class NbdSession:
    """A client's requests in, answers out.

    Args:
        export: what it may ask for.

    Attributes:
        output: what is to be sent, in order.
        outstanding: requests that were handed out and are not answered.
        is_ending: no requests come any more.
        refuses: new requests are told that the server is going down.
    """

    def __init__(self, export: NbdExport) -> None:
        self.output: deque[memoryview] = deque()
        self.outstanding = 0
        self.is_ending = False
        self.refuses = False
        self._export = export
        self._load = self._unsent = 0
        self._memory = memoryview(bytearray(_MEMORY))
        self._start = self._end = 0
        self._ready: NbdRequest | None = None
        self._handshake = Handshake(export, self._say)
        self._parser = self._parse()
        self._want: int | bytearray = next(self._parser)
        self._filled = 0

    # --- in ---------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """The client has to wait: nothing is to be received now."""
        return (
            self.outstanding + len(self.output) >= REQUESTS_LIMIT
            or self._load + self._unsent >= BYTES_LIMIT
        )

    @property
    def is_over(self) -> bool:
        """Nothing is left to be said: the connection may be closed."""
        return self.is_ending and not self.outstanding and not self.output

    def buffer(self) -> memoryview:
        """Return where the next bytes are to be received; call ``received`` then."""
        if isinstance(self._want, bytearray) and self._start == self._end:
            return memoryview(self._want)[self._filled :]
        if self._start:
            left = self._end - self._start
            self._memory[:left] = bytes(self._memory[self._start : self._end])
            self._start, self._end = 0, left
        return self._memory[self._end :]

    def received(self, count: int) -> None:
        """Take note of so many bytes in ``buffer``."""
        if isinstance(self._want, bytearray) and self._start == self._end:
            self._filled += count
        else:
            self._end += count

    def hang_up(self) -> None:
        """Expect nothing more from the client."""
        self.is_ending = True

    def next_request(self) -> NbdRequest | None:
        """Return a request that has come in full, if there may be one more."""
        while self._ready is None and not self.is_ending and not self.is_full:
            if not self._advance():
                break
        request, self._ready = self._ready, None
        return request

    def _advance(self) -> bool:
        # Gives the parser what it wants, if that is there.
        if isinstance(self._want, bytearray):
            given = self._fill(self._want)
        elif self._end - self._start >= self._want:
            given = bytes(self._memory[self._start : self._start + self._want])
            self._start += self._want
        else:
            given = None
        if given is None:
            return False
        try:
            self._want = self._parser.send(given)
        except (StopIteration, DecodeError):
            self.is_ending = True
        self._filled = 0
        return True

    def _fill(self, payload: bytearray) -> bytes | None:
        count = min(len(payload) - self._filled, self._end - self._start)
        piece = self._memory[self._start : self._start + count]
        payload[self._filled : self._filled + count] = piece
        self._start += count
        self._filled += count
        return b"" if self._filled == len(payload) else None

    def _parse(self) -> Parser:
        goes_on = yield from self._handshake.run()
        while goes_on:
            magic, flags, command, cookie, offset, length = REQUEST.unpack(
                (yield REQUEST.size)
            )
            if magic != REQUEST_MAGIC:
                raise DecodeError("NBD client", "a request that is none")
            if command == NbdCommand.DISCONNECT:
                return
            data = bytearray()
            if command == NbdCommand.WRITE and length > PAYLOAD:
                yield from skip(length)
            elif command == NbdCommand.WRITE and length:
                data = bytearray(length)
                yield data
            refusal = self._refusal(command, flags, offset, length)
            if refusal is not None:
                self._refuse(cookie, *refusal)
                continue
            self._ready = NbdRequest(
                NbdCommand(command), cookie, offset, length, flags, data
            )
            self.outstanding += 1
            if command in _CARRIES_DATA:
                self._load += length

    def _refusal(
        self, command: int, flags: int, offset: int, length: int
    ) -> tuple[int, str] | None:
        export = self._export
        flushes = command == NbdCommand.FLUSH
        grows = command in (NbdCommand.WRITE, NbdCommand.WRITE_ZEROES)
        too_far = not flushes and offset + length > export.size
        cases = (
            (self.refuses, errno.ESHUTDOWN, "the server is going down"),
            (flags & ~_FLAGS.get(command, -1), errno.EINVAL, "unknown flags"),
            (command not in _FLAGS, errno.EINVAL, "unknown command"),
            (
                command == NbdCommand.TRIM and not export.can_trim,
                errno.EINVAL,
                "the disk has no TRIM",
            ),
            (
                (flushes or flags & _FUA) and not export.can_flush,
                errno.EINVAL,
                "the disk has no FLUSH",
            ),
            (export.read_only and command in _WRITES, errno.EPERM, "read-only"),
            (too_far, errno.ENOSPC if grows else errno.EINVAL, "beyond the end"),
            (
                command in _CARRIES_DATA and length > PAYLOAD,
                errno.EINVAL,
                "too much at once",
            ),
            (
                flags & _FAST_ZERO
                and (flags & _NO_HOLE or not export.discard_zeroes_data),
                errno.EOPNOTSUPP,
                "zeroes take as long as data",
            ),
        )
        return next(((number, why) for case, number, why in cases if case), None)

    # --- out --------------------------------------------------------------------

    def answer(
        self,
        request: NbdRequest,
        error: AoEError | None,
        data: bytearray | None = None,
    ) -> None:
        """Answer a request that was handed out, once.

        Args:
            request: the one.
            error: why it failed.
            data: what was read, for a READ that succeeded.
        """
        self.outstanding -= 1
        if request.command in _CARRIES_DATA:
            self._load -= request.length
        if error is not None:
            self._refuse(request.cookie, error_number(error), str(error))
        elif data is None or not self._handshake.structured:
            self._say(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, request.cookie))
        else:
            kind = NbdChunk.DATA if data else NbdChunk.NONE
            place = _PLACE.pack(request.offset) if data else b""
            self._chunk(kind, request.cookie, place, len(data))
        if error is None and data:
            self._say(data)

    def _refuse(self, cookie: int, number: int, why: str) -> None:
        if not self._handshake.structured:
            self._say(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, number, cookie))
            return
        text = why.encode()[:_TEXT_LIMIT]
        self._chunk(NbdChunk.ERROR, cookie, _FAILURE.pack(number, len(text)) + text)

    def _chunk(self, kind: int, cookie: int, data: bytes, more: int = 0) -> None:
        length = len(data) + more
        self._say(CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, kind, cookie, length) + data)

    def _say(self, data: bytes | bytearray) -> None:
        self.output.append(memoryview(data))
        self._unsent += len(data)

    def sent(self, count: int) -> None:
        """Forget so many bytes at the beginning of ``output``: they are sent."""
        self._unsent -= count
        while count:
            first = self.output[0]
            if count < len(first):
                self.output[0] = first[count:]
                return
            count -= len(first)
            self.output.popleft()
