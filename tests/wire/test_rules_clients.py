"""The rules that are about clients: each byte that our initiator sends, and when.

The target is the test: it answers what it likes.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from aoe.address import Address
from aoe.net.link import open_link
from aoe.net.netns import Wire
from initiator.driver.aoedev import State
from initiator.driver.bio import Bio, Op, bio_for
from initiator.driver.options import Options
from initiator.io.host import Host
from tests.asking import ata, ata_response, config
from tests.programs import AOE
from tests.rules import (
    BROADCAST,
    ME,
    NO_RESPONSE,
    OTHER,
    QUIET_TIME,
    error_response,
    patch,
    query_response,
    with_flags,
    with_tag,
)
from tests.serving import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from initiator.driver.aoedev import AoeDev

pytestmark = pytest.mark.netns

E73 = Address(7, 3)
BASE = 0x123
SECTORS = 1 << 20
ONE = b"\xa5" * 512


def tag(number: int) -> int:
    """Return the tag of an initiator's request: bit 31, tool bits, a counter."""
    return 0x8000_0000 | BASE << 21 | number


def request_frame(request: bytes, number: int, dst: bytes = Wire.target_mac) -> bytes:
    """Build the frame that an initiator should send, padded with zeros to 60 bytes."""
    return (dst + ME + with_tag(request, tag(number))[12:]).ljust(60, b"\0")


QUERY = (BROADCAST + ME + with_tag(config(0), 0x8000_0000)[12:]).ljust(60, b"\0")
IDENTIFY = ata(0xEC, 0xA000_0000, aflags=0)


def page(*, lba48: bool = True) -> bytes:
    """Build an identity page with only a size."""
    words = {60: SECTORS & 0xFFFF, 61: SECTORS >> 16, 83: 0x4400 if lba48 else 0x4000}
    if lba48:
        words |= {100: SECTORS & 0xFFFF, 101: SECTORS >> 16}
    return struct.pack("<256H", *(words.get(number, 0) for number in range(256)))


class Peer:
    """A simulated target, or several, for an initiator."""

    def __init__(self, wire: Wire, host: Host) -> None:
        self.host = host
        self.ended: list[Bio] = []
        with wire.target.enter():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._socket.bind((wire.interface, 0x88A2))
        self._socket.settimeout(0.001)

    def send(
        self, response: bytes, number: int | None = None, src: bytes = b""
    ) -> None:
        """Send a response with its own tag or that of a request, and deliver it."""
        if number is not None:
            response = with_tag(response, tag(number))
        self._socket.send(ME + (src or Wire.target_mac) + response[12:])
        self.host.run_once(QUIET_TIME)
        self.host.run_once(0)

    def receive(self, timeout: float = TIMEOUT) -> bytes:
        """Return the next frame of the initiator, to any address."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self.host.run_once(0)
            with contextlib.suppress(TimeoutError):
                return self._socket.recv(10000)
        return NO_RESPONSE

    def discover(self, response: bytes | None = None, *, lba48: bool = True) -> AoeDev:
        """Send ``response`` to the initiator's query, so that it finds the target."""
        self.host.driver.discover(E73)
        assert self.receive() == QUERY
        self.send(with_tag(response or query_response(0), 0x8000_0000))
        self.identify(1, lba48=lba48)
        device = self.host.driver.devices[E73]
        assert device.state is State.UP
        return device

    def identify(
        self, number: int, mac: bytes = Wire.target_mac, *, lba48: bool = True
    ) -> None:
        """Receive an IDENTIFY to this MAC address, and send the response to it."""
        assert self.receive() == request_frame(IDENTIFY, number, mac)
        identity = ata_response(0x40, lba=0xA000_0000, aflags=0, data=page(lba48=lba48))
        self.send(identity, number, src=mac)

    def submit(self, op: Op, sector: int, data: bytes | bytearray) -> None:
        device = self.host.driver.devices[E73]
        bio = bio_for(op, sector, data, self.ended.append)
        self.host.driver.submit(device, bio, self.host.now())

    def close(self) -> None:
        self._socket.close()
        self.host.close()


@pytest.fixture
def make_peer(make_wire: Callable[[int], Wire]) -> Iterator[Callable[..., Peer]]:
    """Make an initiator that receives only the peer's frames, with long timeouts."""
    with contextlib.ExitStack() as stack:

        def make(mtu: int = 1500, options: Options | None = None) -> Peer:
            wire = make_wire(mtu)
            options = options or Options(tag_base=BASE, timing="kernel")
            with wire.initiator.enter():
                host = Host.on(wire.interface, options=options)
            return stack.enter_context(contextlib.closing(Peer(wire, host)))

        yield make


@pytest.fixture
def peer(make_peer: Callable[..., Peer]) -> Peer:
    return make_peer()


