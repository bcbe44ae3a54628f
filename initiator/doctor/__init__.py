"""``aoe doctor`` and ``aoe sancheck``: check what an initiator depends on.

::

    host, kernel driver --> each interface --> its network --> the path to each target

Checks that the target needs too are in ``aoe.common.doctor``. Nothing is written to any
disk: the requests are query config, IDENTIFY and READ of the first sectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from aoe.address import BROADCAST, Address, format_mac
from aoe.common.doctor.findings import Finding, Verdict, from_error, ok, warn
from aoe.common.doctor.host import check_host
from aoe.common.doctor.interfaces import check_interface
from aoe.common.doctor.wire import check_targets, open_wire
from aoe.common.survey import TargetInfo
from aoe.errors import AoEError, NotFoundError
from aoe.header import sectors_per_frame
from initiator.client.path_mtu import PathMtu, diagnose_path, measure
from initiator.client.remote import RemoteTarget, open_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aoe.net.link import Link

_TIMEOUT: Final = 0.4
"""Seconds until a request counts as lost; it is sent four times."""


def run_checks(
    names: Sequence[str], timeout: float, record: Callable[[Link], Link]
) -> Iterator[Finding]:
    """Check the host, the given interfaces, and the targets reached through them.

    Args:
        names: the interfaces.
        timeout: seconds to wait for targets on each.
        record: wraps each link, for example to capture its frames.
    """
    yield from check_host()
    yield check_kernel_driver()
    for name in names:
        findings = list(check_interface(name))
        yield from findings
        if any(each.verdict is Verdict.FAIL for each in findings):
            continue
        link, findings = open_wire(name)
        yield from findings
        if link is not None:
            with record(link) as recorded:
                yield from _check_network(recorded, timeout)


def check_kernel_driver(modules: Path = Path("/sys/module")) -> Finding:
    """Check whether the Linux aoe driver is loaded, and which disks it has.

    Args:
        modules: the directory with an entry for each loaded module.
    """
    devices = [path.name for path in Path("/sys/block").glob("etherd!*")]
    disks = sorted(name.partition("!")[2] for name in devices)
    return diagnose_kernel_driver(disks, loaded=(modules / "aoe").is_dir())


def diagnose_kernel_driver(disks: Sequence[str], *, loaded: bool) -> Finding:
    """Diagnose the Linux aoe driver, which can use the same disks as ``aoe`` (P11).

    Args:
        disks: the disks that it has found.
        loaded: whether the module is loaded.
    """
    subject, check = "host", "kernel driver"
    if not loaded:
        return ok(subject, check, "the kernel's aoe driver is not loaded")
    text = "the kernel's aoe driver is loaded; it uses tags without bit 31, aoe with"
    if not disks:
        return ok(subject, check, f"{text}: their responses cannot be confused")
    names = ", ".join(disks)
    return warn(
        subject,
        check,
        f"{text}; it has {names} too: writing to a disk through both corrupts it",
        "restrict the driver to other interfaces: aoe-interfaces IFACE; or: rmmod aoe",
    )


def _check_network(link: Link, timeout: float) -> Iterator[Finding]:
    try:
        with open_targets([link], BROADCAST, timeout) as targets:
            yield from check_targets(link, map(_target_info, targets))
            for target in targets:
                yield check_path(target)[1]
    except NotFoundError:
        fix = (
            "check that a target runs on this network, and that its MAC mask list, if "
            "any, has this client"
        )
        yield warn(link.name, "targets", "no target answers", fix)
    except AoEError as error:
        yield from_error("targets", error, subject=link.name)


def _target_info(target: RemoteTarget) -> TargetInfo:
    config = target.config
    sectors = config.sector_count or 2
    return TargetInfo(target.address, target.mac, config.buffer_count, sectors)


def check_path(target: RemoteTarget) -> tuple[PathMtu, Finding]:
    """Measure the largest frames on the path to a target, without writing to it.

    Raises:
        NotFoundError: the interface is gone.
    """
    sectors = target.config.sector_count or 2
    steps = measure(target.builder, min(sectors, sectors_per_frame(target.link.mtu)))
    request = next(steps)
    while True:
        response = target.try_exchange(request, _TIMEOUT)
        try:
            request = steps.send(response)
        except StopIteration as stop:
            path: PathMtu = stop.value
            break
    return path, diagnose_path(target.address, target.link.name, target.mac, path)


def check_san(
    links: Sequence[Link], targets: Sequence[RemoteTarget]
) -> Iterator[Finding]:
    """Check the open interfaces, and the targets reached through all of them.

    Raises:
        NotFoundError: an interface is gone.
    """
    for link in links:
        yield from check_interface(link.name)
    for link in links:
        on_link = [target for target in targets if target.link is link]
        yield from check_targets(link, map(_target_info, on_link))
    by_address: dict[Address, list[RemoteTarget]] = {}
    for target in targets:
        by_address.setdefault(target.address, []).append(target)
    for address, paths in by_address.items():
        interfaces = sorted({target.link.name for target in paths})
        macs = sorted({target.mac for target in paths})
        yield diagnose_paths(address, interfaces, macs)


def diagnose_paths(
    address: Address, interfaces: Sequence[str], macs: Sequence[bytes]
) -> Finding:
    """Diagnose whether both ends have the same number of interfaces.

    Args:
        address: the target's address.
        interfaces: the local interfaces that reach it.
        macs: the MAC addresses that answer for it.
    """
    subject, check = str(address), "interfaces"
    text = f"{len(interfaces)} here ({', '.join(interfaces)}), {len(macs)} there"
    if len(interfaces) == len(macs):
        return ok(subject, check, text)
    names = ", ".join(map(format_mac, macs))
    more = f"{text} ({names}): the end with fewer interfaces limits the throughput"
    return warn(subject, check, more)
