"""Adaptive busy polling: poll the receive rings for some microseconds before sleeping.

To sleep and be woken takes longer than a client with one request in flight takes to
send the next one, and longer than a target takes to answer. To poll without end would
take a core. So both ends poll for BUSY_POLL_LIMIT at most, and only while it pays::

    polling --- a poll times out ---> backing off --- enough short sleeps ---+
       ^                                                                      |
       +----------------------------------------------------------------------+

A short sleep is one that ends within BUSY_POLL_LIMIT: polling would have found that
frame. The back-off is the number of short sleeps that it takes to poll again: each
timeout doubles it, a success resets it to one. It also ends polling where the peer has
to run on the same core. SO_BUSY_POLL of socket(7) is the kernel's like of it, without
back-off: it polls the queues of a NIC.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aoe.net.base import Link

BUSY_POLL_LIMIT: Final = 0.000_1
"""Seconds of polling, at most: the cost of a wake-up, and a little."""
_CHECKS_PER_CLOCK: Final = 16
"""Checks of all rings between two readings of the clock."""
_BACKOFF_LIMIT: Final = 1024


class BusyPoller:
    """Decides whether to poll before sleeping, and polls."""

    def __init__(self) -> None:
        self._short_sleeps = 0
        """How many there were since the last timeout."""
        self._backoff = 1

    def poll(self, checks: Sequence[Callable[[], bool]]) -> bool:
        """Poll for a frame if that is likely to pay; return True if there is one.

        Args:
            checks: return True if a frame is there, one of them for each ring.
        """
        if self._short_sleeps < self._backoff:
            return False
        end = time.monotonic() + BUSY_POLL_LIMIT
        while not _any(checks):
            if time.monotonic() > end:
                break
            # Give way to any other task of this core: it may be the peer.
            os.sched_yield()
        else:
            if time.monotonic() <= end:
                self._backoff = 1
                return True
        self._short_sleeps = 0
        self._backoff = min(2 * self._backoff, _BACKOFF_LIMIT)
        return False

    def record_sleep(self, seconds: float) -> None:
        """Record how long it took until an event ended a sleep."""
        if seconds < BUSY_POLL_LIMIT:
            self._short_sleeps += 1


def ring_checks(links: Iterable[Link]) -> list[Callable[[], bool]]:
    """Return the argument of ``poll`` for those of the links that have rings."""
    all_rings = (link.rings for link in links)
    return [rings.rx.has_frame for rings in all_rings if rings is not None]


def _any(checks: Sequence[Callable[[], bool]]) -> bool:
    for _ in range(_CHECKS_PER_CLOCK):
        for check in checks:
            if check():
                return True
    return False
