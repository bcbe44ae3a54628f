"""Link settings, ring sizes and flow control of a NIC, by ``SIOCETHTOOL``.

Interfaces are given by the name that the kernel reports, not by an alternative name.
The ioctls apply to the caller's network namespace and need no privileges. The functions
return None if the driver does not implement the request, as most virtual ones do not.
See ethtool(8).
"""

from __future__ import annotations

import fcntl
import socket
import struct
from array import array
from typing import Final, NamedTuple

from aoe.net.netdevice import pack_ifreq

# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GSET: Final = 0x01
_ETHTOOL_GRINGPARAM: Final = 0x10
_ETHTOOL_GPAUSEPARAM: Final = 0x12
_SPEED_UNKNOWN: Final = 0xFFFF_FFFF
_DUPLEX_UNKNOWN: Final = 0xFF

_LINK_SETTINGS: Final = struct.Struct("=12xHB13xH14x")
"""struct ethtool_cmd: speed, duplex and speed_hi."""
_RINGS: Final = struct.Struct("=4xI12xI12x")
"""struct ethtool_ringparam: rx_max_pending and rx_pending."""
_PAUSE: Final = struct.Struct("=8xII")
"""struct ethtool_pauseparam: rx_pause and tx_pause."""


class LinkSettings(NamedTuple):
    """Speed and duplex mode of a link.

    Args:
        speed: Mbit/s; None if unknown.
        full_duplex: None if unknown.
    """

    speed: int | None
    full_duplex: bool | None


class RingParameters(NamedTuple):
    """Size of the RX ring of a NIC, in descriptors.

    Args:
        pending: the current size.
        max_pending: the maximum that the driver supports.
    """

    pending: int
    max_pending: int


class Pause(NamedTuple):
    """Flow control (802.3x).

    Args:
        rx: received pause frames stop transmission.
        tx: pause frames are sent when the receive buffers fill up.
    """

    rx: bool
    tx: bool


def link_settings(name: str) -> LinkSettings | None:
    """Return speed and duplex mode (ETHTOOL_GSET)."""
    values = _get(name, _ETHTOOL_GSET, _LINK_SETTINGS)
    if values is None:
        return None
    low, duplex, high = values
    speed = high << 16 | low
    return LinkSettings(
        None if speed in (0, 0xFFFF, _SPEED_UNKNOWN) else speed,
        None if duplex == _DUPLEX_UNKNOWN else bool(duplex),
    )


def ring_parameters(name: str) -> RingParameters | None:
    """Return the size of the RX ring (ETHTOOL_GRINGPARAM)."""
    values = _get(name, _ETHTOOL_GRINGPARAM, _RINGS)
    if values is None:
        return None
    max_pending, pending = values
    return RingParameters(pending, max_pending)


def pause(name: str) -> Pause | None:
    """Return the flow control settings (ETHTOOL_GPAUSEPARAM)."""
    values = _get(name, _ETHTOOL_GPAUSEPARAM, _PAUSE)
    return None if values is None else Pause(*map(bool, values))


def _get(name: str, command: int, layout: struct.Struct) -> tuple[int, ...] | None:
    data = array("B", struct.pack("=I", command).ljust(layout.size, b"\0"))
    address, _ = data.buffer_info()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        try:
            request = pack_ifreq(name, struct.pack("P", address))
            fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
        except OSError:
            return None
    return layout.unpack(data.tobytes())
