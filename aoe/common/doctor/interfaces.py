"""Diagnosis of an interface: state, MTU, frame loss, buffers and NIC settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.common.doctor.findings import Finding, fail, from_error, ok, warn
from aoe.common.process.capabilities import Capability, capability_sets
from aoe.common.sizes import short_size
from aoe.errors import NotFoundError
from aoe.header import ETHERNET_LENGTH, sectors_per_frame
from aoe.net.ethtool import link_settings, pause, ring_parameters
from aoe.net.interfaces import get_interface_details

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aoe.net.ethtool import LinkSettings, Pause, RingParameters
    from aoe.net.interfaces import InterfaceDetails

_JUMBO: Final = 9000
_FRAMES: Final = 64
"""The largest burst to expect: the target's buffer count, which limits the window."""
_GIGABIT: Final = 1000
"""Mb/s."""
_OVERHEAD: Final = 2048
"""Approximate bytes of skb overhead that the kernel charges to a socket per frame."""
_LOSSES: Final = {
    "rx_errors": "received with errors",
    "rx_missed_errors": "missed by the NIC",
    "rx_over_errors": "overran the NIC",
    "tx_errors": "failed to send",
    "tx_dropped": "dropped before sending",
    "collisions": "collided",
}
"""Counters of struct rtnl_link_stats64, and what they mean."""
_RARE: Final = 100_000
"""One lost frame in this many is no reason for a warning."""
_RETRY: Final = "a client retransmits each request after a timeout"


class NicSettings(NamedTuple):
    """Settings reported by the NIC's driver; None where it does not report them."""

    link_settings: LinkSettings | None = None
    queue: RingParameters | None = None
    pause: Pause | None = None


def check_interface(name: str) -> Iterator[Finding]:
    """Check one interface without sending a frame."""
    try:
        details = get_interface_details(name)
    except NotFoundError as error:
        yield from_error("interface", error)
        return
    yield from diagnose_interface(details)
    if not details.interface.ethernet:
        return
    # The ioctls do not take alternative names.
    name = details.interface.name
    nic = NicSettings(link_settings(name), ring_parameters(name), pause(name))
    yield from diagnose_nic(name, nic)
    if not capability_sets().effective & Capability.NET_ADMIN:
        # CAP_NET_ADMIN may exceed the limits (SO_RCVBUFFORCE, SO_SNDBUFFORCE).
        yield from diagnose_socket_buffers(name, details.interface.mtu, _limits())


def diagnose_interface(details: InterfaceDetails) -> Iterator[Finding]:
    """Diagnose an interface from what netlink reports."""
    interface = details.interface
    name = interface.name
    if not interface.ethernet:
        kind = "loopback" if interface.loopback else "not an Ethernet interface"
        yield fail(name, "type", f"{kind}: AoE cannot reach another machine through it")
        return
    if not interface.up:
        text = "is down: no frames are sent or received"
        yield fail(name, "state", text, f"ip link set {name} up")
    elif not interface.carrier:
        text = "has no carrier: cable unplugged, or the other end is down"
        yield fail(name, "state", text, f"check the cable: ethtool {name}")
    else:
        yield ok(name, "state", "is up and has a carrier")
    yield _diagnose_mtu(details)
    yield from _diagnose_stacking(details)
    yield _diagnose_losses(name, details.counters)


def _diagnose_mtu(details: InterfaceDetails) -> Finding:
    name, mtu, limit = (
        details.interface.name,
        details.interface.mtu,
        details.max_mtu or _JUMBO,
    )
    sectors = sectors_per_frame(mtu)
    if not sectors:
        text = f"{mtu} is too small for a sector: no data can be transferred"
        return fail(name, "MTU", text, f"ip link set {name} mtu 1500")
    carries = f"{mtu}: a frame carries {short_size(sectors * 512)}"
    better = min(_JUMBO, limit)
    if sectors_per_frame(better) <= sectors:
        return ok(name, "MTU", carries)
    # Not a failure: 1500 is the default of most networks, and works.
    more = short_size(sectors_per_frame(better) * 512)
    text = f"{carries}; at {better} it would carry {more}, for faster large reads"
    fix = f"ip link set {name} mtu {better}  (also on all clients and switches)"
    return warn(name, "MTU", text, fix)


