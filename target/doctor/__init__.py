"""Looks at all that a target depends on, and says what is wrong and how to mend it.

::

    host --> targets that run here --> each interface and its wire --> images

What a client's doctor looks at too is in ``aoe.common.doctor``. Nothing is changed, and
nothing sent but three query config requests an interface, and IDENTIFY to those that
share an address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.common.doctor.findings import Finding, Verdict, fail, from_error
from aoe.common.doctor.host import examine_host
from aoe.common.doctor.interfaces import examine_one
from aoe.common.doctor.wire import examine_targets, open_wire
from aoe.common.survey import survey
from aoe.errors import AoEError
from aoe.net.interfaces import usable_interfaces
from target.doctor.image import examine_image
from target.doctor.running import examine_running

if TYPE_CHECKING:
    from collections.abc import Iterator


def examine(
    interfaces: tuple[str, ...] = (), paths: tuple[str, ...] = ()
) -> Iterator[Finding]:
    """Examine the host, its interfaces and images, one thing after the other.

    Args:
        interfaces: their names; none takes all that are Ethernet and up.
        paths: what is to be served, as ``aoe-target serve`` would be told.
    """
    yield from examine_host()
    yield from examine_running(interfaces)
    names = interfaces or tuple(each.name for each in usable_interfaces())
    if not names:
        text = "no Ethernet interface is up: nobody can be served"
        yield fail("host", "interfaces", text, "ip link; ip link set NAME up")
    for name in names:
        findings = list(examine_one(name))
        yield from findings
        if not any(each.verdict is Verdict.FAIL for each in findings):
            yield from _examine_wire(name)
    for path in paths:
        yield from examine_image(path)


def _examine_wire(name: str) -> Iterator[Finding]:
    link, findings = open_wire(name)
    yield from findings
    if link is None:
        return
    with link:
        try:
            yield from examine_targets(link, survey(link))
        except AoEError as error:
            yield from_error("targets", error, subject=name)
