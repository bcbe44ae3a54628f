"""Judges allocations and frees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from initiator.lab.traces.pages import of_block
from initiator.lab.traces.rules import COUNTED_TAIL, FREED_IN_IO, FREED_TWICE
from initiator.lab.traces.state import Block

if TYPE_CHECKING:
    from initiator.lab.traces.events import PageEvent
    from initiator.lab.traces.pages import Pages


_NO_PAGE: Final = (0, (1 << 64) - 1)
"""Page frame numbers of an allocation that failed."""


class Allocator:
    """Judges the blocks of the page allocator.

    Args:
        pages: the pages.
    """

    def __init__(self, pages: Pages) -> None:
        self.pages = pages

    def allocate(self, event: PageEvent) -> None:
        """Take an allocation."""
        pages, pfn, order = self.pages, event.pfn, event.order
        if pfn in _NO_PAGE:
            return
        pages.free.remove(pfn, order)
        pages.allocated.remove(pfn, order)
        for page in pages.tracked(pfn, order):
            pages.settle(page)
            before = page.count
            if page.pfn == pfn:
                page.is_counted = True
            elif event.shared:
                page.is_counted = None
            else:
                page.became(0, counted=False)
            page.bios, page.queued, page.departure = 0, None, None
            pages.step(page, event, before, of_block(page.pfn, pfn, order))
        if order:
            block = Block(pfn, order, event.line, event.head, compound=event.shared)
            pages.allocated.add(block)

    def free(self, event: PageEvent) -> None:
        """Judge mm_page_free."""
        free = self.pages.free
        block = free.overlapping(event.pfn, event.order)
        if block is not None and block.start == event.pfn and block.is_batched:
            # The second event of a pair (K149); the first has no order.
            free.remove(event.pfn, block.order)
            self._release(event, None, is_second=True)
        else:
            self._release(event, block)

    def free_batched(self, event: PageEvent) -> None:
        """Take mm_page_free_batched, which is no evidence of a second free (K149)."""
        if self.pages.free.containing(event.pfn) is None:
            self._release(event, None, is_batched=True)

    def _release(
        self,
        event: PageEvent,
        free: Block | None,
        *,
        is_batched: bool = False,
        is_second: bool = False,
    ) -> None:
        pages, pfn, order = self.pages, event.pfn, event.order
        tracked = pages.tracked(pfn, order)
        twice = None
        if free is not None and pages.sees_allocations:
            twice = pages.page(max(pfn, free.start))
            if not any(page is twice for page in tracked):
                tracked.append(twice)
        allocated = pages.allocated.containing(pfn)
        may_have_counted_tails = allocated is None or not allocated.compound
        for page in tracked:
            pages.settle(page)
            before, is_counted = page.count, page.is_counted
            page.became(0, counted=False)
            pages.step(page, event, before, of_block(page.pfn, pfn, order))
            if page is twice and free is not None:
                note = f"the page is free since line {free.line}"
                pages.found(FREED_TWICE, page, event, note)
            if page.bios and not is_second:
                note = "the page was freed while a bio of it is in flight"
                pages.found(FREED_IN_IO, page, event, note)
            if page.pfn == pfn:
                continue
            if before and may_have_counted_tails:
                note = f"the block was freed while the count of this page is {before}"
                pages.found(COUNTED_TAIL, page, event, note)
            elif is_counted:
                note = "the block was freed while this page is allocated by itself"
                pages.found(COUNTED_TAIL, page, event, note)
        pages.free.remove(pfn, order)
        pages.free.add(Block(pfn, order, event.line, event.head, is_batched))
        pages.allocated.drop(pfn)
