"""Block I/O requests: bio and bio_vec (block/bio.c, include/linux/bio.h).

A bio refers to memory by page, offset and length. The submitter keeps the memory
allocated until ``bi_end_io`` has run; the bio itself holds no page references (K70).

The kernel's request layer (merging, plugging, blk-mq) is not modelled: one bio is one
request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from aoe.ata import SECTOR
from aoe.errors import AoEError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.buffers import WriteBuffer


class Page(Protocol):
    """Memory that a bio_vec can refer to (``struct page *``)."""

    @property
    def data(self) -> memoryview:
        """The page's contents."""


class UserPages:
    """A buffer of the caller, used like pinned pages.

    It may have any length, and has no reference count.
    """

    __slots__ = ("data",)

    def __init__(self, buffer: WriteBuffer | bytes) -> None:
        self.data = memoryview(buffer).cast("B")


class BioVec(NamedTuple):
    """``struct bio_vec``: ``length`` bytes of ``page``, starting at ``offset``."""

    page: Page
    offset: int
    length: int


class Op(IntEnum):
    """``enum req_op``: the operations that AoE supports."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3


# Access to a member of an enum is a lookup each time, a global is faster.
_READ: Final = Op.READ


@dataclass(slots=True, eq=False)
class Bio:
    """``struct bio``.

    Args:
        op: the operation.
        sector: first sector on the device (``bi_iter.bi_sector``).
        end_io: called once, with the bio, on completion (``bi_end_io``).
        vecs: the memory, in order (``bi_io_vec``).
        error: set before ``end_io`` runs; None is success (``bi_status``).
        fua: the data of a WRITE must be on stable storage on completion (``REQ_FUA``).
        length: bytes of the device that a DISCARD covers; it has no memory.

    Attributes:
        size: bytes of all bio_vecs, or of a DISCARD (``bi_iter.bi_size``).
    """

    op: Op
    sector: int
    end_io: Callable[[Bio], None]
    vecs: list[BioVec] = field(default_factory=list)
    error: AoEError | None = None
    fua: bool = False
    length: int = 0
    size: int = field(init=False)

    def __post_init__(self) -> None:
        """Compute ``size`` of what was passed; ``add_page`` adds to it."""
        self.size = self.length
        for _, _, length in self.vecs:
            self.size += length

    def add_page(self, page: Page, length: int, offset: int = 0) -> None:
        """Append a part of a page (``bio_add_page``).

        A part may start and end at any byte, such as the two halves of a buffer that
        crosses a page boundary. Only the sum has to be whole sectors, which
        ``Driver.submit`` checks.

        Raises:
            UsageError: ``length`` is not positive, the part is not within the page, or
                the bio is a READ and the page is read-only.
        """
        if length <= 0:
            raise UsageError("bio", f"length is {length}, not positive")
        if offset < 0 or offset + length > len(page.data):
            raise UsageError("bio", "offset and length are not within the page")
        _check_writable(self.op, page)
        self.vecs.append(BioVec(page, offset, length))
        self.size += length


def _check_writable(op: Op, page: Page) -> None:
    if op is _READ and page.data.readonly:
        raise UsageError("bio", "cannot read into read-only memory")


def bio_for(
    op: Op,
    sector: int,
    buffer: WriteBuffer | bytes,
    end_io: Callable[[Bio], None],
    *,
    fua: bool = False,
) -> Bio:
    """Create a bio for one buffer, whose length is a multiple of 512.

    Raises:
        UsageError: the length is not a multiple of 512, or the buffer is read-only and
            ``op`` is READ.
    """
    if not len(buffer):
        return Bio(op, sector, end_io, fua=fua)
    pages = UserPages(buffer)
    length = len(pages.data)
    if length % SECTOR:
        why = f"{length} bytes are not a whole number of 512-byte sectors"
        raise UsageError("bio", why)
    _check_writable(op, pages)
    return Bio(op, sector, end_io, [BioVec(pages, 0, length)], fua=fua)


class BioIter:
    """``struct bvec_iter``: the part of a bio that has not been assigned to frames.

    Args:
        vecs: the memory, in order; empty for a DISCARD.
        sector: the first sector on the device.
        length: bytes of a DISCARD, or of all the memory if already computed.

    Attributes:
        sector: first sector of the remainder.
        size: bytes of the remainder.
    """

    __slots__ = ("_done", "_index", "_vecs", "sector", "size")

    def __init__(self, vecs: list[BioVec], sector: int, length: int = 0) -> None:
        self._vecs = vecs
        self._index = 0
        self._done = 0
        self.sector = sector
        self.size = length or sum(vec.length for vec in vecs)

    def advance(self, length: int) -> list[BioVec]:
        """Return the memory of the next ``length`` bytes, and advance past it.

        ``bio_advance_iter``. ``length`` is a multiple of 512 and at most ``size``. The
        result may span several bio_vecs (K29).
        """
        self.size -= length
        self.sector += length // SECTOR
        vecs: list[BioVec] = []
        if not self._vecs or not length:
            return vecs
        page, offset, vec_length = self._vecs[self._index]
        done = self._done
        if done + length < vec_length:
            self._done += length
            return [BioVec(page, offset + done, length)]
        while length:
            page, offset, vec_length = self._vecs[self._index]
            part = min(length, vec_length - self._done)
            vecs.append(BioVec(page, offset + self._done, part))
            length -= part
            self._done += part
            if self._done == vec_length:
                self._index += 1
                self._done = 0
        return vecs
