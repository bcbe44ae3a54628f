"""The driver's net_device for an interface: copies frames into the link's send ring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.errors import NotFoundError
from aoe.header import FRAME_MINIMUM

if TYPE_CHECKING:
    from aoe.net.base import Link
    from initiator.driver.skbuff import Skb


class LinkDevice:
    """A network interface, opened as a link.

    Header and fragments are copied into the send ring at once, so that skbs need not be
    cloned nor pages counted. Frames are sent by the next ``flush`` of the link. While
    the interface is missing, they are dropped.

    Attributes:
        link: the open link; None while the interface is missing.
        tx_dropped: frames dropped because the ring was full even after a flush.
        error: the link's error after the interface disappeared.
    """

    __slots__ = ("error", "link", "mac", "mtu", "name", "tx_dropped")

    def __init__(self, link: Link) -> None:
        self.name = link.name
        self.tx_dropped = 0
        self.attach(link)

    def attach(self, link: Link) -> None:
        """Use another link; MAC address and MTU may have changed."""
        self.link: Link | None = link
        self.mac = link.mac
        self.mtu = link.mtu
        self.error: NotFoundError | None = None

    def close(self) -> None:
        """Close the link, if any."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def xmit(self, skb: Skb) -> None:
        """Copy a frame into the send ring, padded with zeroes to 60 bytes (P19)."""
        link = self.link
        if link is None:
            return
        try:
            slot = link.reserve()
            if slot is None:
                link.flush()
                slot = link.reserve()
            if slot is None:
                self.tx_dropped += 1
            else:
                link.commit(_copy(skb, slot))
        except NotFoundError as error:
            self.error = error


def _copy(skb: Skb, slot: memoryview) -> int:
    """Copy a frame into a slot, padded; return its length."""
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
