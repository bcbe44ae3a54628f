"""Judges events that change a page count, or sample it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from initiator.lab.traces.rules import BELOW_ZERO, GET_FROM_ZERO, PUT_TO_ZERO
from initiator.lab.traces.verdict import Violation

if TYPE_CHECKING:
    from initiator.lab.traces.events import PageEvent
    from initiator.lab.traces.pages import Pages
    from initiator.lab.traces.state import Page


class Counts:
    """Judges page counts.

    Args:
        pages: the pages.
    """

    def __init__(self, pages: Pages) -> None:
        self.pages = pages

    def set(self, event: PageEvent) -> None:
        """Take a count that was set: at an allocation, or when a block is split."""
        pages, pfn = self.pages, event.pfn
        page = pages.page(pfn)
        pages.settle(page)
        before = page.count
        page.is_shared = event.shared
        counted = True if event.value else page.is_counted
        page.became(event.value, counted=counted)
        pages.step(page, event, before)
        if event.name != "page_ref_set":
            return
        pages.sees_allocations = True
        if event.value:
            pages.free.remove(pfn, 0)
            block = pages.allocated.containing(pfn)
            if block is not None and block.start != pfn:
                pages.allocated.drop(pfn)

    def freeze(self, event: PageEvent) -> None:
        """Take a count that was set to 0 because it had the expected value."""
        page = self.pages.page(event.pfn)
        self.pages.settle(page)
        before = page.count
        if event.result:
            page.became(0, counted=page.is_counted)
        self.pages.step(page, event, before)

    def modify(self, event: PageEvent) -> None:
        """Judge an increment or decrement."""
        if event.name == "page_ref_mod_unless" and not event.result:
            return
        page = self.pages.page(event.pfn)
        printed = (event.refcount or 0) - event.value
        if page.suspicion is not None:
            if printed == page.count:
                self.pages.settle(page)
            else:
                page.suspicion, page.is_counted = None, None
        before = printed if page.count is None else page.count
        is_proved = page.count is not None and page.is_certain
        if page.bios and page.queued is None:
            page.queued = printed
        page.is_shared = event.shared
        page.count, page.is_certain = _after(event)
        self.pages.step(page, event, before)
        if event.value > 0 and before <= 0 and printed <= 0:
            self._raised(page, event, proved=is_proved)
        elif event.value < 0 and page.count == 0 and page.is_certain:
            self._reached_zero(page, event)
        if page.count < 0:
            self._below_zero(page, event)

    def sample(self, event: PageEvent) -> None:
        """Take a count that was sampled; what happened in between is unknown."""
        page = self.pages.page(event.pfn)
        before, count = page.count, event.refcount or 0
        page.count, page.is_certain = count, True
        self.pages.step(page, event, before, _where(event))
        if page.bios and page.queued is None:
            page.queued = count
        if before == 0 and count > 0:
            self._raised(page, event, proved=True)
        if count < 0:
            self._below_zero(page, event)

    def to_zero(self, event: PageEvent) -> None:
        """Judge a put_page() that reached 0."""
        page = self.pages.page(event.pfn)
        before = page.count
        page.count, page.is_certain = 0, True
        self.pages.step(page, event, before, _where(event))
        self._reached_zero(page, event)

    def _raised(self, page: Page, event: PageEvent, *, proved: bool) -> None:
        free = self.pages.free.containing(event.pfn)
        block = self.pages.allocated.containing(event.pfn)
        if block is not None and block.compound and block.start != event.pfn:
            page.is_counted = True  # Until 5.0, a split counts the tails so (K151).
            return
        if free is not None:
            why = f"the page is free since line {free.line}"
        elif block is not None and block.start != event.pfn:
            why = f"it is not the first page of its block of order {block.order}"
        else:
            why = "no allocation of the page is in the trace"
        note = f"the count was raised from 0; {why}"
        page.is_counted = False
        if proved:
            self.pages.found(GET_FROM_ZERO, page, event, note)
        else:
            page.suspicion = Violation(event.line, GET_FROM_ZERO.name, note)

    def _reached_zero(self, page: Page, event: PageEvent) -> None:
        if page.bios:
            note = "the count fell to 0 while a bio of the page is in flight"
        elif page.is_counted is False:
            note = "the count fell to 0, but it did not begin with an allocation"
        else:
            return
        self.pages.found(PUT_TO_ZERO, page, event, note)

    def _below_zero(self, page: Page, event: PageEvent) -> None:
        self.pages.found(BELOW_ZERO, page, event, f"the count is {page.count}")


def _after(event: PageEvent) -> tuple[int, bool]:
    """Return the count after a modification, and whether it is proved.

    The printed count was read after the modification and may contain that of another
    CPU (K148).
    """
    if event.name == "page_ref_mod_and_return" and event.result is not None:
        return event.result, True
    if event.name == "page_ref_mod_and_test" and event.result:
        return 0, True
    return event.refcount or 0, False


def _where(event: PageEvent) -> str:
    return f"at {event.where}" if event.where else ""
