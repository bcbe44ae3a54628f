"""The driver in kernel mode compared with captures of a Linux 6.1 initiator.

The captures (Debian 6.1.192, aoe v85, target vblade 25, both ends with the same MTU)
contain one direct read or write each, and the query that the last close sends.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aoe.address import Address
from aoe.header import Command, Flag, Header
from initiator.driver.bio import Bio, Op, UserPages
from initiator.driver.driver import Driver
from initiator.driver.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initiator.driver.skbuff import Skb

GOLDEN = Path(__file__).parent.parent / "golden"
INITIATOR = bytes.fromhex("525400ae0001")
PAGE = 4096


class Wire:
    name = "eth0"
    mac = bytes.fromhex("020000000001")

    def __init__(self, mtu: int) -> None:
        self.mtu = mtu
        self.sent: list[bytes] = []

    def xmit(self, skb: Skb) -> None:
        self.sent.append(bytes(skb))


def read_frames(name: str) -> Iterator[bytes]:
    raw = gzip.decompress((GOLDEN / f"linux-6.1-{name}.pcap.gz").read_bytes())
    position = 24
    while position < len(raw):
        (length,) = struct.unpack_from("<I", raw, position + 8)
        yield raw[position + 16 : position + 16 + length]
        position += 16 + length


def without_macs_and_tag(frame: bytes) -> bytes:
    is_broadcast = frame[:6] == b"\xff" * 6
    return bytes([is_broadcast]) + frame[12:20] + frame[24:]


def with_tag(frame: bytes, tag: int) -> memoryview:
    return memoryview(frame[:20] + struct.pack("!I", tag) + frame[24:])


def paged_bio(op: Op, sector: int, data: bytearray, ended: list[Bio]) -> Bio:
    bio = Bio(op, sector, ended.append)
    for start in range(0, len(data), PAGE):
        page = UserPages(memoryview(data)[start : start + PAGE])
        bio.add_page(page, PAGE)
    return bio


def bring_up(driver: Driver, wire: Wire, frames: list[bytes]) -> None:
    """Answer discovery and IDENTIFY with the responses of the capture."""
    responses = [f for f in frames if f[14] & Flag.RESPONSE]
    config = next(f for f in responses if f[19] == Command.CONFIG)
    page = next(f for f in responses if len(f) == 548)
    driver.discover()
    driver.receive(memoryview(config), wire, 0.0)
    tag = Header.unpack_from(wire.sent[-1]).tag
    driver.receive(with_tag(page, tag), wire, 0.0)
    wire.sent.clear()


@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize(
    ("capture", "op", "sector", "size"),
    [
        ("04-read-4k-lba8", Op.READ, 8, 4096),
        ("05-read-64k-lba128", Op.READ, 128, 65536),
        ("06-write-4k-lba8", Op.WRITE, 8, 4096),
        ("07-write-64k-lba128", Op.WRITE, 128, 65536),
    ],
)
def test_frames_are_equal_to_the_kernels(
    capture: str, op: Op, sector: int, size: int, mtu: int
) -> None:
    """K10-K12, K17, K19, K20, K27-K29, K31, K33-K36."""
    frames = list(read_frames(f"{capture}-mtu{mtu}"))
    requests = [f for f in frames if f[6:12] == INITIATOR]
    commands = [f for f in requests if f[19] == Command.ATA and f[27] != 0xEC]
    written = b"".join(f[36:] for f in commands)
    data = bytearray(written if op is Op.WRITE else b"\xff" * size)
    wire = Wire(mtu)
    driver = Driver(Options.kernel())
    driver.add_netdev(wire)
    bring_up(driver, wire, frames)
    device = driver.devices[Address(0, 0)]
    ended: list[Bio] = []

    driver.open(device)
    driver.submit(device, paged_bio(op, sector, data, ended), 0.1)
    tags: dict[int, int] = {}
    seen = 0
    read = bytearray()
    for frame in frames:
        if frame in requests:
            if frame[19] == Command.CONFIG:
                driver.close(device)
            ours = wire.sent[seen]
            seen += 1
            assert without_macs_and_tag(ours) == without_macs_and_tag(frame)
            tags[Header.unpack_from(frame).tag] = Header.unpack_from(ours).tag
        else:
            tag = tags[Header.unpack_from(frame).tag]
            driver.receive(with_tag(frame, tag), wire, 0.1 + seen / 1000)
            if frame[19] == Command.ATA and len(read) < size and op is Op.READ:
                read += frame[36:]

    assert seen == len(wire.sent) == len(requests)
    assert [bio.error for bio in ended] == [None]
    if op is Op.READ:
        assert data == read


def test_kernel_tags_have_a_counter_and_jiffies() -> None:
    """K24: a counter from 1 in the upper half, jiffies in the lower half."""
    frames = list(read_frames("04-read-4k-lba8-mtu1500"))
    wire = Wire(1500)
    driver = Driver(Options.kernel())
    driver.add_netdev(wire)
    bring_up(driver, wire, frames)
    device = driver.devices[Address(0, 0)]

    now = 0x1E374 / 250
    driver.submit(device, paged_bio(Op.READ, 8, bytearray(4096), []), now)

    tags = [Header.unpack_from(frame).tag for frame in wire.sent]
    assert tags == [0x0002E374, 0x0003E374, 0x0004E374, 0x0005E374]
