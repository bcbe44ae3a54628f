from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from aoe.address import Address
from aoe.common.capabilities import Capability
from aoe.common.doctor.findings import Finding, Verdict
from aoe.common.doctor.host import judge_rights
from aoe.common.doctor.interfaces import (
    Card,
    judge_buffers,
    judge_card,
    judge_interface,
)
from aoe.common.doctor.wire import judge_answer, judge_namesakes
from aoe.common.survey import TargetInfo
from aoe.identify import Identity
from aoe.net import interfaces
from aoe.net.ethtool import LinkSettings, Pause, RxRing
from aoe.net.interfaces import Interface, InterfaceDetails
from target.doctor.image import (
    examine_image,
    filesystem_of,
    judge_filesystem,
    judge_room,
)
from target.doctor.running import judge_port
from tests.statuses import STATUS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ETH0 = InterfaceDetails(
    interface=Interface(
        index=2,
        name="eth0",
        mac=bytes.fromhex("525400ae0001"),
        mtu=9000,
        up=True,
        carrier=True,
        loopback=False,
        ethernet=True,
        kind="ethernet",
    ),
    max_mtu=9216,
    promiscuity=0,
    master="",
    master_kind="",
    upper=(),
    counters={"rx_packets": 1_000_000, "tx_packets": 500_000, "rx_errors": 0},
)
A, B = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")


def eth0(**changes: object) -> InterfaceDetails:
    """Return a good interface with some things changed."""
    about: dict[str, Any] = {n: v for n, v in changes.items() if hasattr(ETH0, n)}
    facts: dict[str, Any] = {n: v for n, v in changes.items() if n not in about}
    return replace(ETH0, interface=replace(ETH0.interface, **facts), **about)


