"""NBD URIs, and connections to the server that a URI names."""

from __future__ import annotations

import errno
import re
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote, urlsplit

from aoe.common.hosts import resolve
from aoe.errors import AoEError, UsageError

if TYPE_CHECKING:
    from typing import TypeAlias

    Endpoint: TypeAlias = tuple[socket.AddressFamily, str | tuple[object, ...]]

_PORT: Final = 10809
_KEEPALIVE: Final = 5
"""Seconds between two TCP keep-alive probes."""
_KEEPALIVE_PROBES: Final = 4
_SCHEME: Final = re.compile(r"nbds?(\+\w+)?:")
_SCHEMES: Final = frozenset(
    {"nbd", "nbd+unix", "nbd+vsock", "nbds", "nbds+unix", "nbds+vsock"}
)
_FIX: Final = "Write it as nbd://host/name or nbd+unix:///name?socket=/path"


def is_nbd(path: str) -> bool:
    """Return True if a path is an NBD URI."""
    return bool(_SCHEME.match(path))


@dataclass(frozen=True, slots=True)
class NbdAddress:
    """A parsed NBD URI.

    Args:
        uri: the URI.
        export: the export name; empty selects the server's default.
        endpoints: socket addresses to connect to, in order of preference; empty for TLS
            and vsock, which only libnbd supports.
    """

    uri: str
    export: str
    endpoints: tuple[Endpoint, ...] = ()

    @classmethod
    def parse(cls, uri: str) -> NbdAddress:
        """Parse a URI and resolve its host, once: a lookup could block a request.

        Args:
            uri: ``nbd://host[:port]/name``, ``nbd+unix:///name?socket=/path``, or the
                same with ``nbds`` for TLS, or with ``+vsock``.

        Raises:
            UsageError: the URI is not valid.
            AoEError: the host name cannot be resolved.
        """
        parts = urlsplit(uri)
        export = unquote(parts.path.removeprefix("/"))
        if parts.scheme not in _SCHEMES or not uri.isprintable() or "\0" in export:
            raise UsageError(uri, "not a supported NBD URI", _FIX)
        endpoints: tuple[Endpoint, ...] = ()
        if parts.scheme.endswith("+unix"):
            path = _socket_path(uri, parts)
            if parts.scheme == "nbd+unix":
                endpoints = ((socket.AF_UNIX, path),)
        elif not parts.scheme.endswith("+vsock"):
            host, port = _host(uri, parts)
            if parts.scheme == "nbd":
                endpoints = _resolve(host, port)
        return cls(uri, export, endpoints)


def _socket_path(uri: str, parts: SplitResult) -> str:
    # Not with parse_qs, which would decode a plus sign in a path as a space.
    pairs = [pair.partition("=") for pair in parts.query.split("&")]
    paths = [unquote(value) for name, _, value in pairs if name == "socket"]
    if len(paths) != 1 or not paths[0] or parts.hostname:
        raise UsageError(uri, "the URI has no socket path", _FIX)
    return paths[0]


def _host(uri: str, parts: SplitResult) -> tuple[str, int]:
    try:
        host, port = parts.hostname, parts.port or _PORT
    except ValueError as error:
        raise UsageError(uri, "the port is not valid", _FIX) from error
    if not host:
        raise UsageError(uri, "the URI has no host", _FIX)
    return host, port


def _resolve(host: str, port: int) -> tuple[Endpoint, ...]:
    try:
        return tuple(resolve(host, port))
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no address"
        raise AoEError(host, why.lower(), "Check the host name") from error


class StalledError(TimeoutError):
    """A request has no reply before its deadline; the server may still execute it."""


def remaining_time(deadline: float) -> float:
    """Return the seconds until ``deadline``, a time of ``time.monotonic()``.

    Raises:
        TimeoutError: the deadline has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(errno.ETIMEDOUT, "the request timed out")
    return left


def _set_tcp_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Without these, the loss of the server's host is not noticed while a reply is due.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _KEEPALIVE),
        (socket.TCP_KEEPINTVL, _KEEPALIVE),
        (socket.TCP_KEEPCNT, _KEEPALIVE_PROBES),
        (socket.TCP_USER_TIMEOUT, _KEEPALIVE * _KEEPALIVE_PROBES * 1000),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def connect(address: NbdAddress, deadline: float) -> socket.socket:
    """Connect to the first endpoint of an address that accepts the connection.

    Args:
        address: an address that has endpoints.
        deadline: of ``time.monotonic()``.

    Raises:
        OSError: no endpoint accepted the connection before the deadline.
    """
    failure: OSError = ConnectionRefusedError(errno.ECONNREFUSED, "no endpoint")
    for family, endpoint in address.endpoints:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(remaining_time(deadline))
            sock.connect(endpoint)
            if family != socket.AF_UNIX:
                _set_tcp_options(sock)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure
