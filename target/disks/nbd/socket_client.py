"""The built-in NBD client on a blocking socket, with one request at a time."""

from __future__ import annotations

import errno
import socket
import time
from contextlib import suppress

from aoe.common.nbd import NbdCommand
from target.disks.nbd.address import NbdAddress, StalledError, connect, remaining_time
from target.disks.nbd.wire import (
    REPLY_LENGTH,
    NbdExport,
    NbdRequest,
    handshake,
    pack_request,
    parse_reply,
)

_DISCONNECT_TIMEOUT = 0.1
"""Seconds that sending DISCONNECT may take."""


class SocketConnection:
    """The built-in ``Connection``: simple replies, no TLS.

    Args:
        address: the server and export; it must have endpoints.
        deadline: of ``time.monotonic()``.

    Raises:
        OSError: the connection failed.
        AoEError: the server refuses the export, or is not an NBD server.
    """

    def __init__(self, address: NbdAddress, deadline: float) -> None:
        self._handle = 0
        self._unsent: list[memoryview] = []
        self._reply = memoryview(bytearray(REPLY_LENGTH))
        self._into: memoryview | None = None
        self._received = 0
        self._socket = connect(address, deadline)
        try:
            self.export = self._negotiate(address.export, deadline)
        except BaseException:
            self._socket.close()
            raise

    def _negotiate(self, name: str, deadline: float) -> NbdExport:
        steps = handshake(name)
        step = next(steps)
        while True:
            received = b""
            if isinstance(step, int):
                buffer = memoryview(bytearray(step))
                self._received = 0
                self._receive(buffer, 0, deadline)
                received = bytes(buffer)
            else:
                self._unsent = [memoryview(step)]
                self._send(deadline)
            try:
                step = steps.send(received)
            except StopIteration as end:
                export: NbdExport = end.value
                return export

    def is_closed(self) -> bool:
        """Return True if the server has closed the connection, between requests."""
        self._socket.settimeout(0)
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def request(self, request: NbdRequest, deadline: float) -> int:
        """Send a request, wait for the reply, return its error number, 0 for success.

        Raises:
            StalledError: there is no reply yet; continue with ``finish``.
            OSError: the connection failed, and is not usable afterwards.
            DecodeError: the same, because the server violated the protocol.
        """
        self._handle += 1
        self._unsent = [memoryview(pack_request(request, self._handle))]
        if request.data is not None:
            self._unsent.append(request.data)
        self._into, self._received = request.into, 0
        return self.finish(deadline)

    def finish(self, deadline: float) -> int:
        """Wait for the reply to a stalled request; see ``request``."""
        try:
            self._send(deadline)
            self._receive(self._reply, 0, deadline)
            error = parse_reply(bytes(self._reply), self._handle)
            if not error and self._into is not None:
                self._receive(self._into, REPLY_LENGTH, deadline)
        except TimeoutError as failure:
            if time.monotonic() < deadline:
                # ETIMEDOUT of the kernel: the server's host does not respond.
                raise ConnectionAbortedError(
                    errno.ECONNABORTED, "connection timed out"
                ) from failure
            self._detach_buffers()
            raise StalledError(errno.ETIMEDOUT, "the request timed out") from failure
        self._into = None
        return error

    def _detach_buffers(self) -> None:
        # The caller's memory is not accessed after ``request`` has returned.
        self._unsent = [memoryview(bytes(each)) for each in self._unsent]
        if self._into is not None:
            self._into = memoryview(bytearray(len(self._into)))

    def close(self) -> None:
        """Send DISCONNECT, unless a request is only partly sent; close the socket."""
        if not self._unsent:
            with suppress(OSError):
                self._socket.settimeout(_DISCONNECT_TIMEOUT)
                disconnect = NbdRequest(command=NbdCommand.DISCONNECT)
                self._socket.sendall(pack_request(disconnect, 0))
        self._socket.close()

    def abandon(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send(self, deadline: float) -> None:
        while self._unsent:
            self._socket.settimeout(remaining_time(deadline))
            sent = self._socket.sendmsg(self._unsent)
            while self._unsent and sent >= len(self._unsent[0]):
                sent -= len(self._unsent.pop(0))
            if self._unsent:
                self._unsent[0] = self._unsent[0][sent:]

    def _receive(self, buffer: memoryview, start: int, deadline: float) -> None:
        # The buffer is for the bytes of the reply from ``start`` on.
        while (done := self._received - start) < len(buffer):
            self._socket.settimeout(remaining_time(deadline))
            got = self._socket.recv_into(buffer[done:])
            if not got:
                raise ConnectionResetError(
                    errno.ECONNRESET, "connection closed by the server"
                )
            self._received += got
