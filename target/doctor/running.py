"""Diagnosis of running targets: frames that the kernel has dropped, lost data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aoe.common.doctor.findings import Finding, Verdict, fail, from_error, ok, warn
from aoe.errors import AoEError
from target.admin.control import find_targets, send_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LOSSES: Final = {
    "dropped": (
        "dropped because the receive buffer was full",
        "serve with --buffers as large as the number of requests sent at once",
    ),
    "truncated": (
        "longer than its MTU allows",
        "set the same MTU on all machines of this network",
    ),
    "unsent": (
        "not sent: the interface was down or its queue full",
        "check the cable: ip -s link show {name}",
    ),
}
"""What each counter of an interface means, and the fix."""


def check_running_targets(names: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Check the targets that run in this network namespace, and their disks.

    Args:
        names: the interfaces to check; all if empty.
    """
    for pid, socket in find_targets():
        try:
            status = send_command(socket, "status")
        except AoEError as error:
            yield from_error("target", error, Verdict.WARN, f"process {pid}")
            continue
        for interface in status["interfaces"]:
            if not names or interface["name"] in names:
                yield from diagnose_port(pid, interface)
        for export in status["exports"]:
            yield from diagnose_export(pid, export)


def diagnose_export(pid: int, export: Mapping[str, Any]) -> Iterator[Finding]:
    """Diagnose the disk of an export of a running target.

    Args:
        pid: the target's process ID.
        export: an entry of ``exports`` in its status.
    """
    subject, check = export["address"], f"target {pid}"
    if export["fault"]:
        text = f"{export['path']}: {export['fault']}"
        yield fail(subject, check, text, "restore it, then run: aoe-target reload")
    elif export["flush_failed"]:
        text = f"{export['path']}: a flush failed: written data may be lost"
        yield fail(subject, check, text, "check the disk; then: aoe-target reload")


def diagnose_port(pid: int, interface: Mapping[str, Any]) -> Iterator[Finding]:
    """Diagnose one interface of a running target.

    Args:
        pid: the target's process ID.
        interface: an entry of ``interfaces`` in its status.
    """
    name, counters = interface["name"], interface["statistics"]
    check = f"target {pid}"
    total = f"of {counters['received']:,} received and {counters['sent']:,} sent"
    if interface["state"] != "up":
        text = f"not serving: the interface is {interface['state']}"
        yield warn(name, check, text, f"ip link set {name} up")
    has_losses = False
    for counter, (meaning, fix) in _LOSSES.items():
        if counters[counter]:
            has_losses = True
            text = f"{counters[counter]:,} frames {meaning}, {total}"
            yield warn(name, check, text, fix.format(name=name))
    if not has_losses:
        yield ok(name, check, f"no frames lost, {total}")
