"""An NBD server on a host's loop: sockets in, byte operations out.

::

    listener -> Connection: socket <-> NbdSession -> ByteView -> bios -> the driver

Everything happens in the host's turns; nothing blocks. Several clients may be
connected, each with many requests outstanding.
"""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from aoe.common.nbd import NbdCommand
from initiator.export.nbd.session import NbdRequest, NbdSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.errors import AoEError
    from initiator.disk.read_modify_write import Done, ReadModifyWriteView
    from initiator.export.nbd.handshake import NbdExport
    from initiator.export.nbd.listener import Listener

_CONNECTIONS: Final = 64
"""Clients at a time; more wait to be accepted."""
_READS_AT_ONCE: Final = 16
"""Receptions from one client before the others, and the network, have their turn."""
_PIECES_AT_ONCE: Final = 64


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
        self,
        host: Watcher,
        view: ReadModifyWriteView,
        export: NbdExport,
        listener: Listener,
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
            holes = request.allows_holes and self._server.export.discard_zeroes_data
            make = view.punch if holes else view.write_zeroes
            make(request.offset, request.length, done, fua=request.fua)
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
