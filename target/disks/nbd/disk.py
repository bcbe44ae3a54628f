"""A disk that is an export of an NBD server, such as nbdkit or qemu-nbd.

A request, reconnecting included, times out after a second, because it blocks the other
disks of the process; a flush after 30 seconds. An unreachable server is ``ENODEV``: the
client gets "device unavailable" and retries. After a failed attempt, all requests fail
at once for as long as that attempt took (back-off).

::

    request --> reply                                        done
       |
       +--> timeout: stalled -- all others are ENODEV --> reply: done
       |                              |
       +--> connection lost <---------+
              READ     repeated on a new connection
              others   in doubt: EIO, as are all writes to the range, and all flushes

A server may execute a request after its connection was lost, and nothing tells the
client when: a flush on a new connection does not cover it, even with multi-conn, which
is about requests that were answered. Therefore no later write may overtake it.

``libnbd.py`` and ``socket_client.py`` implement the two NBD clients.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from aoe.common.nbd import NbdCommand, NbdCommandFlag, NbdFlag
from aoe.common.sizes import check_sectors, format_size
from aoe.errors import AccessError, AoEError, UsageError, from_os_error
from target.disks.nbd.address import StalledError
from target.disks.nbd.wire import NbdExport, NbdRequest

if TYPE_CHECKING:
    from collections.abc import Callable

log: Final = logging.getLogger("aoe-target")

_TIMEOUT: Final = 1.0
_FLUSH_TIMEOUT: Final = 30.0
_CONNECT_TIMEOUT: Final = 10.0
_RETRY_DELAY: Final = 0.05
_REQUEST_LIMIT: Final = 1 << 20
"""Bytes in a request: small enough for a slow server to complete it in a second."""
_POLL_TIME: Final = 0.002
"""Seconds to wait for the reply to a stalled request, each time."""
_CHANGES: Final = frozenset({NbdCommand.WRITE, NbdCommand.WRITE_ZEROES})
_IN_DOUBT: Final = (
    "the connection was lost during a write of {:,} bytes at {:,}, which the server "
    "may still execute: writes to this range and all flushes fail. Make sure that the "
    "server has ended, then run: aoe-target reload"
)
_MAY_BE_LOST: Final = "the server may have lost writes that were not flushed"
_FIXED_FLAGS: Final = (
    NbdFlag.READ_ONLY | NbdFlag.FLUSH | NbdFlag.FUA | NbdFlag.WRITE_ZEROES
)
"""Flags that must be the same after a reconnect."""


class _ShutdownError(ConnectionAbortedError):
    """A server that shuts down refuses a request; it has not executed it."""


class Connection(Protocol):
    """A connection to an export, with one outstanding request at a time."""

    @property
    def export(self) -> NbdExport:
        """The export's properties, from the handshake."""
        ...

    def is_closed(self) -> bool:
        """Return True if the server has closed the connection, between requests."""
        ...

    def request(self, request: NbdRequest, deadline: float) -> int:
        """Send a request, wait for the reply, return its error number, 0 for success.

        The buffers of the request are not accessed after the return.

        Raises:
            StalledError: there was no reply before ``deadline``, of
                ``time.monotonic()``; the connection is usable for ``finish`` only.
            OSError: the connection failed, and is not usable afterwards.
            AoEError: the same, because the server violated the protocol.
        """
        ...

    def finish(self, deadline: float) -> int:
        """Wait for the reply to the request that has stalled; as ``request``."""
        ...

    def close(self) -> None:
        """Send DISCONNECT and close the connection."""
        ...

    def abandon(self) -> None:
        """Close the connection without DISCONNECT."""
        ...


