"""Open exports of NBD servers, measure and check them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from aoe.ata import SECTOR
from aoe.common.sizes import check_sectors
from aoe.errors import UsageError, from_os_error
from target.disks.blocks import BlockDisk
from target.disks.nbd.address import NbdAddress
from target.disks.nbd.disk import NbdDisk, check_export
from target.disks.nbd.libnbd import LibnbdConnection, find_libnbd, require_libnbd
from target.disks.nbd.socket_client import SocketConnection

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from target.disks.file import OpenFlags
    from target.disks.nbd.disk import Connection
    from target.disks.nbd.wire import NbdExport
    from target.protocol.disk import Disk

    Connect: TypeAlias = Callable[[NbdAddress, float], Connection]

CLIENT_VARIABLE: Final = "AOE_NBD_CLIENT"
"""The environment variable that names the client, ``libnbd`` or ``own``."""
_TIMEOUT: Final = 1.0


def choose_client(address: NbdAddress, name: str = "") -> Connect:
    """Choose the NBD client: libnbd if it is installed, else the built-in one.

    Args:
        address: the address of the server.
        name: ``libnbd`` or ``own`` selects one; empty means automatic.

    Raises:
        UsageError: the name is unknown, or ``own`` with TLS or vsock.
        NotFoundError: libnbd is required and not installed.
    """
    if name not in ("", "libnbd", "own"):
        raise UsageError(
            f"{CLIENT_VARIABLE}={name}", "no such client", "Set it to libnbd or own"
        )
    if name == "libnbd":
        library = require_libnbd(f"{CLIENT_VARIABLE}=libnbd", "libnbd is not installed")
    elif name == "own" and not address.endpoints:
        raise UsageError(
            address.uri,
            "TLS and vsock need libnbd",
            f"Unset {CLIENT_VARIABLE}=own",
        )
    elif not address.endpoints:
        library = require_libnbd(address.uri, "TLS and vsock need libnbd")
    else:
        found = None if name == "own" else find_libnbd()
        if found is None:
            return SocketConnection
        library = found
    return lambda address, deadline: LibnbdConnection(library, address, deadline)


def open_nbd(uri: str, flags: OpenFlags, client: str = "") -> Disk:
    """Connect to an export of an NBD server.

    Args:
        uri: ``nbd://host[:port]/name`` or ``nbd+unix:///name?socket=/path``; with
            libnbd also ``nbds`` for TLS, and ``+vsock``.
        flags: how to open it.
        client: as for ``choose_client``; by default from ``AOE_NBD_CLIENT`` in the
            environment.

    Raises:
        AoEError: no such server or export, it is not writable, or an option that is
            only for files.
    """
    _refuse_file_options(uri, flags)
    disk = NbdDisk(
        uri, _make_connector(uri, client), read_only=flags.read_only, sync=flags.sync
    )
    if SECTOR % disk.export.block == 0:
        return disk
    try:
        return BlockDisk(disk, disk.export.block, uri)
    except BaseException:
        disk.close()
        raise


def _refuse_file_options(uri: str, flags: OpenFlags) -> None:
    for option, is_set in (
        ("--direct", flags.direct),
        ("--offset", flags.offset),
        ("--length", flags.length is not None),
        ("--create", flags.create is not None),
    ):
        if is_set:
            raise UsageError(uri, f"{option} is only for files", f"Omit {option}")


def check_nbd(uri: str, flags: OpenFlags, client: str = "") -> int | None:
    """Check that ``open_nbd`` can succeed; return the size as ``measure_nbd``.

    Raises:
        AoEError: as ``open_nbd``.
    """
    _refuse_file_options(uri, flags)
    export = _query_export(uri, client)
    if export is None:
        return None
    return check_export(uri, export, read_only=flags.read_only, sync=flags.sync)


def measure_nbd(uri: str, client: str = "") -> int | None:
    """Return the size that an export has now, in bytes, over a new connection.

    Returns:
        The size; None if the server does not accept a second connection, as qemu-nbd
        without ``--shared``.

    Raises:
        AoEError: no such server or export.
    """
    export = _query_export(uri, client)
    return None if export is None else check_sectors(uri, export.size)


def _query_export(uri: str, client: str) -> NbdExport | None:
    connect = _make_connector(uri, client)
    try:
        connection = connect(time.monotonic() + _TIMEOUT)
    except TimeoutError:
        return None
    except OSError as error:
        raise from_os_error(uri, error, "Is the server running?") from error
    connection.close()
    return connection.export


def _make_connector(uri: str, client: str) -> Callable[[float], Connection]:
    address = NbdAddress.parse(uri)
    connect = choose_client(address, client or os.environ.get(CLIENT_VARIABLE, ""))
    return lambda deadline: connect(address, deadline)
