"""Looks at all that a target depends on, and says what is wrong and how to mend it.

::

    host --> targets that run here --> each interface and its wire --> images

Looking (``examine_...``) and judging (``judge_...``) are apart, so that what this
machine has not got can be judged too. Nothing is changed, and nothing sent but three
query config requests an interface, and IDENTIFY to those that share an address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.interfaces import usable_interfaces
from target.doctor.findings import Finding, Verdict, fail
from target.doctor.host import examine_host
from target.doctor.image import examine_image
from target.doctor.interfaces import examine_one
from target.doctor.running import examine_running
from target.doctor.wire import examine_wire

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Finding", "Verdict", "examine"]


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
            yield from examine_wire(name)
    for path in paths:
        yield from examine_image(path)
