"""Reads and writes at any byte of a disk, made of bios of whole sectors.

A read goes into scratch memory where its first and last sector are not wanted. A write
first reads the sectors that it changes only a part of; until it is done, no other of
the same ``Bytewise`` writes to any of its sectors, lest one undo what the other did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.ata import SECTOR
from aoe.errors import UsageError
from initiator.bio import Bio, Op, UserPages
from initiator.order import WriteOrder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aoe.buffers import WriteBuffer

_NEVER: Final = 0.0
"""Nothing here depends on the time."""


class _Span:
    """Bytes of a disk, and the whole sectors that they lie in.

    Attributes:
        head, tail: bytes of the first sector before them, and of the last behind them.
    """

    def __init__(self, offset: int, length: int) -> None:
        self.offset = offset
        self.length = length
        self.sector = offset // SECTOR
        self.head = offset % SECTOR
        self.tail = -(offset + length) % SECTOR
        self.count = (self.head + length + self.tail) // SECTOR


class Bytewise:
    """Starts operations at any byte; each ends by a call with its bio.

    Args:
        what: whose disk it is, for messages.
        size: tells the disk's size, in bytes.
        submit: takes a bio of whole sectors.
    """

    def __init__(
        self, what: str, size: Callable[[], int], submit: Callable[[Bio], None]
    ) -> None:
        self._what = what
        self._size = size
        self._submit = submit
        self._order = WriteOrder()
        self._starts: dict[Bio, Callable[[], None]] = {}

    def read(
        self, offset: int, buffers: Sequence[WriteBuffer], end_io: Callable[[Bio], None]
    ) -> None:
        """Fill buffers, one behind the other.

        Raises:
            UsageError: the bytes are not on the disk.
        """
        span = self._span(offset, buffers)
        bio = Bio(Op.READ, span.sector, end_io)
        if not span.length:
            end_io(bio)
            return
        _add(bio, bytearray(span.head))
        for buffer in buffers:
            _add(bio, buffer)
        _add(bio, bytearray(span.tail))
        self._submit(bio)

    def write(
        self,
        offset: int,
        pieces: Sequence[WriteBuffer | bytes],
        end_io: Callable[[Bio], None],
        *,
        fua: bool = False,
    ) -> None:
        """Write pieces, one behind the other; with ``fua``, to stable storage.

        Raises:
            UsageError: the bytes are not on the disk.
        """
        span = self._span(offset, pieces)

        def ended(bio: Bio) -> None:
            self._order.release(bio, _NEVER)
            for ready in self._order.ready(_NEVER):
                self._starts.pop(ready)()
            end_io(bio)

        bio = Bio(Op.WRITE, span.sector, ended, fua=fua)
        if not span.length:
            end_io(bio)
            return
        edges = bytearray(2 * SECTOR)
        _add(bio, memoryview(edges)[: span.head])
        for piece in pieces:
            _add(bio, piece)
        _add(bio, memoryview(edges)[len(edges) - span.tail :])
        self._starts[bio] = lambda: self._fill(bio, span, edges)
        if self._order.admit(bio, _NEVER):
            self._starts.pop(bio)()

    def _fill(self, bio: Bio, span: _Span, edges: bytearray) -> None:
        """Read what the first and last sector keep, then write all of it."""
        first, last = memoryview(edges)[:SECTOR], memoryview(edges)[SECTOR:]
        wanted = []
        if span.head:
            wanted.append((span.sector, first))
        if span.tail:
            # One sector may have to keep bytes at both ends.
            wanted.append((span.sector + span.count - 1, last))
        missing = len(wanted)

        def ended(read: Bio) -> None:
            nonlocal missing
            missing -= 1
            bio.error = bio.error or read.error
            if missing:
                return
            if bio.error is None:
                self._submit(bio)
            else:
                bio.end_io(bio)

        if not wanted:
            self._submit(bio)
        for sector, memory in wanted:
            edge = Bio(Op.READ, sector, ended)
            _add(edge, memory)
            self._submit(edge)

    def _span(self, offset: int, pieces: Sequence[WriteBuffer | bytes]) -> _Span:
        length = sum(memoryview(piece).nbytes for piece in pieces)
        size = self._size()
        if offset < 0 or offset + length > size:
            why = f"{length} bytes at {offset} reach beyond the disk's {size} bytes"
            raise UsageError(self._what, why)
        return _Span(offset, length)


def _add(bio: Bio, memory: WriteBuffer | bytes) -> None:
    pages = UserPages(memory)
    if len(pages.data):
        bio.add_page(pages, len(pages.data))
