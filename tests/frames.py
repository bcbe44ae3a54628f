"""Helpers of the link tests: build frames, receive all frames, bring up a peer."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from aoe.net.interfaces import set_up
from aoe.net.netns import Wire

if TYPE_CHECKING:
    from aoe.net.link import Link
    from aoe.net.netns import Namespace


def frame_of(
    length: int,
    *,
    response: bool = False,
    dst: bytes = Wire.target_mac,
    number: int = 0,
) -> bytes:
    """Build a frame whose content is unique to its number."""
    head = dst + Wire.initiator_mac + b"\x88\xa2" + (b"\x18" if response else b"\x10")
    fill = number.to_bytes(5, "big") + random.Random(number).randbytes(length)
    return (head + fill)[:length]


def receive_all(link: Link, timeout: float = 0.1) -> list[bytes]:
    """Receive frames until none arrives within ``timeout`` seconds."""
    frames = []
    while link.wait(timeout):
        while (frame := link.receive()) is not None:
            frames.append(bytes(frame))
    return frames


def bring_up(wire: Wire, name: str, where: Namespace) -> None:
    """Set an interface up and wait until the initiator's end is operational.

    The kernel reactivates the queue of the peer asynchronously (linkwatch) and drops
    frames until then.
    """
    set_up(name, where.pid)
    show = ["ip", "-oneline", "link", "show", "aoe0"]
    end = time.monotonic() + 10
    while b"state UP" not in wire.initiator.run(show, capture_output=True).stdout:
        assert time.monotonic() < end
        time.sleep(0.001)