def test_p3_p11_p19_p27_p30_client_request_bytes(peer: Peer) -> None:
    """LBA48 requests, with reserved bits zero, padded, with the tool's own tags."""
    peer.discover()
    peer.submit(Op.READ, 0x01_2345, bytearray(1024))
    assert peer.receive() == request_frame(ata(0x24, 0x01_2345, 2), 2)
    peer.send(ata_response(0x40, lba=0x01_2345, data=ONE * 2), 2)
    peer.submit(Op.WRITE, 7, ONE)
    assert peer.receive() == request_frame(ata(0x34, 7, 1, aflags=0x41, data=ONE), 3)
    peer.send(ata_response(0x40, lba=7, aflags=0x41), 3)
    peer.submit(Op.FLUSH, 0, b"")
    assert peer.receive() == request_frame(ata(0xE7, count=0, aflags=0), 4)
    peer.send(ata_response(0x40, aflags=0), 4)
    assert [bio.error for bio in peer.ended] == [None] * 3
    assert peer.receive(QUIET_TIME) == NO_RESPONSE


def test_p19_client_padding_is_zero(peer: Peer) -> None:
    peer.discover()
    # More frames than the rings have slots.
    for number in range(2, 602):
        peer.submit(Op.WRITE, 7, ONE)
        assert peer.receive() == request_frame(
            ata(0x34, 7, 1, aflags=0x41, data=ONE), number
        )
        peer.send(ata_response(0x40, lba=7, aflags=0x41), number)
    for number in range(602, 1202):
        peer.submit(Op.FLUSH, 0, b"")
        assert peer.receive() == request_frame(ata(0xE7, count=0, aflags=0), number)
        peer.send(ata_response(0x40, aflags=0), number)


def test_p30_disk_with_28_bit_lba_gets_device_bits(peer: Peer) -> None:
    peer.discover(lba48=False)
    peer.submit(Op.READ, 0x01_2345, bytearray(512))
    assert peer.receive() == request_frame(ata(0x20, 0xE001_2345, 1, aflags=0), 2)
    peer.submit(Op.WRITE, 7, ONE)
    assert peer.receive() == request_frame(
        ata(0x30, 0xE000_0007, 1, aflags=1, data=ONE), 3
    )


@pytest.mark.parametrize(
    ("mtu", "sectors", "most"),
    [(1500, 8, 2), (9000, 0, 2), (9000, 1, 1), (9000, 5, 5), (9000, 255, 17)],
)
def test_p22_p23_frame_size_is_the_minimum_of_mtu_and_sector_count(
    make_peer: Callable[..., Peer], mtu: int, sectors: int, most: int
) -> None:
    peer = make_peer(mtu)
    peer.discover(query_response(0, sectors=sectors))
    peer.submit(Op.READ, 0, bytearray(512 * 2 * most))
    peer.submit(Op.WRITE, 9, ONE * (most + 1))
    data = ONE * most
    for number, request in enumerate(
        (
            ata(0x24, 0, most),
            ata(0x24, most, most),
            ata(0x34, 9, most, aflags=0x41, data=data),
            ata(0x34, 9 + most, 1, aflags=0x41, data=ONE),
        ),
        2,
    ):
        assert peer.receive() == request_frame(request, number)


def test_p23_latest_sector_count_applies(make_peer: Callable[..., Peer]) -> None:
    peer = make_peer(9000)
    peer.discover(query_response(0, sectors=5))
    peer.send(with_tag(query_response(0, sectors=0), 0))
    peer.identify(2)
    peer.submit(Op.READ, 0, bytearray(512 * 5))
    assert peer.receive() == request_frame(ata(0x24, 0, 2), 3)


def test_p23_smallest_sector_count_of_all_paths_applies(
    make_peer: Callable[..., Peer],
) -> None:
    peer = make_peer(9000)
    peer.discover(query_response(0, sectors=5))
    peer.send(with_tag(query_response(0, sectors=3), 0), src=OTHER)
    peer.identify(2, OTHER)
    peer.submit(Op.READ, 0, bytearray(512 * 6))
    assert peer.receive() == request_frame(ata(0x24, 0, 3), 3, OTHER)
    assert peer.receive() == request_frame(ata(0x24, 3, 3), 4)


@pytest.mark.parametrize("verfl", [0x08, 0x18, 0x28])
def test_p6_p48_announcement_of_any_version_is_accepted(peer: Peer, verfl: int) -> None:
    peer.send(with_flags(with_tag(query_response(0), 0), verfl))
    assert peer.receive() == request_frame(IDENTIFY, 1)


def test_p7_request_is_not_taken_as_response(peer: Peer) -> None:
    peer.send(with_flags(with_tag(query_response(0), 0), 0x10))
    assert peer.receive(QUIET_TIME) == NO_RESPONSE
    peer.discover()
    peer.submit(Op.WRITE, 7, ONE)
    assert peer.receive() == request_frame(ata(0x34, 7, aflags=0x41, data=ONE), 2)
    peer.send(with_flags(ata_response(0x40, lba=7, aflags=0x41), 0x10), 2)
    assert peer.ended == []


