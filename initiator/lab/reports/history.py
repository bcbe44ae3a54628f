"""A journal as intervals: owners of pages, and lifetimes of bios, skbs and clones.

Times are steps of the journal. An interval begins with the step of an event and ends
with that of another, or at the end of the journal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from initiator.lab.kernel.journal import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.lab.kernel.journal import Entry

GETS: Final = frozenset({"get_page", "page_ref_inc"})
PUTS: Final = frozenset({"put_page", "page_ref_dec", "free_pages"})


@dataclass(slots=True)
class Interval:
    """An interval of steps.

    Args:
        text: label.
        start: first step.
        end: step of the event that ends it, or the end of the journal.
        ended: an event ends it.
    """

    text: str
    start: int
    end: int
    ended: bool = False


@dataclass(slots=True)
class PageHistory:
    """The history of one page.

    Args:
        pfn: page frame number.
        head: the head whose count applies, if the page was a compound tail.
        owners: owners of the page.
        objects: owners of slab objects in it.
        free: intervals on the free list, after the first allocation.
        counts: step and count at each change.
        marks: the events of this page.
    """

    pfn: int
    head: int | None = None
    owners: list[Interval] = field(default_factory=list)
    objects: list[Interval] = field(default_factory=list)
    free: list[Interval] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)
    marks: list[Entry] = field(default_factory=list)

    def in_use_until(self, free: Interval) -> int:
        """Return the step up to which an owner uses the page while it is free."""
        using = [each.end for each in self.owners if each.start < free.start < each.end]
        return min(max(using, default=free.start), free.end)


@dataclass(slots=True)
class Lifetime:
    """The lifetime of a bio, an skb or a clone.

    Args:
        kind: ``bio``, ``skb`` or ``clone``.
        number: sequence number, from 0.
        interval: the lifetime.
        parent: number of a clone's skb, or of an skb's bio.
        marks: the events of this object.
    """

    kind: str
    number: int
    interval: Interval
    parent: int | None = None
    marks: list[Entry] = field(default_factory=list)

    def step_of(self, *actions: str) -> int | None:
        """Return the first step with one of these actions, or None."""
        return next((mark.step for mark in self.marks if mark.action in actions), None)


@dataclass(slots=True)
class History:
    """The histories of all objects of a journal.

    Args:
        entries: the entries of the journal.
        pages: the pages that occur, by number.
        lifetimes: bios, skbs and clones, in this order.
        others: events of none of these.
        first: the first fault, or None.
        worst: the first of the worst faults, or None.
    """

    entries: Sequence[Entry]
    pages: list[PageHistory]
    lifetimes: list[Lifetime]
    others: list[Entry]
    first: Entry | None
    worst: Entry | None

    @property
    def end(self) -> int:
        """The step after the last one."""
        return self.entries[-1].step + 1 if self.entries else 0

    def of_kind(self, kind: str) -> list[Lifetime]:
        """Return the bios, skbs or clones, by number."""
        return [lifetime for lifetime in self.lifetimes if lifetime.kind == kind]

    def completed_by(self, bio: Lifetime) -> Lifetime | None:
        """Return the clone whose response completed the bio, or None."""
        end = bio.step_of("bi_end_io")
        if end is None:
            return None
        marks = [mark for mark in self.entries[:end] if mark.action == "transmit"]
        numbers = [mark.clone for mark in marks if mark.bio == bio.number]
        responses = [mark for mark in self.entries[:end] if mark.action == "response"]
        if not numbers or not responses:
            return None
        return next(c for c in self.of_kind("clone") if c.number == numbers[-1])


def build_history(entries: Sequence[Entry], worst: Entry | None) -> History:
    """Build the histories from the entries of a journal."""
    end = entries[-1].step + 1 if entries else 0
    faults = [entry for entry in entries if entry.fault is not None]
    lifetimes = _lifetimes(entries, end)
    tracker = _PageTracker(end)
    for entry in entries:
        tracker.add(entry)
    others = [entry for entry in entries if not _has_object(entry)]
    first = faults[0] if faults else None
    pages = [tracker.pages[pfn] for pfn in sorted(tracker.pages)]
    return History(entries, pages, lifetimes, others, first, worst)


def _has_object(entry: Entry) -> bool:
    return not (entry.page is entry.bio is entry.skb is entry.clone is None)


class _PageTracker:
    """Builds the histories of pages, entry by entry."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.pages: dict[int, PageHistory] = {}

    def add(self, entry: Entry) -> None:
        if entry.page is None:
            return
        pages = [self._page(entry.page + n) for n in range(entry.span)]
        pages[0].marks.append(entry)
        self._change(entry, pages)
        if entry.count is not None:
            self._count(entry.step, pages[0], entry.count)

    def _change(self, entry: Entry, pages: list[PageHistory]) -> None:
        match entry.action:
            case "alloc_pages":
                self._allocate(entry, pages)
            case "kmalloc":
                for page in pages:
                    page.objects.append(self._begin(entry))
            case "kfree":
                for page in pages:
                    _end_first(page.objects, entry, entry.actor)
            case "free_pages":
                for page in pages:
                    _end_first(page.owners, entry, entry.actor)
            case "free_page" if entry.fault is not Fault.DOUBLE_FREE:
                self._free(entry, pages[0])

    def _page(self, pfn: int) -> PageHistory:
        return self.pages.setdefault(pfn, PageHistory(pfn))

    def _begin(self, entry: Entry, text: str = "") -> Interval:
        return Interval(text or entry.owner or "", entry.step, self.end)

    def _allocate(self, entry: Entry, pages: list[PageHistory]) -> None:
        for page in pages:
            _end_first(page.owners, entry)
            _end_first(page.free, entry)
            page.owners.append(self._begin(entry))
            is_tail = entry.compound and page is not pages[0]
            page.head = pages[0].pfn if is_tail else None
            if page is not pages[0] and not is_tail:
                self._count(entry.step, page, 0)

    def _free(self, entry: Entry, page: PageHistory) -> None:
        page.free.append(self._begin(entry, "free"))
        if entry.fault is None:
            _end_first(page.objects, entry)
            _end_first(page.owners, entry)

    def _count(self, step: int, page: PageHistory, count: int) -> None:
        """Record a count for a page and the tails that it applies to."""
        head = page.pfn if page.head is None else page.head
        for each in self.pages.values():
            if head in (each.pfn, each.head):
                each.counts.append((step, count))


