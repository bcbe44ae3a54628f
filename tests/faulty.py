"""A wire that loses, doubles and reorders frames."""

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
class Late:
    """A frame that so many later ones are to overtake."""

    overtakers: int
    frame: bytes


class FaultyLink(Link):
    """Loses, doubles and holds back 5 % of the frames each, in both directions.

    A frame that is held back is overtaken by up to eight later ones.
    """

    def __init__(self, link: Link, seed: int) -> None:
        self.link = link
        self.name, self.index = link.name, link.index
        self.mac, self.mtu, self.up = link.mac, link.mtu, link.up
        self._random = random.Random(seed)
        self._slot = bytearray(link.mtu + 14)
        self._leaving: list[Late] = []
        self._arriving: list[Late] = []
        self._arrived: deque[bytes] = deque()
        self.lost = self.doubled = self.overtaken = 0

    def _pass(self, frame: bytes, late: list[Late]) -> Iterator[bytes]:
        """Yield what comes out at the other end when this frame goes in."""
        for waiting in list(late):
            waiting.overtakers -= 1
            if waiting.overtakers == 0:
                late.remove(waiting)
                yield waiting.frame
        dice = self._random.random()
        if dice < 0.05:
            self.lost += 1
        elif dice < 0.10:
            self.doubled += 1
            yield frame
            yield frame
        elif dice < 0.15:
            self.overtaken += 1
            late.append(Late(self._random.randint(1, 8), frame))
        else:
            yield frame

    def receive(self) -> memoryview | None:
        while not self._arrived:
            frame = self.link.receive()
            if frame is None:
                # Nobody is coming who could overtake.
                self._arrived.extend(waiting.frame for waiting in self._arriving)
                self._arriving.clear()
                break
            self._arrived.extend(self._pass(bytes(frame), self._arriving))
        return memoryview(self._arrived.popleft()) if self._arrived else None

    def reserve(self) -> memoryview | None:
        return memoryview(self._slot)

    def commit(self, length: int) -> None:
        for frame in self._pass(bytes(self._slot[:length]), self._leaving):
            while not self.link.send(frame):
                self.link.flush()

    def settle(self) -> None:
        """Let what is held back out."""
        for waiting in self._leaving:
            self.link.send(waiting.frame)
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