class NbdDisk:
    """An export of an NBD server, with automatic reconnect.

    If the connection is lost, the server may have lost writes that it had completed but
    not flushed; therefore all flushes fail until the disk is reopened.

    Args:
        uri: the disk's name in messages.
        connect: returns a connection, given the deadline; raises the errors of
            ``Connection.request``.
        read_only: True if writes are refused.
        sync: True if a write is stable when it returns.

    Raises:
        AoEError: no connection, no such export, or it is not writable.
    """

    def __init__(
        self,
        uri: str,
        connect: Callable[[float], Connection],
        *,
        read_only: bool,
        sync: bool,
    ) -> None:
        self._uri = uri
        self._connect = connect
        self._sync = sync
        self.read_only = read_only
        try:
            connection = connect(time.monotonic() + _CONNECT_TIMEOUT)
        except OSError as error:
            raise from_os_error(uri, error, "Is the server running?") from error
        self._connection: Connection | None = connection
        self.export = connection.export
        """The properties at the first connect; a reconnect must find the same."""
        self._flushed = False
        self._unflushed = False
        self._stalled: NbdRequest | None = None
        self._in_doubt: list[tuple[int, int]] = []
        """The ranges of writes that the server may or may not execute some time."""
        self._writes_lost = False
        self._export_changed = ""
        self._not_before = 0.0
        self._unreachable = False
        try:
            self.size = check_export(uri, self.export, read_only=read_only, sync=sync)
        except BaseException:
            connection.close()
            raise
        # Flush the writes of earlier clients, so that only writes of this one can be
        # lost from now on.
        with suppress(OSError):
            self.flush()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``."""
        for start, end in self._split(len(buffer)):
            self._request(
                NbdRequest(
                    command=NbdCommand.READ,
                    offset=offset + start,
                    length=end - start,
                    into=buffer[start:end],
                )
            )

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write ``data`` to the server's cache, or with ``sync`` to stable storage."""
        for start, end in self._split(len(data)):
            self._change(NbdCommand.WRITE, offset + start, data[start:end])

    def discard(self, offset: int, length: int) -> None:
        """Send WRITE_ZEROES, or write zeros if the server does not support it."""
        command = NbdCommand.WRITE
        if self.export.flags & NbdFlag.WRITE_ZEROES:
            command = NbdCommand.WRITE_ZEROES
        for start, end in self._split(length):
            self._change(command, offset + start, memoryview(bytes(end - start)))

    def flush(self) -> None:
        """Send FLUSH, and return when all completed writes are stable.

        A server without FLUSH is assumed to have no write cache, as in Linux and qemu.

        Raises:
            OSError: the server cannot be reached or reports an error, or a connection
                was lost with writes that were not flushed.
        """
        if self.export.flags & NbdFlag.FLUSH and not self._writes_lost:
            try:
                self._request(NbdRequest(command=NbdCommand.FLUSH))
            except OSError:
                if self._export_changed and self._flushed:
                    return  # No write of this client has been lost.
                raise
        if self._writes_lost:
            raise OSError(errno.EIO, _MAY_BE_LOST)
        self._flushed, self._unflushed = True, False

    def find_fault(self) -> str:
        """Return how the export differs from the one that was opened."""
        return self._export_changed

    def close(self) -> None:
        """Close the connection without a flush."""
        if self._connection is not None:
            self._connection.close()

    def _split(self, length: int) -> list[tuple[int, int]]:
        # Splits a range into requests of the size that the server allows.
        unit = min(self.export.payload, max(_REQUEST_LIMIT, self.export.block))
        return [(at, min(at + unit, length)) for at in range(0, length, unit)]

    def _change(self, command: NbdCommand, offset: int, data: memoryview) -> None:
        fua = self._sync and bool(self.export.flags & NbdFlag.FUA)
        self._request(
            NbdRequest(
                command=command,
                offset=offset,
                length=len(data),
                flags=NbdCommandFlag.FUA if fua else 0,
                data=data if command is NbdCommand.WRITE else None,
            )
        )
        if not fua:
            self._flushed, self._unflushed = False, True
            if self._sync:
                self.flush()

    def _request(self, request: NbdRequest) -> None:
        begin = time.monotonic()
        is_waiting = self._connection is None or self._stalled is not None
        if is_waiting and begin < self._not_before:
            raise OSError(errno.ENODEV, "the server is unreachable")
        self._finish_stalled(begin)
        if request.command in _CHANGES:
            self._check_in_doubt(request.offset, request.offset + request.length)
        flushing = request.command is NbdCommand.FLUSH
        deadline = begin + (_FLUSH_TIMEOUT if flushing else _TIMEOUT)
        attempts = 1 if self._connection is None else 2
        while True:
            attempts -= 1
            try:
                connection = self._ensure_connected(min(deadline, begin + _TIMEOUT))
                error = connection.request(request, deadline)
                if error == errno.ESHUTDOWN:
                    raise _ShutdownError(error, "the server shuts down")
                break
            except (OSError, AoEError) as failure:
                if isinstance(failure, StalledError):
                    attempts = 0
                    self._hold(request)
                elif isinstance(failure, _ShutdownError):
                    self._disconnect()
                else:
                    self._disconnect(request)
                if not attempts or time.monotonic() >= deadline:
                    self._back_off(begin, failure)
                    raise OSError(errno.ENODEV, str(failure)) from failure
        if error:
            raise OSError(_map_errno(error), os.strerror(error))

    def _check_in_doubt(self, start: int, end: int) -> None:
        if any(first < end and start < last for first, last in self._in_doubt):
            raise OSError(errno.EIO, "an earlier write may still be executed there")

    def _hold(self, request: NbdRequest) -> None:
        # Keeps the connection for the reply, unless its loss would lose nothing.
        if self._unflushed or request.command in _CHANGES:
            self._stalled = replace(request, data=None, into=None)
        else:
            self._disconnect()

    def _finish_stalled(self, now: float) -> None:
        request, connection = self._stalled, self._connection
        if request is None or connection is None:
            return
        try:
            error = connection.finish(now + _POLL_TIME)
        except StalledError as stalled:
            self._not_before = time.monotonic() + _RETRY_DELAY
            raise OSError(errno.ENODEV, "the server is stalled") from stalled
        except (OSError, AoEError) as failure:
            self._stalled = None
            log.warning("%s: connection lost while stalled: %s", self._uri, failure)
            with suppress(OSError):
                self._disconnect(request)
            return
        self._stalled = None
        self._log_reachable()
        if request.command in _CHANGES and not request.flags & NbdCommandFlag.FUA:
            self._flushed, self._unflushed = False, True
        if error == errno.ESHUTDOWN:
            self._disconnect()

    def _ensure_connected(self, deadline: float) -> Connection:
        if self._connection is not None:
            if not self._connection.is_closed():
                return self._connection
            self._disconnect()
        connection = self._connect(deadline)
        why = self._find_mismatch(connection.export)
        self._export_changed = why
        if why:
            connection.close()
            raise UsageError(self._uri, why, "Run: aoe-target reload")
        self._connection = connection
        self._log_reachable()
        return connection

    def _log_reachable(self) -> None:
        if self._unreachable:
            self._unreachable = False
            log.warning("%s: the server is reachable again", self._uri)

    def _find_mismatch(self, found: NbdExport) -> str:
        # Clients rely on the size and on what a flush guarantees.
        first = self.export
        if found.size != first.size:
            return (
                f"the size has changed from {format_size(first.size)} "
                f"to {format_size(found.size)}"
            )
        if (
            (found.flags ^ first.flags) & _FIXED_FLAGS
            or found.block > first.block
            or found.payload < first.payload
        ):
            return "the server's flags or block sizes have changed"
        return ""

    def _disconnect(self, unanswered: NbdRequest | None = None) -> None:
        """Close the connection.

        Args:
            unanswered: the request that had no reply.

        Raises:
            OSError: the request is a write, and in doubt from now on.
        """
        if self._connection is None:
            return
        self._connection.abandon()
        self._connection = None
        if self._unflushed and self.export.flags & NbdFlag.FLUSH:
            self._writes_lost = True
        if unanswered is not None and unanswered.command in _CHANGES:
            self._writes_lost = True
            start, length = unanswered.offset, unanswered.length
            self._in_doubt.append((start, start + length))
            log.error("%s: %s", self._uri, _IN_DOUBT.format(length, start))
            raise OSError(errno.EIO, "the connection was lost before the reply")

    def _back_off(self, begin: float, failure: Exception) -> None:
        now = time.monotonic()
        self._not_before = now + max(now - begin, _RETRY_DELAY)
        if not self._unreachable:
            self._unreachable = True
            error = failure
            if isinstance(failure, OSError):
                error = from_os_error(self._uri, failure)
            log.warning("%s; clients get AoE error 3 (device unavailable)", error)


def _map_errno(error: int) -> int:
    # ENODEV and ENXIO are reserved for an unreachable server.
    return errno.EIO if error in (errno.ENODEV, errno.ENXIO) else error


def check_export(uri: str, export: NbdExport, *, read_only: bool, sync: bool) -> int:
    """Check that an export can be served, and return its size in bytes.

    Raises:
        AccessError: it is read-only.
        UsageError: it cannot make writes stable, or its size is not a multiple of the
            sector and block size.
    """
    if export.flags & NbdFlag.READ_ONLY and not read_only:
        raise AccessError(uri, "not allowed to write", "Use --read-only")
    if sync and not export.flags & (NbdFlag.FUA | NbdFlag.FLUSH):
        raise UsageError(
            uri, "the server supports neither FUA nor FLUSH", "Omit --sync"
        )
    return check_sectors(uri, export.size)
