"""Tags that tell the initiators of one machine apart (P11)."""

from __future__ import annotations

import itertools
import os

from aoe.errors import BusyError
from aoe.net.link import hold_name

_driver_number = itertools.count()
_TAG_BASES = 1 << 12


def tag_base() -> int:
    """Twelve bits for the tags of a query that nobody else here is likely to use."""
    return (os.getpid() + 257 * next(_driver_number)) & _TAG_BASES - 1


def claim_tag_base() -> tuple[int, int]:
    """Find twelve bits for ``Options.tag_base`` that no other host here uses.

    Every initiator of a machine hears the answers to all of them, and only tags tell
    them apart (P11): with the same tags, one would take the other's data for its own.

    Returns:
        The bits, and a file descriptor to close when they are free again.

    Raises:
        BusyError: all of them are in use.
    """
    first = tag_base()
    for step in range(_TAG_BASES):
        base = (first + step) & _TAG_BASES - 1
        holder = hold_name(f"pyaoe/initiator/{base}")
        if holder is not None:
            return base, holder
    raise BusyError("tags", f"{_TAG_BASES} initiators run on this machine")
