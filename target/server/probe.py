"""Probe the network for an address before it is served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.address import format_mac
from aoe.common.survey import query_targets
from aoe.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Collection

    from aoe.address import Address
    from aoe.net.link import Link


def probe(link: Link, addresses: Collection[Address]) -> None:
    """Query each address three times, and return if no target has responded.

    Two targets at one address would both answer reads, and each would miss writes. A
    target on this host and interface does not receive the query: see ``claims.py``.

    Args:
        link: an interface that delivers responses.
        addresses: the addresses to probe.

    Raises:
        BusyError: a target responded.
        NotFoundError: the interface is gone.
    """
    for found in query_targets(link, addresses):
        if found.address in addresses:
            raise BusyError(
                str(found.address),
                f"already served on {link.name} by {format_mac(found.mac)}",
                "Choose another address. With --force, clients mix up both disks",
            )
