"""Looks at all that an initiator depends on, and says what is wrong.

::

    host, kernel driver --> each interface --> its wire --> the path to each target

What a target's doctor looks at too is in ``aoe.common.doctor``. Nothing is written
anywhere: what is sent are config queries, IDENTIFY, and READs of the first sectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from aoe.address import BROADCAST, Address, format_mac
from aoe.common.doctor.findings import Finding, Verdict, from_error, ok, warn
from aoe.common.doctor.host import examine_host
from aoe.common.doctor.interfaces import examine_one
from aoe.common.doctor.wire import examine_targets, open_wire
from aoe.common.survey import TargetInfo
from aoe.errors import AoEError, NotFoundError
from aoe.header import sectors_per_frame
from initiator.client.path_mtu import PathMtu, diagnose_path, measure
from initiator.client.remote import RemoteTarget, reach_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aoe.net.link import Link

_PATIENCE: Final = 0.4
"""Seconds until a frame that was sent four times counts as lost."""


def examine(
    names: Sequence[str], timeout: float, record: Callable[[Link], Link]
) -> Iterator[Finding]:
    """Examine the host, these interfaces, and the targets behind them.

    Args:
        names: interfaces.
        timeout: seconds to look for targets on each.
        record: is given each link, and returns the one to use.
    """
    yield from examine_host()
    yield examine_kernel()
    for name in names:
        findings = list(examine_one(name))
        yield from findings
        if any(each.verdict is Verdict.FAIL for each in findings):
            continue
        link, findings = open_wire(name)
        yield from findings
        if link is not None:
            with record(link) as used:
                yield from _examine_wire(used, timeout)


def examine_kernel(modules: Path = Path("/sys/module")) -> Finding:
    """Look whether the kernel's own initiator is about, and which disks it has."""
    devices = [path.name for path in Path("/sys/block").glob("etherd!*")]
    disks = sorted(name.partition("!")[2] for name in devices)
    return judge_kernel(disks, loaded=(modules / "aoe").is_dir())


def judge_kernel(disks: Sequence[str], *, loaded: bool) -> Finding:
    """Judge the kernel's aoe driver.

    Args:
        disks: names of those that it has found.
        loaded: it is there.
    """
    subject, check = "host", "kernel driver"
    if not loaded:
        return ok(subject, check, "the kernel's aoe driver is not loaded")
    text = "the kernel's aoe driver is loaded: our tags have bit 31 set, its have not"
    if not disks:
        return ok(subject, check, f"{text}, so that both get their own answers")
    names = ", ".join(disks)
    return warn(
        subject,
        check,
        f"{text}; it has {names} too: two that write to one disk destroy it",
        "keep it from our interfaces: aoe-interfaces IFACE; or rmmod aoe",
    )


def _examine_wire(link: Link, timeout: float) -> Iterator[Finding]:
    try:
        with reach_all([link], BROADCAST, timeout) as targets:
            yield from examine_targets(link, map(_heard, targets))
            for target in targets:
                yield examine_path(target)[1]
    except NotFoundError:
        fix = "is it up, on this wire, and are we on its MAC mask list, if it has one?"
        yield warn(link.name, "targets", "no target answers", fix)
    except AoEError as error:
        yield from_error("targets", error, subject=link.name)


def _heard(target: RemoteTarget) -> TargetInfo:
    config = target.config
    sectors = config.sector_count or 2
    return TargetInfo(target.address, target.mac, config.buffer_count, sectors)


def examine_path(target: RemoteTarget) -> tuple[PathMtu, Finding]:
    """Find out what the path to a target carries, writing nothing.

    Raises:
        NotFoundError: the interface is gone.
    """
    sectors = target.config.sector_count or 2
    steps = measure(target.asking, min(sectors, sectors_per_frame(target.link.mtu)))
    request = next(steps)
    while True:
        reply = target.try_ask(request, _PATIENCE)
        try:
            request = steps.send(reply)
        except StopIteration as stop:
            path: PathMtu = stop.value
            break
    return path, diagnose_path(target.address, target.link.name, target.mac, path)


def examine_san(
    links: Sequence[Link], targets: Sequence[RemoteTarget]
) -> Iterator[Finding]:
    """Look at the interfaces in use, and at the targets behind them all together.

    Raises:
        NotFoundError: an interface is gone.
    """
    for link in links:
        yield from examine_one(link.name)
    for link in links:
        behind = [target for target in targets if target.link is link]
        yield from examine_targets(link, map(_heard, behind))
    ways: dict[Address, list[RemoteTarget]] = {}
    for target in targets:
        ways.setdefault(target.address, []).append(target)
    for address, several in ways.items():
        ours = sorted({target.link.name for target in several})
        theirs = sorted({target.mac for target in several})
        yield judge_ways(address, ours, theirs)


def judge_ways(
    address: Address, ours: Sequence[str], theirs: Sequence[bytes]
) -> Finding:
    """Judge how many interfaces there are at both ends.

    Args:
        address: the target's.
        ours: names of our interfaces that reach it.
        theirs: MAC addresses that answer for it.
    """
    subject, check = str(address), "interfaces"
    text = f"{len(ours)} here ({', '.join(ours)}), {len(theirs)} there"
    if len(ours) == len(theirs):
        return ok(subject, check, text)
    macs = ", ".join(map(format_mac, theirs))
    more = f"{text} ({macs}): the end that has fewer is what holds the other up"
    return warn(subject, check, more)
