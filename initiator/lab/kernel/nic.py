"""A modelled NIC behind a qdisc; it reads pages when it transmits (K74-K77, K83)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from initiator.driver.skbuff import Skb
    from initiator.lab.kernel.skbuff import Clone, SkbOps


class Nic(Enum):
    """How a NIC takes an skb.

    ``SG`` sends fragments, ``NOSG`` needs a linear skb, and on the way to ``COW`` each
    clone gets a private head (K74-K76).
    """

    SG = "SG"
    NOSG = "NOSG"
    COW = "COW"


class ModelledNic:
    """A NIC that reads the contents of pages when it transmits, not before.

    A clone waits for the AoE driver's tx thread (K9), in the qdisc until it is
    validated, in the TX ring until it is transmitted, and then for its TX completion.
    The hold switches stop clones in each place. Validation linearizes a clone for a NIC
    without scatter-gather, or gives it a private head; 2.6.21 does so before the qdisc
    (K77, K152).

    Attributes:
        hold_tx: hold new clones for the tx thread.
        removed: the interface was unregistered.
        hold_qdisc: hold new clones in the qdisc.
        hold_ring: hold validated clones in the TX ring.
        hold_completion: hold back TX completions.
        taps: number of AF_PACKET sockets; each gets a clone of every frame (K83).
        tx_list, qdisc, ring, sent: the clones held in each place, oldest first.
        tapped: clones that packet sockets have not read yet.
    """

    name = "eth0"
    mac = bytes.fromhex("020000000001")

    def __init__(
        self, kind: Nic, ops: SkbOps, wire: Callable[[bytes], None], mtu: int = 9000
    ) -> None:
        self.kind = kind
        self.mtu = mtu
        self.hold_tx = self.removed = False
        self.hold_qdisc = self.hold_ring = self.hold_completion = False
        self.tx_list: list[Clone] = []
        self.qdisc: list[Clone] = []
        self.ring: list[Clone] = []
        self.sent: list[Clone] = []
        self.taps = 0
        self.tapped: list[Clone] = []
        self._ops = ops
        self._wire = wire

    def xmit(self, skb: Skb) -> None:
        """Clone the AoE driver's skb and queue the clone (``dev_queue_xmit``, K73)."""
        clone = self._ops.clone(skb)
        if self.hold_tx and self._ops.memory.rules.tx_thread:
            self.tx_list.append(clone)
        else:
            self._queue(clone)

    def remove(self) -> None:
        """Unregister the interface; a reference delays the end of its net_device."""
        self.removed = True
        note = "the interface is removed"
        if self.tx_list and self._ops.memory.rules.tx_holds_netdev:
            note += ", its net_device remains for the tx thread"
        self._ops.memory.journal.add("network", "unregister_netdevice", note=note)

    def _queue(self, clone: Clone) -> None:
        rules = self._ops.memory.rules
        if self.removed:
            if not rules.tx_holds_netdev:
                note = f"clone {clone.number}: skb->dev was freed, use after free"
                self._ops.memory.journal.bug(
                    "AoE driver", "dev_queue_xmit", None, "K105", note
                )
            self._ops.free(clone, "the interface is down")
            return
        is_early = rules.early_head if self.kind is Nic.COW else rules.early_linearize
        if is_early:
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
        """Move a clone from the qdisc to the TX ring (``validate_xmit_skb``, K77)."""
        self.qdisc.remove(clone)
        self._prepare(clone)
        self.ring.append(clone)
        if not self.hold_ring:
            self.transmit(clone)

    def transmit(self, clone: Clone) -> None:
        """Transmit a clone from the TX ring; its pages are read now."""
        self.ring.remove(clone)
        self.sent.append(clone)
        if self.taps:
            self.tapped += [self._ops.tap(clone) for _ in range(self.taps)]
        self._wire(bytes(clone))
        if not self.hold_completion:
            self.complete(clone)

    def complete(self, clone: Clone) -> None:
        """Free a transmitted clone (TX completion)."""
        self.sent.remove(clone)
        self._ops.free(clone)

    def read_tap(self, clone: Clone) -> bytes:
        """Read a packet socket's clone, with the current page contents (K83)."""
        self.tapped.remove(clone)
        frame = bytes(clone)
        self._ops.free(clone, "read by a packet socket")
        return frame

    def clones(self) -> Iterator[Clone]:
        """Yield the clones in qdisc and TX ring, transmitted and tapped ones."""
        yield from self.qdisc
        yield from self.ring
        yield from self.sent
        yield from self.tapped

    def drain(self) -> None:
        """Clear all hold switches, then complete, transmit and validate all clones.

        At last those for the tx thread are queued.
        """
        self.hold_tx = False
        self.hold_qdisc = self.hold_ring = self.hold_completion = False
        for clone in list(self.sent):
            self.complete(clone)
        for clone in list(self.ring):
            self.transmit(clone)
        for clone in list(self.qdisc):
            self.validate(clone)
        waiting, self.tx_list[:] = list(self.tx_list), []
        for clone in waiting:
            self._queue(clone)
        for clone in list(self.tapped):
            self.read_tap(clone)
