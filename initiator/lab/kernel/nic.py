"""A modelled NIC with its queues: it reads pages only when it sends (K74-K77, K83)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.driver.skbuff import Skb
    from initiator.lab.kernel.skbuff import Clone, SkbOps


class Nic(Enum):
    """Kinds of modelled cards (K74-K76)."""

    SG = "SG"
    NOSG = "NOSG"
    COW = "COW"


class ModelledNic:
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
        self.hold_qdisc = self.hold_ring = self.hold_completion = False
        self.qdisc: list[Clone] = []
        self.ring: list[Clone] = []
        self.sent: list[Clone] = []
        self.taps = 0
        self.tapped: list[Clone] = []
        self._ops = ops
        self._wire = wire

    def xmit(self, skb: Skb) -> None:
        """``dev_queue_xmit`` of a clone of the driver's skb (K73)."""
        clone = self._ops.clone(skb)
        if self._ops.memory.rules.early_linearize:
            self._prepare(clone)
        self.qdisc.append(clone)
        if not self.hold_qdisc:
            self.validate(clone)

    def _prepare(self, clone: Clone) -> None:
        if self.kind is Nic.NOSG:
            self._ops.linearize(clone)
        elif self.kind is Nic.COW:
            self._ops.expand_head(clone)

    def validate(self, clone: Clone) -> None:
        """Take a clone out of the queue (``validate_xmit_skb``, K77)."""
        self.qdisc.remove(clone)
        self._prepare(clone)
        self.ring.append(clone)
        if not self.hold_ring:
            self.transmit(clone)

    def transmit(self, clone: Clone) -> None:
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

    def read_tap(self, clone: Clone) -> bytes:
        """Let a sniffer read a clone: what its pages hold by now (K83)."""
        self.tapped.remove(clone)
        frame = bytes(clone)
        self._ops.free(clone, "read by a sniffer")
        return frame

    def drain(self) -> None:
        """Let everything go, in order, and hold nothing any more."""
        self.hold_qdisc = self.hold_ring = self.hold_completion = False
        for clone in list(self.sent):
            self.complete(clone)
        for clone in list(self.ring):
            self.transmit(clone)
        for clone in list(self.qdisc):
            self.validate(clone)
        for clone in list(self.tapped):
            self.read_tap(clone)
