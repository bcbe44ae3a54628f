"""Disks of an NBD server: nbdkit, qemu-nbd and all that stands behind them.

A request and its answer, reconnecting included, take a second at most, so that other
disks of the process are not kept waiting for longer. A server that cannot be reached is
``ENODEV``: the client is told that the disk is not available, and asks again. After an
attempt that failed, the next waits for as long as it took, and meanwhile all requests
fail at once.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, unquote, urlsplit

from aoe.errors import AccessError, AoEError, DecodeError, UsageError, from_os_error
from aoe.sizes import check_sectors
from target.disks.nbd_wire import (
    FUA,
    REPLY_LENGTH,
    NbdCommand,
    NbdExport,
    NbdFlag,
    handshake,
    pack_request,
    parse_reply,
)

if TYPE_CHECKING:
    from target.disks.file import OpenFlags

_PORT: Final = 10809
_PATIENCE: Final = 1.0
_FIRST_PATIENCE: Final = 10.0
_PAUSE: Final = 0.05
_SCHEME: Final = re.compile(r"nbds?(\+\w+)?:")
_CURE: Final = "Write it as nbd://host/name or nbd+unix:///name?socket=/path"


class NbdAddress:
    """Where a server listens, and what the export is called.

    Args:
        uri: ``nbd://host[:port]/name`` or ``nbd+unix:///name?socket=/path``.

    Raises:
        UsageError: neither of them.
        AoEError: the host has no address.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self.uri = uri
        self.export = unquote(parts.path.removeprefix("/"))
        self.place: str | tuple[object, ...]
        if parts.scheme == "nbd+unix":
            paths = parse_qs(parts.query).get("socket", [])
            if len(paths) != 1 or parts.netloc:
                raise UsageError(uri, "names no socket", _CURE)
            self.family, self.place = socket.AF_UNIX, paths[0]
        elif parts.scheme == "nbd":
            self.family, self.place = _resolve(uri)
        else:
            raise UsageError(uri, "not a kind of NBD that we speak", _CURE)


def _resolve(uri: str) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    # Once: a name server would take its time within a request.
    parts = urlsplit(uri)
    try:
        host, port = parts.hostname, parts.port or _PORT
    except ValueError as error:
        raise UsageError(uri, "not a port", _CURE) from error
    if not host:
        raise UsageError(uri, "names no host", _CURE)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AoEError(
            host, error.strerror or "no address", "Check the name"
        ) from error
    family, _, _, _, place = found[0]
    return family, place


def is_nbd(path: str) -> bool:
    """Tell whether a path is a URI of NBD."""
    return bool(_SCHEME.match(path))


class NbdConnection:
    """One connection, and one request at a time on it.

    Args:
        address: where to.
        deadline: of ``time.monotonic()``.

    Raises:
        OSError: no connection, or it broke.
        AoEError: the server refuses the export, or is none.
    """

    def __init__(self, address: NbdAddress, deadline: float) -> None:
        self._deadline = deadline
        self._handle = 0
        self._socket = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            self._arm()
            self._socket.connect(address.place)
            if address.family != socket.AF_UNIX:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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

    def request(
        self,
        command: NbdCommand,
        deadline: float,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: memoryview | None = None,
        into: memoryview | None = None,
    ) -> int:
        """Ask, wait for the answer, and return its error number, 0 for success.

        Raises:
            OSError: the connection broke, or took too long; it is of no more use.
            DecodeError: the same, because of nonsense.
        """
        self._deadline = deadline
        self._handle += 1
        self._send(
            memoryview(pack_request(command, self._handle, offset, length, flags))
        )
        if data is not None:
            self._send(data)
        raw = self._receive(memoryview(bytearray(REPLY_LENGTH)))
        error = parse_reply(bytes(raw), self._handle)
        if not error and into is not None:
            self._receive(into)
        return error

    def close(self) -> None:
        """Say goodbye and hang up."""
        self._deadline = time.monotonic() + _PATIENCE
        with suppress(OSError):
            self._send(memoryview(pack_request(NbdCommand.DISCONNECT, 0)))
        self._socket.close()

    def abandon(self) -> None:
        """Hang up."""
        self._socket.close()

    def _arm(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "the server is too slow")
        self._socket.settimeout(left)

    def _send(self, data: memoryview) -> None:
        self._arm()
        self._socket.sendall(data)

    def _receive(self, buffer: memoryview) -> memoryview:
        done = 0
        while done < len(buffer):
            self._arm()
            got = self._socket.recv_into(buffer[done:])
            if not got:
                raise ConnectionResetError(errno.ECONNRESET, "the server hung up")
            done += got
        return buffer


