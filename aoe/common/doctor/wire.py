"""Who else serves on this wire, asked by broadcast, and whether they get on."""

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
    """Open an interface as AoE does, with packet rings where they can be had.

    Returns:
        The link, to be closed; None if there is none. And what was found thereby:
        nothing where only a right is missing, which is told once, of the host.
    """
    try:
        link = open_link(name, rings=True, responses=True)
    except AccessError:
        return None, []
    except AoEError as error:
        refused = from_error("rings", error, Verdict.WARN, name)
    else:
        text = "packet rings can be had: a batch of frames a call"
        return link, [ok(name, "rings", text)]
    try:
        return open_link(name, rings=False, responses=True), [refused]
    except AoEError as error:
        return None, [refused, from_error("open", error, subject=name)]


def examine_targets(link: Link, all_heard: Iterable[TargetInfo]) -> Iterator[Finding]:
    """Look at those that answered on a wire, and whether they get on.

    Raises:
        NotFoundError: the interface is gone.
    """
    ways: defaultdict[Address, dict[bytes, TargetInfo]] = defaultdict(dict)
    for heard in all_heard:
        ways[heard.address][heard.mac] = heard
    if not ways:
        yield ok(link.name, "targets", "nobody else answers on this wire")
    for address, macs in ways.items():
        for heard in macs.values():
            yield judge_answer(link.name, link.mtu, heard)
        if len(macs) > 1:
            pages = {mac: identify(link, heard) for mac, heard in macs.items()}
            yield judge_namesakes(address, pages)


def judge_answer(name: str, mtu: int, heard: TargetInfo) -> Finding:
    """Judge what a target says it can do, against our end of the wire."""
    text = (
        f"on {name}, {format_mac(heard.mac)}: {heard.buffers} buffers, "
        f"{short_size(heard.sectors * 512)} a frame"
    )
    here = sectors_per_frame(mtu)
    subject = str(heard.address)
    if heard.buffers < 2:
        # Linux begins with half of them (P60).
        fix = "serve it with --buffers 64, or -b 16 for vblade"
        return warn(subject, "targets", f"{text}; Linux brings no such disk up", fix)
    if heard.sectors < here:
        more = f"{text}, where this end could carry {short_size(here * 512)}"
        fix = "raise the MTU of its interface, and of all between"
        return warn(subject, "targets", more, fix)
    if heard.sectors > here:
        more = f"{text}, where this end can carry {short_size(here * 512)}"
        fix = f"raise the MTU here: ip link set {name} mtu 9000"
        return warn(subject, "targets", more, fix)
    return ok(subject, "targets", text)


def judge_namesakes(address: Address, pages: dict[bytes, Identity | None]) -> Finding:
    """Judge several that answer for one address, by what each says its disk is.

    Args:
        address: theirs.
        pages: by MAC address; None where it would not tell.
    """
    macs = " and ".join(format_mac(mac) for mac in sorted(pages))
    subject, check = str(address), "duplicate"
    first, *others = pages.values()
    fix = f"give one of them another address: aoe-target serve e{address.shelf}.N"
    if None in pages.values():
        text = f"{macs} answer for it, and do not tell whether their disk is the same"
        return warn(subject, check, text, fix)
    if all(page == first for page in others):
        return ok(subject, check, f"{macs} answer for it: two ways to the same disk")
    text = f"{macs} answer for it with different disks: clients mix the two up"
    return fail(subject, check, text, fix)
