"""Start the server: open what the settings name, and say what is served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.address import format_mac
from aoe.common.sizes import format_count, short_size
from aoe.header import sectors_per_frame
from aoe.net.interfaces import InterfaceMonitor
from target.server.inventory import Inventory
from target.server.opening import Opener
from target.server.service import Service

if TYPE_CHECKING:
    from contextlib import ExitStack

    from aoe.net.base import Link
    from target.config.settings import ExportSettings, Settings


def open_service(settings: Settings, stack: ExitStack) -> Inventory:
    """Open all disks and interfaces, and make sure that the addresses are free.

    Args:
        settings: what to serve.
        stack: closes everything again, in reverse order.

    Raises:
        AoEError: one of its children, with the fix.
    """
    service = Service(watch=InterfaceMonitor())
    stack.callback(service.close)
    inventory = Inventory(service, Opener(settings, stack))
    stack.callback(inventory.close)
    inventory.change(settings)
    return inventory


def ready_lines(inventory: Inventory) -> list[str]:
    """Say what is served, a line for each disk."""
    return [
        f"{served.chosen.address} {short_size(served.export.disk.size)} on "
        + ", ".join(
            _describe_link(inventory.ports[name].last)
            for name in served.chosen.interfaces
        )
        + f" from {served.chosen.path}"
        + _describe_flags(served.chosen)
        for served in inventory.served
    ]


def _describe_link(link: Link) -> str:
    return (
        f"{link.name} ({format_mac(link.mac)}, MTU {link.mtu}, "
        f"{format_count(sectors_per_frame(link.mtu), 'sector')} a frame)"
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
    if len(chosen.filters) == 1:
        flags.append(f"filter {chosen.filters[0]}")
    elif chosen.filters:
        # All that each was told is in the status, where there is room.
        those = ", ".join(each.name for each in chosen.filters)
        flags.append(f"{len(chosen.filters)} filters: {those}")
    return f" [{', '.join(flags)}]" if flags else ""
