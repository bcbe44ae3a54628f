"""Frames for tests of links: made, and taken from a link."""

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
    length: int, *, reply: bool = False, dst: bytes = Wire.target_mac, number: int = 0
) -> bytes:
    """Make a frame with contents that no other number has."""
    head = dst + Wire.initiator_mac + b"\x88\xa2" + (b"\x18" if reply else b"\x10")
    fill = number.to_bytes(5, "big") + random.Random(number).randbytes(length)
    return (head + fill)[:length]


def arriving(link: Link, patience: float = 0.1) -> list[bytes]:
    """Take all frames until none has come for a while."""
    frames = []
    while link.wait(patience):
        while (frame := link.receive()) is not None:
            frames.append(bytes(frame))
    return frames


def switch_on(wire: Wire, name: str, where: Namespace) -> None:
    """Switch an interface on, and wait until the initiator's end sends again.

    The kernel gets to that by itself, some time later; till then frames are lost.
    """
    set_up(name, where.pid)
    show = ["ip", "-oneline", "link", "show", "aoe0"]
    end = time.monotonic() + 10
    while b"state UP" not in wire.initiator.run(show, capture_output=True).stdout:
        assert time.monotonic() < end
        time.sleep(0.001)