def _diagnose_stacking(details: InterfaceDetails) -> Iterator[Finding]:
    name = details.interface.name
    if details.master_kind == "bridge":
        yield fail(
            name,
            "bridge",
            f"is a port of the bridge {details.master}, which takes all received "
            "frames: AoE on this interface receives none",
            f"use {details.master}",
        )
    elif details.master:
        yield warn(
            name,
            "master",
            f"is a port of {details.master}: frames sent here bypass it",
            f"use {details.master}",
        )
    if details.upper:
        yield ok(
            name,
            "VLANs",
            f"{', '.join(details.upper)} on top: frames of these VLANs are received "
            "there, not here",
        )
    if details.promiscuity and not details.master:
        yield warn(
            name,
            "promiscuous",
            "is promiscuous: AoE ignores frames for other machines, but receiving "
            "them costs CPU time",
            f"stop tcpdump and the like; or: ip link set {name} promisc off",
        )


def _diagnose_losses(name: str, counters: Mapping[str, int]) -> Finding:
    lost = {
        meaning: counters[counter]
        for counter, meaning in _LOSSES.items()
        if counters.get(counter)
    }
    frames = counters.get("rx_packets", 0) + counters.get("tx_packets", 0)
    if not lost:
        return ok(name, "losses", f"none in {frames:,} frames")
    parts = ", ".join(f"{count:,} {meaning}" for meaning, count in lost.items())
    text = f"{parts}, of {frames:,} frames: {_RETRY}"
    if sum(lost.values()) * _RARE <= frames:
        return ok(name, "losses", text)
    return warn(name, "losses", text, f"ethtool -S {name}")


def diagnose_nic(name: str, nic: NicSettings) -> Iterator[Finding]:
    """Diagnose what the driver reports; settings that are None give no finding."""
    if nic.link_settings is not None:
        yield from _diagnose_link_mode(name, nic.link_settings)
    queue = nic.queue
    if queue is not None and queue.max_pending:
        text = f"the receive ring of the NIC holds {queue.pending} frames"
        if queue.pending < min(queue.max_pending, 4 * _FRAMES):
            more = f"{text}, of at most {queue.max_pending}: bursts can overrun it"
            yield warn(name, "queue", more, f"ethtool -G {name} rx {queue.max_pending}")
        else:
            yield ok(name, "queue", text)
    if nic.pause is not None:
        if all(nic.pause):
            text = "is on in both directions: the switch queues bursts"
            yield ok(name, "flow control", text)
        else:
            text = "is off in at least one direction: a switch may drop bursts"
            fix = f"ethtool -A {name} rx on tx on  (also on the switch)"
            yield warn(name, "flow control", text, fix)
    # Segmentation, checksum and receive offloads apply to TCP and UDP only.


def _diagnose_link_mode(name: str, agreed: LinkSettings) -> Iterator[Finding]:
    if agreed.full_duplex is False:
        text = "half duplex: requests and responses collide"
        yield warn(name, "duplex", text, f"ethtool -s {name} autoneg on")
    if agreed.speed is None:
        return
    text = f"{agreed.speed:,} Mb/s: {agreed.speed // 8:,} MB/s at most"
    if agreed.speed < _GIGABIT:
        yield warn(name, "speed", text, f"check the cable: ethtool {name}")
    else:
        yield ok(name, "speed", text)


def diagnose_socket_buffers(
    name: str, mtu: int, limits: Mapping[str, int]
) -> Iterator[Finding]:
    """Diagnose the limits of socket buffers, for a process without CAP_NET_ADMIN.

    Args:
        name: the interface.
        mtu: its MTU.
        limits: bytes, by the name of the sysctl.
    """
    if not limits:
        return
    wanted = _FRAMES * (ETHERNET_LENGTH + mtu + _OVERHEAD)
    # The kernel doubles the value given to SO_RCVBUF and SO_SNDBUF (socket(7)).
    small = {sysctl: size for sysctl, size in limits.items() if 2 * size < wanted}
    if not small:
        yield ok(name, "buffers", f"{_FRAMES} frames fit into a socket buffer")
        return
    held = min(small.values()) * 2 // (wanted // _FRAMES)
    yield warn(
        name,
        "buffers",
        f"{held} frames fit into a socket buffer, but a burst may have {_FRAMES}: the "
        "rest is dropped",
        "sysctl -w " + " ".join(f"{sysctl}={wanted}" for sysctl in small),
    )


def _limits() -> dict[str, int]:
    # Some kernels have these files in the initial network namespace only.
    found = {}
    for sysctl in ("net.core.rmem_max", "net.core.wmem_max"):
        path = Path("/proc/sys", sysctl.replace(".", "/"))
        try:
            found[sysctl] = int(path.read_text("ascii"))
        except (OSError, ValueError):
            continue
    return found
