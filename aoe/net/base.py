"""What a link is, whatever it is made of: sockets, a capture file around it, a test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from aoe.buffers import ReadBuffer
    from aoe.net.rings import Rings


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """What a link has counted since it was opened, in frames.

    Args:
        received: taken in by the kernel for us.
        sent: handed to the interface.
        dropped: arrived while the receive buffers were full.
        truncated: longer than a receive buffer, so not handed on.
        unsent: committed and lost: interface down or its MTU made smaller.
    """

    received: int = 0
    sent: int = 0
    dropped: int = 0
    truncated: int = 0
    unsent: int = 0

    def __add__(self, other: LinkStatistics) -> LinkStatistics:
        return LinkStatistics(
            self.received + other.received,
            self.sent + other.sent,
            self.dropped + other.dropped,
            self.truncated + other.truncated,
            self.unsent + other.unsent,
        )


class Link(ABC):
    """Where AoE frames come from and go to: one Ethernet interface.

    Whoever polls ``fileno()`` calls ``receive()`` until it returns None each time the
    poll returns, and polls with a timeout while ``up`` is False.
    """

    name: str
    index: int
    mac: bytes
    mtu: int
    """As it was when the link was opened."""
    up: bool
    """False once the interface was seen switched off, True when it is on again."""

    @property
    def rings(self) -> Rings | None:
        """Return the memory that frames travel through, if it may be worked in."""
        return None

    @abstractmethod
    def fileno(self) -> int:
        """Return the descriptor that is readable when a frame waits."""

    @abstractmethod
    def receive(self) -> memoryview | None:
        """Return the next frame from its first Ethernet byte; None when none waits.

        Never blocks. The memory is valid until the next ``receive`` or ``wait``, which
        give it back to the kernel.

        Raises:
            NotFoundError: the interface is gone. One that is down just has no frames.
        """

    @abstractmethod
    def reserve(self) -> memoryview | None:
        """Return memory for one outgoing frame; None when every slot is in flight.

        It holds 14 bytes more than the MTU, at least 60, and old bytes. Calling it
        again without ``commit`` gives the same memory.
        """

    @abstractmethod
    def commit(self, length: int) -> None:
        """Make the first ``length`` bytes of the reserved memory a frame to send.

        It goes out with the next ``flush`` at the latest.

        Raises:
            ValueError: nothing reserved, or a length below 14 or above the memory's.
        """

    @abstractmethod
    def flush(self) -> None:
        """Hand all committed frames to the kernel.

        Frames that a down interface does not take are counted as unsent. Those that a
        full queue does not take stay committed for the next ``flush`` or ``wait``.

        Raises:
            NotFoundError: the interface is gone.
        """

    @abstractmethod
    def wait(self, timeout: float | None) -> bool:
        """Wait until a frame is there, at most ``timeout`` seconds; None is for ever.

        Raises:
            NotFoundError: the interface is gone.
        """

    @abstractmethod
    def statistics(self) -> LinkStatistics:
        """Return the counters as they are now."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back. Safe to call twice."""

    def send(self, frame: ReadBuffer) -> bool:
        """Send one frame at once; False when no slot was free for it.

        Raises:
            ValueError: the frame is longer than the interface takes.
            NotFoundError: the interface is gone.
        """
        slot = self.reserve()
        if slot is None:
            return False
        length = len(frame)
        slot[:length] = frame
        self.commit(length)
        self.flush()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
