"""The interface of a link, whether on a socket, around another link, or in a test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from aoe.buffers import ReadBuffer
    from aoe.net.rings import Rings


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """Counters of a link since it was opened, in frames.

    Args:
        received: queued by the kernel for the link.
        sent: handed to the interface.
        dropped: discarded by the kernel, as the receive buffers were full.
        truncated: discarded by the link, as they were longer than a receive buffer.
        unsent: committed and lost: the interface was down or its MTU was lowered.
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
    """Receives AoE frames from one Ethernet interface, and sends them there.

    A caller that polls ``fileno()`` calls ``receive()`` until it returns None each time
    the poll returns, and polls with a timeout while ``up`` is False.
    """

    name: str
    index: int
    mac: bytes
    mtu: int
    """Bytes after the Ethernet header, when the link was opened."""
    up: bool
    """False if the interface was down at the last check."""

    @property
    def rings(self) -> Rings | None:
        """Return the packet rings, if the caller may access them directly; or None."""
        return None

    @abstractmethod
    def fileno(self) -> int:
        """Return the descriptor that is readable when a frame is there."""

    @abstractmethod
    def receive(self) -> memoryview | None:
        """Return the next frame, with its Ethernet header; None if there is none.

        Never blocks. The memory is valid until the next ``receive`` or ``wait``, which
        give it back to the kernel.

        Raises:
            NotFoundError: the interface is gone. One that is down has no frames.
        """

    @abstractmethod
    def reserve(self) -> memoryview | None:
        """Return memory for one outgoing frame; None if the kernel owns every slot.

        Its length is the MTU plus 14 bytes, at least 60; it holds old bytes. Calling it
        again without ``commit`` returns the same memory.
        """

    @abstractmethod
    def commit(self, length: int) -> None:
        """Make the first ``length`` bytes of the reserved memory a frame to send.

        It is sent by the next ``flush`` at the latest.

        Raises:
            ValueError: nothing is reserved, or the length is below 14 or above that of
                the memory.
        """

    @abstractmethod
    def flush(self) -> None:
        """Hand all committed frames to the kernel.

        Frames that the interface does not take because it is down count as unsent.
        Those that a full queue does not take stay committed for the next ``flush`` or
        ``wait``.

        Raises:
            NotFoundError: the interface is gone.
        """

    @abstractmethod
    def wait(self, timeout: float | None) -> bool:
        """Wait until a frame is there; return False on timeout.

        Args:
            timeout: seconds; None waits without limit.

        Raises:
            NotFoundError: the interface is gone.
        """

    @abstractmethod
    def statistics(self) -> LinkStatistics:
        """Return the counters."""

    @abstractmethod
    def close(self) -> None:
        """Release the interface and the memory. Safe to call twice."""

    def send(self, frame: ReadBuffer) -> bool:
        """Send one frame at once; return False if no slot is free.

        Raises:
            ValueError: the frame is too long for the interface.
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
