"""Our own client of NBD, on a blocking socket: one request at a time."""

from __future__ import annotations

import errno
from contextlib import suppress

from aoe.common.nbd import NbdCommand
from target.disks.nbd.address import NbdAddress, dial, time_left
from target.disks.nbd.wire import (
    REPLY_LENGTH,
    NbdExport,
    NbdRequest,
    handshake,
    pack_request,
    parse_reply,
)

_GOODBYE = 0.1
"""Seconds that saying goodbye may take."""


class SocketConnection:
    """A ``Connection`` of ours: no TLS, simple replies.

    Args:
        address: where to; it has places.
        deadline: of ``time.monotonic()``.

    Raises:
        OSError: no connection, or it broke.
        AoEError: the server refuses the export, or is none.
    """

    def __init__(self, address: NbdAddress, deadline: float) -> None:
        self._deadline = deadline
        self._handle = 0
        self._socket = dial(address, deadline)
        try:
            self.export = self._shake_hands(address.export)
        except BaseException:
            self._socket.close()
            raise

    def _shake_hands(self, name: str) -> NbdExport:
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
        """Ask, wait for the answer, and return its error number, 0 for success.

        Raises:
            OSError: the connection broke, or took too long; it is of no more use.
            DecodeError: the same, because of nonsense.
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
        """Say goodbye and hang up."""
        with suppress(OSError):
            self._socket.settimeout(_GOODBYE)
            goodbye = NbdRequest(command=NbdCommand.DISCONNECT)
            self._socket.sendall(pack_request(goodbye, 0))
        self._socket.close()

    def abandon(self) -> None:
        """Hang up."""
        self._socket.close()

    def _send(self, data: memoryview) -> None:
        self._socket.settimeout(time_left(self._deadline))
        self._socket.sendall(data)

    def _receive(self, buffer: memoryview) -> memoryview:
        done = 0
        while done < len(buffer):
            self._socket.settimeout(time_left(self._deadline))
            got = self._socket.recv_into(buffer[done:])
            if not got:
                raise ConnectionResetError(errno.ECONNRESET, "the server hung up")
            done += got
        return buffer
