from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from aoe.address import Address
from aoe.common.doctor.findings import Finding, Verdict
from aoe.common.doctor.host import diagnose_privileges
from aoe.common.doctor.interfaces import (
    NicSettings,
    diagnose_interface,
    diagnose_nic,
    diagnose_socket_buffers,
)
from aoe.common.doctor.wire import diagnose_duplicates, diagnose_target
from aoe.common.process.capabilities import Capability
from aoe.common.survey import TargetInfo, identify
from aoe.identify import Identity
from aoe.net import interfaces
from aoe.net.ethtool import LinkSettings, Pause, RingParameters
from aoe.net.interfaces import Interface, InterfaceDetails
from target.doctor.image import (
    check_image,
    diagnose_filesystem,
    diagnose_free_space,
    filesystem_of,
)
from target.doctor.running import diagnose_export, diagnose_port
from tests.asking import SECTORS, TARGET
from tests.links import TargetLink
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
    """Return the details of a good interface with some attributes changed."""
    outer: dict[str, Any] = {n: v for n, v in changes.items() if hasattr(ETH0, n)}
    inner: dict[str, Any] = {n: v for n, v in changes.items() if n not in outer}
    return replace(ETH0, interface=replace(ETH0.interface, **inner), **outer)


def by_check(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {each.check: each for each in findings}


def verdicts(findings: Iterable[Finding]) -> dict[str, str]:
    return {each.check: str(each.verdict) for each in findings}


# --- the host -------------------------------------------------------------------------


def test_missing_cap_net_raw_is_a_failure() -> None:
    assert diagnose_privileges(Capability.NET_RAW).verdict is Verdict.OK
    missing = diagnose_privileges(Capability.NET_ADMIN)
    assert missing.verdict is Verdict.FAIL
    assert "AmbientCapabilities=CAP_NET_RAW" in missing.fix
    assert "unshare -Urn" in missing.fix


# --- interfaces -----------------------------------------------------------------------


def test_a_good_interface_needs_no_fix() -> None:
    findings = list(diagnose_interface(ETH0))
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
                "1500: a frame carries 1 KiB; at 9000 it would carry 8.5 KiB, "
                "for faster large reads"
            ),
            "ip link set eth0 mtu 9000  (also on all clients and switches)",
        ),
        (
            1500,
            4074,
            "warn",
            (
                "1500: a frame carries 1 KiB; at 4074 it would carry 3.5 KiB, "
                "for faster large reads"
            ),
            "ip link set eth0 mtu 4074  (also on all clients and switches)",
        ),
        (1500, 1500, "ok", "1500: a frame carries 1 KiB", ""),
        (
            500,
            9216,
            "fail",
            "500 is too small for a sector: no data can be transferred",
            "ip link set eth0 mtu 1500",
        ),
    ],
)
def test_an_mtu_below_the_maximum_is_a_warning_and_below_a_sector_a_failure(
    mtu: int, limit: int, verdict: str, text: str, fix: str
) -> None:
    found = by_check(diagnose_interface(eth0(mtu=mtu, max_mtu=limit)))["MTU"]
    assert (found.verdict, found.text, found.fix) == (verdict, text, fix)


def test_an_interface_that_is_down_or_has_no_carrier_is_a_failure() -> None:
    down = by_check(diagnose_interface(eth0(up=False, carrier=False)))["state"]
    assert (down.verdict, down.fix) == (Verdict.FAIL, "ip link set eth0 up")
    unplugged = by_check(diagnose_interface(eth0(carrier=False)))["state"]
    assert unplugged.verdict is Verdict.FAIL
    assert "cable unplugged" in unplugged.text


def test_an_interface_other_than_ethernet_is_a_failure_and_not_checked_further() -> (
    None
):
    (found,) = diagnose_interface(eth0(ethernet=False, kind=""))
    assert (found.check, found.verdict) == ("type", Verdict.FAIL)
    (loopback,) = diagnose_interface(eth0(ethernet=False, loopback=True))
    assert "loopback" in loopback.text


def test_a_bridge_port_is_a_failure_and_a_bond_port_a_warning() -> None:
    port = by_check(
        diagnose_interface(eth0(master="br0", master_kind="bridge", promiscuity=1))
    )
    assert port["bridge"].verdict is Verdict.FAIL
    assert port["bridge"].fix == "use br0"
    assert "promiscuous" not in port
    port = by_check(diagnose_interface(eth0(master="bond0", master_kind="bond")))
    assert port["master"].verdict is Verdict.WARN


def test_vlans_are_reported_and_promiscuous_mode_is_a_warning() -> None:
    found = by_check(diagnose_interface(eth0(upper=("eth0.5",), promiscuity=1)))
    assert found["VLANs"].text.startswith("eth0.5 on top: frames of these VLANs are")
    assert found["promiscuous"].verdict is Verdict.WARN