class NbdDisk:
    """An export of an NBD server, which may go away and come back.

    Reading, writing and clearing may be repeated, so a connection that breaks costs a
    request nothing where another can be had. A flush cannot tell what has become of
    writes that a server took before the connection broke: the first one after that
    fails.

    Args:
        address: where it is.
        read_only: writing is refused.
        sync: a write is stable when it returns.

    Raises:
        AoEError: one of its children: no server, no export, or not for writing.
    """

    def __init__(self, address: NbdAddress, *, read_only: bool, sync: bool) -> None:
        self._address = address
        self._sync = sync
        self.read_only = read_only
        try:
            connection = NbdConnection(address, time.monotonic() + _FIRST_PATIENCE)
        except OSError as error:
            cure = "Is the server running?"
            raise from_os_error(address.uri, error, cure) from error
        self._connection: NbdConnection | None = connection
        self._export = connection.export
        self._unflushed = False
        self._lost = False
        self._not_before = 0.0
        try:
            self.size = self._check(self._export)
        except BaseException:
            connection.close()
            raise

    def _check(self, export: NbdExport) -> int:
        uri = self._address.uri
        if export.flags & NbdFlag.READ_ONLY and not self.read_only:
            raise AccessError(uri, "not allowed to write", "Serve it --read-only")
        if export.block > 512:
            raise UsageError(
                uri,
                f"takes blocks of {export.block} bytes only",
                "Put nbdkit's blocksize filter before it",
            )
        if self._sync and not export.flags & (NbdFlag.FUA | NbdFlag.FLUSH):
            raise UsageError(
                uri, "the server cannot make writes stable", "Leave out --sync"
            )
        return check_sectors(uri, export.size)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``."""
        for start, end in self._parts(len(buffer)):
            piece = buffer[start:end]
            self._ask(NbdCommand.READ, offset + start, end - start, into=piece)

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write ``data``; it is in the server's cache, or stable with ``sync``."""
        for start, end in self._parts(len(data)):
            piece = data[start:end]
            self._change(NbdCommand.WRITE, offset + start, end - start, piece)

    def discard(self, offset: int, length: int) -> None:
        """Have the server clear the range, or write zeros if it does not know how."""
        zeroes = bool(self._export.flags & NbdFlag.WRITE_ZEROES)
        for start, end in self._parts(length):
            if zeroes:
                size = end - start
                self._change(NbdCommand.WRITE_ZEROES, offset + start, size, None)
            else:
                self.write_from(offset + start, memoryview(bytes(end - start)))

    def flush(self) -> None:
        """Return when the server says that all is stable.

        A server that offers no flush is taken for one that has no cache, as Linux and
        qemu do.
        """
        if self._export.flags & NbdFlag.FLUSH:
            self._ask(NbdCommand.FLUSH)
        if self._lost:
            self._lost = self._unflushed = False
            raise OSError(errno.EIO, "the server may have lost what was written")
        self._unflushed = False

    def close(self) -> None:
        """Hang up; what was not flushed is the server's."""
        if self._connection is not None:
            self._connection.close()

    def _parts(self, length: int) -> list[tuple[int, int]]:
        # What one request may carry.
        unit = self._export.payload
        return [(at, min(at + unit, length)) for at in range(0, length, unit)]

    def _change(
        self, command: NbdCommand, offset: int, length: int, data: memoryview | None
    ) -> None:
        stable = self._sync and bool(self._export.flags & NbdFlag.FUA)
        flags = FUA if stable else 0
        self._ask(command, offset, length, flags=flags, data=data)
        if not stable:
            self._unflushed = True
            if self._sync:
                self.flush()

    def _ask(
        self,
        command: NbdCommand,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: memoryview | None = None,
        into: memoryview | None = None,
    ) -> None:
        begin = time.monotonic()
        if self._connection is None and begin < self._not_before:
            raise OSError(errno.ENODEV, "waiting for the server to come back")
        deadline = begin + _PATIENCE
        had_one = self._connection is not None
        for is_last in (False, True) if had_one else (True,):
            try:
                error = self._connected(deadline).request(
                    command, deadline, offset, length, flags=flags, data=data, into=into
                )
            except (OSError, AoEError) as failure:
                self._hang_up()
                if is_last or time.monotonic() >= deadline:
                    spent = time.monotonic() - begin
                    self._not_before = time.monotonic() + max(spent, _PAUSE)
                    raise OSError(errno.ENODEV, str(failure)) from failure
            else:
                if error:
                    raise OSError(_told(error), os.strerror(error))
                return

    def _connected(self, deadline: float) -> NbdConnection:
        if self._connection is not None:
            return self._connection
        connection = NbdConnection(self._address, deadline)
        if connection.export.size != self.size:
            connection.close()
            raise DecodeError(self._address.uri, "the disk has another size now")
        self._connection = connection
        self._export = connection.export
        return connection

    def _hang_up(self) -> None:
        if self._connection is None:
            return
        self._connection.abandon()
        self._connection = None
        if self._unflushed and self._export.flags & NbdFlag.FLUSH:
            self._lost = True


def _told(error: int) -> int:
    # Only a server that cannot be reached is a disk that is gone.
    return errno.EIO if error in (errno.ENODEV, errno.ENXIO) else error


def open_nbd(uri: str, flags: OpenFlags) -> NbdDisk:
    """Connect to the export of an NBD server.

    Raises:
        AoEError: one of its children, with the cure: no such server or export, not for
            writing, blocks larger than a sector, options that only files have.
    """
    for option, is_set in (
        ("--direct", flags.direct),
        ("--offset", flags.offset),
        ("--length", flags.length is not None),
        ("--create", flags.create is not None),
    ):
        if is_set:
            raise UsageError(uri, f"{option} is for files", f"Leave out {option}")
    address = NbdAddress(uri)
    return NbdDisk(address, read_only=flags.read_only, sync=flags.sync)
