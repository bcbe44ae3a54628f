"""Judges what happens to pages between queueing and completion of their bios."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from initiator.lab.traces.flights import Flights
from initiator.lab.traces.rules import OUTLIVES_IO
from initiator.lab.traces.state import Bounded

if TYPE_CHECKING:
    from initiator.lab.traces.events import BioEvent
    from initiator.lab.traces.pages import Pages
    from initiator.lab.traces.state import Page

_WAITING: Final = 256
"""Pages kept for a bio that is not yet queued (BIO_MAX_VECS)."""


class Bios:
    """Judges the bios in flight.

    Args:
        pages: the pages.
    """

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.forget_all()

    def forget_all(self) -> None:
        """Begin again, as at the beginning of a trace."""
        limit = self.pages.verdict.limit
        self._flights = Flights(limit)
        self._waiting: Bounded[tuple[str, int], list[BioEvent]] = Bounded(
            max(limit // _WAITING, 1)
        )

    @property
    def forgotten(self) -> int:
        """The number of bios forgotten at the limit."""
        return self._flights.known.forgotten + self._waiting.forgotten

    def queue(self, event: BioEvent) -> None:
        """Take a bio that is queued."""
        if not event.sectors:
            return
        device, sector = event.device, event.sector
        self._flights.queue(device, sector, event.sectors)
        for named in self._waiting.items.pop((device, sector), ()):
            self._take_off(named, event)
        self._forget()

    def page(self, event: BioEvent) -> None:
        """Take a page of a bio that has been, or is about to be queued."""
        if self._flights.find(event.device, event.sector) is not None:
            self._take_off(event, event)
            self._forget()
            return
        place = event.device, event.sector
        waiting = self._waiting.get(place)
        if waiting is None:
            self._waiting.put(place, [event])
        elif len(waiting) < _WAITING:
            waiting.append(event)

    def _take_off(self, named: BioEvent, queued: BioEvent) -> None:
        flight = self._flights.find(named.device, named.sector)
        if flight is None or named.pfn is None:
            return
        self._flights.add_page(flight, named.pfn)
        page = self.pages.page(named.pfn)
        before = page.count
        page.is_shared |= named.shared
        if named.refcount is not None:
            # The owner uses the page: it is allocated, in whatever way.
            page.became(named.refcount, counted=named.refcount > 0)
            self.pages.free.remove(page.pfn, 0)
        if not page.bios:
            page.queued = page.count
        page.bios += 1
        note = f"bio at {queued.device}, sector {queued.sector}"
        page.departure = self.pages.step(page, queued, before, note)

    def _forget(self) -> None:
        """Forget the oldest bios if there are too many."""
        while (flight := self._flights.forget()) is not None:
            for pfn in flight.pages:
                self._land(pfn)

    def _land(self, pfn: int) -> Page | None:
        page = self.pages.known.items.get(pfn)
        if page is None or not page.bios:
            return None
        page.bios -= 1
        return page

    def complete(self, event: BioEvent) -> None:
        """Judge the completion of a bio, or of the bios of a request."""
        is_request = event.name == "block_rq_complete"
        for flight in self._flights.complete(
            event.device, event.sector, event.sectors, is_request=is_request
        ):
            note = f"bio at {flight.device}, sector {flight.sector}"
            for pfn in flight.pages:
                page = self._land(pfn)
                if page is not None:
                    self.pages.step(page, event, page.count, note)
                    self._compare(page, event)

    def _compare(self, page: Page, event: BioEvent) -> None:
        """Compare the counts at queueing and completion of a page's last bio."""
        if page.bios or page.count is None or page.queued is None:
            return
        if page.is_shared:
            self.pages.verdict.shared += 1
        elif page.count > page.queued:
            note = f"the count was {page.queued} at queueing and is {page.count}"
            self.pages.found(OUTLIVES_IO, page, event, note)
