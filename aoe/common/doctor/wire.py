"""Diagnosis of the targets that answer on an interface."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from aoe.address import format_mac
from aoe.common.doctor.findings import Finding, Verdict, fail, from_error, ok, warn
from aoe.common.sizes import short_size
from aoe.common.survey import identify
from aoe.errors import AccessError, AoEError
from aoe.header import sectors_per_frame
from aoe.net.link import open_link

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aoe.address import Address
    from aoe.common.survey import TargetInfo
    from aoe.identify import Identity
    from aoe.net.base import Link


def open_wire(name: str) -> tuple[Link | None, list[Finding]]:
    """Open an interface, with packet rings if possible.

    Returns:
        The link, which the caller closes, or None; and the findings. A missing
        capability gives none: ``diagnose_privileges`` reports it once for the host.
    """
    try:
        link = open_link(name, rings=True, responses=True)
    except AccessError:
        return None, []
    except AoEError as error:
        rings_finding = from_error("rings", error, Verdict.WARN, name)
    else:
        text = "packet rings work: a batch of frames per system call"
        return link, [ok(name, "rings", text)]
    try:
        return open_link(name, rings=False, responses=True), [rings_finding]
    except AoEError as error:
        return None, [rings_finding, from_error("open", error, subject=name)]


def check_targets(link: Link, targets: Iterable[TargetInfo]) -> Iterator[Finding]:
    """Check the targets that answered on a link, also for duplicate addresses.

    Raises:
        NotFoundError: the interface is gone.
    """
    by_address: defaultdict[Address, dict[bytes, TargetInfo]] = defaultdict(dict)
    for target in targets:
        by_address[target.address][target.mac] = target
    if not by_address:
        yield ok(link.name, "targets", "no other target answers on this network")
    for address, by_mac in by_address.items():
        for target in by_mac.values():
            yield diagnose_target(link.name, link.mtu, target)
        if len(by_mac) > 1:
            pages = {mac: identify(link, target) for mac, target in by_mac.items()}
            yield diagnose_duplicates(address, pages)


def diagnose_target(name: str, mtu: int, target: TargetInfo) -> Finding:
    """Diagnose a target's query config response, given the MTU at this end.

    Args:
        name: the interface on which it answered.
        mtu: the MTU of that interface.
        target: the response.
    """
    text = (
        f"on {name}, {format_mac(target.mac)}: {target.buffers} buffers, "
        f"{short_size(target.sectors * 512)} per frame"
    )
    here = sectors_per_frame(mtu)
    subject = str(target.address)
    if target.buffers < 2:
        # The Linux driver starts with a window of half the buffer count (P60).
        fix = "serve it with --buffers 64, or -b 16 for vblade"
        more = f"{text}; Linux cannot use a disk with fewer than 2 buffers"
        return warn(subject, "targets", more, fix)
    if target.sectors < here:
        more = f"{text}, but frames of this interface carry {short_size(here * 512)}"
        fix = "raise the MTU of the target's interface and of the switches in between"
        return warn(subject, "targets", more, fix)
    if target.sectors > here:
        more = f"{text}, but frames of this interface carry {short_size(here * 512)}"
        fix = f"raise the MTU here: ip link set {name} mtu 9000"
        return warn(subject, "targets", more, fix)
    return ok(subject, "targets", text)


def diagnose_duplicates(
    address: Address, pages: dict[bytes, Identity | None]
) -> Finding:
    """Diagnose several MAC addresses that answer for one AoE address.

    Args:
        address: the address.
        pages: the IDENTIFY page by MAC address; None where there was no response.
    """
    macs = " and ".join(format_mac(mac) for mac in sorted(pages))
    subject, check = str(address), "duplicate"
    first, *others = pages.values()
    fix = f"give one of them another address: aoe-target serve e{address.shelf}.N"
    if None in pages.values():
        text = f"{macs} answer for it, but IDENTIFY failed: disks may be different"
        return warn(subject, check, text, fix)
    if all(page == first for page in others):
        return ok(subject, check, f"{macs} answer for it: two paths to the same disk")
    text = f"{macs} answer for it with different disks: clients will mix up their data"
    return fail(subject, check, text, fix)
