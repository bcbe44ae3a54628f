"""Is this address taken? Asked of the wire before anything is served."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from aoe.address import MAC_BROADCAST, Address, format_mac
from aoe.config import Config
from aoe.errors import BusyError, DecodeError
from aoe.header import FRAME_MINIMUM, TAG_USER, Command, Flag, Header

if TYPE_CHECKING:
    from collections.abc import Collection

    from aoe.link import Link

_TRIES: Final = 3
_PATIENCE: Final = 0.1
"""Seconds after each try."""


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
    for _ in range(_TRIES):
        for address in addresses:
            link.send(_question(link.mac, address))
        end = time.monotonic() + _PATIENCE
        while (left := end - time.monotonic()) > 0:
            if link.wait(left):
                _listen(link, addresses)


def _question(mac: bytes, address: Address) -> bytearray:
    frame = bytearray(FRAME_MINIMUM)
    Header(MAC_BROADCAST, mac, *address, Command.CONFIG, TAG_USER).pack_into(frame)
    Config().pack_into(frame)
    return frame


def _listen(link: Link, addresses: Collection[Address]) -> None:
    while (frame := link.receive()) is not None:
        try:
            header = Header.unpack_from(frame)
        except DecodeError:
            continue
        address = Address(header.shelf, header.slot)
        if header.flags & Flag.RESPONSE and address in addresses:
            raise BusyError(
                str(address),
                f"already served on {link.name} by {format_mac(header.src)}",
                "Choose another address, or --force",
            )
