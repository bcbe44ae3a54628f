"""Resolve host names."""

from __future__ import annotations

import encodings.idna  # noqa: F401 - getaddrinfo imports it, perhaps as another user
import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOPBACK: Final = ("127.0.0.1", "::1")


class HostAddress(NamedTuple):
    """A socket address and its address family."""

    family: socket.AddressFamily
    sockaddr: tuple[Any, ...]


def resolve(host: str, port: int, flags: int = 0) -> list[HostAddress]:
    """Return the TCP addresses of a host, in the order in which to try them.

    ``localhost`` has the loopback addresses even if the system does not resolve it, as
    without /etc/hosts (RFC 6761, section 6.3).

    Raises:
        OSError: the name cannot be resolved.
        UnicodeError: the name is not valid.
    """
    try:
        return list(_lookup(host, port, flags))
    except socket.gaierror:
        if host != "localhost":
            raise
    return [each for ip in _LOOPBACK for each in _lookup(ip, port, flags)]


def _lookup(host: str, port: int, flags: int) -> Iterator[HostAddress]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return (HostAddress(family, sockaddr) for family, _, _, _, sockaddr in found)
