"""Where an NBD server listens: a Unix socket or a TCP port, and the URI of it."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from aoe.errors import BusyError, UsageError, from_os_error

_PORT: Final = 10809
_PORT_LIMIT: Final = 65535
_PATIENCE: Final = 1.0
"""Seconds for whoever listens at a socket's path to show that he does."""


class Listener:
    """Where clients connect to: a Unix socket or a TCP port.

    Args:
        place: the path of a socket, or ``HOST:PORT``.

    Raises:
        BusyError: somebody serves there already.
        UsageError: there is a file of another kind.
        AoEError: the system refuses it.
    """

    def __init__(self, place: str) -> None:
        where = _parse_place(place)
        self.path = where if isinstance(where, Path) else None
        if isinstance(where, Path):
            self.socket = _listen_on_path(where)
            self._inode = where.stat().st_ino
        else:
            self.socket = _listen_on_port(place, *where)
        self.socket.setblocking(False)

    def uri(self, name: str) -> str:
        """Return the URI of an export here."""
        if self.path is not None:
            return _path_uri(self.path, name)
        host, port = self.socket.getsockname()[:2]
        return _port_uri(host, port, name)

    def close(self) -> None:
        """Stop listening, and remove the socket from its directory."""
        self.socket.close()
        # Somebody else's, who has taken its place, is left alone.
        with suppress(OSError):
            if self.path is not None and self.path.stat().st_ino == self._inode:
                self.path.unlink()


def planned_uri(place: str, name: str) -> str:
    """Return the URI that an export will have at a ``Listener``'s place.

    Raises:
        UsageError: it is only known later, since any free port will do.
    """
    where = _parse_place(place)
    if isinstance(where, Path):
        return _path_uri(where, name)
    host, port = where
    if not port:
        raise UsageError(place, "nobody knows yet which port", "Choose one")
    return _port_uri(host, port, name)


def _parse_place(place: str) -> Path | tuple[str, int]:
    host, colon, port = place.rpartition(":")
    if colon and port.isdecimal() and "/" not in place:
        if int(port) > _PORT_LIMIT:
            raise UsageError(place, "no such port", "Write HOST:PORT, 1 to 65535")
        return host.strip("[]") or "localhost", int(port)
    return Path(place).absolute()


def _path_uri(path: Path, name: str) -> str:
    return f"nbd+unix:///{quote(name)}?socket={quote(str(path))}"


def _port_uri(host: str, port: int, name: str) -> str:
    place = f"[{host}]" if ":" in host else host
    return f"nbd://{place}{'' if port == _PORT else f':{port}'}/{quote(name)}"


def _listen_on_port(place: str, host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        raise from_os_error(place, error) from error
    except UnicodeError as error:
        raise UsageError(place, "no such host", "Write HOST:PORT") from error


def _listen_on_path(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        # Whoever may connect may write to the disk: its owner alone.
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
        raise UsageError(str(path), "is there, and no socket", "Choose another name")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(_PATIENCE)
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise BusyError(str(path), "somebody serves there already", "Choose another name")
