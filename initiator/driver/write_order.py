"""Which writes have to wait for others: AoE keeps no order, so we do.

A write that is sent twice may be executed twice, the second time long after its answer
came, and after newer data was written to the same sectors. Every transmission has a tag
of its own, so an answer to each proves that none is on its way any more. Until then, or
until no frame lives that long, the write's sectors stay taken::

    submitted ---> taken, its frames are out ---> each transmission answered ---> free
       |             ^                       |                                    ^
       +-- waiting --+                       +--> lingering: some are not --------+
       others have the sectors                    all answered, or too old
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from aoe.ata import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from initiator.driver.bio import Bio


class _Taken:
    """The sectors of a write: its own until nothing can write to them any more."""

    __slots__ = ("bio", "end", "sent", "start", "tags")

    def __init__(self, bio: Bio, start: int, end: int) -> None:
        self.bio: Bio | None = bio
        self.start = start
        self.end = end
        self.tags: set[int] | None = None
        """Transmissions that nobody waits for any more; most have none, ever."""
        self.sent = 0.0


class RangeLocks:
    """Keeps writes and trims of one device apart that have sectors in common.

    Attributes:
        waiting: those that wait for others, oldest first.
        held: how many have had to wait so far.
    """

    def __init__(self) -> None:
        self.queued: list[Bio] = []
        self.queued_total = 0
        self._taken: dict[int, _Taken] = {}
        self._starts: list[int] = []
        self._tags: dict[int, _Taken] = {}
        self._lingering: list[tuple[float, int, _Taken]] = []
        self._serial = count()
        self._freed: list[tuple[int, int]] = []

    def acquire(self, bio: Bio, now: float) -> bool:
        """Take a write's sectors, or let it wait; tell whether it may go."""
        if self._lingering:
            self._expire(now)
        if self._take(bio, self.queued):
            return True
        self.queued.append(bio)
        self.queued_total += 1
        return False

    def add_in_flight(self, bio: Bio, tags: Mapping[int, float]) -> None:
        """Note transmissions of a bio, and when they left, that nobody waits for."""
        taken = self._taken.get(bio.sector)
        if taken is None or taken.bio is not bio:
            return
        if taken.tags is None:
            taken.tags = set()
        for tag, sent in tags.items():
            taken.tags.add(tag)
            taken.sent = max(taken.sent, sent)
            self._tags[tag] = taken

    def answered(self, tag: int) -> None:
        """Take note that one of those was executed."""
        taken = self._tags.pop(tag, None)
        if taken is None or taken.tags is None:
            return
        taken.tags.discard(tag)
        if taken.bio is None and not taken.tags:
            self._free(taken)

    def release(self, bio: Bio, linger: Callable[[], float]) -> None:
        """A bio ends.

        Args:
            bio: whose sectors are free now, unless a frame of it may still be about.
            linger: tells for how many seconds that may be so.
        """
        taken = self._taken.get(bio.sector)
        if taken is None or taken.bio is not bio:
            return
        taken.bio = None
        if taken.tags:
            free_at = taken.sent + linger()
            heappush(self._lingering, (free_at, next(self._serial), taken))
        else:
            self._free(taken)

    def grant(self, now: float) -> list[Bio]:
        """Return the bios that need not wait any more; their sectors are theirs."""
        self._expire(now)
        freed, self._freed = self._freed, []
        grant: list[Bio] = []
        still: list[Bio] = []
        for bio in self.queued:
            # The others wait for what is taken as before.
            may_go = any(_overlaps(bio, start, end) for start, end in freed)
            if may_go and self._take(bio, still):
                grant.append(bio)
            else:
                still.append(bio)
        self.queued = still
        return grant

    def clear_queue(self) -> list[Bio]:
        """Return all that wait; they wait no more, and have taken nothing."""
        waiting, self.queued = self.queued, []
        self._freed.clear()
        return waiting

    def next_timeout(self) -> float | None:
        """When ``ready`` may have something that no answer brings, if anybody waits."""
        if not self.queued:
            return None
        if self._freed:
            return float("-inf")
        return self._lingering[0][0] if self._lingering else None

    def _take(self, bio: Bio, before: list[Bio]) -> bool:
        """Take a bio's sectors, if nobody has them and none ``before`` wants them."""
        start = bio.sector
        end = start + bio.size // SECTOR
        starts = self._starts
        # What is taken has no sector in common: only the last before the end can reach.
        at = bisect_left(starts, end)
        if at and self._taken[starts[at - 1]].end > start:
            return False
        for other in before:
            if _overlaps(other, start, end):
                return False
        starts.insert(at, start)
        self._taken[start] = _Taken(bio, start, end)
        return True

    def _free(self, taken: _Taken) -> None:
        start = taken.start
        del self._taken[start]
        del self._starts[bisect_left(self._starts, start)]
        for tag in taken.tags or ():
            self._tags.pop(tag, None)
        if self.queued:
            self._freed.append((start, taken.end))

    def _expire(self, now: float) -> None:
        lingering = self._lingering
        while lingering and lingering[0][0] <= now:
            taken = heappop(lingering)[2]
            # All its tags may be answered since, and the sectors be another's.
            if self._taken.get(taken.start) is taken:
                self._free(taken)


def _overlaps(bio: Bio, start: int, end: int) -> bool:
    return bio.sector < end and start < _end(bio)


def _end(bio: Bio) -> int:
    return bio.sector + bio.size // SECTOR
