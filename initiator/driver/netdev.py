"""The interface that skbs are sent through (``struct net_device``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from initiator.driver.skbuff import Skb


class NetDevice(Protocol):
    """A network interface, as far as the driver uses it."""

    @property
    def name(self) -> str:
        """The interface name."""

    @property
    def mac(self) -> bytes:
        """The MAC address, six bytes."""

    @property
    def mtu(self) -> int:
        """Maximum number of bytes after the Ethernet header."""

    def xmit(self, skb: Skb) -> None:
        """Send an skb (``dev_queue_xmit``).

        The driver keeps the skb and rewrites its header for a retransmission (K52). A
        frame that cannot be sent is dropped, and retransmitted later. Implementations
        must not call the driver; responses are passed to ``Driver.receive``.
        """
