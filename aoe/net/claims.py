"""Names that one process of a host can claim.

Two processes of a host do not receive each other's frames, so the network cannot tell
them what the other one uses. A UNIX socket with an abstract name can: abstract names
are per network namespace, like interfaces, and the kernel removes them when the process
ends.
"""

from __future__ import annotations

import errno
import socket
import struct

from aoe.errors import BusyError


def claim_name(name: str, what: str, use: str, fix: str) -> socket.socket:
    """Claim a name until the returned socket is closed.

    Args:
        name: the name, at most 107 bytes.
        what: the object that it stands for, for the message.
        use: what the owner does with it, such as ``in use``.
        fix: how to solve it.

    Raises:
        BusyError: another process has claimed it; with its process ID.
    """
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        holder.bind(f"\0{name}")
        holder.listen()
    except OSError as error:
        holder.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise BusyError(what, f"{use} by {_owner(name)}", fix) from error
    return holder


def _owner(name: str) -> str:
    # SO_PEERCRED of the listening socket is the owner's process ID.
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(f"\0{name}")
            ucred = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError:
        return "another process"
    return f"process {struct.unpack('=iii', ucred)[0]}"
