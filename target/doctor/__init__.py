"""``aoe-target doctor``: check what a target depends on.

::

    host --> running targets --> each interface and its network --> images

Checks that the initiator needs too are in ``aoe.common.doctor``. Nothing is modified.
Three query config requests are broadcast on each interface, and targets that share an
address get IDENTIFY.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.common.doctor.findings import Finding, Verdict, fail, from_error
from aoe.common.doctor.host import check_host
from aoe.common.doctor.interfaces import check_interface
from aoe.common.doctor.wire import check_targets, open_wire
from aoe.common.survey import survey
from aoe.errors import AoEError
from aoe.net.interfaces import list_interfaces, usable_interfaces
from target.doctor.image import check_image
from target.doctor.running import check_running_targets

if TYPE_CHECKING:
    from collections.abc import Iterator


def run_checks(
    interfaces: tuple[str, ...] = (), paths: tuple[str, ...] = ()
) -> Iterator[Finding]:
    """Check the host, its running targets, interfaces and images, in this order.

    Args:
        interfaces: names; all Ethernet interfaces that are up if empty.
        paths: disks to serve, as PATH of ``aoe-target serve``.
    """
    yield from check_host()
    yield from check_running_targets(_all_names(interfaces))
    names = interfaces or tuple(each.name for each in usable_interfaces())
    if not names:
        text = "no Ethernet interface is up: no client can be served"
        yield fail("host", "interfaces", text, "ip link; ip link set NAME up")
    for name in names:
        findings = list(check_interface(name))
        yield from findings
        if not any(each.verdict is Verdict.FAIL for each in findings):
            yield from _check_network(name)
    for path in paths:
        yield from check_image(path)


def _all_names(interfaces: tuple[str, ...]) -> tuple[str, ...]:
    # A target can have opened an interface by another one of its names.
    names = list(interfaces)
    for found in list_interfaces() if interfaces else ():
        if any(map(found.has_name, interfaces)):
            names += [found.name, *found.alternative_names]
    return tuple(names)


def _check_network(name: str) -> Iterator[Finding]:
    link, findings = open_wire(name)
    yield from findings
    if link is None:
        return
    with link:
        try:
            yield from check_targets(link, survey(link))
        except AoEError as error:
            yield from_error("targets", error, subject=name)
