"""The pages of a trace: their states, the blocks they are part of, and violations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from initiator.lab.traces.state import Blocks, Bounded, Page
from initiator.lab.traces.verdict import Step, Story, Violation

if TYPE_CHECKING:
    from initiator.lab.traces.events import BioEvent, PageEvent
    from initiator.lab.traces.rules import TraceRule
    from initiator.lab.traces.verdict import Verdict

STORIES: Final = 100
"""Pages with violations that are described; the others are counted."""
STEPS: Final = 64
"""Events that are listed for each of them."""


class Pages:
    """All pages that are remembered.

    Args:
        verdict: to which violations are added.
    """

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.sees_allocations = False
        self._names = {rule.name for rule in verdict.rules}
        self.forget_all()

    def forget_all(self) -> None:
        """Begin again, as at the beginning of a trace."""
        limit = self.verdict.limit
        self.known: Bounded[int, Page] = Bounded(limit)
        self.free = Blocks(limit)
        self.allocated = Blocks(limit)

    @property
    def forgotten(self) -> int:
        """The number of pages and blocks forgotten at the limit."""
        known = (self.known, self.free.known, self.allocated.known)
        return sum(each.forgotten for each in known)

    def page(self, pfn: int) -> Page:
        """Return the state of a page; of a new one as far as its block tells."""
        page = self.known.get(pfn)
        if page is None:
            page = self._new(pfn)
            forgotten = self.known.put(pfn, page)
            if forgotten is not None:
                self.settle(forgotten)
        return page

    def _new(self, pfn: int) -> Page:
        page = Page(pfn)
        name, block = "mm_page_free", self.free.containing(pfn)
        if block is None:
            name, block = "mm_page_alloc", self.allocated.containing(pfn)
        if block is not None:
            if name == "mm_page_free" or not (block.compound or block.start == pfn):
                page.became(0, counted=False)
            note = of_block(pfn, block.start, block.order)
            page.history.append(
                Step(block.line, block.head, name, None, page.count, note)
            )
        return page

    def tracked(self, pfn: int, order: int) -> list[Page]:
        """Return the pages of a block that have a state."""
        items = self.known.items
        if not order:
            page = items.get(pfn)
            return [page] if page else []
        inside = range(pfn, pfn + (1 << order))
        if len(inside) > len(items):
            return [page for each, page in items.items() if each in inside]
        return [items[each] for each in inside if each in items]

    def step(
        self,
        page: Page,
        event: PageEvent | BioEvent,
        before: int | None,
        note: str = "",
    ) -> Step:
        """Add an event to the history of a page."""
        step = Step(event.line, event.head, event.name, before, page.count, note)
        page.remember(step, STEPS)
        return step

    def found(
        self, rule: TraceRule, page: Page, event: PageEvent | BioEvent, note: str
    ) -> None:
        """Report a violation."""
        self._report(page, Violation(event.line, rule.name, note))

    def settle(self, page: Page) -> None:
        """Report a suspicion that nothing has refuted."""
        if page.suspicion is not None:
            violation, page.suspicion = page.suspicion, None
            self._report(page, violation)

    def settle_all(self) -> None:
        """Report all suspicions, at the end of the trace."""
        for page in self.known.items.values():
            self.settle(page)

    def _report(self, page: Page, violation: Violation) -> None:
        if violation.rule not in self._names:
            return
        verdict = self.verdict
        verdict.found[violation.rule] += 1
        if page.story is None:
            verdict.pages += 1
            page.story = Story(page.pfn, page.history)
            if page.departure is not None and page.departure not in page.history:
                page.story.steps.insert(0, page.departure)
            page.history = []
            if len(verdict.stories) < STORIES:
                verdict.stories.append(page.story)
        if len(page.story.violations) < STEPS:
            page.story.violations.append(violation)


def of_block(pfn: int, start: int, order: int) -> str:
    """Describe the block that a page is part of, if that has more than one page."""
    if not order:
        return ""
    return f"order {order}" if pfn == start else f"order {order} at {start:#x}"
