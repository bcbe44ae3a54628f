"""What the targets of one machine know of each other.

Two processes on one interface never hear each other's frames, so that the wire cannot
tell that an address is taken. A socket with a name made of both can: abstract names
belong to the network namespace, as interfaces do, and vanish with their process.
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
    """Hold an address on an interface for as long as the socket is open.

    Raises:
        BusyError: another process holds it.
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
            f"already served on {link.name} by {_who(name)}",
            "Choose another address, or --force",
        ) from error
    return holder


def _who(name: str) -> str:
    # The kernel vouches for the process that listens.
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.connect(name)
            answer = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError:
        return "another process"
    return f"process {struct.unpack('=iii', answer)[0]}"
