"""Tag ranges that are unique among the initiators of a network namespace (P11)."""

from __future__ import annotations

import itertools
import os

from aoe.errors import BusyError
from aoe.net.link import hold_name

_driver_number = itertools.count()
_TAG_BASES = 1 << 12


def tag_base() -> int:
    """Return twelve bits of a tag that other initiators of this host rarely use."""
    return (os.getpid() + 257 * next(_driver_number)) & _TAG_BASES - 1


def claim_tag_base() -> tuple[int, int]:
    """Claim twelve bits for ``Options.tag_base`` that no other initiator here uses.

    All initiators of a host receive the responses to each of them, and only tags
    distinguish them (P11): with equal tags, one would accept the other's data.

    Returns:
        The bits, and a file descriptor that holds the claim until it is closed.

    Raises:
        BusyError: all values are in use.
    """
    first = tag_base()
    for step in range(_TAG_BASES):
        base = (first + step) & _TAG_BASES - 1
        holder = hold_name(f"pyaoe/initiator/{base}")
        if holder is not None:
            return base, holder
    raise BusyError("tags", f"{_TAG_BASES} initiators run in this network namespace")
