"""Address claims between target processes on one host.

Two processes on one interface do not receive each other's frames, so a probe on the
wire cannot detect that an address is in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.net.claims import claim_name

if TYPE_CHECKING:
    import socket

    from aoe.address import Address
    from aoe.net.link import Link


def claim(link: Link, address: Address) -> socket.socket:
    """Claim an address on an interface until the returned socket is closed.

    Raises:
        BusyError: another process has claimed it.
    """
    return claim_name(
        f"pyaoe/target/{link.index}/{address}",
        str(address),
        f"already served on {link.name}",
        "Choose another address. With --force, clients mix up both disks",
    )
