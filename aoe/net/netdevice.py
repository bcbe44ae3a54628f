"""Attributes of an interface, by rtnetlink(7) and the ioctls of netdevice(7).

Interfaces are looked up with RTM_GETLINK, by their name or an alternative name
(``ip link property add``), which can have 127 characters. ``struct ifreq`` has room for
15: the ioctls are used only with the name that the kernel reports, and never with a cut
one, which would select another interface.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from struct import Struct, unpack
from typing import Final, NamedTuple

from aoe.errors import AoEError, NotFoundError, UsageError, from_os_error

# linux/sockios.h, net/if.h, net/if_arp.h
SIOCGIFFLAGS: Final = 0x8913
_SIOCGIFMTU: Final = 0x8921
IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_ARPHRD_ETHER: Final = 1
_ARPHRD_LOOPBACK: Final = 772
NAME_LIMIT: Final = 15
"""Longest name of an interface, without alternative names, in bytes."""
_ALTERNATIVE_LIMIT: Final = 127

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h
_NETLINK_ROUTE: Final = 0
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_RTM_GETLINK: Final = 18
_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_EXT_MASK: Final = 29
_IFLA_ALT_IFNAME: Final = 53
_RTEXT_FILTER_SKIP_STATS: Final = 1 << 3
_NLMSGHDR: Final = Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_IFINFOMSG: Final = Struct("=BxHiII")
"""struct ifinfomsg: family, type of hardware, index, flags, change mask."""
_RTATTR: Final = Struct("=HH")
"""struct rtattr: length, type."""
_TYPE_MASK: Final = 0x3FFF
_UNKNOWN: Final = (errno.ENODEV, errno.EINVAL, errno.ERANGE)
"""Errors for an unknown name; the last two are for alternative names before 5.5."""


class LinkInfo(NamedTuple):
    """The attributes of an interface that opening a link needs.

    Args:
        name: the name by which it was looked up; can be an alternative name.
        number: interface index.
        mac: six bytes.
        mtu: in bytes, without the Ethernet header.
    """

    name: str
    number: int
    mac: bytes
    mtu: int


def get_link_info(name: str) -> LinkInfo:
    """Return the attributes of an interface that AoE can use.

    Args:
        name: its name, or an alternative name.

    Raises:
        NotFoundError: no such interface.
        UsageError: not an Ethernet interface.
        AoEError: the interface is down.
    """
    info, _ = _get_link(name)
    return info


def _get_link(name: str) -> tuple[LinkInfo, int]:
    # Returns the interface, which AoE can use, and its flags.
    try:
        reply = _request_link(name)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise from_os_error(name, error) from error
        have = ", ".join(interface_names())
        raise NotFoundError(
            name, f"no such interface (have: {have})", "List them with: ip link"
        ) from error
    _, hardware, index, flags, _ = _IFINFOMSG.unpack_from(reply)
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
    attributes = _unpack_attributes(reply[_IFINFOMSG.size :])
    (mtu,) = unpack("=I", attributes[_IFLA_MTU])
    return LinkInfo(name, index, attributes[_IFLA_ADDRESS], mtu), flags


def _request_link(name: str) -> bytes:
    # Returns struct ifinfomsg and the attributes; ENODEV if there is no such name.
    encoded = os.fsencode(name)
    if not 0 < len(encoded) <= _ALTERNATIVE_LIMIT or b"\0" in encoded:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    # The kernel finds short alternative names by IFLA_IFNAME, too.
    kind = _IFLA_IFNAME if len(encoded) <= NAME_LIMIT else _IFLA_ALT_IFNAME
    body = (
        _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        + _pack_attribute(kind, encoded + b"\0")
        + _pack_attribute(_IFLA_EXT_MASK, Struct("=I").pack(_RTEXT_FILTER_SKIP_STATS))
    )
    length = _NLMSGHDR.size + len(body)
    header = _NLMSGHDR.pack(length, _RTM_GETLINK, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as netlink:
        netlink.send(header + body)
        reply = netlink.recv(1 << 16)
    length, message, *_ = _NLMSGHDR.unpack_from(reply)
    payload = reply[_NLMSGHDR.size : length]
    if message == _NLMSG_ERROR:
        (code,) = unpack("=i", payload[:4])
        raise OSError(-code, os.strerror(-code))
    return payload


def _pack_attribute(kind: int, value: bytes) -> bytes:
    raw = _RTATTR.pack(_RTATTR.size + len(value), kind) + value
    return raw.ljust(-(-len(raw) // 4) * 4, b"\0")


def _unpack_attributes(raw: bytes) -> dict[int, bytes]:
    found = {}
    while len(raw) >= _RTATTR.size:
        length, kind = _RTATTR.unpack_from(raw)
        found[kind & _TYPE_MASK] = raw[_RTATTR.size : length]
        raw = raw[-(-length // 4) * 4 :]
    return found


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
    for name in interface_names():
        # Skip interfaces of other kinds, and those removed in the meantime.
        with contextlib.suppress(AoEError):
            _, flags = _get_link(name)
            if not flags & _IFF_LOOPBACK:
                usable.append(name)
    return usable


def pack_ifreq(name: str, value: bytes = b"") -> bytes:
    """Return a ``struct ifreq``.

    Args:
        name: the name that the kernel reports, not an alternative one.
        value: the rest of the structure; zeros follow.

    Raises:
        OSError: the name is too long (ENODEV).
    """
    encoded = os.fsencode(name)
    if len(encoded) > NAME_LIMIT:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return (encoded.ljust(NAME_LIMIT + 1, b"\0") + value).ljust(40, b"\0")


def get_ifreq(sock: socket.socket, name: str, request: int, layout: str) -> int:
    """Issue an ioctl on ``struct ifreq`` and return the integer in its result.

    Args:
        sock: a socket of any family.
        name: the name that the kernel reports, not an alternative one.
        request: the ioctl number.
        layout: ``struct`` format of the result, which selects one integer.

    Raises:
        OSError: no such interface.
    """
    result = fcntl.ioctl(sock, request, pack_ifreq(name))
    return int(unpack(f"={layout}", result)[0])


def current_mtu(sock: socket.socket, name: str, default: int) -> int:
    """Return the MTU of an interface; ``default`` if there is none of that name.

    Args:
        sock: a socket of any family.
        name: as for ``get_ifreq``.
        default: bytes.
    """
    with contextlib.suppress(OSError):
        return get_ifreq(sock, name, _SIOCGIFMTU, "16xi20x")
    return default
