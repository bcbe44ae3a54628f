"""What the judge remembers: pages, blocks and bios, each in bounded memory.

At its limit, a container forgets what was used least recently. The judge takes what it
does not know to be in order, so forgetting hides faults and invents none.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from initiator.lab.traces.verdict import Step, Story, Violation

Key = TypeVar("Key")
Value = TypeVar("Value")

HISTORY: Final = 8
"""Events remembered for each page."""
_ORDERS: Final = 11
"""Orders of the page allocator: up to MAX_ORDER, which is 10."""


class Bounded(Generic[Key, Value]):
    """A mapping that forgets the entry used least recently.

    Args:
        limit: maximum number of entries.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.forgotten = 0
        self.items: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """Return an entry, and count it as used; None if there is none."""
        value = self.items.get(key)
        if value is not None:
            self.items.move_to_end(key)
        return value

    def put(self, key: Key, value: Value) -> Value | None:
        """Add an entry, and return the one that is forgotten for it."""
        self.items[key] = value
        if len(self.items) <= self.limit:
            return None
        self.forgotten += 1
        return self.items.popitem(last=False)[1]


@dataclass(slots=True)
class Page:
    """The state of a page.

    Args:
        pfn: page frame number.
        count: page count; None if unknown.
        is_certain: ``count`` is proved, not printed after a race.
        is_counted: the count began with an allocation; False if it was raised from 0 or
            the page is the tail of a block; None if unknown.
        is_shared: the page has a mapping, so others may reference it at any time.
        suspicion: a get from 0 that the next event confirms or refutes.
        bios: number of its bios in flight.
        queued: count when the first of these was queued; None if unknown.
        departure: the event that queued the last of them.
        history: its last events.
        story: its part of the report, if it has violations.
    """

    pfn: int
    count: int | None = None
    is_certain: bool = False
    is_counted: bool | None = None
    is_shared: bool = False
    suspicion: Violation | None = None
    bios: int = 0
    queued: int | None = None
    departure: Step | None = None
    history: list[Step] = field(default_factory=list)
    story: Story | None = None

    def became(self, count: int, *, counted: bool | None) -> None:
        """Record a count that is proved."""
        self.count, self.is_certain, self.is_counted = count, True, counted

    def remember(self, step: Step, longest: int) -> None:
        """Add an event to the history, or to the story if there is one."""
        if self.story is None:
            self.history.append(step)
            if len(self.history) > HISTORY:
                del self.history[0]
        elif len(self.story.steps) < longest:
            self.story.steps.append(step)
        else:
            self.story.omitted += 1


class Block(NamedTuple):
    """A block of pages on the free list, or allocated.

    Args:
        start: first page.
        order: binary logarithm of the number of pages.
        line, head: line of the event, and the text before it.
        is_batched: the free block is known from mm_page_free_batched alone.
        compound: it is a compound page.
    """

    start: int
    order: int
    line: int = 0
    head: str = ""
    is_batched: bool = False
    compound: bool = False

    @property
    def end(self) -> int:
        """The page behind the last."""
        return self.start + (1 << self.order)


class Blocks:
    """Blocks that do not overlap, aligned to their size as in the buddy allocator.

    Args:
        limit: maximum number of blocks.
    """

    def __init__(self, limit: int) -> None:
        self.known: Bounded[int, Block] = Bounded(limit)

    def containing(self, pfn: int) -> Block | None:
        """Return the block that a page is part of, or None."""
        items = self.known.items
        for order in range(_ORDERS):
            block = items.get(pfn >> order << order)
            if block is not None:
                return block if block.end > pfn else None
        return None

    def overlapping(self, pfn: int, order: int) -> Block | None:
        """Return the first block with pages in common, or None."""
        block = self.containing(pfn)
        if block is None and order:
            inside = range(pfn + 1, pfn + (1 << order))
            items = self.known.items
            block = next((items[each] for each in inside if each in items), None)
        return block

    def add(self, block: Block) -> None:
        """Add a block."""
        self.known.put(block.start, block)

    def remove(self, pfn: int, order: int) -> None:
        """Remove pages; the rest of a larger block is split into smaller ones."""
        items = self.known.items
        block = self.containing(pfn)
        if block is not None and block.order > order:
            del items[block.start]
            self._split(block, pfn, order)
        elif order:
            for each in range(pfn, pfn + (1 << order)):
                items.pop(each, None)
        else:
            items.pop(pfn, None)

    def _split(self, block: Block, pfn: int, order: int) -> None:
        start = block.start
        for smaller in range(block.order - 1, order - 1, -1):
            middle = start + (1 << smaller)
            rest = middle if pfn < middle else start
            start = start if pfn < middle else middle
            self.add(block._replace(start=rest, order=smaller))

    def drop(self, pfn: int) -> None:
        """Remove the whole block that a page is part of."""
        block = self.containing(pfn)
        if block is not None:
            del self.known.items[block.start]
