"""Submitters of bios and the kinds of memory that they submit.

There are eight kinds (K84-K92, K140). Variants are two fixes, XFS and jbd with pages
from the page allocator instead of slab objects, and jbd on plain kmalloc. The page
counts of a kind depend on the kernel's ``Rules``: the second page of a stack has count
0 on 2.6.21 and 1 on 6.1 (K108d).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from initiator.lab.kernel.memory import PAGE_SIZE, Memory, Page
from initiator.lab.kernel.slab import KmemCache, SlabObject, calculate_slab_order

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from initiator.lab.kernel.policy import Policy

SUBPAGE: Final = 1024
"""Bytes of a sub-page buffer: XFS metadata in 1 KiB blocks, jbd's frozen copies."""
LARGE_ORDER: Final = 1
"""Order of a slab of kmalloc-8192, and of blocks from alloc_pages."""
NEIGHBOUR: Final = "neighbour"
"""Owner of the other objects of a slab."""
HUGE_ORDER: Final = 2
"""Order of a kmalloc of 16 KiB, more than the largest slab cache of SLUB (K140)."""


@dataclass(slots=True, eq=False)
class Buffer:
    """Memory that an owner submits in a bio.

    Args:
        owner: name of the owner.
        pieces: page, offset and length of each part.
        free: frees the memory.
        wasted: bytes allocated beyond those requested.
        is_held: the owner has not freed it yet.
    """

    owner: str
    pieces: list[tuple[Page, int, int]]
    free: Callable[[], None]
    wasted: int = 0
    is_held: bool = True

    def fill(self, byte: int) -> None:
        """Fill the buffer with one byte value."""
        for page, offset, length in self.pieces:
            page.data[offset : offset + length] = bytes([byte]) * length

    def contents(self) -> bytes:
        """Return the current contents."""
        return b"".join(
            bytes(page.data[offset : offset + length])
            for page, offset, length in self.pieces
        )

    def release(self) -> None:
        """Free the memory; repeated calls do nothing."""
        if self.is_held:
            self.is_held = False
            self.free()


def join_buffers(buffers: Sequence[Buffer]) -> Buffer:
    """Combine buffers of one owner into one, for a bio of several pages."""
    if len(buffers) == 1:
        return buffers[0]

    def free() -> None:
        for buffer in buffers:
            buffer.free()

    pieces = [piece for buffer in buffers for piece in buffer.pieces]
    wasted = sum(buffer.wasted for buffer in buffers)
    return Buffer(buffers[0].owner, pieces, free, wasted)


@dataclass(frozen=True, slots=True)
class Submitter:
    """A submitter of one kind of memory.

    Args:
        name: name in reports and commands.
        owner: the party that allocates, submits and frees the memory: a kernel
            subsystem, or just ``owner``.
        summary: description in one line.
        kind: how the memory is allocated.
    """

    name: str
    owner: str
    summary: str
    kind: str


SUBMITTERS: Final = {
    submitter.name: submitter
    for submitter in (
        Submitter("pagecache", "page cache", "ext4 or XFS file data", "page"),
        Submitter(
            "xfs_kmalloc_subpage", "XFS", "metadata in a sub-page slab object", "slab"
        ),
        Submitter(
            "jbd_frozen_slab",
            "jbd",
            "ext3's frozen journal copy, a slab object",
            "jbd slab",
        ),
        Submitter(
            "kmalloc_highorder_tail",
            "XFS",
            "second page of a kmalloc of two pages",
            "large slab",
        ),
        Submitter(
            "kmalloc_large_tail",
            "XFS",
            "log buffer: second page of a kmalloc of 16 KiB",
            "large kmalloc",
        ),
        Submitter(
            "rawalloc_highorder_tail",
            "owner",
            "second page of alloc_pages(1), not compound",
            "raw",
        ),
        Submitter("stack_tail", "stack", "second page of a kernel stack", "stack"),
        Submitter("vmalloc_page", "XFS", "log buffer by vmalloc_to_page", "vmalloc"),
    )
}

VARIANTS: Final = {
    submitter.name: submitter
    for submitter in (
        Submitter(
            "xfs_get_free_page", "XFS", "the fix: metadata in a page of its own", "page"
        ),
        Submitter(
            "jbd_get_free_page",
            "jbd",
            "the fix: frozen copy in a page of its own",
            "page",
        ),
        Submitter(
            "jbd_kmalloc",
            "jbd",
            "frozen copy in plain kmalloc, before jbd had caches of its own",
            "slab",
        ),
        Submitter(
            "rawalloc_block",
            "owner",
            "both pages of alloc_pages(1), not compound, as one bio_vec",
            "raw block",
        ),
    )
}
"""Submitters beside the matrix.

The fixes of the 2007 thread, a whole page for each small buffer instead of slab, and
the only submitter whose buffers straddle pages under slab debugging (K138).
"""

_BLOCKS: Final = {"raw": (LARGE_ORDER, False), "large kmalloc": (HUGE_ORDER, True)}
"""Order of a block by kind of memory, and whether it is a compound page."""
_NEEDS: Final = {"xfs_get_free_page": SUBPAGE, "jbd_get_free_page": SUBPAGE}


