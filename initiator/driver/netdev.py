"""The interfaces that skbs leave through (``struct net_device``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from initiator.driver.skbuff import Skb


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
