"""From settings to a service that is ready to run."""

from __future__ import annotations

import importlib.metadata
import os
import re
from functools import partial
from typing import TYPE_CHECKING, Final

from aoe.address import format_mac
from aoe.ata import SECTOR
from aoe.header import sectors_per_frame
from aoe.identify import Identity
from aoe.link import open_link
from aoe.sizes import short_size
from target.control import claim
from target.disks import open_disk
from target.exports import Export
from target.filters.stack import Filters
from target.probe import probe
from target.service import Port, Service, log
from target.state import open_state

if TYPE_CHECKING:
    from contextlib import ExitStack

    from aoe.link import Link
    from target.settings import ExportSettings, Settings


_FRAMES: Final = 256
"""Receive buffers at least: several clients come at once."""


def open_service(settings: Settings, stack: ExitStack) -> Service:
    """Open all disks and interfaces, and make sure that the addresses are free.

    Args:
        settings: what to serve.
        stack: closes everything again, in reverse order.

    Raises:
        AoEError: one of its children, with the cure.
    """
    links = _open_links(settings, stack)
    exports = [_open_export(chosen, stack) for chosen in settings.exports]
    ports = []
    for name, link in links.items():
        here = [
            export
            for export, chosen in zip(exports, settings.exports, strict=True)
            if name in chosen.interfaces
        ]
        ports.append(Port(link, here))
        if not settings.force:
            for export in here:
                stack.enter_context(claim(link, export.address))
            with open_link(name, frames=32, rings=False, responses=True) as ear:
                probe(ear, {export.address for export in here})
    service = Service(ports)
    stack.callback(service.close)
    return service


def _open_links(settings: Settings, stack: ExitStack) -> dict[str, Link]:
    links: dict[str, Link] = {}
    for name in settings.interfaces():
        # What clients are told they may have outstanding must find room (P60).
        wanted = sum(e.buffers for e in settings.exports if name in e.interfaces)
        link = open_link(
            name,
            frames=max(wanted, _FRAMES),
            rings=settings.rings,
            responses=False,
        )
        links[name] = stack.enter_context(link)
    if settings.capture is None:
        return links
    from aoe.capture import CaptureWriter, CapturingLink

    writer = stack.enter_context(CaptureWriter(settings.capture))
    return {name: CapturingLink(link, writer) for name, link in links.items()}


def _open_export(chosen: ExportSettings, stack: ExitStack) -> Export:
    disk = open_disk(chosen.path, chosen.disk, chosen.overlay)
    stack.callback(disk.close)
    filters = _make_filters(chosen)
    disk = filters.wrap_disk(disk)
    firmware, number = _version()
    shelf, slot = chosen.address
    state, file = open_state(chosen)
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
    if file is not None:
        export.changed = file.save
    return export


def _make_filters(chosen: ExportSettings) -> Filters:
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


def ready_lines(settings: Settings, service: Service) -> list[str]:
    """Say what is served, a line for each disk."""
    links = {port.link.name: port.link for port in service.ports}
    sizes = {
        target.export.address: target.export.disk.size
        for port in service.ports
        for target in port.targets
    }
    return [
        f"{chosen.address} {short_size(sizes[chosen.address])} on "
        + ", ".join(_describe_link(links[name]) for name in chosen.interfaces)
        + f" from {chosen.path}"
        + _describe_flags(chosen)
        for chosen in settings.exports
    ]


def _describe_link(link: Link) -> str:
    sectors = sectors_per_frame(link.mtu)
    plural = "" if sectors == 1 else "s"
    return (
        f"{link.name} ({format_mac(link.mac)}, MTU {link.mtu}, "
        f"{sectors} sector{plural} a frame)"
    )


def _describe_flags(chosen: ExportSettings) -> str:
    names = {
        "read-only": chosen.disk.read_only,
        "direct": chosen.disk.direct,
        "sync": chosen.disk.sync,
    }
    if chosen.overlay:
        names[f"overlay {chosen.overlay}"] = True
    flags = [name for name, is_set in names.items() if is_set]
    flags += [f"filter {each}" for each in chosen.filters]
    return f" [{', '.join(flags)}]" if flags else ""
