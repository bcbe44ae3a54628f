"""Address claims between target processes on one host.

Two processes on one interface do not receive each other's frames, so a probe on the
wire cannot detect that an address is in use. A UNIX socket with an abstract name made
of interface index and address can: abstract names are per network namespace, like
interfaces, and the kernel removes them when the process ends.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

from aoe.errors import BusyError

if TYPE_CHECKING:
    from aoe.address import Address
    from aoe.net.link import Link


def claim(link: Link, address: Address) -> socket.socket:
    """Claim an address on an interface until the returned socket is closed.

    Raises:
        BusyError: another process has claimed it.
    """
    name = f"\0pyaoe/target/{link.index}/{address}"
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        holder.bind(name)
        holder.listen()
    except OSError as error:
        holder.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise BusyError(
            str(address),
            f"already served on {link.name} by {_owner(name)}",
            "Choose another address. With --force, clients mix up both disks",
        ) from error
    return holder


def _owner(name: str) -> str:
    # SO_PEERCRED of the listening socket is the owner's process id.
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(name)
            ucred = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError:
        return "another process"
    return f"process {struct.unpack('=iii', ucred)[0]}"
