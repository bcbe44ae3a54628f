"""The interface between a port and what executes the requests for one export on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from target.protocol.exports import Export

    MakeEngine: TypeAlias = Callable[[Export, bytes, int], "Engine"]


@dataclass(frozen=True, slots=True)
class TargetStatistics:
    """Counters of one target.

    Args:
        requests: frames addressed to this target, answered or not.
        reads: READ commands that succeeded.
        writes: WRITE commands that succeeded.
        read_bytes: bytes of disk data sent.
        written_bytes: bytes of disk data received.
        flushes: FLUSH commands that succeeded.
        errors: error responses, by kind.
        dropped: frames dropped without a response, by ``Drop``.
        last_request: time of the last request, seconds of the caller's clock.
    """

    requests: int
    reads: int
    writes: int
    read_bytes: int
    written_bytes: int
    flushes: int
    errors: Mapping[str, int]
    dropped: Mapping[str, int]
    last_request: float | None


class Engine(Protocol):
    """One export on one interface: ``Target``, or another implementation.

    It is made from the export, the interface's address (six bytes) and its MTU.
    """

    @property
    def export(self) -> Export:
        """The export that is served."""
        ...

    @property
    def frame_limit(self) -> int:
        """Length of the longest frame, bytes: ``14 + mtu``."""
        ...

    def handle(self, request: memoryview, response: memoryview, now: float) -> int:
        """Execute a request, and write its response; see ``Target.handle``."""
        ...

    def announce(self, response: memoryview, dst: bytes = ...) -> int:
        """Write an announcement (P48); return its length."""
        ...

    def reconfigure(self, mac: bytes, mtu: int) -> None:
        """Apply a new address or MTU of the interface.

        Raises:
            ValueError: an MTU below 548.
        """
        ...

    def statistics(self) -> TargetStatistics:
        """Return a snapshot of the counters."""
        ...
