"""The listening socket of an NBD server, Unix or TCP, and its NBD URI."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from aoe.common.hosts import resolve
from aoe.errors import BusyError, UsageError, from_os_error

_PORT: Final = 10809
_PORT_LIMIT: Final = 65535
_CONNECT_TIMEOUT: Final = 1.0
"""Seconds to connect to an existing Unix socket, to learn if a server listens on it."""


class Listener:
    """A listening Unix or TCP socket.

    Args:
        address: the path of a Unix socket, or ``HOST:PORT``.

    Raises:
        BusyError: another server listens there.
        UsageError: the path is not a socket, or the address is invalid.
        AoEError: the socket could not be opened.
    """

    def __init__(self, address: str) -> None:
        parsed = _parse_address(address)
        self.path = parsed if isinstance(parsed, Path) else None
        if isinstance(parsed, Path):
            self.socket = _listen_on_path(parsed)
            self._inode = parsed.stat().st_ino
        else:
            self.socket = _listen_on_port(address, *parsed)
        self.socket.setblocking(False)

    def uri(self, name: str) -> str:
        """Return the NBD URI of an export."""
        if self.path is not None:
            return _path_uri(self.path, name)
        host, port = self.socket.getsockname()[:2]
        return _port_uri(host, port, name)

    def close(self) -> None:
        """Close the socket, and remove it from its directory."""
        self.socket.close()
        # Another server may have replaced it, so compare the inode first.
        with suppress(OSError):
            if self.path is not None and self.path.stat().st_ino == self._inode:
                self.path.unlink()


def planned_uri(address: str, name: str) -> str:
    """Return the NBD URI that a ``Listener`` at this address will have.

    Raises:
        UsageError: port 0, which the kernel replaces with a free one.
    """
    parsed = _parse_address(address)
    if isinstance(parsed, Path):
        return _path_uri(parsed, name)
    host, port = parsed
    if not port:
        raise UsageError(address, "the port is not known yet", "Choose a port")
    return _port_uri(host, port, name)


def _parse_address(address: str) -> Path | tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in address:
        if int(port) > _PORT_LIMIT:
            raise UsageError(address, "no such port", "Write HOST:PORT, 1 to 65535")
        return host.strip("[]") or "localhost", int(port)
    return Path(address).absolute()


def _path_uri(path: Path, name: str) -> str:
    return f"nbd+unix:///{quote(name)}?socket={quote(str(path))}"


def _port_uri(host: str, port: int, name: str) -> str:
    netloc = f"[{host}]" if ":" in host else host
    return f"nbd://{netloc}{'' if port == _PORT else f':{port}'}/{quote(name)}"


def _listen_on_port(address: str, host: str, port: int) -> socket.socket:
    try:
        found = resolve(host, port, socket.AI_PASSIVE)
    except OSError as error:
        raise from_os_error(address, error) from error
    except UnicodeError as error:
        raise UsageError(address, "no such host", "Write HOST:PORT") from error
    # A name may resolve to an address that this host does not have: localhost to ::1
    # where IPv6 is disabled.
    failures = []
    for family, sockaddr in found:
        try:
            return socket.create_server(sockaddr, family=family)
        except OSError as error:
            failures.append(error)
    raise from_os_error(address, failures[0]) from failures[0]


def _listen_on_path(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        # Only the owner may connect: a client can write to the disk.
        before = os.umask(0o077)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen()
    except OSError as error:
        listener.close()
        raise from_os_error(str(path), error) from error
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(str(path), "exists and is not a socket", "Choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT_TIMEOUT)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise BusyError(str(path), "another server listens there", "Choose another path")
