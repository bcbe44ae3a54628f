"""Disks of an NBD server: nbdkit, qemu-nbd and all that stands behind them.

A request and its answer, reconnecting included, take a second at most, so that other
disks of the process are not kept waiting for longer; a flush may take half a minute,
for it can have much to do. A server that cannot be reached is ``ENODEV``: the client is
told that the disk is not available, and asks again. After an attempt that failed, the
next waits for as long as it took, and meanwhile all requests fail at once.

``libnbd.py`` and ``socket_client.py`` are the two clients there are.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from aoe.ata import SECTOR
from aoe.common.nbd import NbdCommand, NbdCommandFlag, NbdFlag
from aoe.common.sizes import check_sectors, format_size
from aoe.errors import AccessError, AoEError, UsageError, from_os_error
from target.disks.blocks import BlockDisk
from target.disks.nbd.address import NbdAddress
from target.disks.nbd.libnbd import LibnbdConnection, find_libnbd, require_libnbd
from target.disks.nbd.socket_client import SocketConnection
from target.disks.nbd.wire import NbdExport, NbdRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from target.disks.file import OpenFlags
    from target.protocol.disk import Disk

    Connect: TypeAlias = Callable[[NbdAddress, float], "Connection"]

log: Final = logging.getLogger("aoe-target")

CLIENT_VARIABLE: Final = "AOE_NBD_CLIENT"
"""The environment variable that names the client, ``libnbd`` or ``own``."""
_PATIENCE: Final = 1.0
_FLUSH_PATIENCE: Final = 30.0
_FIRST_PATIENCE: Final = 10.0
_PAUSE: Final = 0.05
_PIECE: Final = 1 << 20
"""Bytes in a request: a slow server has a second for it."""
_DOUBTFUL: Final = "the server may have lost what was written"
_COUNTED: Final = NbdFlag.READ_ONLY | NbdFlag.FLUSH | NbdFlag.FUA | NbdFlag.WRITE_ZEROES
"""What a server may not change its mind about while it is served."""


class Connection(Protocol):
    """A connection to an export, and one request at a time on it."""

    @property
    def export(self) -> NbdExport:
        """What the server told of the export."""
        ...

    def request(self, request: NbdRequest, deadline: float) -> int:
        """Ask, wait for the answer, and return its error number, 0 for success.

        Raises:
            OSError: the connection broke, or ``deadline`` of ``time.monotonic()`` has
                passed; it is of no more use.
            AoEError: the same, because of nonsense.
        """
        ...

    def close(self) -> None:
        """Say goodbye and hang up."""
        ...

    def abandon(self) -> None:
        """Hang up; no buffer of a request is touched any more."""
        ...


class NbdDisk:
    """An export of an NBD server, which may go away and come back.

    Reading, writing and clearing may be repeated, so a connection that breaks costs a
    request nothing where another can be had. A flush cannot tell what has become of
    writes that a server took before the connection broke: the first one after that
    fails.

    Args:
        uri: what it is called in messages.
        connect: makes a connection, or raises as ``Connection.request`` does; it gets
            the deadline.
        read_only: writing is refused.
        sync: a write is stable when it returns.

    Raises:
        AoEError: one of its children: no server, no export, or not for writing.
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
            connection = connect(time.monotonic() + _FIRST_PATIENCE)
        except OSError as error:
            raise from_os_error(uri, error, "Is the server running?") from error
        self._connection: Connection | None = connection
        self.export = connection.export
        """What the server told when it was first asked, and must stay with."""
        self._clean = False
        self._unflushed = False
        self._lost = False
        self._replaced = False
        self._not_before = 0.0
        self._away = False
        try:
            self.size = self._check(self.export)
        except BaseException:
            connection.close()
            raise
        # What whoever had it before has left is made stable, so that nothing but our
        # own writes is in question from now on.
        with suppress(OSError):
            self.flush()

    def _check(self, export: NbdExport) -> int:
        uri = self._uri
        if export.flags & NbdFlag.READ_ONLY and not self.read_only:
            raise AccessError(uri, "not allowed to write", "Serve it --read-only")
        if self._sync and not export.flags & (NbdFlag.FUA | NbdFlag.FLUSH):
            raise UsageError(
                uri, "the server cannot make writes stable", "Leave out --sync"
            )
        return check_sectors(uri, export.size)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``."""
        for start, end in self._parts(len(buffer)):
            self._ask(
                NbdRequest(
                    command=NbdCommand.READ,
                    offset=offset + start,
                    length=end - start,
                    into=buffer[start:end],
                )
            )

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write ``data``; it is in the server's cache, or stable with ``sync``."""
        for start, end in self._parts(len(data)):
            self._change(NbdCommand.WRITE, offset + start, data[start:end])

    def discard(self, offset: int, length: int) -> None:
        """Have the server clear the range, or write zeros if it does not know how."""
        command = NbdCommand.WRITE
        if self.export.flags & NbdFlag.WRITE_ZEROES:
            command = NbdCommand.WRITE_ZEROES
        for start, end in self._parts(length):
            self._change(command, offset + start, memoryview(bytes(end - start)))

    def flush(self) -> None:
        """Return when the server says that all is stable.

        A server that offers no flush is taken for one that has no cache, as Linux and
        qemu do.
        """
        if self.export.flags & NbdFlag.FLUSH:
            try:
                self._ask(NbdRequest(command=NbdCommand.FLUSH))
            except OSError:
                if self._replaced and self._clean:
                    return  # Of ours there is nothing that this disk would not have.
                raise
        self._clean, self._unflushed = True, False
        if self._lost:
            self._lost = False
            log.warning("%s: %s", self._uri, _DOUBTFUL)
            raise OSError(errno.EIO, _DOUBTFUL)

    def close(self) -> None:
        """Hang up; what was not flushed is the server's."""
        if self._connection is not None:
            self._connection.close()

    def _parts(self, length: int) -> list[tuple[int, int]]:
        # What one request may carry.
        unit = min(self.export.payload, max(_PIECE, self.export.block))
        return [(at, min(at + unit, length)) for at in range(0, length, unit)]

    def _change(self, command: NbdCommand, offset: int, data: memoryview) -> None:
        stable = self._sync and bool(self.export.flags & NbdFlag.FUA)
        self._ask(
            NbdRequest(
                command=command,
                offset=offset,
                length=len(data),
                flags=NbdCommandFlag.FUA if stable else 0,
                data=data if command is NbdCommand.WRITE else None,
            )
        )
        if not stable:
            self._clean, self._unflushed = False, True
            if self._sync:
                self.flush()

    def _ask(self, request: NbdRequest) -> None:
        begin = time.monotonic()
        if self._connection is None and begin < self._not_before:
            raise OSError(errno.ENODEV, "waiting for the server to come back")
        flushing = request.command is NbdCommand.FLUSH
        deadline = begin + (_FLUSH_PATIENCE if flushing else _PATIENCE)
        attempts = 1 if self._connection is None else 2
        while True:
            attempts -= 1
            try:
                connection = self._connected(min(deadline, begin + _PATIENCE))
                error = connection.request(request, deadline)
                if error == errno.ESHUTDOWN:
                    raise ConnectionAbortedError(error, "the server shuts down")
                break
            except (OSError, AoEError) as failure:
                self._hang_up()
                if not attempts or time.monotonic() >= deadline:
                    self._give_up(begin, failure)
                    raise OSError(errno.ENODEV, str(failure)) from failure
        if error:
            raise OSError(_told(error), os.strerror(error))

    def _connected(self, deadline: float) -> Connection:
        if self._connection is not None:
            return self._connection
        connection = self._connect(deadline)
        why = self._differs(connection.export)
        self._replaced = bool(why)
        if why:
            connection.close()
            raise UsageError(self._uri, why, "Serve it anew")
        self._connection = connection
        if self._away:
            self._away = False
            log.warning("%s: the server is back", self._uri)
        return connection

    def _differs(self, found: NbdExport) -> str:
        # Clients were told of the first one: its size, what a flush means.
        known = self.export
        if found.size != known.size:
            return (
                f"the disk has another size now, {format_size(found.size)} "
                f"instead of {format_size(known.size)}"
            )
        if (
            (found.flags ^ known.flags) & _COUNTED
            or found.block > known.block
            or found.payload < known.payload
        ):
            return "the server offers other things than before"
        return ""

    def _hang_up(self) -> None:
        if self._connection is None:
            return
        self._connection.abandon()
        self._connection = None
        if self._unflushed and self.export.flags & NbdFlag.FLUSH:
            self._lost = True

    def _give_up(self, begin: float, failure: Exception) -> None:
        now = time.monotonic()
        self._not_before = now + max(now - begin, _PAUSE)
        if not self._away:
            self._away = True
            error = failure
            if isinstance(failure, OSError):
                error = from_os_error(self._uri, failure)
            log.warning("%s; clients are told that the disk is away", error)


