"""Frames for tests of links: made, and taken from a link."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from aoe.netns import Wire

if TYPE_CHECKING:
    from aoe.link import Link


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
