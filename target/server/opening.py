"""Open interfaces and exports as the settings say."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from aoe.ata import SECTOR
from aoe.common.version import release
from aoe.errors import AoEError
from aoe.identify import Identity
from aoe.net.link import open_link
from target.config.settings import ENGINE
from target.disks import open_disk
from target.disks.epoch import find_epoch_source
from target.filters.stack import Filters
from target.protocol.exports import Export
from target.protocol.target import Target
from target.server.claims import claim
from target.server.client_state import open_state
from target.server.ports import Port
from target.server.probe import probe
from target.server.service import log

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import ExitStack

    from aoe.address import Address
    from aoe.net.link import Link
    from target.config.settings import ExportSettings, Settings
    from target.protocol.engine import MakeEngine


class Opener:
    """Opens interfaces and claims addresses.

    Args:
        settings: the process-wide settings; the exports are not used.
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
        """Open an interface with receive buffers for ``frames`` frames.

        Raises:
            AoEError: the interface cannot be opened, or its MTU is too small.
        """
        link = self.link(name, frames)
        try:
            return Port(link, reopen=self.link, frames=frames)
        except BaseException:
            link.close()
            raise

    def link(self, name: str, frames: int) -> Link:
        """Open the link alone, with capture if it is enabled."""
        link = open_link(name, frames=frames, rings=self._rings, responses=False)
        if self._writer is None:
            return link
        from aoe.capture.annotated import CapturingLink

        return CapturingLink(link, self._writer)

    def claim(
        self, ports: Mapping[str, Port], settings: ExportSettings, stack: ExitStack
    ) -> None:
        """Claim an export's address on its interfaces.

        Raises:
            BusyError: another process on this host serves it there.
        """
        for name in () if self.force else settings.interfaces:
            stack.enter_context(claim(ports[name].last_link, settings.address))

    def probe(
        self, ports: Mapping[str, Port], exports: Iterable[ExportSettings]
    ) -> None:
        """Check that no other target on the wire has the addresses of these exports.

        Raises:
            BusyError: another target responded.
        """
        requested = tuple(exports)
        for name, port in () if self.force else ports.items():
            addresses = {each.address for each in requested if name in each.interfaces}
            if addresses and port.link is not None:
                listener = open_link(
                    port.link.name, frames=32, rings=False, responses=True
                )
                with listener:
                    probe(listener, addresses)


def find_engine(name: str) -> MakeEngine:
    """Return the engine of this name; see ``ExportSettings.engine``.

    Raises:
        AoEError: the file with the engine cannot be used.
    """
    if name == ENGINE:
        return Target
    try:
        from target.reference.loading import load_engine
    except (ImportError, OSError) as error:
        # On a reload after a change to a user that may not read the modules.
        raise AoEError(
            f"engine {name}", f"cannot be imported: {error}", "Restart the target"
        ) from error

    return load_engine(name)


def _make_serial(settings: ExportSettings) -> str:
    """Derive a serial number from address, host, and the file that holds the data.

    Clients take two disks with the same serial number for one. A file that replaces
    another one under the same name has another inode number; a block device keeps its
    name.
    """
    shelf, slot = settings.address
    source = os.uname().nodename
    for path in filter(None, (settings.path, settings.overlay)):
        source += f"\n{os.path.realpath(path)}"
        with suppress(OSError):
            status = Path(path).stat()
            source += f" {status.st_ino}" if stat.S_ISREG(status.st_mode) else ""
    return f"{shelf}.{slot}:{sha256(source.encode()).hexdigest()[:9]}"


def open_export(
    settings: ExportSettings, stack: ExitStack, previous: Export | None = None
) -> Export:
    """Open an export: its disk, its filters and its client state.

    Args:
        settings: the export's settings.
        stack: closes the disk.
        previous: the export that it replaces, if any.

    Raises:
        AoEError: the disk or the state file cannot be opened.
    """
    disk = open_disk(settings.path, settings.disk, settings.overlay)
    stack.callback(disk.close)
    filters = _make_filters(settings, previous)
    disk = filters.wrap_disk(disk)
    firmware, number = _version()
    state, file = open_state(settings)
    if previous is not None and file is None and not settings.mask:
        state = previous.state
    losses = max(state.losses, previous.state.losses if previous else 0)
    # Odd: a flush has failed, and this is a new start (P84).
    state = replace(state, losses=losses + losses % 2)
    identity = Identity(
        disk.size // SECTOR,
        serial=settings.serial or _make_serial(settings),
        firmware=firmware,
        model=settings.model,
        physical_block=settings.physical_block,
        wwn=settings.wwn,
        rotation=settings.rotation,
    )
    export = Export(
        settings.address,
        disk,
        identity=identity,
        firmware_number=number,
        buffer_count=settings.buffers,
        state=state,
        sync=settings.disk.sync,
        epoch_source=find_epoch_source(
            settings.path,
            settings.disk,
            settings.overlay,
            previous.epoch_source if previous is not None else "",
        ),
    )
    export.on_flush_failure = partial(_log_flush_failure, settings.address)
    export.filters = filters
    if previous is not None:
        export.uncorrectable |= previous.uncorrectable
    if file is not None:
        export.on_change = file.save
    return export


def _log_flush_failure(address: Address, error: OSError) -> None:
    why = (error.strerror or str(error)).lower()
    log.error(
        "%s: a flush failed: %s; all flushes fail until the disk is reopened. "
        "Run: aoe-target reload",
        address,
        why,
    )


def _make_filters(settings: ExportSettings, previous: Export | None) -> Filters:
    # If only the disk has changed, the filters keep their counters.
    filters = previous.filters if previous is not None else None
    if isinstance(filters, Filters) and filters.settings == settings.filters:
        return filters
    return Filters(
        settings.filters,
        # Unlike os.path.exists, Path.exists raises if a directory is not searchable.
        exists=os.path.exists,
        log_line=partial(log.info, "filter=log export=%s %s", settings.address),
    )


def _version() -> tuple[str, int]:
    # The version for the identity page, and for query config responses.
    if not (known := release()):
        return "", 0
    major, minor, *_ = (int(number) for number in re.findall(r"\d+", known))
    return f"{major}.{minor}", major << 8 | minor
