from __future__ import annotations

import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from target.cli.main import cli
from tests.requirements import program
from tests.serving import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

CLIENT = "52:54:00:ae:00:02"
OTHER = "52:54:00:ae:00:03"
BIOS = [(60, b"PXEClient:Arch:00000"), (93, b"\0\0")]
UEFI = [(60, b"PXEClient:Arch:00007"), (93, b"\0\x07")]
IPXE = [(175, b"\x01\x01\x01")]
_IP = 0x0800


@contextmanager
def dnsmasq(wire: Wire, directory: Path, *options: str) -> Iterator[None]:
    """Run dnsmasq in the target's namespace with the file that netboot prints."""
    server_program = program("dnsmasq")
    done = CliRunner().invoke(cli, ["netboot", "e7.3", "-f", "dnsmasq", *options])
    text = done.stdout.replace("/srv/tftp", str(directory))
    (directory / "aoe.conf").write_text(
        f"{text}port=0\ndhcp-range=192.0.2.100,192.0.2.200\ndhcp-authoritative\nno-ping\n"
        f"dhcp-leasefile={directory}/leases\ntftp-no-fail\n"
    )
    where = wire.target
    where.run(["ip", "address", "add", "192.0.2.1/24", "dev", wire.interface])
    command = [
        server_program,
        "--no-daemon",
        "--log-dhcp",
        f"--conf-file={directory}/aoe.conf",
    ]
    pipes = {"stderr": subprocess.PIPE, "text": True}
    with where.popen(command, **pipes) as server:
        assert server.stderr is not None
        while "DHCP, IP range" not in (line := server.stderr.readline()):
            assert line, "dnsmasq has ended"
        try:
            yield
        finally:
            server.terminate()
            server.communicate(timeout=TIMEOUT)


def discover(
    wire: Wire, mac: str, options: list[tuple[int, bytes]]
) -> tuple[str, str, str]:
    """Send a DHCPDISCOVER as boot firmware does.

    Returns:
        The boot file, root path and TFTP server of the offer.
    """
    request = (
        Ether(src=mac, dst="ff:ff:ff:ff:ff:ff")
        / IP(src="0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / BOOTP(chaddr=bytes.fromhex(mac.replace(":", "")), flags=0x8000, xid=7)
        / DHCP(
            options=[
                ("message-type", "discover"),
                *options,
                ("param_req_list", [1, 3, 17, 66, 67]),
                "end",
            ]
        )
    )
    with wire.initiator.enter():
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_IP))
    with packets:
        packets.bind((wire.interface, _IP))
        packets.settimeout(TIMEOUT)
        end = time.monotonic() + TIMEOUT
        packets.send(bytes(request))
        while time.monotonic() < end:
            response = Ether(packets.recv(2048))
            if DHCP in response and response[BOOTP].op == 2:
                return _parse_offer(response)
    raise AssertionError("no offer")


def _parse_offer(offer: Ether) -> tuple[str, str, str]:
    options = dict(
        pair
        for pair in offer[DHCP].options
        if isinstance(pair, tuple) and len(pair) == 2
    )
    file = options.get("boot-file-name", b"") or offer[BOOTP].file
    root = options.get("root_disk_path", b"")
    return (
        bytes(file).rstrip(b"\0").decode(),
        root.decode() if isinstance(root, bytes) else str(root),
        offer[BOOTP].siaddr,
    )


def test_firmware_is_offered_ipxe_and_ipxe_the_disk(wire: Wire, tmp_path: Path) -> None:
    with dnsmasq(wire, tmp_path):
        assert discover(wire, CLIENT, BIOS) == ("undionly.kpxe", "", "192.0.2.1")
        assert discover(wire, CLIENT, UEFI) == ("ipxe.efi", "", "192.0.2.1")
        assert discover(wire, CLIENT, [*BIOS, *IPXE])[:2] == ("", "aoe:e7.3")
        assert discover(wire, CLIENT, [*UEFI, *IPXE])[:2] == ("", "aoe:e7.3")


def test_clients_that_do_not_boot_from_the_network_get_no_boot_file(
    wire: Wire, tmp_path: Path
) -> None:
    with dnsmasq(wire, tmp_path):
        assert discover(wire, CLIENT, [(60, b"systemd-networkd")])[:2] == ("", "")


def test_only_the_given_client_is_offered_the_disk(wire: Wire, tmp_path: Path) -> None:
    with dnsmasq(wire, tmp_path, "--client", CLIENT, "--server-ip", "192.0.2.7"):
        assert discover(wire, CLIENT, BIOS) == ("undionly.kpxe", "", "192.0.2.7")
        assert discover(wire, CLIENT, [*BIOS, *IPXE])[:2] == ("", "aoe:e7.3")
        assert discover(wire, OTHER, BIOS)[:2] == ("", "")
        assert discover(wire, OTHER, [*BIOS, *IPXE])[:2] == ("", "")
