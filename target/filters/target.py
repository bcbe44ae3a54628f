"""A target behind wire filters, which delay, duplicate, reorder, change or drop frames.

::

    request  --> first filter --> second ... --> Target.handle --+
                                                                 |
    response <-- first filter <-- second ... <-------------------+

Delayed frames are queued with the position of the filter and continue from there when
they are due. Nothing sleeps: other frames and targets are served meanwhile.
"""

from __future__ import annotations

from dataclasses import replace
from heapq import heappop, heappush
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.address import SHELF_ALL, SLOT_ALL
from aoe.header import HEADER_LENGTH
from target.filters.settings import Direction
from target.filters.wire import PASS, Frame, Verdict, classify

if TYPE_CHECKING:
    from collections.abc import Iterable

    from target.filters.wire import WireFilter
    from target.protocol.engine import Engine
    from target.protocol.exports import Export

QUEUE_LIMIT: Final = 1024
"""Most frames in the queue; frames beyond that are dropped (tail drop)."""
_ADDRESS: Final = Struct("!16xHB")
"""Shelf and slot of a frame."""


class FilteredTarget:
    """A target, and the filters between it and its interface.

    Args:
        target: the target.
        filters: the wire filters, the one nearest to the wire first. All interfaces of
            an export share them, so that a count is per export.
    """

    def __init__(self, target: Engine, filters: Iterable[WireFilter]) -> None:
        self.target = target
        self.queue_drops = 0
        """Frames dropped because the queue was full or the MTU was reduced."""
        stack = tuple(filters)
        self._filters = {
            Direction.IN: [each for each in stack if each.handles(Direction.IN)],
            Direction.OUT: [
                each for each in stack[::-1] if each.handles(Direction.OUT)
            ],
        }
        self._queue: list[tuple[float, int, Frame]] = []
        """A heap of due time, sequence number and frame."""
        self._sequence = 0
        self._reordered: dict[tuple[Direction, int], tuple[float, Frame]] = {}
        """By direction and filter: the frame that waits for the next one, and its
        deadline."""

    @property
    def export(self) -> Export:
        """The export that is served."""
        return self.target.export

    def handle(self, request: memoryview, response: memoryview, now: float) -> int:
        """Pass a request through the filters, and write a response that is due now.

        As ``Target.handle``, but a response can also become due later: call
        ``handle_due`` afterwards, and again at ``next_timeout``.

        Args:
            request: the frame; its memory may be reused afterwards.
            response: memory for a response, at least ``14 + mtu`` bytes.
            now: seconds.

        Returns:
            The length of the response, 0 if there is none now.
        """
        if not self._is_addressed(request):
            return self.target.handle(request, response, now)
        return self._process(
            Frame(request, Direction.IN, classify(request)), response, now
        )

    def handle_due(self, response: memoryview, now: float) -> int:
        """Process queued frames that are due, and write the next response.

        A delayed request is executed now. Call this until it returns 0.

        Args:
            response: memory for a response, at least ``14 + mtu`` bytes.
            now: seconds.

        Returns:
            The length of the response, 0 when nothing else is due.
        """
        for place, (due, frame) in list(self._reordered.items()):
            if due <= now:
                del self._reordered[place]
                self._enqueue(frame, due)
        while self._queue and self._queue[0][0] <= now:
            *_, frame = heappop(self._queue)
            if length := self._process(frame, response, now):
                return length
        return 0

    def next_timeout(self) -> float | None:
        """Return the time at which the next frame is due, None if none is queued."""
        dues = [due for due, _ in self._reordered.values()]
        dues += [due for due, *_ in self._queue[:1]]
        return min(dues, default=None)

    def clear_queue(self) -> None:
        """Drop all queued frames."""
        self._queue.clear()
        self._reordered.clear()

    def _is_addressed(self, request: memoryview) -> bool:
        # Filters get only frames addressed to this target.
        if len(request) < HEADER_LENGTH:
            return False
        shelf, slot = _ADDRESS.unpack_from(request)
        address = self.export.address
        return shelf in (address.shelf, SHELF_ALL) and slot in (address.slot, SLOT_ALL)

    def _process(self, frame: Frame, response: memoryview, now: float) -> int:
        # Passes a frame on until it is queued, dropped, or a response is written.
        if frame.direction is Direction.IN:
            if not self._run_filters(frame, now):
                return 0
            length = self.target.handle(memoryview(frame.data), response, now)
            if not length:
                return 0
            frame = Frame(response[:length], Direction.OUT, frame.kind)
        if not self._run_filters(frame, now):
            return 0
        length = len(frame.data)
        if length > len(response):
            # The MTU was reduced while the frame was queued.
            self.queue_drops += 1
            return 0
        response[:length] = frame.data
        return length

    def _run_filters(self, frame: Frame, now: float) -> bool:
        # Returns True if the frame has passed all remaining filters.
        filters = self._filters[frame.direction]
        while frame.position < len(filters):
            place = frame.direction, frame.position
            frame.position += 1
            if place in self._reordered:
                # This frame overtakes the waiting one and is not filtered again.
                self._enqueue(self._reordered.pop(place)[1], now)
                continue
            verdict = filters[place[1]].evaluate(frame)
            if verdict is not PASS and not self._apply_verdict(
                frame, verdict, place, now
            ):
                return False
        return True

    def _apply_verdict(
        self, frame: Frame, verdict: Verdict, place: tuple[Direction, int], now: float
    ) -> bool:
        # Returns True if the frame continues immediately.
        if verdict.behind_next:
            frame.data = bytes(frame.data)
            self._reordered[place] = now + verdict.delay, frame
            return False
        if verdict.delay:
            self._enqueue(frame, now + verdict.delay)
            return False
        for _ in range(1, verdict.copies):
            self._enqueue(replace(frame), now)
        return verdict.copies > 0

    def _enqueue(self, frame: Frame, due: float) -> None:
        if len(self._queue) >= QUEUE_LIMIT:
            self.queue_drops += 1
            return
        # The frame may be in a ring slot, which is reused: copy it.
        frame.data = bytes(frame.data)
        self._sequence += 1
        heappush(self._queue, (due, self._sequence, frame))
