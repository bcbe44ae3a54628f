"""The judge of a trace: takes events in order, and finds broken rules.

Its memory is bounded, see ``initiator.lab.traces.state``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from initiator.lab.traces.allocator import Allocator
from initiator.lab.traces.bios import Bios
from initiator.lab.traces.counts import Counts
from initiator.lab.traces.events import BioEvent, PageEvent
from initiator.lab.traces.pages import Pages
from initiator.lab.traces.rules import RULES
from initiator.lab.traces.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from initiator.lab.traces.events import Event
    from initiator.lab.traces.rules import TraceRule

LIMIT: Final = 65536
"""Pages, blocks and bios that are remembered unless another limit is given."""


class Judge:
    """Judges a trace event by event.

    Args:
        limit: pages, blocks and bios to remember.
        rules: the rules to judge by.
    """

    def __init__(
        self, limit: int = LIMIT, rules: Collection[TraceRule] = RULES
    ) -> None:
        self.verdict = Verdict(tuple(rules), limit)
        self._forgotten = 0
        self._pages = Pages(self.verdict)
        self._bios = Bios(self._pages)
        counts, allocator = Counts(self._pages), Allocator(self._pages)
        self._of_pages: dict[str, Callable[[PageEvent], None]] = {
            "page_ref_set": counts.set,
            "page_ref_unfreeze": counts.set,
            "page_ref_freeze": counts.freeze,
            "page_ref_mod": counts.modify,
            "page_ref_mod_and_test": counts.modify,
            "page_ref_mod_and_return": counts.modify,
            "page_ref_mod_unless": counts.modify,
            "page_count": counts.sample,
            "page_to_zero": counts.to_zero,
            "mm_page_alloc": allocator.allocate,
            "mm_page_free": allocator.free,
            "mm_page_free_batched": allocator.free_batched,
        }
        self._of_bios: dict[str, Callable[[BioEvent], None]] = {
            "block_bio_queue": self._bios.queue,
            "bio_page": self._bios.page,
            "block_bio_complete": self._bios.complete,
            "block_rq_complete": self._bios.complete,
        }

    def judge(self, events: Iterable[Event]) -> Verdict:
        """Judge all events of a trace."""
        for event in events:
            self.verdict.events[event.name] += 1
            if isinstance(event, PageEvent):
                self._of_pages[event.name](event)
            elif isinstance(event, BioEvent):
                self._of_bios[event.name](event)
            elif event.name == "lost":
                self._lost()
            elif event.name == "pages.bt":
                self._pages.sees_allocations = True
        self._pages.settle_all()
        self.verdict.forgotten = self._forgotten + self._now_forgotten()
        return self.verdict

    def _lost(self) -> None:
        """Begin again: any page may have been allocated, freed or referenced."""
        self._forgotten += self._now_forgotten()
        self._pages.forget_all()
        self._bios.forget_all()

    def _now_forgotten(self) -> int:
        return self._pages.forgotten + self._bios.forgotten
