"""A target behind filters: some frames come late, twice, changed or not at all.

::

    request --> first filter --> second ... --> Target.handle --+
                                                                |
    reply   <-- first filter <-- second ... <-------------------+

What is held back waits here, and goes on from where it was when it comes due. Nothing
sleeps: other frames and other targets are served meanwhile.
"""

from __future__ import annotations

from dataclasses import replace
from heapq import heappop, heappush
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.address import SHELF_ALL, SLOT_ALL
from aoe.header import HEADER_LENGTH
from target.filters.settings import Direction
from target.filters.wire import PASS, Fate, Frame, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from target.filters.wire import WireFilter
    from target.protocol.exports import Export
    from target.protocol.target import Target

HELD_LIMIT: Final = 1024
"""Frames that wait at a time; more are lost, as in the queue of any network."""
_ADDRESS: Final = Struct("!16xHB")
"""Shelf and slot, where they lie in a frame."""


class FilteredTarget:
    """A target, and the filters between it and its interface.

    Args:
        target: the target.
        filters: the one nearest to the wire first. Other interfaces of the same export
            have the same ones, so that a count holds for all of them.
    """

    def __init__(self, target: Target, filters: Iterable[WireFilter]) -> None:
        self.target = target
        self.lost = 0
        """Frames that found no room to wait."""
        stack = tuple(filters)
        self._filters = {
            Direction.IN: [met for met in stack if met.watches(Direction.IN)],
            Direction.OUT: [met for met in stack[::-1] if met.watches(Direction.OUT)],
        }
        self._held: list[tuple[float, int, Frame]] = []
        """A heap: when due, and in which order of those that are due at once."""
        self._number = 0
        self._yielding: dict[tuple[Direction, int], tuple[float, Frame]] = {}
        """By direction and filter: what waits for the next one to overtake it, and
        until when."""

    @property
    def export(self) -> Export:
        """What is served."""
        return self.target.export

    def handle(self, request: memoryview, reply: memoryview, now: float) -> int:
        """Let a request in, and write what may be answered at once.

        The same as ``Target.handle``, but that 0 need not be the last word: call
        ``handle_due`` afterwards, and again at ``next_timeout``.

        Args:
            request: the frame; not needed any more afterwards.
            reply: memory for a reply, at least ``14 + mtu`` bytes.
            now: seconds.

        Returns:
            The length of the reply, 0 for silence.
        """
        if not self._is_for_us(request):
            return self.target.handle(request, reply, now)
        return self._move(Frame(request, Direction.IN, kind_of(request)), reply, now)

    def handle_due(self, reply: memoryview, now: float) -> int:
        """Let go on what is due, and write the next reply that comes of it.

        A request that was held back is executed now. Call this until it returns 0.

        Args:
            reply: memory for a reply, at least ``14 + mtu`` bytes.
            now: seconds.

        Returns:
            The length of the reply, 0 when nothing else is due.
        """
        for place, (due, frame) in list(self._yielding.items()):
            if due <= now:
                del self._yielding[place]
                self._hold(frame, due)
        while self._held and self._held[0][0] <= now:
            *_, frame = heappop(self._held)
            if length := self._move(frame, reply, now):
                return length
        return 0

    def next_timeout(self) -> float | None:
        """Return the ``now`` at which something is due, None while nothing waits."""
        dues = [due for due, _ in self._yielding.values()]
        dues += [due for due, *_ in self._held[:1]]
        return min(dues, default=None)

    def forget(self) -> None:
        """Lose what waits: nobody is there any more to whom it would not be news."""
        self._held.clear()
        self._yielding.clear()

    def _is_for_us(self, request: memoryview) -> bool:
        # Filters see what the target would execute, not what is for its neighbours.
        if len(request) < HEADER_LENGTH:
            return False
        shelf, slot = _ADDRESS.unpack_from(request)
        ours = self.export.address
        return shelf in (ours.shelf, SHELF_ALL) and slot in (ours.slot, SLOT_ALL)

    def _move(self, frame: Frame, reply: memoryview, now: float) -> int:
        # As far as a frame gets now; what leaves is in `reply`.
        if frame.direction is Direction.IN:
            if not self._pass(frame, now):
                return 0
            length = self.target.handle(memoryview(frame.data), reply, now)
            if not length:
                return 0
            frame = Frame(reply[:length], Direction.OUT, frame.kind)
        if not self._pass(frame, now):
            return 0
        length = len(frame.data)
        if length > len(reply):
            # The interface has become smaller while it waited.
            self.lost += 1
            return 0
        reply[:length] = frame.data
        return length

    def _pass(self, frame: Frame, now: float) -> bool:
        # Whether it got past all filters that are left.
        filters = self._filters[frame.direction]
        while frame.position < len(filters):
            place = frame.direction, frame.position
            frame.position += 1
            if place in self._yielding:
                # Overtake, whatever the filter would have had in mind.
                self._hold(self._yielding.pop(place)[1], now)
                continue
            fate = filters[place[1]].meet(frame)
            if fate is not PASS and not self._meet_fate(frame, fate, place, now):
                return False
        return True

    def _meet_fate(
        self, frame: Frame, fate: Fate, place: tuple[Direction, int], now: float
    ) -> bool:
        # Whether it goes on at once.
        if fate.overtaken:
            frame.data = bytes(frame.data)
            self._yielding[place] = now + fate.hold, frame
            return False
        if fate.hold:
            self._hold(frame, now + fate.hold)
            return False
        for _ in range(1, fate.copies):
            self._hold(replace(frame), now)
        return fate.copies > 0

    def _hold(self, frame: Frame, due: float) -> None:
        if len(self._held) >= HELD_LIMIT:
            self.lost += 1
            return
        # The memory it came in is the interface's.
        frame.data = bytes(frame.data)
        self._number += 1
        heappush(self._held, (due, self._number, frame))
