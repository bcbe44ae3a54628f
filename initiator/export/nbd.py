"""An NBD server on a host's loop: sockets in, byte operations out.

::

    listener -> Connection: socket <-> NbdSession -> ByteView -> bios -> the driver

Everything happens in the host's turns; nothing blocks. Several clients may be
connected, each with many requests outstanding.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import quote

from aoe.errors import AoEError, BusyError, UsageError, from_os_error
from aoe.nbd import NbdCommand
from initiator.export.nbd_session import NbdRequest, NbdSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.export.nbd_handshake import NbdExport
    from initiator.unaligned import ByteView, Done

_CONNECTIONS: Final = 64
"""Clients at a time; more wait to be accepted."""
_READS_AT_ONCE: Final = 16
"""Receptions from one client before the others, and the network, have their turn."""
_PIECES_AT_ONCE: Final = 64
_PORT: Final = 10809
_PORT_LIMIT: Final = 65535
_PATIENCE: Final = 1.0
"""Seconds for whoever listens at a socket's path to show that he does."""


class Watcher(Protocol):
    """What a server asks of a host."""

    def watch(
        self, fd: int, callback: Callable[[int], None], events: int = select.POLLIN
    ) -> None:
        """As ``Host.watch``."""

    def unwatch(self, fd: int) -> None:
        """As ``Host.unwatch``."""


class NbdServer:
    """Serves one disk to any number of clients.

    Args:
        host: calls us when a socket is ready.
        view: the disk.
        export: how it is presented.
        listener: where clients come from; the server closes it.
    """

    def __init__(
        self, host: Watcher, view: ByteView, export: NbdExport, listener: Listener
    ) -> None:
        self.host = host
        self.view = view
        self.export = export
        self.uri = listener.uri(export.name)
        self.connections: set[Connection] = set()
        self.running = 0
        self._listener = listener
        self._is_stopping = False
        self._listen()

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, neither on the disk nor in answers to be sent."""
        return not self.running and not any(
            each.session.output for each in self.connections
        )

    def stop(self) -> None:
        """Take no more clients, and refuse what the present ones ask for now."""
        self._is_stopping = True
        self.host.unwatch(self._listener.socket.fileno())
        for connection in self.connections:
            connection.session.refuses = True

    def close(self) -> None:
        """Hang up on everybody, whatever is under way."""
        self.stop()
        for connection in tuple(self.connections):
            connection.close()
        self._listener.close()

    def left(self, connection: Connection) -> None:
        """Take note that a connection is closed."""
        self.connections.discard(connection)
        if not self._is_stopping:
            self._listen()

    def _listen(self) -> None:
        self.host.watch(self._listener.socket.fileno(), self._accept)

    def _accept(self, _events: int) -> None:
        # Who has left again, and a lack of file descriptors, is no harm to the others.
        with suppress(OSError):
            peer, _ = self._listener.socket.accept()
            connection = Connection(self, peer)
            self.connections.add(connection)
            connection.begin()
        if len(self.connections) >= _CONNECTIONS:
            self.host.unwatch(self._listener.socket.fileno())


class Connection:
    """One client.

    Attributes:
        session: what it says and is told.
    """

    def __init__(self, server: NbdServer, peer: socket.socket) -> None:
        self.session = NbdSession(server.export)
        self._server = server
        self._socket = peer
        self._events = -1
        self._is_closed = self._is_busy = False
        peer.setblocking(False)

    def begin(self) -> None:
        """Greet the client, who may have left already, and listen to it."""
        if self._socket.family != socket.AF_UNIX:
            with suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._go_on()

    def close(self) -> None:
        """Hang up. What is under way goes on, its answers are not wanted any more."""
        if self._is_closed:
            return
        self._is_closed = True
        self.session.output.clear()
        self._server.host.unwatch(self._socket.fileno())
        self._socket.close()
        self._server.left(self)

    def _listens(self) -> bool:
        return not self.session.is_full and not self.session.is_ending

    def _watch(self) -> None:
        if self._is_closed:
            return
        events = select.POLLIN if self._listens() else 0
        events |= select.POLLOUT if self.session.output else 0
        if events != self._events:
            self._events = events
            self._server.host.watch(self._socket.fileno(), self._ready, events)

    def _ready(self, events: int) -> None:
        self._is_busy = True
        if events & select.POLLOUT:
            self._send()
        if self._listens():
            self._receive()
        elif events & (select.POLLHUP | select.POLLERR):
            # The client is gone, and nobody takes the answers.
            self.close()
        self._is_busy = False
        self._go_on()

    def _go_on(self) -> None:
        if self._is_busy:
            return
        self._is_busy = True
        self._execute()
        self._is_busy = False
        if self.session.is_over:
            self.close()
        self._watch()

    def _receive(self) -> None:
        session = self.session
        for _ in range(_READS_AT_ONCE):
            buffer = session.buffer()
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                session.hang_up()
                return
            session.received(count)
            self._execute()
            if count < len(buffer) or self._is_closed or not self._listens():
                return

    def _execute(self) -> None:
        # Answers that are sent make room for requests that have come already.
        while not self._is_closed:
            request = self.session.next_request()
            if request is not None:
                self._server.running += 1
                self._start(request)
            elif not self._send():
                break

    def _start(self, request: NbdRequest) -> None:
        view = self._server.view
        data = bytearray(request.length if request.command == NbdCommand.READ else 0)

        def done(error: AoEError | None) -> None:
            self._server.running -= 1
            is_read = request.command == NbdCommand.READ
            self.session.answer(request, error, data if is_read else None)
            self._answered()

        if request.command == NbdCommand.READ:
            view.read(request.offset, data, done)
        elif request.command == NbdCommand.WRITE:
            view.write(request.offset, request.data, done, fua=request.fua)
        elif request.command == NbdCommand.TRIM:
            self._trim(request, done)
        elif request.command == NbdCommand.WRITE_ZEROES:
            view.write_zeroes(request.offset, request.length, done, fua=request.fua)
        else:
            view.flush(done)

    def _trim(self, request: NbdRequest, done: Done) -> None:
        view = self._server.view

        def trimmed(error: AoEError | None) -> None:
            if error is None and request.fua:
                view.flush(done)
            else:
                done(error)

        view.trim(request.offset, request.length, trimmed)

    def _answered(self) -> None:
        if self._is_closed:
            self.session.output.clear()
        else:
            self._go_on()

    def _send(self) -> bool:
        # Tells whether any of it could be sent.
        output = self.session.output
        progress = False
        while output and not self._is_closed:
            pieces = [output[at] for at in range(min(len(output), _PIECES_AT_ONCE))]
            try:
                self.session.sent(self._socket.sendmsg(pieces))
                progress = True
            except BlockingIOError:
                break
            except OSError:
                self.close()
        return progress


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
