"""What a network card says of its cable and its queues; see ethtool(8).

The questions are ioctls, answered in the caller's network namespace and for anybody.
Virtual cards, and drivers that have no answer, leave it at None.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from array import array
from typing import Final, NamedTuple

# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GSET: Final = 0x01
_ETHTOOL_GRINGPARAM: Final = 0x10
_ETHTOOL_GPAUSEPARAM: Final = 0x12
_SPEED_UNKNOWN: Final = 0xFFFF_FFFF
_DUPLEX_UNKNOWN: Final = 0xFF

_CABLE: Final = struct.Struct("=12xHB13xH14x")
"""struct ethtool_cmd: speed, duplex and the upper half of speed."""
_RINGS: Final = struct.Struct("=4xI12xI12x")
"""struct ethtool_ringparam: rx_max_pending and rx_pending."""
_PAUSE: Final = struct.Struct("=8xII")
"""struct ethtool_pauseparam: rx_pause and tx_pause."""


class LinkSettings(NamedTuple):
    """What is agreed on with the other end.

    Args:
        speed: megabits a second, None where nobody knows.
        full_duplex: both ways at once, None where nobody knows.
    """

    speed: int | None
    full_duplex: bool | None


class RxRing(NamedTuple):
    """How many frames the card keeps before the kernel takes them.

    Args:
        pending: now.
        max_pending: at most.
    """

    pending: int
    max_pending: int


class Pause(NamedTuple):
    """Flow control (802.3x).

    Args:
        obeys: stops sending when the other end asks for it.
        asks: asks the other end to stop when frames come too fast.
    """

    rx: bool
    tx: bool


def link_settings(name: str) -> LinkSettings | None:
    """Ask for speed and duplex."""
    answer = _ask(name, _ETHTOOL_GSET, _CABLE)
    if answer is None:
        return None
    low, duplex, high = answer
    speed = high << 16 | low
    return LinkSettings(
        None if speed in (0, 0xFFFF, _SPEED_UNKNOWN) else speed,
        None if duplex == _DUPLEX_UNKNOWN else bool(duplex),
    )


def rx_ring(name: str) -> RxRing | None:
    """Ask for the size of the card's receive queue."""
    answer = _ask(name, _ETHTOOL_GRINGPARAM, _RINGS)
    if answer is None:
        return None
    max_pending, pending = answer
    return RxRing(pending, max_pending)


def pause(name: str) -> Pause | None:
    """Ask for flow control."""
    answer = _ask(name, _ETHTOOL_GPAUSEPARAM, _PAUSE)
    return None if answer is None else Pause(*map(bool, answer))


def _ask(name: str, question: int, layout: struct.Struct) -> tuple[int, ...] | None:
    data = array("B", struct.pack("=I", question).ljust(layout.size, b"\0"))
    address, _ = data.buffer_info()
    # struct ifreq, with a pointer behind the name.
    request = os.fsencode(name)[:16].ljust(16, b"\0") + struct.pack("P16x", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        try:
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        except OSError:
            return None
    return layout.unpack(data.tobytes())
