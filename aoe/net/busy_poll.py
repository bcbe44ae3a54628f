"""Looking for the next frame for a while before going to sleep.

To be put to sleep and woken takes longer than a client with one request at a time takes
to ask again, and longer than a target takes to answer. To look all the time would take
a core. So both look for some microseconds, and only for as long as that pays::

    awake --- looked in vain ---> sober --- woken soon enough, as often as it takes --+
      ^                                                                               |
      +-------------------------------------------------------------------------------+

Each time in vain doubles how often that is, and once with success makes it one again.
A peer that has to wait for our core, because it shares it, makes us give up so.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aoe.net.base import Link

SPIN_LIMIT: Final = 0.000_1
"""Seconds of looking, at the most: a wake-up's worth, and a little."""
_LOOKS: Final = 16
"""Looks between two at the clock."""
_PRICE_LIMIT: Final = 1024


class Spinner:
    """Decides whether to look, and does it."""

    def __init__(self) -> None:
        self._soon = 0
        self._price = 1

    def spin(self, looks: Sequence[Callable[[], bool]]) -> bool:
        """Look for a frame, and tell whether one is there.

        Args:
            looks: tells of each interface whether a frame waits.
        """
        if self._soon < self._price:
            return False
        end = time.monotonic() + SPIN_LIMIT
        while not _any(looks):
            if time.monotonic() > end:
                break
            # Whoever wants the core is worth more than we are, and may be the peer.
            os.sched_yield()
        else:
            if time.monotonic() <= end:
                self._price = 1
                return True
        self._soon = 0
        self._price = min(2 * self._price, _PRICE_LIMIT)
        return False

    def slept(self, seconds: float) -> None:
        """Take note of how long it took until something woke us."""
        if seconds < SPIN_LIMIT:
            self._soon += 1


def looks_at(links: Iterable[Link]) -> list[Callable[[], bool]]:
    """Return what ``spin`` takes: the looks at those links that have rings."""
    rings = (link.rings for link in links)
    return [each.rx.has_frame for each in rings if each is not None]


def _any(looks: Sequence[Callable[[], bool]]) -> bool:
    for _ in range(_LOOKS):
        for look in looks:
            if look():
                return True
    return False
