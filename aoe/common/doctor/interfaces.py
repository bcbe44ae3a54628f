"""An interface as AoE sees it: what a frame carries, and where frames get lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.common.capabilities import Capability, capability_sets
from aoe.common.doctor.findings import Finding, fail, from_error, ok, warn
from aoe.common.sizes import short_size
from aoe.errors import NotFoundError
from aoe.header import ETHERNET_LENGTH, sectors_per_frame
from aoe.net.ethtool import link_settings, pause, rx_ring
from aoe.net.interfaces import get_interface_details

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aoe.net.ethtool import LinkSettings, Pause, RxRing
    from aoe.net.interfaces import InterfaceDetails

_JUMBO: Final = 9000
_FRAMES: Final = 64
"""So many may come at a time: a target's buffers, and a client's window at most."""
_GIGABIT: Final = 1000
_OVERHEAD: Final = 2048
"""Bytes that the kernel counts for a frame beside its own, roughly."""
_LOSSES: Final = {
    "rx_errors": "broken on arrival",
    "rx_missed_errors": "missed by the card",
    "rx_over_errors": "too many for the card",
    "tx_errors": "not sent",
    "tx_dropped": "dropped on the way out",
    "collisions": "collided",
}
"""Counters of struct rtnl_link_stats64, and what they mean."""
_RARE: Final = 100_000
"""One lost frame in so many is nothing to worry about."""
_RETRY: Final = "for each a client sends its request again, after a wait"


class Card(NamedTuple):
    """What the driver says; None where it does not."""

    link_settings: LinkSettings | None = None
    queue: RxRing | None = None
    pause: Pause | None = None


def examine_one(name: str) -> Iterator[Finding]:
    """Look at one interface, without sending anything."""
    try:
        details = get_interface_details(name)
    except NotFoundError as error:
        yield from_error("interface", error)
        return
    yield from judge_interface(details)
    if not details.interface.ethernet:
        return
    card = Card(link_settings(name), rx_ring(name), pause(name))
    yield from judge_card(name, card)
    if not capability_sets().effective & Capability.NET_ADMIN:
        # With it, the limits do not hold for us.
        yield from judge_buffers(name, details.interface.mtu, _limits())


def judge_interface(details: InterfaceDetails) -> Iterator[Finding]:
    """Judge what netlink says of an interface."""
    interface = details.interface
    name = interface.name
    if not interface.ethernet:
        kind = "the loopback" if interface.loopback else "no Ethernet interface"
        yield fail(name, "kind", f"{kind}: no other machine can be reached by AoE")
        return
    if not interface.up:
        text = "is switched off: no frame gets through"
        yield fail(name, "state", text, f"ip link set {name} up")
    elif not interface.carrier:
        text = "has no carrier: no cable, or nobody at its other end"
        yield fail(name, "state", text, f"ethtool {name}")
    else:
        yield ok(name, "state", "is up and has a carrier")
    yield _judge_mtu(details)
    yield from _judge_company(details)
    yield _judge_losses(name, details.counters)


def _judge_mtu(details: InterfaceDetails) -> Finding:
    name, mtu, limit = (
        details.interface.name,
        details.interface.mtu,
        details.max_mtu or _JUMBO,
    )
    sectors = sectors_per_frame(mtu)
    if not sectors:
        text = f"{mtu} has no room for a sector: no data gets through"
        return fail(name, "MTU", text, f"ip link set {name} mtu 1500")
    carries = f"{mtu}: a frame carries {short_size(sectors * 512)}"
    better = min(_JUMBO, limit)
    if sectors_per_frame(better) <= sectors:
        return ok(name, "MTU", carries)
    # 1500 is what most networks have, and works.
    more = short_size(sectors_per_frame(better) * 512)
    text = f"{carries}; with {better} it would be {more}, and large reads much faster"
    fix = f"ip link set {name} mtu {better}  (clients and switches must do so too)"
    return warn(name, "MTU", text, fix)


def _judge_company(details: InterfaceDetails) -> Iterator[Finding]:
    name = details.interface.name
    if details.master_kind == "bridge":
        yield fail(
            name,
            "bridge",
            f"is a port of {details.master}, which takes all frames that arrive: "
            "nobody here ever gets one",
            f"use {details.master}",
        )
    elif details.master:
        yield warn(
            name,
            "master",
            f"is a port of {details.master}: frames go their own way past it",
            f"use {details.master}",
        )
    if details.upper:
        yield ok(
            name,
            "VLANs",
            f"{', '.join(details.upper)} on top: frames for those arrive there, "
            "not here",
        )
    if details.promiscuity and not details.master:
        yield warn(
            name,
            "promiscuous",
            "takes in frames for other machines too; AoE looks at none of them, but "
            "they cost time",
            f"end tcpdump and the like; or ip link set {name} promisc off",
        )


def _judge_losses(name: str, counters: Mapping[str, int]) -> Finding:
    lost = {
        words: counters[counter]
        for counter, words in _LOSSES.items()
        if counters.get(counter)
    }
    frames = counters.get("rx_packets", 0) + counters.get("tx_packets", 0)
    if not lost:
        return ok(name, "losses", f"none in {frames:,} frames")
    parts = ", ".join(f"{count:,} {words}" for words, count in lost.items())
    text = f"{parts}, of {frames:,} frames: {_RETRY}"
    if sum(lost.values()) * _RARE <= frames:
        return ok(name, "losses", text)
    return warn(name, "losses", text, f"ethtool -S {name}")


def judge_card(name: str, card: Card) -> Iterator[Finding]:
    """Judge what the driver says; what it does not say is not found."""
    if card.link_settings is not None:
        yield from _judge_cable(name, card.link_settings)
    queue = card.queue
    if queue is not None and queue.max_pending:
        text = f"the card keeps {queue.pending} frames until the kernel takes them"
        if queue.pending < min(queue.max_pending, 4 * _FRAMES):
            more = f"{text}, and could keep {queue.max_pending}: bursts get lost"
            yield warn(name, "queue", more, f"ethtool -G {name} rx {queue.max_pending}")
        else:
            yield ok(name, "queue", text)
    if card.pause is not None:
        if all(card.pause):
            yield ok(name, "flow control", "works both ways: bursts wait in the switch")
        else:
            text = "is off, in one direction at least: a switch drops what is too much"
            fix = f"ethtool -A {name} rx on tx on  (if the switch does so too)"
            yield warn(name, "flow control", text, fix)
    # Segmentation, checksum and receive offloads are about TCP and UDP.


def _judge_cable(name: str, agreed: LinkSettings) -> Iterator[Finding]:
    if agreed.full_duplex is False:
        text = "half duplex: requests and replies get into each other's way"
        yield warn(name, "duplex", text, f"ethtool -s {name} autoneg on")
    if agreed.speed is None:
        return
    text = f"{agreed.speed:,} Mb/s: {agreed.speed // 8:,} MB/s at the very most"
    if agreed.speed < _GIGABIT:
        yield warn(name, "speed", text, f"look at the cable: ethtool {name}")
    else:
        yield ok(name, "speed", text)


def judge_buffers(name: str, mtu: int, limits: Mapping[str, int]) -> Iterator[Finding]:
    """Judge how much a socket may hold, where we may not ask for more.

    Args:
        name: the interface.
        mtu: its MTU.
        limits: bytes, by the name of the sysctl.
    """
    if not limits:
        return
    wanted = _FRAMES * (ETHERNET_LENGTH + mtu + _OVERHEAD)
    # The kernel doubles what it is asked for.
    small = {sysctl: size for sysctl, size in limits.items() if 2 * size < wanted}
    if not small:
        yield ok(name, "buffers", f"{_FRAMES} frames fit into a socket")
        return
    held = min(small.values()) * 2 // (wanted // _FRAMES)
    yield warn(
        name,
        "buffers",
        f"{held} frames fit into a socket, and {_FRAMES} may come at a time: the "
        "rest gets lost",
        "sysctl -w " + " ".join(f"{sysctl}={wanted}" for sysctl in small),
    )


def _limits() -> dict[str, int]:
    # Some kernels show them in the first network namespace only.
    found = {}
    for sysctl in ("net.core.rmem_max", "net.core.wmem_max"):
        path = Path("/proc/sys", sysctl.replace(".", "/"))
        try:
            found[sysctl] = int(path.read_text("ascii"))
        except (OSError, ValueError):
            continue
    return found
