"""The abstract base class of links, and their counters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from aoe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aoe.buffers import ReadBuffer
    from aoe.net.rings import Rings


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """Counters of a link since it was opened, in frames.

    Args:
        received: queued by the kernel for the link.
        sent: handed to the interface.
        dropped: discarded by the kernel because the receive buffers were full.
        truncated: discarded by the link because they exceeded a receive buffer.
        unsent: committed but lost because the interface was down or its MTU lowered.
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
    """A link: sends and receives AoE frames on one Ethernet interface.

    A caller that polls ``fileno()`` calls ``receive()`` until it returns None each time
    the poll returns, and polls with a timeout while ``up`` is False.
    """

    name: str
    index: int
    mac: bytes
    mtu: int
    """The MTU in bytes when the link was opened, without the Ethernet header."""
    up: bool
    """False if the interface was down at the last check."""

    @property
    def rings(self) -> Rings | None:
        """The packet rings, if the link has any that may be accessed directly."""
        return None

    @abstractmethod
    def fileno(self) -> int:
        """Return a file descriptor that is readable when a frame has arrived."""

    @abstractmethod
    def receive(self) -> memoryview | None:
        """Return the next frame, with its Ethernet header; None if there is none.

        Does not block. The memory is valid until the next ``receive`` or ``wait``,
        which return it to the kernel.

        Raises:
            NotFoundError: the interface was removed. One that is down has no frames.
        """

    @abstractmethod
    def reserve(self) -> memoryview | None:
        """Return memory for one outgoing frame; None if the kernel owns every slot.

        The length is the MTU plus 14 bytes, at least 60; the content is undefined.
        Calling it again without ``commit`` returns the same memory.
        """

    @abstractmethod
    def commit(self, length: int) -> None:
        """Queue the first ``length`` bytes of the reserved memory as a frame.

        The frame is sent by the next ``flush`` at the latest.

        Raises:
            ValueError: nothing is reserved, or the length is below 14 or exceeds that
                of the memory.
        """

    @abstractmethod
    def flush(self) -> None:
        """Pass all committed frames to the kernel.

        Frames are lost, and counted as unsent, while the interface is down. Frames for
        which the queue is full stay committed until the next ``flush`` or ``wait``.

        Raises:
            NotFoundError: the interface was removed.
        """

    @abstractmethod
    def wait(self, timeout: float | None) -> bool:
        """Wait for a frame; return False on timeout.

        Args:
            timeout: seconds; None for no timeout.

        Raises:
            NotFoundError: the interface was removed.
        """

    @abstractmethod
    def statistics(self) -> LinkStatistics:
        """Return the counters."""

    @abstractmethod
    def close(self) -> None:
        """Release the interface and the memory. Safe to call twice."""

    def send(self, frame: ReadBuffer) -> bool:
        """Send one frame immediately; return False if no slot is free.

        Raises:
            ValueError: the frame is too long for the interface.
            NotFoundError: the interface was removed.
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


def check_distinct(interfaces: Iterable[tuple[int, str]]) -> None:
    """Check that no two names are of the same interface.

    Args:
        interfaces: index and name of each.

    Raises:
        UsageError: two of them are; each frame would be handled twice.
    """
    names: dict[int, str] = {}
    for index, name in interfaces:
        first = names.setdefault(index, name)
        if first != name:
            raise UsageError(
                f"{first} and {name}",
                "are names of the same interface",
                "Use only one of them",
            )