def _end_first(
    intervals: list[Interval], entry: Entry, text: str | None = None
) -> None:
    """End the first open interval, or the first open one with this label."""
    for interval in intervals:
        if not interval.ended and text in (None, interval.text):
            interval.end, interval.ended = entry.step, True
            return


def _lifetimes(entries: Sequence[Entry], end: int) -> list[Lifetime]:
    found: dict[tuple[str, int], Lifetime] = {}
    for entry in entries:
        for kind, number in _subjects(entry):
            lifetime = found.get((kind, number))
            if lifetime is None:
                interval = Interval(f"{kind} {number}", entry.step, end)
                lifetime = found[kind, number] = Lifetime(kind, number, interval)
            lifetime.marks.append(entry)
            if lifetime.parent is None:
                lifetime.parent = entry.bio if kind == "skb" else None
                lifetime.parent = entry.skb if kind == "clone" else lifetime.parent
            if _is_last(kind, entry):
                lifetime.interval.end, lifetime.interval.ended = entry.step, True
    for lifetime in found.values():
        if lifetime.kind == "skb":
            _end_skb(lifetime, found)
    order = ("bio", "skb", "clone")
    return sorted(
        found.values(), key=lambda each: (order.index(each.kind), each.number)
    )


def _subjects(entry: Entry) -> Iterator[tuple[str, int]]:
    """Yield the objects of an entry; one about a clone is not the bio's too."""
    if entry.clone is not None:
        yield "clone", entry.clone
    if entry.skb is not None:
        yield "skb", entry.skb
    if entry.bio is not None and entry.clone is None and entry.skb is None:
        yield "bio", entry.bio


def _is_last(kind: str, entry: Entry) -> bool:
    ending = {"bio": "bi_end_io", "clone": "kfree_skb"}
    return ending.get(kind) == entry.action


def _end_skb(skb: Lifetime, found: dict[tuple[str, int], Lifetime]) -> None:
    """End an skb's lifetime with its bio and the last of its clones."""
    uses = [lifetime for lifetime in found.values() if _uses(lifetime, skb)]
    if uses and all(lifetime.interval.ended for lifetime in uses):
        skb.interval.end = max(lifetime.interval.end for lifetime in uses)
        skb.interval.ended = True


def _uses(lifetime: Lifetime, skb: Lifetime) -> bool:
    if lifetime.kind == "clone":
        return lifetime.parent == skb.number
    return lifetime.kind == "bio" and lifetime.number == skb.parent
