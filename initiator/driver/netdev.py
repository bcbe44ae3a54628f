"""The interfaces that skbs leave through (``struct net_device``)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol

from aoe.errors import NotFoundError
from aoe.header import FRAME_MINIMUM

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.net.link import Link
    from initiator.driver.skbuff import Clone, Skb, SkbOps


class NetDevice(Protocol):
    """What the driver asks of an interface."""

    @property
    def name(self) -> str:
        """The interface's name."""

    @property
    def mac(self) -> bytes:
        """Its hardware address, six bytes."""

    @property
    def mtu(self) -> int:
        """Bytes that it carries behind the Ethernet header."""

    def xmit(self, skb: Skb) -> None:
        """Take an skb for transmission (``dev_queue_xmit``).

        The driver keeps the skb and will change its header for a retransmission (K52).
        A frame that cannot be sent is a frame lost; retransmission makes it good.
        It does not call the driver back: answers come later, through ``receive``.
        """


class LinkDevice:
    """A real interface: it copies header and fragments into the send ring at once.

    As nothing is looked at later, there is nothing to clone and nothing to count.
    Frames leave at the next ``flush`` of the link. While the interface is away they are
    lost, as on any wire.

    Attributes:
        link: what it is open by; None while it is away.
        unsent: frames that found no room in the ring, even after a flush.
        gone: what the link said when the interface had gone.
    """

    __slots__ = ("gone", "link", "mac", "mtu", "name", "unsent")

    def __init__(self, link: Link) -> None:
        self.name = link.name
        self.unsent = 0
        self.use(link)

    def use(self, link: Link) -> None:
        """Use this link from now on; the interface's address and MTU may be others."""
        self.link: Link | None = link
        self.mac = link.mac
        self.mtu = link.mtu
        self.gone: NotFoundError | None = None

    def close(self) -> None:
        """Close the link, if there is one."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def xmit(self, skb: Skb) -> None:
        """Copy the frame out, padded with zeroes to 60 bytes (P19)."""
        link = self.link
        if link is None:
            return
        try:
            slot = link.reserve()
            if slot is None:
                link.flush()
                slot = link.reserve()
            if slot is None:
                self.unsent += 1
            else:
                link.commit(_copy(skb, slot))
        except NotFoundError as error:
            self.gone = error


def _copy(skb: Skb, slot: memoryview) -> int:
    """Copy a frame into memory to be sent; return how long it is there."""
    head, frags = skb.head, skb.frags
    end = len(head)
    if not frags:
        padded = head.ljust(FRAME_MINIMUM, b"\0")
        slot[: len(padded)] = padded
        return len(padded)
    slot[:end] = head
    for page, offset, length in frags:
        slot[end : end + length] = page.data[offset : offset + length]
        end += length
    return end


class Nic(Enum):
    """Kinds of modelled cards (K74-K76)."""

    SG = "SG"
    NOSG = "NOSG"
    COW = "COW"


class ModelledCard:
    """A card over counted pages that reads their contents only when it sends.

    A clone goes through two queues: the queueing discipline, from which validation
    takes it, and the card's ring. Both hold it as long as they are told to. For a card
    without scatter-gather, validation linearises it; 2.6.21 does so before the queue
    (K77).

    Attributes:
        hold_queue: keep new clones before validation.
        hold_ring: keep validated clones from being sent.
        hold_completion: keep clones after they are sent.
        taps: AF_PACKET sockets, each of which gets a clone of all that is sent (K83).
        queue, ring, sent: the clones that are kept there, oldest first.
        tapped: the clones that sniffers have not read yet.
    """

    name = "eth0"
    mac = bytes.fromhex("020000000001")

    def __init__(
        self, kind: Nic, ops: SkbOps, wire: Callable[[bytes], None], mtu: int = 9000
    ) -> None:
        self.kind = kind
        self.mtu = mtu
        self.hold_queue = self.hold_ring = self.hold_completion = False
        self.queue: list[Clone] = []
        self.ring: list[Clone] = []
        self.sent: list[Clone] = []
        self.taps = 0
        self.tapped: list[Clone] = []
        self._ops = ops
        self._wire = wire

    def xmit(self, skb: Skb) -> None:
        """``dev_queue_xmit`` of a clone of the driver's skb (K73)."""
        clone = self._ops.clone(skb)
        if self._ops.memory.rules.early_linearise:
            self._make_fit(clone)
        self.queue.append(clone)
        if not self.hold_queue:
            self.validate(clone)

    def _make_fit(self, clone: Clone) -> None:
        if self.kind is Nic.NOSG:
            self._ops.linearise(clone)
        elif self.kind is Nic.COW:
            self._ops.privatise(clone)

    def validate(self, clone: Clone) -> None:
        """Take a clone out of the queue (``validate_xmit_skb``, K77)."""
        self.queue.remove(clone)
        self._make_fit(clone)
        self.ring.append(clone)
        if not self.hold_ring:
            self.serialise(clone)

    def serialise(self, clone: Clone) -> None:
        """Send a clone from the ring: its bytes are read now."""
        self.ring.remove(clone)
        self.sent.append(clone)
        if self.taps:
            self.tapped += [self._ops.tap(clone) for _ in range(self.taps)]
        self._wire(bytes(clone))
        if not self.hold_completion:
            self.complete(clone)

    def complete(self, clone: Clone) -> None:
        """Free a clone that was sent (TX completion)."""
        self.sent.remove(clone)
        self._ops.free(clone)

    def sniff(self, clone: Clone) -> bytes:
        """Let a sniffer read a clone: what its pages hold by now (K83)."""
        self.tapped.remove(clone)
        frame = bytes(clone)
        self._ops.free(clone, "read by a sniffer")
        return frame

    def release(self) -> None:
        """Let everything go, in order, and hold nothing any more."""
        self.hold_queue = self.hold_ring = self.hold_completion = False
        for clone in list(self.sent):
            self.complete(clone)
        for clone in list(self.ring):
            self.serialise(clone)
        for clone in list(self.queue):
            self.validate(clone)
        for clone in list(self.tapped):
            self.sniff(clone)