def by_check(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {each.check: each for each in findings}


def verdicts(findings: Iterable[Finding]) -> dict[str, str]:
    return {each.check: str(each.verdict) for each in findings}


# --- the host -------------------------------------------------------------------------


def test_raw_sockets_are_everything() -> None:
    assert judge_rights(Capability.NET_RAW).verdict is Verdict.OK
    missing = judge_rights(Capability.NET_ADMIN)
    assert missing.verdict is Verdict.FAIL
    assert "AmbientCapabilities=CAP_NET_RAW" in missing.fix
    assert "unshare -Urn" in missing.fix


# --- interfaces -----------------------------------------------------------------------


def test_a_good_interface_has_nothing_to_be_cured() -> None:
    findings = list(judge_interface(ETH0))
    assert verdicts(findings) == {"state": "ok", "MTU": "ok", "losses": "ok"}
    assert {each.fix for each in findings} == {""}
    assert by_check(findings)["MTU"].text == "9000: a frame carries 8.5 KiB"
    assert by_check(findings)["losses"].text == "none in 1,500,000 frames"


@pytest.mark.parametrize(
    ("mtu", "limit", "verdict", "text", "fix"),
    [
        (
            1500,
            9216,
            "warn",
            (
                "1500: a frame carries 1 KiB; with 9000 it would be 8.5 KiB, "
                "and large reads much faster"
            ),
            "ip link set eth0 mtu 9000  (clients and switches must do so too)",
        ),
        (
            1500,
            4074,
            "warn",
            (
                "1500: a frame carries 1 KiB; with 4074 it would be 3.5 KiB, "
                "and large reads much faster"
            ),
            "ip link set eth0 mtu 4074  (clients and switches must do so too)",
        ),
        (1500, 1500, "ok", "1500: a frame carries 1 KiB", ""),
        (
            500,
            9216,
            "fail",
            "500 has no room for a sector: no data gets through",
            "ip link set eth0 mtu 1500",
        ),
    ],
)
def test_an_mtu_is_what_a_frame_carries(
    mtu: int, limit: int, verdict: str, text: str, fix: str
) -> None:
    found = by_check(judge_interface(eth0(mtu=mtu, max_mtu=limit)))["MTU"]
    assert (found.verdict, found.text, found.fix) == (verdict, text, fix)


def test_an_interface_that_is_off_or_unplugged_fails() -> None:
    off = by_check(judge_interface(eth0(up=False, carrier=False)))["state"]
    assert (off.verdict, off.fix) == (Verdict.FAIL, "ip link set eth0 up")
    unplugged = by_check(judge_interface(eth0(carrier=False)))["state"]
    assert unplugged.verdict is Verdict.FAIL
    assert "no cable" in unplugged.text


def test_what_is_no_ethernet_is_looked_at_no_further() -> None:
    (found,) = judge_interface(eth0(ethernet=False, kind=""))
    assert (found.check, found.verdict) == ("kind", Verdict.FAIL)
    (loopback,) = judge_interface(eth0(ethernet=False, loopback=True))
    assert "loopback" in loopback.text


def test_a_port_of_a_bridge_fails_and_of_a_bond_is_warned_of() -> None:
    port = by_check(
        judge_interface(eth0(master="br0", master_kind="bridge", promiscuity=1))
    )
    assert port["bridge"].verdict is Verdict.FAIL
    assert port["bridge"].fix == "use br0"
    assert "promiscuous" not in port
    port = by_check(judge_interface(eth0(master="bond0", master_kind="bond")))
    assert port["master"].verdict is Verdict.WARN


def test_vlans_are_mentioned_and_watchers_warned_of() -> None:
    found = by_check(judge_interface(eth0(upper=("eth0.5",), promiscuity=1)))
    assert found["VLANs"].text.startswith("eth0.5 on top: frames for those arrive")
    assert found["promiscuous"].verdict is Verdict.WARN


@pytest.mark.parametrize(("errors", "verdict"), [(15, "ok"), (16, "warn")])
def test_one_loss_in_a_hundred_thousand_frames_is_no_worry(
    errors: int, verdict: str
) -> None:
    counters = {**ETH0.counters, "rx_errors": errors}
    found = by_check(judge_interface(eth0(counters=counters)))["losses"]
    assert found.verdict == verdict
    assert found.text.startswith(f"{errors} broken on arrival, of 1,500,000 frames: ")


def test_what_stands_on_an_interface_is_told_from_its_peer() -> None:
    on_it = {"index": 9, "ifname": "eth0.5", "link": 2, "flags": 0, "ifi_type": 1}
    vlan = {**on_it, "linkinfo": {"kind": "vlan"}}
    assert interfaces._is_upper(vlan, 2)  # noqa: SLF001 - this kernel may have no VLANs
    elsewhere = {**vlan, "link_netnsid": 0}
    assert not interfaces._is_upper(elsewhere, 2)  # noqa: SLF001 - as above
    veth = {**on_it, "linkinfo": {"kind": "veth"}}
    assert not interfaces._is_upper(veth, 2)  # noqa: SLF001 - as above


# --- cards ----------------------------------------------------------------------------


def test_a_card_that_says_nothing_is_not_judged() -> None:
    assert list(judge_card("eth0", Card())) == []
    assert list(judge_card("eth0", Card(link_settings=LinkSettings(None, None)))) == []


def test_a_slow_cable_and_half_duplex_are_warned_of() -> None:
    slow = judge_card("eth0", Card(link_settings=LinkSettings(100, full_duplex=False)))
    assert verdicts(slow) == {"duplex": "warn", "speed": "warn"}
    (fast,) = judge_card(
        "eth0", Card(link_settings=LinkSettings(10_000, full_duplex=True))
    )
    assert fast.text == "10,000 Mb/s: 1,250 MB/s at the very most"
    assert fast.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("frames", "limit", "fix"),
    [
        (64, 4096, "ethtool -G eth0 rx 4096"),
        (256, 4096, ""),
        (64, 64, ""),
    ],
)
def test_a_short_queue_that_could_be_longer_is_warned_of(
    frames: int, limit: int, fix: str
) -> None:
    (found,) = judge_card("eth0", Card(queue=RxRing(frames, limit)))
    assert found.fix == fix


def test_flow_control_is_wanted_both_ways() -> None:
    (on,) = judge_card("eth0", Card(pause=Pause(rx=True, tx=True)))
    assert on.verdict is Verdict.OK
    (half,) = judge_card("eth0", Card(pause=Pause(rx=True, tx=False)))
    assert half.verdict is Verdict.WARN
    assert half.fix.startswith("ethtool -A eth0 rx on tx on")


def test_buffers_hold_what_clients_send_at_a_time() -> None:
    limits = {"net.core.rmem_max": 212_992, "net.core.wmem_max": 4 << 20}
    (small,) = judge_buffers("eth0", 9000, limits)
    assert small.verdict is Verdict.WARN
    assert small.text.startswith(
        "38 frames fit into a socket, and 64 may come at a time"
    )
    wanted = 64 * (14 + 9000 + 2048)
    assert small.fix == f"sysctl -w net.core.rmem_max={wanted}"
    (enough,) = judge_buffers("eth0", 1500, limits)
    assert enough.verdict is Verdict.OK
    assert list(judge_buffers("eth0", 1500, {})) == []


# --- other targets --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mtu", "buffers", "sectors", "verdict", "words"),
    [
        (1500, 64, 2, "ok", "64 buffers, 1 KiB a frame"),
        (9000, 64, 2, "warn", "where this end could carry 8.5 KiB"),
        (1500, 64, 17, "warn", "where this end can carry 1 KiB"),
        (1500, 1, 2, "warn", "Linux brings no such disk up"),
    ],
)
def test_a_target_is_held_against_this_end(
    mtu: int, buffers: int, sectors: int, verdict: str, words: str
) -> None:
    heard = TargetInfo(Address(7, 3), A, buffers, sectors)
    found = judge_answer("eth0", mtu, heard)
    assert found.subject == "e7.3"
    assert found.text.startswith("on eth0, 52:54:00:00:00:01: ")
    assert words in found.text
    assert found.verdict == verdict


