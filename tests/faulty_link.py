"""A link that drops, duplicates and reorders frames."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aoe.net.link import Link

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe.net.link import LinkStatistics


@dataclass(slots=True)
class DelayedFrame:
    """A frame that is delivered after ``remaining`` later ones."""

    remaining: int
    frame: bytes


class FaultyLink(Link):
    """A link that drops, duplicates and delays 5 % of the frames each, in and out.

    A delayed frame is delivered after up to eight later ones.
    """

    def __init__(self, link: Link, seed: int) -> None:
        self.link = link
        self.name, self.index = link.name, link.index
        self.mac, self.mtu, self.up = link.mac, link.mtu, link.up
        self._random = random.Random(seed)
        self._slot = bytearray(link.mtu + 14)
        self._leaving: list[DelayedFrame] = []
        self._arriving: list[DelayedFrame] = []
        self._arrived: deque[bytes] = deque()
        self.dropped = self.duplicated = self.reordered = 0

    def _transfer(self, frame: bytes, delayed: list[DelayedFrame]) -> Iterator[bytes]:
        """Yield the frames that are delivered when a frame is sent."""
        for each in list(delayed):
            each.remaining -= 1
            if each.remaining == 0:
                delayed.remove(each)
                yield each.frame
        draw_value = self._random.random()
        if draw_value < 0.05:
            self.dropped += 1
        elif draw_value < 0.10:
            self.duplicated += 1
            yield frame
            yield frame
        elif draw_value < 0.15:
            self.reordered += 1
            delayed.append(DelayedFrame(self._random.randint(1, 8), frame))
        else:
            yield frame

    def receive(self) -> memoryview | None:
        while not self._arrived:
            frame = self.link.receive()
            if frame is None:
                # No later frame: deliver the delayed ones.
                self._arrived.extend(each.frame for each in self._arriving)
                self._arriving.clear()
                break
            self._arrived.extend(self._transfer(bytes(frame), self._arriving))
        return memoryview(self._arrived.popleft()) if self._arrived else None

    def reserve(self) -> memoryview | None:
        return memoryview(self._slot)

    def commit(self, length: int) -> None:
        for frame in self._transfer(bytes(self._slot[:length]), self._leaving):
            while not self.link.send(frame):
                self.link.flush()

    def deliver_delayed(self) -> None:
        """Send all delayed frames."""
        for each in self._leaving:
            self.link.send(each.frame)
        self._leaving.clear()

    def fileno(self) -> int:
        return self.link.fileno()

    def flush(self) -> None:
        self.link.flush()

    def wait(self, timeout: float | None) -> bool:
        return self.link.wait(timeout)

    def statistics(self) -> LinkStatistics:
        return self.link.statistics()

    def close(self) -> None:
        self.link.close()