def test_p8_p9_response_of_another_address_is_ignored(peer: Peer) -> None:
    for address in (b"\xff\xff\x03", b"\x00\x07\xff", b"\xff\xff\xff"):
        peer.send(patch(with_tag(query_response(0), 0), 16, address))
    assert peer.receive(QUIET_TIME) == NO_RESPONSE


def test_p10_p11_response_with_another_tag_is_ignored(peer: Peer) -> None:
    # A response to a kernel driver's request is ignored.
    peer.send(with_tag(query_response(0), 0x0001_0203))
    assert peer.receive(QUIET_TIME) == NO_RESPONSE
    peer.discover()
    peer.submit(Op.READ, 7, bytearray(512))
    assert peer.receive() == request_frame(ata(0x24, 7), 2)
    response = ata_response(0x40, lba=7, data=ONE)
    for other in (tag(3), tag(2) ^ 1 << 31, tag(2) ^ 1 << 21, 0):
        peer.send(with_tag(response, other))
        assert peer.ended == []
    peer.send(response, 2)
    assert [bio.error for bio in peer.ended] == [None]


FAILURES = {
    "reserved": error_response(ata(0x24, 7), 6),
    "sector not found": ata_response(0x41, 0x10, count=1, lba=7),
    "device fault": ata_response(0x61, 0x04, count=1, lba=7),
    "busy": ata_response(0xC0, count=1, lba=7),
}


@pytest.mark.parametrize("words", FAILURES)
def test_p14_p15_p33_aoe_and_ata_errors_complete_the_request(
    peer: Peer, words: str
) -> None:
    peer.discover()
    peer.submit(Op.READ, 7, bytearray(512))
    assert peer.receive() == request_frame(ata(0x24, 7), 2)
    peer.send(FAILURES[words], 2)
    (bio,) = peer.ended
    assert words in str(bio.error)


def test_p2_p20_lost_request_is_retransmitted_with_a_new_tag(
    make_peer: Callable[..., Peer],
) -> None:
    peer = make_peer(options=Options(tag_base=BASE))
    peer.discover()
    peer.submit(Op.WRITE, 7, ONE)
    request, response = (
        ata(0x34, 7, aflags=0x41, data=ONE),
        ata_response(0x40, aflags=0x41),
    )
    assert peer.receive() == request_frame(request, 2)
    # On a slow machine there are more than two retransmissions.
    for number in range(3, 50):
        assert peer.receive() == request_frame(request, number)
        # Bytes after the message are allowed.
        peer.send(response + b"\xee" * 40, number)
        if peer.ended:
            break
    assert [bio.error for bio in peer.ended] == [None]


def test_p60_client_respects_the_buffer_count(peer: Peer) -> None:
    peer.discover(query_response(0, buffers=4))
    for number in range(9):
        peer.submit(Op.READ, number, bytearray(512))
    frames = []
    for answered in range(2, 11):
        while frame := peer.receive(0.01):
            frames.append(frame)
        number = answered - 2
        assert len(frames) - number <= 4
        assert frames[number] == request_frame(ata(0x24, number), answered)
        peer.send(ata_response(0x40, lba=number, data=ONE), answered)
    assert [bio.error for bio in peer.ended] == [None] * 9


@pytest.mark.parametrize(("buffers", "comes_up"), [(1, False), (2, True)])
def test_p60_linux_needs_two_buffers(
    make_peer: Callable[..., Peer], buffers: int, *, comes_up: bool
) -> None:
    peer = make_peer(options=Options.kernel())
    peer.send(with_tag(query_response(0, buffers=buffers), 0))
    frames = peer.receive(QUIET_TIME)
    assert bool(frames) is comes_up
    if comes_up:
        # P11: bit 31 is clear, the counter is above the clock.
        (number,) = struct.unpack_from("!I", frames, 20)
        assert number >> 16 == 1
        assert frames == with_tag(request_frame(IDENTIFY, 0), number)


def test_p6_p11_p19_p23_discover_broadcasts_a_query(wire: Wire) -> None:
    with wire.target.enter(), open_link("aoe0", responses=False) as link:
        command = [*AOE, "discover", "-i", "aoe0"]
        process = wire.initiator.popen([*command, "--json"], stdout=subprocess.PIPE)
        assert link.wait(TIMEOUT)
        query = bytes(link.receive() or b"")
        (number,) = struct.unpack_from("!I", query, 20)
        assert number >> 31 == 1
        broadcast_query = patch(QUERY, 16, b"\xff\xff\xff")
        assert query == with_tag(broadcast_query, number)
        good = with_tag(query_response(0, sectors=0), number)
        good = ME + Wire.target_mac + good[12:]
        for response in (
            with_flags(patch(good, 18, b"\x01"), 0x10),
            with_tag(patch(good, 18, b"\x02"), number ^ 1 << 31),
            with_flags(good, 0x08),
        ):
            assert link.send(response)
        output, _ = process.communicate(timeout=TIMEOUT)
    (target,) = json.loads(output)["targets"]
    assert (target["address"], target["sectors_per_frame"]) == ("e7.3", 2)
