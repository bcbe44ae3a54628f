"""The targets that run here: what the kernel dropped behind their back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aoe.common.doctor.findings import Finding, Verdict, from_error, ok, warn
from aoe.errors import AoEError
from target.admin.control import find_targets, send_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LOSSES: Final = {
    "dropped": (
        "dropped since its receive buffers were full",
        "aoe-target serve --buffers with more than clients send at a time",
    ),
    "truncated": (
        "longer than its MTU allows",
        "give all machines of this wire one MTU",
    ),
    "unsent": (
        "lost on the way out: the interface was down, or its queue full",
        "look at the cable: ip -s link show {name}",
    ),
}


def examine_running(names: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Ask the targets of this network namespace how they are.

    Args:
        names: the interfaces that matter; none for all.
    """
    for pid, socket in find_targets():
        try:
            status = send_command(socket, "status")
        except AoEError as error:
            yield from_error("target", error, Verdict.WARN, f"process {pid}")
            continue
        for interface in status["interfaces"]:
            if not names or interface["name"] in names:
                yield from judge_port(pid, interface)


def judge_port(pid: int, interface: Mapping[str, Any]) -> Iterator[Finding]:
    """Judge one interface of a running target.

    Args:
        pid: the target's.
        interface: as it stands in a status document.
    """
    name, counters = interface["name"], interface["statistics"]
    check = f"target {pid}"
    total = f"of {counters['received']:,} received and {counters['sent']:,} sent"
    if interface["state"] != "up":
        text = f"waits: the interface is {interface['state']}"
        yield warn(name, check, text, f"ip link set {name} up")
    found = False
    for counter, (words, fix) in _LOSSES.items():
        if counters[counter]:
            found = True
            text = f"{counters[counter]:,} frames {words}, {total}"
            yield warn(name, check, text, fix.format(name=name))
    if not found:
        yield ok(name, check, f"no frame lost, {total}")