@pytest.mark.parametrize(("errors", "verdict"), [(15, "ok"), (16, "warn")])
def test_more_than_one_lost_frame_in_a_hundred_thousand_is_a_warning(
    errors: int, verdict: str
) -> None:
    counters = {**ETH0.counters, "rx_errors": errors}
    found = by_check(diagnose_interface(eth0(counters=counters)))["losses"]
    assert found.verdict == verdict
    text = f"{errors} received with errors, of 1,500,000 frames: "
    assert found.text.startswith(text)


def test_vlans_on_an_interface_are_distinguished_from_veth_peers() -> None:
    on_it = {"index": 9, "ifname": "eth0.5", "link": 2, "flags": 0, "ifi_type": 1}
    vlan = {**on_it, "linkinfo": {"kind": "vlan"}}
    assert interfaces._is_upper(vlan, 2)  # noqa: SLF001 - this kernel may have no VLANs
    elsewhere = {**vlan, "link_netnsid": 0}
    assert not interfaces._is_upper(elsewhere, 2)  # noqa: SLF001 - as above
    veth = {**on_it, "linkinfo": {"kind": "veth"}}
    assert not interfaces._is_upper(veth, 2)  # noqa: SLF001 - as above


# --- targets --------------------------------------------------------------------------


def test_p11_data_that_another_program_reads_is_not_taken_for_identify_data() -> None:
    def after_that_of_another(request: bytes, response: bytes) -> list[bytes]:
        read = bytearray(response.ljust(548, b"\0"))
        read[20:24] = b"\x80\x20\x00\x01"
        read[36:] = b"\xa5" * 512
        other = bytearray(read)
        other[16:19] = b"\0\1\1"
        other[20:24] = request[20:24]
        return [bytes(read), bytes(other), response]

    link = TargetLink(after_that_of_another)
    address = link.target.export.address
    found = identify(link, TargetInfo(address, TARGET, 16, 2))
    assert found is not None
    assert found.sectors == SECTORS


# --- NICs -----------------------------------------------------------------------------


def test_a_driver_that_reports_no_settings_gives_no_findings() -> None:
    assert list(diagnose_nic("eth0", NicSettings())) == []
    assert (
        list(diagnose_nic("eth0", NicSettings(link_settings=LinkSettings(None, None))))
        == []
    )


def test_a_slow_link_and_half_duplex_are_warnings() -> None:
    slow = diagnose_nic(
        "eth0", NicSettings(link_settings=LinkSettings(100, full_duplex=False))
    )
    assert verdicts(slow) == {"duplex": "warn", "speed": "warn"}
    (fast,) = diagnose_nic(
        "eth0", NicSettings(link_settings=LinkSettings(10_000, full_duplex=True))
    )
    assert fast.text == "10,000 Mb/s: 1,250 MB/s at most"
    assert fast.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("frames", "limit", "fix"),
    [
        (64, 4096, "ethtool -G eth0 rx 4096"),
        (256, 4096, ""),
        (64, 64, ""),
    ],
)
def test_a_receive_ring_smaller_than_it_could_be_is_a_warning(
    frames: int, limit: int, fix: str
) -> None:
    (found,) = diagnose_nic("eth0", NicSettings(queue=RingParameters(frames, limit)))
    assert found.fix == fix


def test_flow_control_in_one_direction_only_is_a_warning() -> None:
    (on,) = diagnose_nic("eth0", NicSettings(pause=Pause(rx=True, tx=True)))
    assert on.verdict is Verdict.OK
    (half,) = diagnose_nic("eth0", NicSettings(pause=Pause(rx=True, tx=False)))
    assert half.verdict is Verdict.WARN
    assert half.fix.startswith("ethtool -A eth0 rx on tx on")


def test_a_socket_buffer_smaller_than_a_burst_is_a_warning() -> None:
    limits = {"net.core.rmem_max": 212_992, "net.core.wmem_max": 4 << 20}
    (small,) = diagnose_socket_buffers("eth0", 9000, limits)
    assert small.verdict is Verdict.WARN
    assert small.text.startswith(
        "38 frames fit into a socket buffer, but a burst may have 64"
    )
    wanted = 64 * (14 + 9000 + 2048)
    assert small.fix == f"sysctl -w net.core.rmem_max={wanted}"
    (enough,) = diagnose_socket_buffers("eth0", 1500, limits)
    assert enough.verdict is Verdict.OK
    assert list(diagnose_socket_buffers("eth0", 1500, {})) == []


# --- other targets --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mtu", "buffers", "sectors", "verdict", "text"),
    [
        (1500, 64, 2, "ok", "64 buffers, 1 KiB per frame"),
        (9000, 64, 2, "warn", "but frames of this interface carry 8.5 KiB"),
        (1500, 64, 17, "warn", "but frames of this interface carry 1 KiB"),
        (1500, 1, 2, "warn", "Linux cannot use a disk with fewer than 2 buffers"),
    ],
)
def test_frame_sizes_that_differ_at_both_ends_are_a_warning(
    mtu: int, buffers: int, sectors: int, verdict: str, text: str
) -> None:
    target = TargetInfo(Address(7, 3), A, buffers, sectors)
    found = diagnose_target("eth0", mtu, target)
    assert found.subject == "e7.3"
    assert found.text.startswith("on eth0, 52:54:00:00:00:01: ")
    assert text in found.text
    assert found.verdict == verdict


