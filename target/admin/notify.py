"""Notifications to the service manager: ready, reloading, stopping, watchdog.

Implements the protocol of sd_notify(3): datagrams to the socket in ``NOTIFY_SOCKET``;
without that variable nothing is sent. Watchdog keep-alives are sent by the event loop,
so that the service manager detects a loop that hangs.
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
    """Sends notifications to the service manager; errors are only logged.

    Args:
        address: the socket, a path or ``@`` and an abstract name; empty disables
            notifications.
        watchdog_interval: seconds between keep-alives; None disables them.

    Raises:
        UsageError: the address is neither a path nor an abstract name.
    """

    def __init__(
        self, address: str = "", watchdog_interval: float | None = None
    ) -> None:
        if address and (address[0] not in "/@" or len(address) == 1):
            raise UsageError(
                f"NOTIFY_SOCKET {address}",
                "neither an absolute path nor an abstract name",
                "Unset it, or set it to /path or @name",
            )
        # An abstract name begins with a NUL byte, written as @ in the environment.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_interval = watchdog_interval if address else None
        self._next_watchdog = 0.0
        self._send_failed = False
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_UNIX, kind) if address else None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Self:
        """Read the service manager's variables and remove them from the environment.

        They are removed so that child processes do not send notifications. Keep-alives
        are sent at half the watchdog's timeout, as sd_watchdog_enabled(3) recommends.

        Raises:
            UsageError: ``NOTIFY_SOCKET`` is not a socket's address.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        watchdog_pid = environ.pop("WATCHDOG_PID", "")
        interval = None
        if watchdog_pid in ("", str(os.getpid())):
            with suppress(ValueError):
                interval = int(microseconds) / _MICROSECONDS / 2
        return cls(address, interval if interval and interval > 0 else None)

    def ready(self, status: str = "") -> None:
        """Send READY=1, after the start or a reload.

        Args:
            status: a line of text for ``systemctl status``.
        """
        self._send("READY=1", *_status(status))

    def reloading(self, now: float) -> None:
        """Send RELOADING=1; call ``ready`` when the reload is complete.

        Args:
            now: seconds of the monotonic clock.
        """
        self._send("RELOADING=1", f"MONOTONIC_USEC={int(now * _MICROSECONDS)}")

    def stopping(self) -> None:
        """Send STOPPING=1."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Send a line of text for ``systemctl status``."""
        self._send(*_status(text))

    def next_timeout(self) -> float | None:
        """Return the time of the next ``tick``, None if there is no watchdog."""
        return None if self.watchdog_interval is None else self._next_watchdog

    def tick(self, now: float) -> None:
        """Send a keep-alive if it is due; cheap enough for each loop iteration."""
        if self.watchdog_interval is not None and now >= self._next_watchdog:
            self._next_watchdog = now + self.watchdog_interval
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket; later notifications are discarded. Safe to call twice."""
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
            if not self._send_failed:
                log.warning("service manager: %s not sent: %s", assignments[0], error)
            self._send_failed = True
        else:
            self._send_failed = False


def _status(text: str) -> list[str]:
    # A newline would start another assignment.
    return [f"STATUS={' '.join(text.splitlines())}"] if text else []
