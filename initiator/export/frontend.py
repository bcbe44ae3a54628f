"""Run the event loop of an exported disk, and end it on a signal."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from aoe.common.process.signals import handling, not_ignored, reset
from initiator.driver.aoedev import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from initiator.disk.disk import Disk
    from initiator.io.host import Host

_DISCOVER_INTERVAL: Final = 1.0
"""Seconds between query config requests to a device that is down. A target that starts
again may not announce itself, or the announcement may be lost."""


class DiskRunner:
    """Runs the host's event loop for a disk, and rediscovers the disk while it is down.

    Args:
        disk: the disk.
        report: called with a line for the user when the disk goes down or up.
    """

    def __init__(self, disk: Disk, report: Callable[[str], None]) -> None:
        self._disk = disk
        self._report = report
        self._device = disk.host.driver.devices[disk.address]
        self._was_up = True
        self._last_discover = 0.0

    def run_until(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Run the event loop until ``done()`` is true, at most ``timeout`` seconds.

        Returns:
            False if the timeout has expired.
        """
        host = self._disk.host
        end = None if timeout is None else host.now() + timeout
        while not done():
            now = host.now()
            if end is not None and now >= end:
                return False
            self._check_state(now)
            wait = _DISCOVER_INTERVAL
            host.run_once(wait if end is None else min(wait, end - now))
        return True

    def _check_state(self, now: float) -> None:
        is_up = self._device.state is State.UP
        if is_up != self._was_up:
            why = self._device.refused or ": no response"
            state = "up again" if is_up else f"down{why}; retrying"
            self._report(f"{self._disk.address}: {state}")
            self._was_up = is_up
        if not is_up and now - self._last_discover >= _DISCOVER_INTERVAL:
            self._last_discover = now
            self._disk.host.driver.discover(self._disk.address)


@contextmanager
def catch_termination(host: Host) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns True once SIGTERM or SIGINT has arrived.

    The signal also interrupts the wait of the host's event loop. A second one has its
    default action and ends the process. A SIGINT that is ignored stays so. Only for the
    main thread.
    """
    numbers = (signal.SIGTERM, *not_ignored(signal.SIGINT))
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        reset(numbers)
        received.append(number)

    with handling(handle, numbers):
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        host.watch(reader, lambda _: _drain(reader))
        try:
            yield lambda: bool(received)
        finally:
            host.unwatch(reader)
            signal.set_wakeup_fd(wakeup)
            os.close(reader)
            os.close(writer)


def _drain(reader: int) -> None:
    os.read(reader, 64)
