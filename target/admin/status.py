"""The status document of a running target."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from aoe.address import format_mac
from aoe.common.version import release
from aoe.header import sectors_per_frame

if TYPE_CHECKING:
    from pathlib import Path

    from target.server.inventory import Inventory, Served
    from target.server.ports import Port

_STARTED = time.monotonic()


def describe_inventory(inventory: Inventory, source: Path | None) -> dict[str, Any]:
    """Return the status of a target as plain JSON; call it in the event loop's thread.

    Args:
        inventory: the exports and interfaces.
        source: the configuration file, if there is one.
    """
    now = time.monotonic()
    return {
        "pid": os.getpid(),
        "version": release(),
        "uptime_seconds": round(now - _STARTED, 3),
        "config": None if source is None else str(source),
        "exports": [
            _export(served, inventory, now)
            for served in sorted(inventory.served, key=lambda s: s.settings.address)
        ],
        "interfaces": [_interface(port) for port in inventory.ports.values()],
    }


def _export(served: Served, inventory: Inventory, now: float) -> dict[str, Any]:
    settings, export = served.settings, served.export
    return {
        "address": str(export.address),
        "path": settings.path,
        "overlay": settings.overlay,
        "size_bytes": export.disk.size,
        "read_only": export.disk.read_only,
        "sync": settings.disk.sync,
        "direct": settings.disk.direct,
        "fault": export.disk.find_fault(),
        "flush_failed": export.flush_failed,
        "epoch": f"{export.identity.epoch:016x}",
        "engine": settings.engine,
        "serial": export.identity.serial,
        "config_string": export.config_string.decode("utf-8", "backslashreplace"),
        "mask": [format_mac(mac) for mac in export.state.mask],
        "reserved_for": [format_mac(mac) for mac in export.state.holders],
        "filters": [
            {"filter": name, "triggered": times}
            for name, times in (
                export.filters.trigger_counts() if export.filters else ()
            )
        ],
        "interfaces": [
            {"name": name, "statistics": _counters(inventory.ports[name], served, now)}
            for name in settings.interfaces
        ],
    }


def _counters(port: Port, served: Served, now: float) -> dict[str, Any]:
    target = port.target(served.settings.address)
    if target is None:
        return {}
    counters = asdict(target.statistics())
    last = counters.pop("last_request")
    age = None if last is None else round(now - last, 3)
    return {**counters, "last_request_age_seconds": age}


def _interface(port: Port) -> dict[str, Any]:
    link = port.last_link
    return {
        "name": link.name,
        "mac": format_mac(link.mac),
        "mtu": link.mtu,
        "state": port.state,
        "sectors_per_frame": sectors_per_frame(link.mtu),
        "statistics": {
            **asdict(port.statistics()),
            "unmatched": port.unmatched,
            "repeats": port.repeats,
        },
    }
