"""Is an address free on this wire? Asked before anything is served there."""

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
    """Ask for each address three times, and return when nobody has answered.

    Two targets at one address would both answer every read, and each miss some of the
    writes. A target of this very machine on the same interface does not hear us: see
    ``control.py``.

    Args:
        link: an interface that delivers responses.
        addresses: those that are about to be served.

    Raises:
        BusyError: somebody answered.
        NotFoundError: the interface is gone.
    """
    for heard in query_targets(link, addresses):
        if heard.address in addresses:
            raise BusyError(
                str(heard.address),
                f"already served on {link.name} by {format_mac(heard.mac)}",
                "Choose another address, or --force",
            )
