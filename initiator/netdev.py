"""The interfaces that skbs leave through (``struct net_device``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from aoe.header import FRAME_MINIMUM

if TYPE_CHECKING:
    from aoe.link import Link
    from initiator.skbuff import Skb


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
    Frames leave at the next ``flush`` of the link.

    Attributes:
        unsent: frames that found no room in the ring, even after a flush.
    """

    __slots__ = ("link", "mac", "mtu", "name", "unsent")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.name = link.name
        self.mac = link.mac
        self.mtu = link.mtu
        self.unsent = 0

    def xmit(self, skb: Skb) -> None:
        """Copy the frame out, padded with zeroes to 60 bytes (P19)."""
        link = self.link
        slot = link.reserve()
        if slot is None:
            link.flush()
            slot = link.reserve()
            if slot is None:
                self.unsent += 1
                return
        head = skb.head
        end = len(head)
        slot[:end] = head
        for page, offset, length in skb.frags:
            slot[end : end + length] = page.data[offset : offset + length]
            end += length
        if end < FRAME_MINIMUM:
            slot[end:FRAME_MINIMUM] = bytes(FRAME_MINIMUM - end)
            end = FRAME_MINIMUM
        link.commit(end)
