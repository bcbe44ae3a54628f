"""A journal as a picture needs it: who had each page when, and what lived how long.

Times are steps of the journal. A state that an event brings about begins with its step
and lasts until the step that ends it, or to the end of the story.
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
class Period:
    """Something that lasts.

    Args:
        text: who or what.
        start: the step that it begins with.
        end: the step that ends it.
        ended: it ended; otherwise ``end`` is the end of the story.
    """

    text: str
    start: int
    end: int
    ended: bool = False


@dataclass(slots=True)
class Lane:
    """One page's part of the story.

    Args:
        page: its number.
        head: the page whose count stands for it, if it was a compound page's tail.
        owners: who had the page.
        objects: who had slab objects in it.
        free: while it was on the free list, although handed out before.
        counts: step and count, at each change.
        marks: the events that are about it.
    """

    page: int
    head: int | None = None
    owners: list[Period] = field(default_factory=list)
    objects: list[Period] = field(default_factory=list)
    free: list[Period] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)
    marks: list[Entry] = field(default_factory=list)

    def lost_until(self, free: Period) -> int:
        """Return the step up to which somebody uses the page although it is free."""
        using = [each.end for each in self.owners if each.start < free.start < each.end]
        return min(max(using, default=free.start), free.end)


@dataclass(slots=True)
class Life:
    """A bio, an skb or a clone.

    Args:
        kind: which of the three.
        number: from 0 on.
        period: how long it lived.
        parent: number of the skb that a clone is of, of the bio that an skb carries.
        marks: the events that are about it.
    """

    kind: str
    number: int
    period: Period
    parent: int | None = None
    marks: list[Entry] = field(default_factory=list)

    def step_of(self, *actions: str) -> int | None:
        """Return the first step at which one of these was done to it."""
        return next((mark.step for mark in self.marks if mark.action in actions), None)


@dataclass(slots=True)
class Story:
    """All of it.

    Args:
        entries: the journal's.
        lanes: of pages that take part, by number.
        lives: bios, skbs and clones, in this order.
        others: events that are about none of them.
        first: the first fault, None if there was none.
        worst: the first of the worst faults.
    """

    entries: Sequence[Entry]
    lanes: list[Lane]
    lives: list[Life]
    others: list[Entry]
    first: Entry | None
    worst: Entry | None

    @property
    def end(self) -> int:
        """The step after the last."""
        return self.entries[-1].step + 1 if self.entries else 0

    def of_kind(self, kind: str) -> list[Life]:
        """Return the bios, the skbs or the clones, by number."""
        return [life for life in self.lives if life.kind == kind]

    def answered(self, bio: Life) -> Life | None:
        """Return the clone whose answer ended the bio, if that went well."""
        end = bio.step_of("bi_end_io")
        if end is None:
            return None
        marks = [mark for mark in self.entries[:end] if mark.action == "transmit"]
        numbers = [mark.clone for mark in marks if mark.bio == bio.number]
        answers = [mark for mark in self.entries[:end] if mark.action == "response"]
        if not numbers or not answers:
            return None
        return next(c for c in self.of_kind("clone") if c.number == numbers[-1])


def tell(entries: Sequence[Entry], worst: Entry | None) -> Story:
    """Make a story of a journal's entries."""
    end = entries[-1].step + 1 if entries else 0
    faults = [entry for entry in entries if entry.fault is not None]
    lives = _lives(entries, end)
    lanes = _Lanes(end)
    for entry in entries:
        lanes.add(entry)
    others = [entry for entry in entries if not _has_place(entry)]
    first = faults[0] if faults else None
    pages = [lanes.lanes[page] for page in sorted(lanes.lanes)]
    return Story(entries, pages, lives, others, first, worst)


def _has_place(entry: Entry) -> bool:
    return not (entry.page is entry.bio is entry.skb is entry.clone is None)


