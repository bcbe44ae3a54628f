"""Range locks that keep overlapping writes apart, since AoE does not order frames.

A write that was retransmitted may be executed twice, the second time long after its
response, when newer data has been written to the same sectors. Each transmission has a
tag of its own, so a response to each of them proves that none is in flight. Until then,
or until no frame can be in the network, the write's sectors stay locked::

    submitted ---> lock held, frames in flight ---> all answered ---> free
       |             ^                         |                       ^
       +-- queued ---+                         +---> quarantined ------+
       sectors are locked                            until all are answered, or too old
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


class _RangeLock:
    """The sectors of a write, locked until nothing in flight can write to them."""

    __slots__ = ("bio", "end", "sent", "start", "tags")

    def __init__(self, bio: Bio, start: int, end: int) -> None:
        self.bio: Bio | None = bio
        self.start = start
        self.end = end
        self.tags: set[int] | None = None
        """Abandoned transmissions that have not been answered; usually none."""
        self.sent = 0.0


class RangeLocks:
    """Range locks of one device's writes and trims.

    Attributes:
        queued: bios that wait for a lock, oldest first.
        queued_total: how many bios have been queued so far.
    """

    def __init__(self) -> None:
        self.queued: list[Bio] = []
        self.queued_total = 0
        self._held: dict[int, _RangeLock] = {}
        self._starts: list[int] = []
        self._tags: dict[int, _RangeLock] = {}
        self._quarantined: list[tuple[float, int, _RangeLock]] = []
        self._serial = count()
        self._freed: list[tuple[int, int]] = []

    def acquire(self, bio: Bio, now: float) -> bool:
        """Lock a bio's sectors, or queue the bio; return True if they were locked."""
        if self._quarantined:
            self._expire(now)
        if self._lock(bio, self.queued):
            return True
        self.queued.append(bio)
        self.queued_total += 1
        return False

    def add_in_flight(self, bio: Bio, tags: Mapping[int, float]) -> None:
        """Record abandoned transmissions of a bio, with the time of each."""
        lock = self._held.get(bio.sector)
        if lock is None or lock.bio is not bio:
            return
        if lock.tags is None:
            lock.tags = set()
        for tag, sent in tags.items():
            lock.tags.add(tag)
            lock.sent = max(lock.sent, sent)
            self._tags[tag] = lock

    def retire(self, tag: int) -> None:
        """Record that an abandoned transmission was answered."""
        lock = self._tags.pop(tag, None)
        if lock is None or lock.tags is None:
            return
        lock.tags.discard(tag)
        if lock.bio is None and not lock.tags:
            self._free(lock)

    def release(self, bio: Bio, quarantine: Callable[[], float]) -> None:
        """Release a bio's lock when the bio ends.

        If transmissions of it may be in flight, the lock is quarantined instead.

        Args:
            bio: the bio.
            quarantine: returns for how many seconds after its transmission a frame may
                still be in the network; called only if needed.
        """
        lock = self._held.get(bio.sector)
        if lock is None or lock.bio is not bio:
            return
        lock.bio = None
        if lock.tags:
            free_at = lock.sent + quarantine()
            heappush(self._quarantined, (free_at, next(self._serial), lock))
        else:
            self._free(lock)

    def grant(self, now: float) -> list[Bio]:
        """Lock the sectors of queued bios where possible; return those bios."""
        self._expire(now)
        freed, self._freed = self._freed, []
        granted: list[Bio] = []
        still_queued: list[Bio] = []
        for bio in self.queued:
            # Bios that overlap no freed range are blocked as before.
            is_affected = any(_overlaps(bio, start, end) for start, end in freed)
            if is_affected and self._lock(bio, still_queued):
                granted.append(bio)
            else:
                still_queued.append(bio)
        self.queued = still_queued
        return granted

    def clear_queue(self) -> list[Bio]:
        """Remove and return all queued bios."""
        queued, self.queued = self.queued, []
        self._freed.clear()
        return queued

    def next_timeout(self) -> float | None:
        """Return when a quarantine ends that a queued bio may wait for, if any."""
        if not self.queued:
            return None
        if self._freed:
            return float("-inf")
        return self._quarantined[0][0] if self._quarantined else None

    def _lock(self, bio: Bio, ahead: list[Bio]) -> bool:
        """Lock a bio's sectors unless they overlap a lock or a bio queued ``ahead``."""
        start = bio.sector
        end = start + bio.size // SECTOR
        starts = self._starts
        # Locks are disjoint: only the last that starts before `end` can overlap.
        at = bisect_left(starts, end)
        if at and self._held[starts[at - 1]].end > start:
            return False
        for other in ahead:
            if _overlaps(other, start, end):
                return False
        starts.insert(at, start)
        self._held[start] = _RangeLock(bio, start, end)
        return True

    def _free(self, lock: _RangeLock) -> None:
        start = lock.start
        del self._held[start]
        del self._starts[bisect_left(self._starts, start)]
        for tag in lock.tags or ():
            self._tags.pop(tag, None)
        if self.queued:
            self._freed.append((start, lock.end))

    def _expire(self, now: float) -> None:
        quarantined = self._quarantined
        while quarantined and quarantined[0][0] <= now:
            lock = heappop(quarantined)[2]
            # It may have been freed by responses, and the sectors locked again.
            if self._held.get(lock.start) is lock:
                self._free(lock)


def _overlaps(bio: Bio, start: int, end: int) -> bool:
    return bio.sector < end and start < _end(bio)


def _end(bio: Bio) -> int:
    return bio.sector + bio.size // SECTOR
