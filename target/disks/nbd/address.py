"""Where an NBD server listens: URIs, and a socket that leads there."""

from __future__ import annotations

import errno
import re
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote, urlsplit

from aoe.errors import AoEError, UsageError

if TYPE_CHECKING:
    from typing import TypeAlias

    Place: TypeAlias = tuple[socket.AddressFamily, str | tuple[object, ...]]

_PORT: Final = 10809
_SCHEME: Final = re.compile(r"nbds?(\+\w+)?:")
_SCHEMES: Final = frozenset(
    {"nbd", "nbd+unix", "nbd+vsock", "nbds", "nbds+unix", "nbds+vsock"}
)
_FIX: Final = "Write it as nbd://host/name or nbd+unix:///name?socket=/path"


def is_nbd(path: str) -> bool:
    """Tell whether a path is a URI of NBD."""
    return bool(_SCHEME.match(path))


@dataclass(frozen=True, slots=True)
class NbdAddress:
    """Where a server listens, and what the export is called.

    Args:
        uri: as it was written.
        export: the name; the empty one is the server's default.
        places: where to connect to, the best first; none where the way is TLS or vsock,
            which libnbd alone knows.
    """

    uri: str
    export: str
    places: tuple[Place, ...] = ()

    @classmethod
    def parse(cls, uri: str) -> NbdAddress:
        """Read a URI, and look its host up, once: within a request it would take time.

        Args:
            uri: ``nbd://host[:port]/name``, ``nbd+unix:///name?socket=/path``, or one
                of the same with ``nbds`` for TLS or ``+vsock``.

        Raises:
            UsageError: none of them.
            AoEError: the host has no address.
        """
        parts = urlsplit(uri)
        export = unquote(parts.path.removeprefix("/"))
        if parts.scheme not in _SCHEMES or not uri.isprintable() or "\0" in export:
            raise UsageError(uri, "not a kind of NBD that we speak", _FIX)
        places: tuple[Place, ...] = ()
        if parts.scheme.endswith("+unix"):
            path = _socket_path(uri, parts)
            if parts.scheme == "nbd+unix":
                places = ((socket.AF_UNIX, path),)
        elif not parts.scheme.endswith("+vsock"):
            host, port = _host(uri, parts)
            if parts.scheme == "nbd":
                places = _resolve(host, port)
        return cls(uri, export, places)


def _socket_path(uri: str, parts: SplitResult) -> str:
    # By hand: parse_qs would take a plus sign in a path for a space.
    pairs = [pair.partition("=") for pair in parts.query.split("&")]
    paths = [unquote(value) for name, _, value in pairs if name == "socket"]
    if len(paths) != 1 or not paths[0] or parts.hostname:
        raise UsageError(uri, "names no socket", _FIX)
    return paths[0]


def _host(uri: str, parts: SplitResult) -> tuple[str, int]:
    try:
        host, port = parts.hostname, parts.port or _PORT
    except ValueError as error:
        raise UsageError(uri, "not a port", _FIX) from error
    if not host:
        raise UsageError(uri, "names no host", _FIX)
    return host, port


def _resolve(host: str, port: int) -> tuple[Place, ...]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no address"
        raise AoEError(host, why.lower(), "Check the name") from error
    return tuple((family, place) for family, _, _, _, place in found)


def time_left(deadline: float) -> float:
    """Return the seconds until a time of ``time.monotonic()``.

    Raises:
        TimeoutError: it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(errno.ETIMEDOUT, "the server is too slow")
    return left


def dial(address: NbdAddress, deadline: float) -> socket.socket:
    """Connect to the first place of an address where somebody listens.

    Args:
        address: one that has places.
        deadline: of ``time.monotonic()``.

    Raises:
        OSError: nobody does, or not in time.
    """
    failure: OSError = ConnectionRefusedError(errno.ECONNREFUSED, "nowhere to go")
    for family, place in address.places:
        line = socket.socket(family, socket.SOCK_STREAM)
        try:
            line.settimeout(time_left(deadline))
            line.connect(place)
            if family != socket.AF_UNIX:
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            line.close()
            failure = error
        except BaseException:
            line.close()
            raise
        else:
            return line
    raise failure
