"""Tag ranges that are unique among the initiators of a network namespace (P11)."""

from __future__ import annotations

import itertools
import os
import secrets

from aoe.errors import BusyError
from aoe.header import TAG_BASES, TAG_COUNTER, tag_prefix
from aoe.net.link import hold_name

_driver_number = itertools.count()
_BASES = TAG_BASES - 1
"""Bases that are claimed: 1 and up. Base 0 is for programs that claim none: their
responses reach all initiators of the host, and match no frame of them."""


def tag_base() -> int:
    """Return ten bits of a tag that other initiators of this host rarely use."""
    return 1 + (os.getpid() + 257 * next(_driver_number)) % _BASES


def claim_tag_base() -> tuple[int, int]:
    """Claim ten bits for ``Options.tag_base`` that no other initiator here uses.

    All initiators of a host receive the responses to each of them, and only tags
    distinguish them (P11): with equal tags, one would accept the other's data.

    Returns:
        The bits, and a file descriptor that holds the claim until it is closed.

    Raises:
        BusyError: all values are in use.
    """
    first = tag_base()
    for step in range(_BASES):
        base = 1 + (first - 1 + step) % _BASES
        holder = hold_name(f"pyaoe/initiator/{base}")
        if holder is not None:
            return base, holder
    raise BusyError("tags", f"{_BASES} initiators run in this network namespace")


def random_tag_start() -> int:
    """Return a number for the first tag.

    The initiator that had the same base before may have ended just now, and responses
    to it may still arrive. In a container, even the process ID is often the same.
    """
    return secrets.randbelow(TAG_COUNTER + 1)


def unclaimed_tag() -> int:
    """Return a tag with base 0, for a request that any initiator may send."""
    return tag_prefix(0) | random_tag_start()