class _Lanes:
    """Follows every page through the entries."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.lanes: dict[int, Lane] = {}

    def add(self, entry: Entry) -> None:
        if entry.page is None:
            return
        lanes = [self._lane(entry.page + n) for n in range(entry.span)]
        lanes[0].marks.append(entry)
        self._change(entry, lanes)
        if entry.count is not None:
            self._count(entry.step, lanes[0], entry.count)

    def _change(self, entry: Entry, lanes: list[Lane]) -> None:
        match entry.action:
            case "alloc_pages":
                self._allocate(entry, lanes)
            case "kmalloc":
                for lane in lanes:
                    lane.objects.append(self._begin(entry))
            case "kfree":
                for lane in lanes:
                    _finish(lane.objects, entry, entry.actor)
            case "free_pages":
                for lane in lanes:
                    _finish(lane.owners, entry, entry.actor)
            case "free_page" if entry.fault is not Fault.DOUBLE_FREE:
                self._free(entry, lanes[0])

    def _lane(self, page: int) -> Lane:
        return self.lanes.setdefault(page, Lane(page))

    def _begin(self, entry: Entry, text: str = "") -> Period:
        return Period(text or entry.owner or "", entry.step, self.end)

    def _allocate(self, entry: Entry, lanes: list[Lane]) -> None:
        for lane in lanes:
            _finish(lane.owners, entry)
            _finish(lane.free, entry)
            lane.owners.append(self._begin(entry))
            is_tail = entry.compound and lane is not lanes[0]
            lane.head = lanes[0].page if is_tail else None
            if lane is not lanes[0] and not is_tail:
                self._count(entry.step, lane, 0)

    def _free(self, entry: Entry, lane: Lane) -> None:
        lane.free.append(self._begin(entry, "free"))
        if entry.fault is None:
            _finish(lane.objects, entry)
            _finish(lane.owners, entry)

    def _count(self, step: int, lane: Lane, count: int) -> None:
        """Note a count, of all pages that it stands for."""
        head = lane.page if lane.head is None else lane.head
        for each in self.lanes.values():
            if head in (each.page, each.head):
                each.counts.append((step, count))


def _finish(periods: list[Period], entry: Entry, text: str | None = None) -> None:
    """End the first of the open periods, or the first of that text."""
    for period in periods:
        if not period.ended and text in (None, period.text):
            period.end, period.ended = entry.step, True
            return


def _lives(entries: Sequence[Entry], end: int) -> list[Life]:
    found: dict[tuple[str, int], Life] = {}
    for entry in entries:
        for kind, number in _whom(entry):
            life = found.get((kind, number))
            if life is None:
                period = Period(f"{kind} {number}", entry.step, end)
                life = found[kind, number] = Life(kind, number, period)
            life.marks.append(entry)
            if life.parent is None:
                life.parent = entry.bio if kind == "skb" else None
                life.parent = entry.skb if kind == "clone" else life.parent
            if _is_last(kind, entry):
                life.period.end, life.period.ended = entry.step, True
    for life in found.values():
        if life.kind == "skb":
            _end_skb(life, found)
    order = ("bio", "skb", "clone")
    return sorted(
        found.values(), key=lambda each: (order.index(each.kind), each.number)
    )


def _whom(entry: Entry) -> Iterator[tuple[str, int]]:
    """Say whose entry it is; what a clone carries of a bio is the clone's."""
    if entry.clone is not None:
        yield "clone", entry.clone
    if entry.skb is not None:
        yield "skb", entry.skb
    if entry.bio is not None and entry.clone is None and entry.skb is None:
        yield "bio", entry.bio


def _is_last(kind: str, entry: Entry) -> bool:
    ending = {"bio": "bi_end_io", "clone": "kfree_skb"}
    return ending.get(kind) == entry.action


def _end_skb(skb: Life, found: dict[tuple[str, int], Life]) -> None:
    """An skb is wanted until its bio has ended and its clones are gone."""
    uses = [life for life in found.values() if _uses(life, skb)]
    if uses and all(life.period.ended for life in uses):
        skb.period.end = max(life.period.end for life in uses)
        skb.period.ended = True


def _uses(life: Life, skb: Life) -> bool:
    if life.kind == "clone":
        return life.parent == skb.number
    return life.kind == "bio" and life.number == skb.parent