class Submitters:
    """Allocator for the memory of all submitters of one machine.

    Args:
        memory: the machine's pages.
        policy: decides whether slab counts objects and file systems use whole pages.
        redzone: bytes in front of each object of plain kmalloc below 4 KiB, see
            ``initiator.lab.kernel.slab``.
    """

    def __init__(self, memory: Memory, policy: Policy, redzone: int = 0) -> None:
        self.memory = memory
        self.policy = policy
        self._neighbours: list[SlabObject] = []
        counts = policy.slab_counts_objects
        self.caches = {
            "slab": self._kmalloc_cache(SUBPAGE, redzone),
            "jbd slab": KmemCache(memory, SUBPAGE, 0, counts),
            "large slab": KmemCache(
                memory, PAGE_SIZE << LARGE_ORDER, LARGE_ORDER, counts
            ),
        }
        if redzone:
            self.caches["kmalloc-2048"] = self._kmalloc_cache(2 * SUBPAGE, redzone)
            self.caches["kmalloc-4096"] = self._kmalloc_cache(PAGE_SIZE, 0)
        if memory.rules.kmalloc_large_is_slab:
            self.caches["large kmalloc"] = KmemCache(
                memory, PAGE_SIZE << HUGE_ORDER, HUGE_ORDER, counts
            )

    def _kmalloc_cache(self, size: int, redzone: int) -> KmemCache:
        order = calculate_slab_order(size + redzone)
        counts = self.policy.slab_counts_objects
        return KmemCache(self.memory, size, order, counts, redzone)

    def allocate(self, submitter: Submitter, owner: str | None = None) -> Buffer:
        """Allocate a buffer as ``submitter`` does, for ``owner``."""
        owner = owner or submitter.owner
        kind = submitter.kind
        if kind == "stack":
            kind = "vmalloc" if self.memory.rules.vmapped_stacks else "raw"
        if self.policy.filesystem_uses_pages and kind not in ("page", "vmalloc"):
            needs = SUBPAGE if kind == "slab" else PAGE_SIZE
            return self._page(owner, needs)
        if kind in self.caches:
            return self._kmalloc(submitter, owner)
        if kind == "page":
            return self._page(owner, _NEEDS.get(submitter.name, PAGE_SIZE))
        if kind == "raw block":
            block = self.memory.alloc_pages(LARGE_ORDER, owner)
            return Buffer(
                owner,
                [(page, 0, PAGE_SIZE) for page in block],
                lambda: self.memory.free_pages(block[0], owner),
            )
        if kind == "vmalloc":
            pages = self.memory.vmalloc(2, owner)
            return self._pages(owner, pages, pages)
        order, compound = _BLOCKS[kind]
        block = self.memory.alloc_pages(order, owner, compound=compound)
        if compound and self.memory.rules.frozen_kmalloc_large:
            self.memory.freeze(block)
        return self._pages(owner, block, block[:1])

    def _kmalloc(self, submitter: Submitter, owner: str) -> Buffer:
        found = self.caches[submitter.kind].alloc(owner)
        if submitter.owner != "XFS":
            return self._object(owner, found)
        if self.memory.rules.xfs_avoids_straddling:
            if found.straddles:
                found.cache.free(found, owner)
                return self._page(owner, SUBPAGE)
            return self._object(owner, found)
        # xfs_buf_get_noaddr() of 2.6.21 repeats with twice the size (K138).
        larger = iter(("kmalloc-2048", "kmalloc-4096"))
        while not found.is_aligned:
            found.cache.free(found, owner)
            found = self.caches[next(larger)].alloc(owner)
        return self._object(owner, found)

    def _page(self, owner: str, needs: int) -> Buffer:
        page = self.memory.alloc_pages(0, owner)[0]
        return Buffer(
            owner,
            [(page, 0, needs)],
            lambda: self.memory.free_pages(page, owner),
            PAGE_SIZE - needs,
        )

    def _pages(self, owner: str, pages: list[Page], freed: list[Page]) -> Buffer:
        """Return the second of the pages; ``freed`` are freed one by one."""

        def free() -> None:
            for page in freed:
                self.memory.free_pages(page, owner)

        return Buffer(owner, [(pages[1], 0, PAGE_SIZE)], free)

    def _object(self, owner: str, found: SlabObject) -> Buffer:
        """Return an object, or the second page of one of several pages.

        Of an object that is larger than the buffer needs, it is the beginning.
        """

        def free() -> None:
            found.cache.free(found, owner)

        if found.size > PAGE_SIZE:
            return Buffer(owner, found.pieces()[1:2], free)
        if found.size == SUBPAGE:
            return Buffer(owner, found.pieces(), free)
        page, offset, _ = found.pieces()[0]
        return Buffer(owner, [(page, offset, SUBPAGE)], free, found.size - SUBPAGE)

    def add_neighbours(self, submitter: Submitter) -> None:
        """Fill a slab so far that the next object straddles pages, if one does.

        Without redzones none does.
        """
        cache = self.caches.get(submitter.kind)
        if cache is not None and cache.redzone:
            self._neighbours += cache.alloc_up_to_straddling(NEIGHBOUR)

    def free_neighbours(self) -> None:
        """Free the objects of ``add_neighbours``."""
        for each in self._neighbours:
            each.cache.free(each, NEIGHBOUR)

    @property
    def can_reclaim(self) -> bool:
        """True if ``reclaim`` returns a slab to the page allocator."""
        return any(cache.has_empty_slab for cache in self.caches.values())

    def reclaim(self) -> None:
        """Reap deferred objects and return empty slabs to the page allocator."""
        for cache in self.caches.values():
            cache.reap()
            cache.shrink()
