"""Start the server: open all disks and interfaces, and describe what is served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.address import format_mac
from aoe.common.sizes import format_count, short_size
from aoe.header import sectors_per_frame
from aoe.net.interfaces import InterfaceMonitor
from target.config.settings import ENGINE
from target.server.inventory import Inventory
from target.server.opening import Opener
from target.server.service import Service

if TYPE_CHECKING:
    from contextlib import ExitStack

    from aoe.net.base import Link
    from target.config.settings import ExportSettings, Settings


def open_service(settings: Settings, stack: ExitStack) -> Inventory:
    """Open all disks and interfaces, and check that the addresses are free.

    Args:
        settings: what to serve.
        stack: closes everything, in reverse order.

    Raises:
        AoEError: something cannot be opened, or an address is in use.
    """
    service = Service(monitor=InterfaceMonitor())
    stack.callback(service.close)
    inventory = Inventory(service, Opener(settings, stack))
    stack.callback(inventory.close)
    inventory.change(settings)
    return inventory


def ready_lines(inventory: Inventory) -> list[str]:
    """Return a line for each export that is served."""
    return [
        f"{served.settings.address} {short_size(served.export.disk.size)} on "
        + ", ".join(
            _describe_link(inventory.ports[name].last_link)
            for name in served.settings.interfaces
        )
        + f" from {served.settings.path}"
        + _describe_flags(served.settings)
        for served in inventory.served
    ]


def _describe_link(link: Link) -> str:
    return (
        f"{link.name} ({format_mac(link.mac)}, MTU {link.mtu}, "
        f"{format_count(sectors_per_frame(link.mtu), 'sector')} a frame)"
    )


def _describe_flags(settings: ExportSettings) -> str:
    names = {
        "read-only": settings.disk.read_only,
        "direct": settings.disk.direct,
        "sync": settings.disk.sync,
    }
    if settings.overlay:
        names[f"overlay {settings.overlay}"] = True
    flags = [name for name, is_set in names.items() if is_set]
    if settings.engine != ENGINE:
        flags.append(f"engine {settings.engine}")
    if len(settings.filters) == 1:
        flags.append(f"filter {settings.filters[0]}")
    elif settings.filters:
        # Their settings are in the output of "aoe-target status".
        listing = ", ".join(each.name for each in settings.filters)
        flags.append(f"{len(settings.filters)} filters: {listing}")
    return f" [{', '.join(flags)}]" if flags else ""