def test_different_disks_at_one_address_are_a_failure() -> None:
    one, other = Identity(2048, serial="one"), Identity(2048, serial="other")
    same = diagnose_duplicates(Address(7, 3), {A: one, B: one})
    assert same.verdict is Verdict.OK
    different = diagnose_duplicates(Address(7, 3), {A: one, B: other})
    assert different.verdict is Verdict.FAIL
    assert different.text == (
        "52:54:00:00:00:01 and 52:54:00:00:00:02 answer for it with different disks: "
        "clients will mix up their data"
    )
    assert different.fix == "give one of them another address: aoe-target serve e7.N"
    silent = diagnose_duplicates(Address(7, 3), {A: one, B: None})
    assert silent.verdict is Verdict.WARN


def test_frames_lost_by_a_running_target_are_warnings() -> None:
    found = list(diagnose_port(17, STATUS["interfaces"][0]))
    assert {each.subject for each in found} == {"eth0"}
    assert {each.verdict for each in found} == {Verdict.WARN}
    assert [each.text for each in found] == [
        (
            "7 frames dropped because the receive buffer was full, "
            "of 20 received and 18 sent"
        ),
        "1 frames longer than its MTU allows, of 20 received and 18 sent",
        (
            "2 frames not sent: the interface was down or its queue full, "
            "of 20 received and 18 sent"
        ),
    ]
    clean = dict.fromkeys(STATUS["interfaces"][0]["statistics"], 0)
    (good,) = diagnose_port(17, {"name": "eth0", "state": "up", "statistics": clean})
    assert good.verdict is Verdict.OK
    gone = {"name": "eth0", "state": "gone", "statistics": clean}
    assert verdicts(list(diagnose_port(17, gone))[:1]) == {"target 17": "warn"}


def test_lost_data_of_a_running_target_is_a_failure() -> None:
    export = STATUS["exports"][0]
    path = export["path"]
    (truncated,) = diagnose_export(17, export)
    assert truncated.verdict is Verdict.FAIL
    assert truncated.text == f"{path}: was truncated to 4,096 bytes"
    (lost,) = diagnose_export(17, {**export, "fault": ""})
    assert lost.text == f"{path}: a flush failed: written data may be lost"
    assert not [*diagnose_export(17, {**export, "fault": "", "flush_failed": False})]


# --- images ---------------------------------------------------------------------------


def test_a_sparse_image_can_be_served(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, 1 << 20)
    found = by_check(check_image(str(image)))
    assert found["opening"].text == "can be served: 1 MiB (1,048,576 bytes)"
    assert found["free space"].text.startswith("1 MiB not allocated, ")
    assert found["file system"].subject == str(image)
    assert Verdict.FAIL not in {each.verdict for each in found.values()}


def test_an_image_that_cannot_be_served_gives_the_error_of_serve(
    tmp_path: Path,
) -> None:
    (missing,) = check_image(str(tmp_path / "none.img"))
    assert (missing.verdict, missing.text) == (Verdict.FAIL, "no such file")
    assert missing.fix == "Make one with --create 1G"
    odd = tmp_path / "odd.img"
    odd.write_bytes(bytes(700))
    (found,) = check_image(str(odd))
    assert found.verdict is Verdict.FAIL


def test_an_image_in_use_is_a_warning(tmp_path: Path) -> None:
    from target.disks import open_disk

    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    disk = open_disk(image)
    try:
        found = by_check(check_image(str(image)))
    finally:
        disk.close()
    assert found["opening"].verdict is Verdict.WARN
    assert found["free space"].text == "the file is fully allocated"


def test_a_file_system_without_o_direct_is_not_a_warning(
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
    found = by_check(check_image(str(image)))["O_DIRECT"]
    assert (found.verdict, found.text[:13]) == (Verdict.OK, "not supported")


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
def test_the_file_system_is_that_of_the_longest_mount_point(
    path: str, kind: str
) -> None:
    assert filesystem_of(path, MOUNTS) == kind


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [("ext4", "ok"), ("", "ok"), ("nfs4", "warn"), ("tmpfs", "warn")],
)
def test_remote_and_memory_file_systems_are_warnings(kind: str, verdict: str) -> None:
    assert diagnose_filesystem("disk.img", kind).verdict == verdict


def test_too_little_free_space_for_a_sparse_file_is_a_warning() -> None:
    assert diagnose_free_space("disk.img", 0, 0).text == "the file is fully allocated"
    assert diagnose_free_space("disk.img", 5 << 30, 5 << 30).verdict is Verdict.OK
    tight = diagnose_free_space("disk.img", 5 << 30, 1 << 30)
    assert tight.verdict is Verdict.WARN
    assert tight.text == (
        "5 GiB not allocated, but only 1 GiB free on its file system: when that is "
        "full, writes fail with a device fault"
    )
