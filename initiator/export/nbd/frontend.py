"""An attached disk as an NBD export, from its first client to the last flush."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.errors import UnsupportedError
from initiator.disk.read_modify_write import ReadModifyWriteView
from initiator.export.frontend import DiskKeeper
from initiator.export.nbd.handshake import NbdExport
from initiator.export.nbd.server import NbdServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.disk.disk import Disk
    from initiator.export.nbd.listener import Listener

_GOODBYE: Final = 2.0
"""Seconds that clients get for taking their last answers."""


class NbdFrontEnd:
    """Serves a disk while it is open; nothing else uses the disk meanwhile.

    Args:
        disk: the disk, which stays the caller's.
        listener: where clients come from; closed with this.
        read_only: refuse writes.
        report: takes a line for the user.

    Attributes:
        uri: what clients open.

    Raises:
        AoEError: the disk fails a flush.
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
        self._keeper = DiskKeeper(disk, report)
        self._flushes = not read_only and self._can_flush(report)
        export = NbdExport(
            name=str(disk.address),
            size=disk.size,
            read_only=read_only,
            can_flush=self._flushes,
            can_trim=disk.can_trim,
            discard_zeroes_data=disk.discard_zeroes_data,
        )
        self._server = NbdServer(
            disk.host, ReadModifyWriteView(disk.submit_bio), export, listener
        )
        self.uri = self._server.uri

    def _can_flush(self, report: Callable[[str], None]) -> bool:
        try:
            self._disk.flush()
        except UnsupportedError as error:
            report(f"{self._disk.address}: clients cannot flush: {error.why}")
            return False
        return True

    def run(self, ended: Callable[[], bool]) -> None:
        """Serve until ``ended()``, then finish what is under way, and flush.

        Raises:
            AoEError: the last flush failed.
        """
        self._keeper.keep(ended)
        self._server.stop()
        self._keeper.keep(lambda: not self._server.running)
        self._keeper.keep(lambda: self._server.is_idle, _GOODBYE)
        if self._flushes:
            self._disk.flush()

    def close(self) -> None:
        """Hang up on everybody, and remove the socket."""
        self._server.close()
