"""Block I/O requests: bio and bio_vec (block/bio.c, include/linux/bio.h).

A bio names memory by page, offset and length and promises one thing: the memory stays
the owner's until ``bi_end_io`` has run. It takes no reference to any page (K70), in
2007 as today.

The kernel's request layer above (merging, plugging, blk-mq) is not modelled: one bio is
one request.
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
    """Memory that a bio_vec can name (``struct page *``)."""

    @property
    def data(self) -> memoryview:
        """The bytes of it."""


class UserPages:
    """The caller's own buffer: pages that are pinned for as long as the bio lives.

    It may be of any length; nothing counts references to it.
    """

    __slots__ = ("data",)

    def __init__(self, buffer: WriteBuffer | bytes) -> None:
        self.data = memoryview(buffer).cast("B")


class BioVec(NamedTuple):
    """``struct bio_vec``: ``length`` bytes from ``offset`` on in ``page``."""

    page: Page
    offset: int
    length: int


class Op(IntEnum):
    """``enum req_op``, the operations that AoE carries."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3


# Members of an enum take a search each time they are named.
_READ: Final = Op.READ


@dataclass(slots=True, eq=False)
class Bio:
    """``struct bio``.

    Args:
        op: what to do.
        sector: first sector on the device (``bi_iter.bi_sector``).
        end_io: called once, with the bio, when all of it is done (``bi_end_io``).
        vecs: the memory, in order (``bi_io_vec``).
        error: why it failed, set before ``end_io`` runs (``bi_status``).
        fua: a write whose data is stable when it ends (``REQ_FUA``).
        length: bytes that a DISCARD is about; it has no memory.

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
        """Count the bytes; ``add_page`` goes on counting."""
        self.size = self.length
        for _, _, length in self.vecs:
            self.size += length

    def add_page(self, page: Page, length: int, offset: int = 0) -> None:
        """Put a piece of a page behind the others (``bio_add_page``).

        A piece may start at any byte and end at any, as the two halves of a buffer
        that straddles a page border do. Only all together are whole sectors, which
        ``Driver.submit`` sees to.

        Raises:
            UsageError: the piece is empty or does not lie within the page, or the bio
                reads and the page is read-only.
        """
        if length <= 0:
            raise UsageError("bio", f"a piece of {length} bytes")
        if offset < 0 or offset + length > len(page.data):
            raise UsageError("bio", "the piece lies outside its page")
        _check_writable(self.op, page)
        self.vecs.append(BioVec(page, offset, length))
        self.size += length


def _check_writable(op: Op, page: Page) -> None:
    if op is _READ and page.data.readonly:
        raise UsageError("bio", "cannot read into memory that is read-only")


def bio_for(
    op: Op,
    sector: int,
    buffer: WriteBuffer | bytes,
    end_io: Callable[[Bio], None],
    *,
    fua: bool = False,
) -> Bio:
    """Make a bio over one buffer of the caller's, of a whole number of sectors.

    Raises:
        UsageError: its length is not a multiple of 512, or as ``Bio.add_page``.
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
    """``struct bvec_iter``: how far some memory has been cut into frames.

    Args:
        vecs: the memory, in order; none for a DISCARD.
        sector: the first sector on the device.
        length: bytes of a DISCARD, or of all the memory if they are known.
    """

    __slots__ = ("_done", "_index", "_vecs", "sector", "size")

    def __init__(self, vecs: list[BioVec], sector: int, length: int = 0) -> None:
        self._vecs = vecs
        self._index = 0
        self._done = 0
        self.sector = sector
        self.size = length or sum(vec.length for vec in vecs)

    def take(self, length: int) -> list[BioVec]:
        """Cut the next ``length`` bytes off and return the memory they lie in.

        ``length`` is a multiple of 512 and at most ``size``. The cut goes across
        bio_vec and page borders (K29).
        """
        self.size -= length
        self.sector += length // SECTOR
        taken: list[BioVec] = []
        if not self._vecs or not length:
            return taken
        page, offset, whole = self._vecs[self._index]
        done = self._done
        if done + length < whole:
            self._done += length
            return [BioVec(page, offset + done, length)]
        while length:
            page, offset, whole = self._vecs[self._index]
            piece = min(length, whole - self._done)
            taken.append(BioVec(page, offset + self._done, piece))
            length -= piece
            self._done += piece
            if self._done == whole:
                self._index += 1
                self._done = 0
        return taken
