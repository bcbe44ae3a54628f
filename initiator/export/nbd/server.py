"""An NBD server in a host's event loop.

::

    listener -> Connection: socket <-> NbdSession -> ReadModifyWriteView -> bio

All sockets are non-blocking and all work is done in callbacks of the event loop.
Several clients may be connected, each with many requests outstanding.
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
"""Limit of connected clients; more stay in the listen backlog."""
_RECEIVE_BUDGET: Final = 16
"""recv calls for one client per event, so that one client cannot starve the others and
the AoE link."""
_IOVEC_LIMIT: Final = 64
"""Buffers in a sendmsg call."""


class EventLoop(Protocol):
    """The part of ``Host`` that the server uses."""

    def watch(
        self, fd: int, callback: Callable[[int], None], events: int = select.POLLIN
    ) -> None:
        """As ``Host.watch``."""

    def unwatch(self, fd: int) -> None:
        """As ``Host.unwatch``."""


class NbdServer:
    """An NBD server with one export and any number of clients.

    Args:
        host: the event loop.
        view: the disk.
        export: name, size and features of the disk.
        listener: the listening socket; the server closes it.

    Attributes:
        uri: the URI for clients.
        connections: the open connections.
        outstanding: disk operations that have not completed, also those of clients
            that have disconnected.
    """

    def __init__(
        self,
        host: EventLoop,
        view: ReadModifyWriteView,
        export: NbdExport,
        listener: Listener,
    ) -> None:
        self.host = host
        self.view = view
        self.export = export
        self.uri = listener.uri(export.name)
        self.connections: set[Connection] = set()
        self.outstanding = 0
        self._listener = listener
        self._is_stopping = False
        self._listen()

    @property
    def is_idle(self) -> bool:
        """Return True if no operation is outstanding and all replies are sent."""
        return not self.outstanding and not any(
            each.session.output for each in self.connections
        )

    def stop(self) -> None:
        """Accept no more clients, and refuse new requests with ESHUTDOWN."""
        self._is_stopping = True
        self.host.unwatch(self._listener.socket.fileno())
        for connection in self.connections:
            connection.session.is_shutting_down = True

    def close(self) -> None:
        """Stop, and close all connections without waiting for operations."""
        self.stop()
        for connection in tuple(self.connections):
            connection.close()
        self._listener.close()

    def on_closed(self, connection: Connection) -> None:
        """Forget a closed connection, and accept clients again."""
        self.connections.discard(connection)
        if not self._is_stopping:
            self._listen()

    def _listen(self) -> None:
        self.host.watch(self._listener.socket.fileno(), self._accept)

    def _accept(self, _events: int) -> None:
        # The client may have disconnected (ECONNABORTED), or descriptors have run out
        # (EMFILE); neither may affect the other clients.
        with suppress(OSError):
            peer, _ = self._listener.socket.accept()
            connection = Connection(self, peer)
            self.connections.add(connection)
            connection.start()
        if len(self.connections) >= _CONNECTIONS:
            self.host.unwatch(self._listener.socket.fileno())


class Connection:
    """The connection of one client.

    Attributes:
        session: its protocol state.
    """

    def __init__(self, server: NbdServer, peer: socket.socket) -> None:
        self.session = NbdSession(server.export)
        self._server = server
        self._socket = peer
        self._events = -1
        self._is_closed = self._is_busy = False
        peer.setblocking(False)

    def start(self) -> None:
        """Send the greeting, and begin to receive."""
        if self._socket.family != socket.AF_UNIX:
            # Fails if the client has disconnected; the next recv reports that.
            with suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._process()

    def close(self) -> None:
        """Close the socket; outstanding operations complete without a reply."""
        if self._is_closed:
            return
        self._is_closed = True
        self.session.output.clear()
        self._server.host.unwatch(self._socket.fileno())
        self._socket.close()
        self._server.on_closed(self)

    def _can_receive(self) -> bool:
        return not self.session.is_full and not self.session.is_closing

    def _watch(self) -> None:
        if self._is_closed:
            return
        events = select.POLLIN if self._can_receive() else 0
        events |= select.POLLOUT if self.session.output else 0
        if events != self._events:
            self._events = events
            self._server.host.watch(self._socket.fileno(), self._ready, events)

    def _ready(self, events: int) -> None:
        self._is_busy = True
        if events & select.POLLOUT:
            self._send()
        if self._can_receive():
            self._receive()
        elif events & (select.POLLHUP | select.POLLERR):
            # Without POLLIN no recv would report the disconnect.
            self.close()
        self._is_busy = False
        self._process()

    def _process(self) -> None:
        # An operation may complete within _execute and come back here: not nested.
        if self._is_busy:
            return
        self._is_busy = True
        self._execute()
        self._is_busy = False
        if self.session.is_finished:
            self.close()
        self._watch()

    def _receive(self) -> None:
        session = self.session
        for _ in range(_RECEIVE_BUDGET):
            buffer = session.buffer()
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                session.on_eof()
                return
            session.received(count)
            self._execute()
            if count < len(buffer) or self._is_closed or not self._can_receive():
                return

    def _execute(self) -> None:
        # Sending replies makes the session accept requests that are buffered already.
        while not self._is_closed:
            request = self.session.next_request()
            if request is not None:
                self._server.outstanding += 1
                self._start(request)
            elif not self._send():
                break

    def _start(self, request: NbdRequest) -> None:
        view = self._server.view
        data = bytearray(request.length if request.command == NbdCommand.READ else 0)

        def done(error: AoEError | None) -> None:
            self._server.outstanding -= 1
            is_read = request.command == NbdCommand.READ
            self.session.reply(request, error, data if is_read else None)
            self._on_reply()

        if request.command == NbdCommand.READ:
            view.read(request.offset, data, done)
        elif request.command == NbdCommand.WRITE:
            view.write(request.offset, request.data, done, fua=request.fua)
        elif request.command == NbdCommand.TRIM:
            self._trim(request, done)
        elif request.command == NbdCommand.WRITE_ZEROES:
            holes = request.allows_holes and self._server.export.discard_zeroes_data
            zero = view.punch if holes else view.write_zeroes
            zero(request.offset, request.length, done, fua=request.fua)
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

    def _on_reply(self) -> None:
        if self._is_closed:
            self.session.output.clear()
        else:
            self._process()

    def _send(self) -> bool:
        # Returns True if any byte was sent.
        output = self.session.output
        progress = False
        while output and not self._is_closed:
            buffers = [output[at] for at in range(min(len(output), _IOVEC_LIMIT))]
            try:
                self.session.sent(self._socket.sendmsg(buffers))
                progress = True
            except BlockingIOError:
                break
            except OSError:
                self.close()
        return progress