def _told(error: int) -> int:
    # Only a server that cannot be reached is a disk that is gone.
    return errno.EIO if error in (errno.ENODEV, errno.ENXIO) else error


def choose_client(address: NbdAddress, name: str = "") -> Connect:
    """Choose how to talk to a server: by libnbd where there is one, or our own way.

    Args:
        address: of the server; our own client has neither TLS nor vsock.
        name: ``libnbd`` or ``own`` leave no choice.

    Raises:
        UsageError: not a name, or the wrong one for this address.
        NotFoundError: no libnbd, and nothing else will do; the fix says what to
            install.
    """
    if name not in ("", "libnbd", "own"):
        raise UsageError(
            f"{CLIENT_VARIABLE}={name}", "no such client", "Write libnbd or own"
        )
    if name == "libnbd":
        library = require_libnbd(f"{CLIENT_VARIABLE}=libnbd", "no libnbd here")
    elif name == "own" and not address.places:
        raise UsageError(
            address.uri,
            "libnbd alone knows TLS and vsock",
            f"Do not set {CLIENT_VARIABLE}=own",
        )
    elif not address.places:
        library = require_libnbd(address.uri, "TLS and vsock need libnbd")
    else:
        found = None if name == "own" else find_libnbd()
        if found is None:
            return SocketConnection
        library = found
    return lambda address, deadline: LibnbdConnection(library, address, deadline)


