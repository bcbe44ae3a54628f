"""What the kernel says of one interface when it is asked by name; see netdevice(7)."""

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


class LinkFacts(NamedTuple):
    """What must be known of an interface before it is opened."""

    name: str
    number: int
    mac: bytes
    mtu: int


def look_up(name: str) -> LinkFacts:
    """Look at an interface, as ``open_link`` does first.

    Raises:
        NotFoundError: no such interface.
        UsageError: not an Ethernet interface.
        AoEError: the interface is down.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        try:
            index = ask(any_socket, name, _SIOCGIFINDEX, "16xi20x")
            flags = ask(any_socket, name, SIOCGIFFLAGS, "16xH22x")
            mtu = ask(any_socket, name, _SIOCGIFMTU, "16xi20x")
            answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, _request(name))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise from_os_error(name, error) from error
            have = ", ".join(interface_names())
            raise NotFoundError(
                name, f"no such interface (have: {have})", "List them with: ip link"
            ) from error
    hardware, mac = struct.unpack("=16xH6s16x", answer)
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
    return LinkFacts(name, index, mac, mtu)


def interface_names() -> list[str]:
    """List all interfaces, whatever their kind.

    Raises:
        OSError: the kernel does not tell.
    """
    return [name for _, name in socket.if_nameindex()]


def usable_names() -> list[str]:
    """List the interfaces that AoE can be spoken on: Ethernet, up, not loopback.

    ``aoe.net.interfaces`` knows more of them, and takes its time to be imported.

    Raises:
        OSError: the kernel does not tell.
    """
    usable = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
        for name in interface_names():
            # One may go, or be another kind.
            with contextlib.suppress(AoEError, OSError):
                look_up(name)
                if not ask(any_socket, name, SIOCGIFFLAGS, "16xH22x") & _IFF_LOOPBACK:
                    usable.append(name)
    return usable


def _request(name: str) -> bytes:
    # struct ifreq; the kernel's names have 15 bytes and a zero.
    return os.fsencode(name)[:16].ljust(40, b"\0")


def ask(any_socket: socket.socket, name: str, question: int, layout: str) -> int:
    """Ask for a number that stands in a ``struct ifreq`` of this layout.

    Raises:
        OSError: no such interface.
    """
    answer = fcntl.ioctl(any_socket, question, _request(name))
    return int(struct.unpack(f"={layout}", answer)[0])


def mtu_now(any_socket: socket.socket, name: str, otherwise: int) -> int:
    """Return an interface's MTU; ``otherwise`` where there is none by that name."""
    with contextlib.suppress(OSError):
        return ask(any_socket, name, _SIOCGIFMTU, "16xi20x")
    return otherwise