def test_two_that_share_an_address_are_told_apart_by_their_disks() -> None:
    one, other = Identity(2048, serial="one"), Identity(2048, serial="other")
    same = judge_namesakes(Address(7, 3), {A: one, B: one})
    assert same.verdict is Verdict.OK
    different = judge_namesakes(Address(7, 3), {A: one, B: other})
    assert different.verdict is Verdict.FAIL
    assert different.text == (
        "52:54:00:00:00:01 and 52:54:00:00:00:02 answer for it with different disks: "
        "clients mix the two up"
    )
    assert different.fix == "give one of them another address: aoe-target serve e7.N"
    silent = judge_namesakes(Address(7, 3), {A: one, B: None})
    assert silent.verdict is Verdict.WARN


def test_a_target_that_runs_here_tells_what_the_kernel_dropped() -> None:
    found = list(judge_port(17, STATUS["interfaces"][0]))
    assert {each.subject for each in found} == {"eth0"}
    assert {each.verdict for each in found} == {Verdict.WARN}
    assert [each.text for each in found] == [
        (
            "7 frames dropped since its receive buffers were full, "
            "of 20 received and 18 sent"
        ),
        "1 frames longer than its MTU allows, of 20 received and 18 sent",
        (
            "2 frames lost on the way out: the interface was down, or its queue full, "
            "of 20 received and 18 sent"
        ),
    ]
    clean = dict.fromkeys(STATUS["interfaces"][0]["statistics"], 0)
    (good,) = judge_port(17, {"name": "eth0", "state": "up", "statistics": clean})
    assert good.verdict is Verdict.OK
    waiting = {"name": "eth0", "state": "gone", "statistics": clean}
    assert verdicts(list(judge_port(17, waiting))[:1]) == {"target 17": "warn"}


# --- images ---------------------------------------------------------------------------


def test_an_image_is_looked_at_as_serve_would(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, 1 << 20)
    found = by_check(examine_image(str(image)))
    assert found["opening"].text == "can be served: 1 MiB (1,048,576 bytes)"
    assert found["room"].text.startswith("1 MiB of holes, ")
    assert found["file system"].subject == str(image)
    assert Verdict.FAIL not in {each.verdict for each in found.values()}


def test_an_image_that_cannot_be_served_says_what_serve_would(tmp_path: Path) -> None:
    (missing,) = examine_image(str(tmp_path / "none.img"))
    assert (missing.verdict, missing.text) == (Verdict.FAIL, "no such file")
    assert missing.fix == "Make one with --create 1G"
    odd = tmp_path / "odd.img"
    odd.write_bytes(bytes(700))
    (found,) = examine_image(str(odd))
    assert found.verdict is Verdict.FAIL


def test_an_image_in_use_is_a_warning(tmp_path: Path) -> None:
    from target.disks import open_disk

    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    disk = open_disk(image)
    try:
        found = by_check(examine_image(str(image)))
    finally:
        disk.close()
    assert found["opening"].verdict is Verdict.WARN
    assert found["room"].text == "all of it is allocated"


def test_an_image_without_o_direct_is_served_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    real = os.open

    def without(path: str, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", without)
    found = by_check(examine_image(str(image)))["O_DIRECT"]
    assert (found.verdict, found.text[:13]) == (Verdict.OK, "not to be had")


MOUNTS = """\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:5 / /srv rw shared:1 - xfs /dev/sdb1 rw
3 1 0:6 / /srv/my\\040disks rw - nfs4 host:/x rw
4 1 0:7 / /srv rw - btrfs /dev/sdc1 rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/a.img", "btrfs"),
        ("/srv/my disks/a.img", "nfs4"),
        ("/srvother/a.img", "ext4"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    assert filesystem_of(path, MOUNTS) == kind


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [("ext4", "ok"), ("", "ok"), ("nfs4", "warn"), ("tmpfs", "warn")],
)
def test_a_file_system_can_be_a_bad_place(kind: str, verdict: str) -> None:
    assert judge_filesystem("disk.img", kind).verdict == verdict


def test_holes_want_room() -> None:
    assert judge_room("disk.img", 0, 0).text == "all of it is allocated"
    assert judge_room("disk.img", 5 << 30, 5 << 30).verdict is Verdict.OK
    tight = judge_room("disk.img", 5 << 30, 1 << 30)
    assert tight.verdict is Verdict.WARN
    assert tight.text.startswith("5 GiB of holes, and 1 GiB free: writes fail")
