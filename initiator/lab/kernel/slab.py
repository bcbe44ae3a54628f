"""kmalloc and its caches: several objects in a page (mm/slab.c).

Models what affects a page's lifetime: the pages of an object and their counts
(K85-K87), reuse of an object directly after kfree (K111), and policy b: a reference
per object and deferred reuse of objects whose pages are still referenced (K100).

A redzone in front of an object shifts it from its natural alignment: it may straddle a
page boundary or not start at a sector boundary. A cache whose objects are aligned to
their size has no redzones (K138).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aoe.ata import SECTOR
from initiator.lab.kernel.journal import Fault
from initiator.lab.kernel.memory import PAGE_SIZE, Memory, Page

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(slots=True, eq=False)
class SlabObject:
    """An object of a slab.

    Args:
        cache: its cache.
        pages: all pages of the slab.
        offset: bytes from the start of the slab.
        size: bytes requested.
        owner: name of the owner, None while the object is free.
        deferred: freed, but its reuse is deferred while its pages are referenced (b).
    """

    cache: KmemCache
    pages: Sequence[Page]
    offset: int
    size: int
    owner: str | None = None
    deferred: bool = False

    @property
    def is_aligned(self) -> bool:
        """True if the object starts at a sector boundary."""
        return self.offset % SECTOR == 0

    @property
    def straddles(self) -> bool:
        """True if the object spans more pages than its size needs."""
        return len(self.pieces()) > -(-self.size // PAGE_SIZE)

    def pieces(self) -> list[tuple[Page, int, int]]:
        """Return page, offset and length of each part, as virt_to_page finds them."""
        found, at, left = [], self.offset, self.size
        while left:
            page, within = self.pages[at // PAGE_SIZE], at % PAGE_SIZE
            length = min(left, PAGE_SIZE - within)
            found.append((page, within, length))
            at, left = at + length, left - length
        return found

    def fill(self, pattern: bytes) -> None:
        """Fill the object with a repeated pattern."""
        for page, offset, length in self.pieces():
            repeated = pattern * (length // len(pattern) + 1)
            page.data[offset : offset + length] = repeated[:length]


def calculate_slab_order(stride: int) -> int:
    """Return the order of a slab whose objects are ``stride`` bytes apart.

    Order 0 if it wastes at most an eighth, else 1 (``calculate_slab_order``, 2.6.21).
    With a redzone, objects smaller than a page may thus get slabs of order 1, whose
    second page has count 0 (K85).
    """
    return int(PAGE_SIZE % stride * 8 > PAGE_SIZE)


@dataclass(slots=True, eq=False)
class KmemCache:
    """``struct kmem_cache``: objects of one size.

    Args:
        memory: the page allocator.
        size: bytes per object.
        order: order of a slab.
        counts_objects: policy b: each object holds a reference to each of its pages
            and is not reused while other references remain.
        redzone: bytes in front of each object.
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
        """The name in /proc/slabinfo."""
        return f"kmalloc-{self.size}"

    def alloc(self, owner: str) -> SlabObject:
        """Allocate the object freed last, or from a new slab (K111)."""
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
            + ("" if found.is_aligned else ", not at a sector boundary")
            + (", across a page boundary" if found.straddles else ""),
            owner=owner,
            span=len(found.pieces()),
        )
        return found

    def alloc_up_to_straddling(self, owner: str) -> list[SlabObject]:
        """Allocate the objects in front of the first one that straddles a page.

        Allocate nothing if no object of a slab does.
        """
        if not self.freelist:
            self._grow()
        ahead = list(
            itertools.takewhile(lambda o: not o.straddles, reversed(self.freelist))
        )
        if len(ahead) == len(self.freelist):
            return []
        return [self.alloc(owner) for _ in ahead]

    def _grow(self) -> None:
        memory = self.memory
        compound = memory.rules.compound_slabs and self.order > 0
        pages = memory.alloc_pages(self.order, "slab", compound=compound)
        for page in pages:
            page.slab = True
        if memory.rules.frozen_slabs:
            memory.freeze(pages)
        if self.counts_objects:
            # The slab's own reference to each tail page, which keeps the page
            # allocated when its last object is freed.
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
        """Free an object (``kfree``), for reuse at once or deferred (b)."""
        memory = self.memory
        is_double_free = freed.owner is None
        memory.journal.add(
            actor,
            "kfree",
            page=freed.pieces()[0][0].pfn,
            count=freed.pieces()[0][0].count,
            rule="K111",
            note="object is already free" if is_double_free else f"{self.size} bytes",
            fault=Fault.DOUBLE_FREE if is_double_free else None,
            owner="",
            span=len(freed.pieces()),
        )
        freed.owner = None
        if self.counts_objects:
            for page, _, _ in freed.pieces():
                memory.put_page(page, "slab", "K100")
            if self._is_referenced(freed):
                freed.deferred = True
                memory.journal.costs.deferred += 1
                memory.journal.costs.held += self.size
                memory.journal.add(
                    "slab",
                    "defer reuse",
                    page=freed.pieces()[0][0].pfn,
                    count=freed.pieces()[0][0].count,
                    rule="K100",
                    note="a page of the object is still referenced",
                )
                return
        self.freelist.append(freed)

    def _is_referenced(self, freed: SlabObject) -> bool:
        """Return True if a page of it has references other than the slab's own."""
        heads = {page.compound_head for page, _, _ in freed.pieces()}
        return any(head.count > self._own_references(head) for head in heads)

    def _own_references(self, head: Page) -> int:
        allocated = (o for slab in self.slabs for o in slab if o.owner is not None)
        pieces = (piece for each in allocated for piece in each.pieces())
        return 1 + sum(page.compound_head is head for page, _, _ in pieces)

    def reap(self) -> None:
        """Move deferred objects without other references to the freelist (b)."""
        for slab in self.slabs:
            for each in slab:
                if each.deferred and not self._is_referenced(each):
                    each.deferred = False
                    self.freelist.append(each)

    @property
    def has_empty_slab(self) -> bool:
        """True if ``reap`` and ``shrink`` return a slab to the page allocator."""
        return any(
            all(
                each in self.freelist
                or (each.deferred and not self._is_referenced(each))
                for each in slab
            )
            for slab in self.slabs
        )

    def shrink(self) -> None:
        """Return empty slabs to the page allocator (``kmem_cache_shrink``)."""
        for slab in [s for s in self.slabs if all(o in self.freelist for o in s)]:
            self.slabs.remove(slab)
            self.freelist[:] = [o for o in self.freelist if o not in slab]
            pages = slab[0].pages
            for page in pages:
                self._clear_slab_flag(page)
            if self.counts_objects:
                for page in pages[1:]:
                    if page.head is None:
                        self.memory.page_ref_dec(page, "slab")
            self.memory.free_pages(pages[0], "slab")

    def _clear_slab_flag(self, page: Page) -> None:
        """Clear PG_slab of a page that is given back (``kmem_freepages``, K137)."""
        if not page.slab and self.memory.rules.bug_on_lost_slab_flag:
            note = "BUG_ON(!PageSlab(page)): the slab's page was freed before"
            self.memory.journal.bug("slab", "kmem_freepages", page.pfn, "K137", note)
        page.slab = False
