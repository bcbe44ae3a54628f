"""A real interface as the driver's net_device: frames are copied into the send ring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.errors import NotFoundError
from aoe.header import FRAME_MINIMUM

if TYPE_CHECKING:
    from aoe.net.base import Link
    from initiator.driver.skbuff import Skb


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

    __slots__ = ("gone", "link", "mac", "mtu", "name", "tx_dropped")

    def __init__(self, link: Link) -> None:
        self.name = link.name
        self.tx_dropped = 0
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
                self.tx_dropped += 1
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
