"""What a service manager is told: ready, reloading, stopping, still alive.

Datagrams to the socket that ``NOTIFY_SOCKET`` names, as sd_notify(3) has it; where
nobody set that, nothing is sent. The watchdog is fed from the event loop, so that one
that hangs is noticed.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from aoe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

log: Final = logging.getLogger("aoe-target")

_MICROSECONDS: Final = 1_000_000


class Notifier:
    """Sends what the service manager wants to hear, and never fails.

    Args:
        address: its socket, a path or ``@`` and an abstract name; empty tells nobody.
        watchdog_interval: seconds between two signs of life; None where none is wanted.

    Raises:
        UsageError: the address is neither.
    """

    def __init__(
        self, address: str = "", watchdog_interval: float | None = None
    ) -> None:
        if address and (address[0] not in "/@" or len(address) == 1):
            raise UsageError(
                f"NOTIFY_SOCKET {address}",
                "not a socket's path, nor an abstract name",
                "Unset it, or write /path or @name",
            )
        # An abstract name begins with a zero byte, which no variable can hold.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_interval = watchdog_interval if address else None
        self._due = 0.0
        self._failing = False
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_UNIX, kind) if address else None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Self:
        """Take the variables that the service manager has set out of the environment.

        Programs that we start shall not speak in our name. The watchdog gets its sign
        of life twice as often as it asks for one.

        Raises:
            UsageError: ``NOTIFY_SOCKET`` is no socket's address.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        whose = environ.pop("WATCHDOG_PID", "")
        interval = None
        if whose in ("", str(os.getpid())):
            with suppress(ValueError):
                interval = int(microseconds) / _MICROSECONDS / 2
        return cls(address, interval if interval and interval > 0 else None)

    def ready(self, status: str = "") -> None:
        """Tell that everything is open, after the start or a reload.

        Args:
            status: a line for people, shown by ``systemctl status``.
        """
        self._send("READY=1", *_status(status))

    def reloading(self, now: float) -> None:
        """Tell that a reload begins; ``ready`` tells of its end.

        Args:
            now: seconds of the monotonic clock.
        """
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(now * _MICROSECONDS)}")

    def stopping(self) -> None:
        """Tell that the service ends."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Tell a line for people."""
        self._send(*_status(text))

    def next_timeout(self) -> float | None:
        """When ``tick`` is wanted next, on the clock of its ``now``; None for never."""
        return None if self.watchdog_interval is None else self._due

    def tick(self, now: float) -> None:
        """Give the sign of life if it is due; cheap enough for every turn of a loop."""
        if self.watchdog_interval is not None and now >= self._due:
            self._due = now + self.watchdog_interval
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket: later words are lost. Safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, *assignments: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            if not self._failing:
                log.warning("service manager: not told %s: %s", assignments[0], error)
            self._failing = True
        else:
            self._failing = False


def _status(text: str) -> list[str]:
    # A line break would begin another assignment.
    return [f"STATUS={' '.join(text.splitlines())}"] if text else []
