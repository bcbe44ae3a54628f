"""Export an attached disk over NBD, from the first client to the last flush."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.errors import UnsupportedError
from initiator.disk.read_modify_write import ReadModifyWriteView
from initiator.export.frontend import DiskRunner
from initiator.export.nbd.handshake import NbdExport
from initiator.export.nbd.server import NbdServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.disk.disk import Disk
    from initiator.export.nbd.listener import Listener

_DRAIN_TIMEOUT: Final = 2.0
"""Seconds for clients to receive their last replies."""


class NbdFrontend:
    """An NBD server for a disk, which it uses exclusively.

    Args:
        disk: the disk; the caller closes it.
        listener: the listening socket; closed with this.
        read_only: refuse writes.
        report: called with each line for the user.

    Attributes:
        uri: the URI for clients.

    Raises:
        AoEError: the first flush failed.
    """

    def __init__(
        self,
        disk: Disk,
        listener: Listener,
        *,
        read_only: bool,
        report: Callable[[str], None],
    ) -> None:
        self._disk = disk
        self._runner = DiskRunner(disk, report)
        self._can_flush = not read_only and self._probe_flush(report)
        export = NbdExport(
            name=str(disk.address),
            size=disk.size,
            read_only=read_only,
            can_flush=self._can_flush,
            can_trim=disk.can_trim,
            discard_zeroes_data=disk.discard_zeroes_data,
        )
        self._server = NbdServer(
            disk.host, ReadModifyWriteView(disk.submit_bio), export, listener
        )
        self.uri = self._server.uri

    def _probe_flush(self, report: Callable[[str], None]) -> bool:
        try:
            self._disk.flush()
        except UnsupportedError as error:
            report(f"{self._disk.address}: clients cannot flush: {error.why}")
            return False
        return True

    def run(self, ended: Callable[[], bool]) -> None:
        """Serve until ``ended()`` is true, complete outstanding requests, and flush.

        Raises:
            AoEError: the last flush failed.
        """
        self._runner.run_until(ended)
        self._server.stop()
        self._runner.run_until(lambda: not self._server.outstanding)
        self._runner.run_until(lambda: self._server.is_idle, _DRAIN_TIMEOUT)
        if self._can_flush:
            self._disk.flush()

    def close(self) -> None:
        """Close all connections, and remove the socket."""
        self._server.close()
