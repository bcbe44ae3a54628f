"""Rules of padding, sizes, MTU and VLANs (P19-P25) on a real wire."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest

from aoe.net.netns import Wire
from tests.asking import (
    ata,
    ata_response,
    config,
    frame,
    mask,
    mask_response,
    reserve,
    reserve_response,
    sector,
    sent_to,
)
from tests.rules import (
    ABORTED,
    AWAKE,
    BROADCAST,
    DISK,
    ME,
    ONE_OF_EACH,
    OTHER,
    QUIET_TIME,
    UNKNOWN,
    error_response,
    query_response,
    read_back,
    with_tag,
    write,
    write_response,
)
from tests.serving import NO_PROBE, TIMEOUT, client, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.rules import Clients, Step

pytestmark = pytest.mark.netns

SOL_PACKET, PACKET_IGNORE_OUTGOING, ETH_P_ALL = 263, 23, 3
IDENTIFY = ata(0xEC)
DATA = b"\xa5" * 1024
JUNK = b"\xee" * 1440


def with_trailing_bytes(*steps: Step) -> list[Step]:
    """Append other bytes to the messages, up to the largest frame."""
    return [
        (request + JUNK[:length], response)
        for request, response in steps
        for length in (1, 28, 1514 - len(request))
        if len(request) + length <= 1514
    ]


RULES: dict[str, list[Step]] = {
    "p20 requests shorter than 60 bytes": [
        *ONE_OF_EACH,
        UNKNOWN,
        (config(4, b"owner"), query_response(4, b"owner")),
        (mask(1, (1, ME)), mask_response(ME, mcmd=1)),
        (reserve(1, ME, OTHER), reserve_response(ME, OTHER, rcmd=1)),
    ],
    "p20 bytes after a message are ignored": with_trailing_bytes(
        *ONE_OF_EACH,
        (config(3, b"owner"), query_response(3, b"owner")),
        (config(1, b"owner"), query_response(1, b"owner")),
        (config(2, b"own"), query_response(2, b"owner")),
        (mask(1, (1, ME)), mask_response(ME, mcmd=1)),
        (reserve(1, ME), reserve_response(ME, rcmd=1)),
        (ata(0xE7, count=0), ata_response(0x40)),
        (write(8, DATA[:512]), write_response(8)),
        read_back(8, DATA[:512] + sector(9)),
    ),
    "p21 p34 data follows 36 bytes of headers": [
        (ata(0x24, lba, count), ata_response(0x40, lba=lba, data=data))
        for lba, count in ((0, 1), (0, 2), (5, 1), (2046, 2))
        for data in [DISK[lba * 512 : (lba + count) * 512]]
    ],
    "p23 probes with a read": [
        (ata(0x24, 4, count, data=bytes(512 * count)), response)
        for count in (1, 2)
        for response in [read_back(4, DISK[2048 : 2048 + 512 * count])[1]]
    ],
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(clients: Clients, rule: str) -> None:
    clients.run_steps(RULES[rule])


def test_p23_path_mtu_probe_with_identify(clients: Clients) -> None:
    page = clients.ask(IDENTIFY)
    assert len(page) == 36 + 512
    clients.run_steps(with_trailing_bytes((IDENTIFY, page)))


def test_p19_p34_padding_is_zero(clients: Clients) -> None:
    # Several times as many frames as the rings have slots.
    clients.run_steps([(write(0, DATA), write_response(0)), read_back(0, DATA)] * 1200)
    clients.run_steps([*ONE_OF_EACH, UNKNOWN] * 300)


# Sectors by the usual formula, and sectors that fit after the Ethernet header.
MTUS = {548: (1, 1), 1500: (2, 2), 1560: (2, 3), 4200: (8, 8), 9000: (17, 17)}
MTUS[65535] = (127, 127)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("mtu", MTUS)
def test_p21_p22_p25_p37_sectors_per_frame_depend_on_mtu(
    make_wire: Callable[[int], Wire], tmp_path: Path, mtu: int
) -> None:
    advertised, most = MTUS[mtu]
    wire, image = make_wire(mtu), tmp_path / "disk.img"
    image.write_bytes(DISK)
    data = DISK[512 : 512 * (most + 1)]
    echoed = frame(9, bytes(range(1, 251)) * 300)[: mtu + 14]
    with client(wire) as asking, serving(wire, image, NO_PROBE, "-b", "16"):
        announced = sent_to(
            BROADCAST, with_tag(query_response(0, sectors=advertised), 0)
        )
        assert asking.receive() == announced
        for request, response in (
            (config(0), query_response(0, sectors=advertised)),
            (write(7, data), write_response(7)),
            read_back(7, data),
            (ata(0x24, 7, most + 1), ata_response(*ABORTED, count=most + 1, lba=7)),
            (echoed, error_response(echoed, 1)),
        ):
            assert asking.ask(request) == response


@pytest.fixture
def raw(clients: Clients) -> Iterator[socket.socket]:
    """Open a socket at the clients' end that receives frames with VLAN tags."""
    wire = clients.wire
    with (
        wire.initiator.enter(),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as opened,
    ):
        opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        opened.bind((wire.interface, ETH_P_ALL))
        yield opened


def tagged_query(control: int) -> bytes:
    """Build a query with a VLAN tag."""
    tag = struct.pack("!HH", 0x8100, control)
    return Wire.target_mac + ME + tag + config(0)[12:]


@pytest.mark.parametrize("control", [0x0001, 0x0005, 0x6005, 0x0FFF])
def test_p24_tagged_frames_are_for_the_vlan_interface(
    clients: Clients, raw: socket.socket, control: int
) -> None:
    raw.send(tagged_query(control))
    clients.run_steps([AWAKE])
    # There is only the response to the barrier.
    assert raw.recv(2000) == ME + Wire.target_mac + AWAKE[1][12:]
    raw.settimeout(QUIET_TIME)
    with pytest.raises(TimeoutError):
        raw.recv(2000)


@pytest.mark.parametrize("control", [0x0000, 0x6000])
def test_p24_priority_tagged_frames_are_accepted(
    clients: Clients, raw: socket.socket, control: int
) -> None:
    raw.settimeout(TIMEOUT)
    raw.send(tagged_query(control))
    assert raw.recv(2000) == ME + Wire.target_mac + query_response(0)[12:]
    assert clients.me.receive() == query_response(0)
