"""kmalloc and its caches: several objects in a page (mm/slab.c).

Mirrors what matters for a page's lifetime: which pages an object lies in, what their
counts are (K85-K87), that kfree makes an object reusable at once (K111), and option (b)
of the 2007 thread: a reference per object and no reuse while others hold one (K100).

Redzones (``debug_shift``) move objects off their natural alignment, so that a buffer
may straddle a page border or start at an odd byte: the "slab debug alignment" of the
thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aoe.ata import SECTOR
from initiator.lab.kernel.journal import Fault
from initiator.lab.kernel.memory import PAGE_SIZE, Memory, Page

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True, eq=False)
class SlabObject:
    """A piece of a slab.

    Args:
        cache: where it came from.
        pages: the slab's pages, all of them.
        offset: bytes from the start of the slab.
        size: bytes that its owner asked for.
        owner: who has it; None while it is free.
        put_off: freed, but not to be reused yet (option b).
    """

    cache: KmemCache
    pages: Sequence[Page]
    offset: int
    size: int
    owner: str | None = None
    quarantined: bool = False

    @property
    def is_aligned(self) -> bool:
        """It starts on a sector border of its page."""
        return self.offset % SECTOR == 0

    @property
    def straddles(self) -> bool:
        """It lies in more pages than its size takes."""
        return len(self.pieces()) > -(-self.size // PAGE_SIZE)

    def pieces(self) -> list[tuple[Page, int, int]]:
        """Page, offset and length of each part, as virt_to_page finds them."""
        found, at, left = [], self.offset, self.size
        while left:
            page, within = self.pages[at // PAGE_SIZE], at % PAGE_SIZE
            length = min(left, PAGE_SIZE - within)
            found.append((page, within, length))
            at, left = at + length, left - length
        return found

    def fill(self, pattern: bytes) -> None:
        """Write the pattern over all of it."""
        for page, offset, length in self.pieces():
            repeated = pattern * (length // len(pattern) + 1)
            page.data[offset : offset + length] = repeated[:length]


def calculate_slab_order(stride: int) -> int:
    """Pages of a slab of objects this far apart, as a power of two.

    The least that wastes no more than an eighth, but no more than two pages
    (``calculate_slab_order`` of 2.6.21, where memory is plenty). A redzone can thus
    make the slab of a sub-page object two pages long, the second with count zero (K85).
    """
    return int(PAGE_SIZE % stride * 8 > PAGE_SIZE)


@dataclass(slots=True, eq=False)
class KmemCache:
    """``struct kmem_cache``: objects of one size.

    Args:
        memory: where its pages come from.
        size: bytes an object.
        order: pages a slab, as a power of two.
        counts_objects: option (b): every object holds a reference to each of its pages,
            and is not reused while anybody else holds one.
        debug_shift: bytes of redzone in front of every object.
    """

    memory: Memory
    size: int
    order: int = 0
    counts_objects: bool = False
    redzone: int = 0
    slabs: list[list[SlabObject]] = field(default_factory=list)
    freelist: list[SlabObject] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As /proc/slabinfo calls it."""
        return f"kmalloc-{self.size}"

    def alloc(self, owner: str) -> SlabObject:
        """``kmem_cache_alloc``: the object freed last, if any (K111)."""
        if self.counts_objects:
            self.reap()
        if not self.freelist:
            self._grow()
        found = self.freelist.pop()
        found.owner = owner
        if self.counts_objects:
            for page, _, _ in found.pieces():
                self.memory.get_page(page, "slab", "K100")
        self.memory.journal.add(
            "slab",
            "kmalloc",
            page=found.pieces()[0][0].pfn,
            count=found.pieces()[0][0].count,
            rule="K111",
            note=f"{self.size} bytes at {found.offset} of the slab for {owner}"
            + ("" if found.is_aligned else ", off the sector borders")
            + (", across a page border" if found.straddles else ""),
            owner=owner,
            span=len(found.pieces()),
        )
        return found

    def _grow(self) -> None:
        memory = self.memory
        compound = memory.rules.compound_slabs and self.order > 0
        pages = memory.alloc_pages(self.order, "slab", compound=compound)
        for page in pages:
            page.slab = True
        if memory.rules.frozen_slabs:
            pages[0].count = 0
        if self.counts_objects:
            # The slab's own hold on every page: without, the last object would free it.
            for page in pages[1:]:
                if page.head is None:
                    memory.page_ref_inc(page, "slab")
        stride = self.size + self.redzone
        objects = [
            SlabObject(self, pages, start + self.redzone, self.size)
            for start in range(0, len(pages) * PAGE_SIZE - stride + 1, stride)
        ]
        self.slabs.append(objects)
        self.freelist += reversed(objects)

    def free(self, freed: SlabObject, actor: str) -> None:
        """``kfree``: reusable at once, or with option (b) once nobody else refers."""
        memory = self.memory
        twice = freed.owner is None
        memory.journal.add(
            actor,
            "kfree",
            page=freed.pieces()[0][0].pfn,
            count=freed.pieces()[0][0].count,
            rule="K111",
            note="object is free already" if twice else f"{self.size} bytes",
            fault=Fault.DOUBLE_FREE if twice else None,
            owner="",
            span=len(freed.pieces()),
        )
        freed.owner = None
        if self.counts_objects:
            for page, _, _ in freed.pieces():
                memory.put_page(page, "slab", "K100")
            if self._is_referenced(freed):
                freed.quarantined = True
                memory.journal.costs.quarantined += 1
                memory.journal.costs.held += self.size
                memory.journal.add(
                    "slab",
                    "put off",
                    page=freed.pieces()[0][0].pfn,
                    count=freed.pieces()[0][0].count,
                    rule="K100",
                    note="somebody still refers to a page of the object",
                )
                return
        self.freelist.append(freed)

    def _is_referenced(self, freed: SlabObject) -> bool:
        """Tell whether a page of it has more references than the slab itself holds."""
        head = {page.compound_head for page, _, _ in freed.pieces()}
        return any(page.count > self._own_references(page) for page in head)

    def _own_references(self, head: Page) -> int:
        living = (o for slab in self.slabs for o in slab if o.owner is not None)
        pieces = (piece for each in living for piece in each.pieces())
        return 1 + sum(page.compound_head is head for page, _, _ in pieces)

    def reap(self) -> None:
        """Make objects reusable whose last foreign reference has gone (option b)."""
        for slab in self.slabs:
            for each in slab:
                if each.quarantined and not self._is_referenced(each):
                    each.quarantined = False
                    self.freelist.append(each)

    def shrink(self) -> None:
        """Give empty slabs back to the page allocator (``kmem_cache_shrink``)."""
        for slab in [s for s in self.slabs if all(o in self.freelist for o in s)]:
            self.slabs.remove(slab)
            self.freelist = [o for o in self.freelist if o not in slab]
            pages = slab[0].pages
            if self.memory.rules.frozen_slabs:
                pages[0].count = 1
            for page in pages:
                page.slab = False
            if self.counts_objects:
                for page in pages[1:]:
                    if page.head is None:
                        self.memory.page_ref_dec(page, "slab")
            self.memory.free_pages(pages[0], "slab")
