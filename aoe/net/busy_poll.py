"""Adaptive busy polling: poll the receive rings for some microseconds before sleeping.

A wake-up takes longer than a client with one request in flight takes to send the next
one, and longer than a target takes to respond. Unlimited polling would occupy a core.
Both ends therefore poll for at most BUSY_POLL_LIMIT, and only while polling succeeds::

    polling --- a poll times out ---> backing off --- enough short sleeps ---+
       ^                                                                      |
       +----------------------------------------------------------------------+

A short sleep ends within BUSY_POLL_LIMIT: polling would have found that frame. The
back-off is the number of short sleeps before polling resumes: each timeout doubles it,
a success resets it to one. The back-off also stops polling if the peer has to run on
the same core. SO_BUSY_POLL of socket(7) is similar, but polls the queues of a NIC,
without back-off.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aoe.net.base import Link

BUSY_POLL_LIMIT: Final = 0.000_1
"""Maximum seconds of polling, slightly more than the cost of a wake-up."""
_CHECKS_PER_CLOCK: Final = 16
"""Checks of all rings per reading of the clock."""
_BACKOFF_LIMIT: Final = 1024


class BusyPoller:
    """A busy poller with exponential back-off."""

    def __init__(self) -> None:
        self._short_sleeps = 0
        """Number of short sleeps since the last timeout."""
        self._backoff = 1

    def poll(self, checks: Sequence[Callable[[], bool]]) -> bool:
        """Poll for a frame unless backing off; return True if one has arrived.

        Args:
            checks: functions that return True if a ring has a frame, one per ring.
        """
        if self._short_sleeps < self._backoff:
            return False
        end = time.monotonic() + BUSY_POLL_LIMIT
        while not _any(checks):
            if time.monotonic() > end:
                break
            # Let another task of this core run: it may be the peer.
            os.sched_yield()
        else:
            if time.monotonic() <= end:
                self._backoff = 1
                return True
        self._short_sleeps = 0
        self._backoff = min(2 * self._backoff, _BACKOFF_LIMIT)
        return False

    def record_sleep(self, seconds: float) -> None:
        """Record the duration of a sleep that an event ended, in seconds."""
        if seconds < BUSY_POLL_LIMIT:
            self._short_sleeps += 1


def ring_checks(links: Iterable[Link]) -> list[Callable[[], bool]]:
    """Return the checks for ``BusyPoller.poll``, for the links that have rings."""
    all_rings = (link.rings for link in links)
    return [rings.rx.has_frame for rings in all_rings if rings is not None]


def _any(checks: Sequence[Callable[[], bool]]) -> bool:
    for _ in range(_CHECKS_PER_CLOCK):
        for check in checks:
            if check():
                return True
    return False
