"""Attributes of an interface, by the ioctls of netdevice(7)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import Final, NamedTuple

from aoe.errors import AoEError, NotFoundError, UsageError, from_os_error

# linux/sockios.h, net/if.h, net/if_arp.h
SIOCGIFFLAGS: Final = 0x8913
_SIOCGIFMTU: Final = 0x8921
_SIOCGIFHWADDR: Final = 0x8927
_SIOCGIFINDEX: Final = 0x8933
IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_ARPHRD_ETHER: Final = 1
_ARPHRD_LOOPBACK: Final = 772


class LinkInfo(NamedTuple):
    """The attributes of an interface that opening a link needs."""

    name: str
    number: int
    mac: bytes
    mtu: int


def get_link_info(name: str) -> LinkInfo:
    """Return the attributes of an interface that AoE can use.

    Raises:
        NotFoundError: no such interface.
        UsageError: not an Ethernet interface.
        AoEError: the interface is down.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            index = get_ifreq(sock, name, _SIOCGIFINDEX, "16xi20x")
            flags = get_ifreq(sock, name, SIOCGIFFLAGS, "16xH22x")
            mtu = get_ifreq(sock, name, _SIOCGIFMTU, "16xi20x")
            address = fcntl.ioctl(sock, _SIOCGIFHWADDR, _ifreq(name))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise from_os_error(name, error) from error
            have = ", ".join(interface_names())
            raise NotFoundError(
                name, f"no such interface (have: {have})", "List them with: ip link"
            ) from error
    hardware, mac = struct.unpack("=16xH6s16x", address)
    if hardware not in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK):
        raise UsageError(
            name,
            "not an Ethernet interface",
            "List the interfaces with: ip -details link",
        )
    if not flags & IFF_UP:
        raise AoEError(
            name, "interface is down", f"Bring it up with: ip link set {name} up"
        )
    return LinkInfo(name, index, mac, mtu)


def interface_names() -> list[str]:
    """Return the names of all interfaces.

    Raises:
        OSError: the kernel refused the request.
    """
    return [name for _, name in socket.if_nameindex()]


def usable_names() -> list[str]:
    """Return the names of the interfaces that AoE can use: Ethernet, up, not loopback.

    Unlike ``aoe.net.interfaces``, this does not import pyroute2, which is slow.

    Raises:
        OSError: the kernel refused the request.
    """
    usable = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        for name in interface_names():
            # Skip interfaces of other kinds, and those removed in the meantime.
            with contextlib.suppress(AoEError, OSError):
                get_link_info(name)
                if not get_ifreq(sock, name, SIOCGIFFLAGS, "16xH22x") & _IFF_LOOPBACK:
                    usable.append(name)
    return usable


def _ifreq(name: str) -> bytes:
    # struct ifreq; IFNAMSIZ is 16, including the terminating zero.
    return os.fsencode(name)[:16].ljust(40, b"\0")


def get_ifreq(sock: socket.socket, name: str, request: int, layout: str) -> int:
    """Issue an ioctl on ``struct ifreq`` and return the integer in its result.

    Args:
        sock: a socket of any family.
        name: the interface.
        request: the ioctl number.
        layout: ``struct`` format of the result, which selects one integer.

    Raises:
        OSError: no such interface.
    """
    result = fcntl.ioctl(sock, request, _ifreq(name))
    return int(struct.unpack(f"={layout}", result)[0])


def current_mtu(sock: socket.socket, name: str, default: int) -> int:
    """Return the MTU of an interface; ``default`` if there is none of that name."""
    with contextlib.suppress(OSError):
        return get_ifreq(sock, name, _SIOCGIFMTU, "16xi20x")
    return default
