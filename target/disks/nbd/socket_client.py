"""The built-in NBD client on a blocking socket, with one request at a time."""

from __future__ import annotations

import errno
from contextlib import suppress

from aoe.common.nbd import NbdCommand
from target.disks.nbd.address import NbdAddress, connect, remaining_time
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
        self._deadline = deadline
        self._handle = 0
        self._socket = connect(address, deadline)
        try:
            self.export = self._negotiate(address.export)
        except BaseException:
            self._socket.close()
            raise

    def _negotiate(self, name: str) -> NbdExport:
        steps = handshake(name)
        step = next(steps)
        while True:
            received = b""
            if isinstance(step, int):
                received = bytes(self._receive(memoryview(bytearray(step))))
            else:
                self._send(memoryview(step))
            try:
                step = steps.send(received)
            except StopIteration as end:
                export: NbdExport = end.value
                return export

    def request(self, request: NbdRequest, deadline: float) -> int:
        """Send a request, wait for the reply, return its error number, 0 for success.

        After an exception the connection is not usable.

        Raises:
            OSError: the connection failed, or the deadline has passed.
            DecodeError: the server violated the protocol.
        """
        self._deadline = deadline
        self._handle += 1
        self._send(memoryview(pack_request(request, self._handle)))
        if request.data is not None:
            self._send(request.data)
        raw = self._receive(memoryview(bytearray(REPLY_LENGTH)))
        error = parse_reply(bytes(raw), self._handle)
        if not error and request.into is not None:
            self._receive(request.into)
        return error

    def close(self) -> None:
        """Send DISCONNECT and close the socket."""
        with suppress(OSError):
            self._socket.settimeout(_DISCONNECT_TIMEOUT)
            disconnect = NbdRequest(command=NbdCommand.DISCONNECT)
            self._socket.sendall(pack_request(disconnect, 0))
        self._socket.close()

    def abandon(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send(self, data: memoryview) -> None:
        self._socket.settimeout(remaining_time(self._deadline))
        self._socket.sendall(data)

    def _receive(self, buffer: memoryview) -> memoryview:
        done = 0
        while done < len(buffer):
            self._socket.settimeout(remaining_time(self._deadline))
            got = self._socket.recv_into(buffer[done:])
            if not got:
                raise ConnectionResetError(
                    errno.ECONNRESET, "connection closed by the server"
                )
            done += got
        return buffer