def open_nbd(uri: str, flags: OpenFlags, client: str = "") -> Disk:
    """Connect to the export of an NBD server.

    Args:
        uri: ``nbd://host[:port]/name``, ``nbd+unix:///name?socket=/path``; where libnbd
            is installed ``nbds`` for TLS and ``+vsock`` as well.
        flags: how to open it.
        client: as for ``choose_client``; the environment's ``AOE_NBD_CLIENT`` where not
            given.

    Raises:
        AoEError: one of its children, with the fix: no such server or export, not for
            writing, options that only files have.
    """
    for option, is_set in (
        ("--direct", flags.direct),
        ("--offset", flags.offset),
        ("--length", flags.length is not None),
        ("--create", flags.create is not None),
    ):
        if is_set:
            raise UsageError(uri, f"{option} is for files", f"Leave out {option}")
    disk = NbdDisk(
        uri, _way_to(uri, client), read_only=flags.read_only, sync=flags.sync
    )
    if SECTOR % disk.export.block == 0:
        return disk
    try:
        return BlockDisk(disk, disk.export.block, uri)
    except BaseException:
        disk.close()
        raise


def measure_nbd(uri: str, client: str = "") -> int | None:
    """Ask a server how large its disk is now, in bytes.

    Returns:
        The size; None where the server keeps us waiting, as qemu-nbd does that serves
        one client at a time and has one.

    Raises:
        AoEError: one of its children, with the fix: no such server or export.
    """
    connect = _way_to(uri, client)
    try:
        connection = connect(time.monotonic() + _PATIENCE)
    except TimeoutError:
        return None
    except OSError as error:
        raise from_os_error(uri, error, "Is the server running?") from error
    connection.close()
    return check_sectors(uri, connection.export.size)


def _way_to(uri: str, client: str) -> Callable[[float], Connection]:
    address = NbdAddress.parse(uri)
    connect = choose_client(address, client or os.environ.get(CLIENT_VARIABLE, ""))
    return lambda deadline: connect(address, deadline)
