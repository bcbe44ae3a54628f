"""From settings to a service that is ready to run."""

from __future__ import annotations

import importlib.metadata
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from aoe.ata import SECTOR
from aoe.identify import Identity
from aoe.net.link import open_link
from target.disks import open_disk
from target.filters.stack import Filters
from target.protocol.exports import Export
from target.server.claims import claim
from target.server.client_state import open_state
from target.server.ports import Port
from target.server.probe import probe
from target.server.service import log

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import ExitStack

    from aoe.net.link import Link
    from target.config.settings import ExportSettings, Settings


class Opener:
    """Opens interfaces, as the settings of the process have it.

    Args:
        settings: how; its exports do not matter here.
        stack: closes the capture file.

    Raises:
        AoEError: the capture file cannot be written.
    """

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        self.force = settings.force
        self._rings = settings.rings
        self._writer = None
        if settings.capture is not None:
            from aoe.capture.annotated import CaptureWriter

            self._writer = stack.enter_context(CaptureWriter(settings.capture))

    def port(self, name: str, frames: int) -> Port:
        """Open an interface with receive buffers for so many frames.

        Raises:
            AoEError: one of its children, with the fix.
        """
        link = self.link(name, frames)
        try:
            return Port(link, reopen=self.link, frames=frames)
        except BaseException:
            link.close()
            raise

    def link(self, name: str, frames: int) -> Link:
        """The same, and no more than that."""
        link = open_link(name, frames=frames, rings=self._rings, responses=False)
        if self._writer is None:
            return link
        from aoe.capture.annotated import CapturingLink

        return CapturingLink(link, self._writer)

    def claim(
        self, ports: Mapping[str, Port], chosen: ExportSettings, stack: ExitStack
    ) -> None:
        """Hold an export's address on its interfaces.

        Raises:
            BusyError: another process of this machine serves it there.
        """
        for name in () if self.force else chosen.interfaces:
            stack.enter_context(claim(ports[name].last, chosen.address))

    def probe(
        self, ports: Mapping[str, Port], exports: Iterable[ExportSettings]
    ) -> None:
        """Make sure that nobody else on the wire has their addresses.

        Raises:
            BusyError: somebody has.
        """
        wanted = tuple(exports)
        for name, port in () if self.force else ports.items():
            addresses = {each.address for each in wanted if name in each.interfaces}
            if addresses and port.link is not None:
                ear = open_link(port.link.name, frames=32, rings=False, responses=True)
                with ear:
                    probe(ear, addresses)


def open_export(
    chosen: ExportSettings, stack: ExitStack, before: Export | None = None
) -> Export:
    """Open a disk, and what clients had set on it.

    Args:
        chosen: what to open.
        stack: closes it again.
        before: the export that it replaces, if it does.

    Raises:
        AoEError: one of its children, with the fix.
    """
    disk = open_disk(chosen.path, chosen.disk, chosen.overlay)
    stack.callback(disk.close)
    filters = _make_filters(chosen, before)
    disk = filters.wrap_disk(disk)
    firmware, number = _version()
    shelf, slot = chosen.address
    state, file = open_state(chosen)
    if before is not None and file is None and not chosen.mask:
        state = before.state
    identity = Identity(
        disk.size // SECTOR,
        serial=chosen.serial or f"{shelf}.{slot}:{os.uname().nodename}"[:20],
        firmware=firmware,
        model=chosen.model,
        physical_block=chosen.physical_block,
        wwn=chosen.wwn,
        rotation=chosen.rotation,
    )
    export = Export(
        chosen.address,
        disk,
        identity=identity,
        firmware_number=number,
        buffer_count=chosen.buffers,
        state=state,
        sync=chosen.disk.sync,
    )
    export.filters = filters
    if before is not None:
        export.uncorrectable |= before.uncorrectable
    if file is not None:
        export.changed = file.save
    return export


def _make_filters(chosen: ExportSettings, before: Export | None) -> Filters:
    # What is only resized goes on counting.
    filters = before.filters if before is not None else None
    if isinstance(filters, Filters) and filters.chosen == chosen.filters:
        return filters
    return Filters(
        chosen.filters,
        # Path.exists raises where a folder must not be searched.
        exists=os.path.exists,
        say=partial(log.info, "filter=log export=%s %s", chosen.address),
    )


def _version() -> tuple[str, int]:
    # As the identity page says it, and as the query config reply does.
    try:
        release = importlib.metadata.version("pyaoe")
    except importlib.metadata.PackageNotFoundError:
        return "", 0
    major, minor, *_ = (int(number) for number in re.findall(r"\d+", release))
    return f"{major}.{minor}", major << 8 | minor
