"""What the ways to offer an attached disk have in common: its life, and its end."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from initiator.driver.aoedev import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from initiator.disk.disk import Disk
    from initiator.io.host import Host

_ENDINGS: Final = (signal.SIGTERM, signal.SIGINT)
_ASK_INTERVAL: Final = 1.0
"""Seconds between questions to a device that is down; it may not say it is back."""


class DiskKeeper:
    """Takes a host's turns for a disk that is in use, and looks after one that is down.

    Args:
        disk: the disk.
        report: takes a line for the user, when it goes down and when it is back.
    """

    def __init__(self, disk: Disk, report: Callable[[str], None]) -> None:
        self._disk = disk
        self._report = report
        self._device = disk.host.driver.devices[disk.address]
        self._was_up = True
        self._asked = 0.0

    def keep(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Take turns until ``done()`` holds, for at most ``timeout`` seconds.

        Returns:
            Whether it did in time.
        """
        host = self._disk.host
        end = None if timeout is None else host.now() + timeout
        while not done():
            now = host.now()
            if end is not None and now >= end:
                return False
            self._look(now)
            host.run_once(
                _ASK_INTERVAL if end is None else min(_ASK_INTERVAL, end - now)
            )
        return True

    def _look(self, now: float) -> None:
        is_up = self._device.state is State.UP
        if is_up != self._was_up:
            state = "is back" if is_up else "does not answer, is down; still asking"
            self._report(f"{self._disk.address}: {state}")
            self._was_up = is_up
        if not is_up and now - self._asked >= _ASK_INTERVAL:
            self._asked = now
            self._disk.host.driver.discover(self._disk.address)


@contextmanager
def ending(host: Host) -> Iterator[Callable[[], bool]]:
    """Tell whether SIGTERM or SIGINT has come, and end the host's wait when it does.

    A second one ends the process at once. For the main thread only.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    came: list[int] = []

    def end(number: int, _frame: object) -> None:
        for each in _ENDINGS:
            signal.signal(each, signal.SIG_DFL)
        came.append(number)

    before = {number: signal.signal(number, end) for number in _ENDINGS}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    host.watch(reader, lambda _: _drain(reader))
    try:
        yield lambda: bool(came)
    finally:
        host.unwatch(reader)
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _drain(reader: int) -> None:
    os.read(reader, 64)
