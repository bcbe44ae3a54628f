"""Repeats of a request that takes long get its response, and are not executed."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import pytest

from aoe.address import Address
from target.disks.file import FileDisk
from target.disks.memory import MemoryDisk
from target.protocol.exports import ClientState, Export
from target.protocol.target import Target
from target.reference.engine import ScapyEngine
from target.server.ports import Port
from tests.asking import CLIENT, TARGET, ask, ata, sent_by, serve
from tests.links import MemoryRingLink, QueueLink
from tests.sides import SlowRingLink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from target.protocol.engine import MakeEngine

    AnyLink = MemoryRingLink | QueueLink

WRITE, READ, FLUSH = 0x34, 0x24, 0xE7
OTHER = bytes.fromhex("525400000009")


class SlowDisk(MemoryDisk):
    """A disk that is slow while frames are given to ``arrive``."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.calls: list[tuple[str, int]] = []
        self.failure = 0
        self._arrivals: list[Callable[[], None]] = []

    def arrive(self, link: AnyLink, *frames: bytes) -> None:
        """Deliver frames while the next operation is executed."""
        self._arrivals.append(lambda: link.deliver(*frames))

    def _execute(self, name: str, offset: int) -> None:
        self.calls.append((name, offset))
        if self._arrivals:
            arrivals, self._arrivals = self._arrivals, []
            for deliver in arrivals:
                deliver()
            time.sleep(0.03)
        if self.failure:
            raise OSError(self.failure, "failed")

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._execute("read", offset)
        super().read_into(offset, buffer)

    def write_from(self, offset: int, data: memoryview) -> None:
        self._execute("write", offset)
        super().write_from(offset, data)

    def flush(self) -> None:
        self._execute("flush", 0)

    def discard(self, offset: int, length: int) -> None:
        self._execute("discard", offset)
        super().discard(offset, length)

    def content(self, lba: int) -> bytes:
        buffer = bytearray(1)
        MemoryDisk.read_into(self, lba * 512, memoryview(buffer))
        return bytes(buffer)


@pytest.fixture(params=[MemoryRingLink, SlowRingLink, QueueLink])
def link(request: pytest.FixtureRequest) -> Iterator[AnyLink]:
    made: AnyLink = request.param()
    yield made
    made.close()


@pytest.fixture
def disk() -> SlowDisk:
    return SlowDisk()


@pytest.fixture(params=[Target, ScapyEngine])
def make_engine(request: pytest.FixtureRequest) -> MakeEngine:
    engine: MakeEngine = request.param
    return engine


@pytest.fixture
def port(link: AnyLink, disk: SlowDisk, make_engine: MakeEngine) -> Port:
    port = Port(link)
    port.add(Export(Address(7, 3), disk), make_engine)
    return port


def drain(*ports: Port) -> None:
    count = 1
    while count:
        count = sum(port.serve(0.0) for port in ports)


def write(lba: int, letter: bytes, tag: int = 0) -> bytes:
    return ata(WRITE, lba, aflags=0x41, data=letter * 512, tag=tag)


def trim(lba: int, sectors: int, tag: int) -> bytes:
    entry = (lba | sectors << 48).to_bytes(8, "little").ljust(512, b"\0")
    return ata(0x06, aflags=0x41, feature=1, data=entry, tag=tag)


def tags_of(link: AnyLink) -> list[int]:
    return [int.from_bytes(frame[20:24], "big") for frame in link.sent]


def test_repeats_of_a_trim_get_its_response(
    port: Port, link: AnyLink, disk: SlowDisk
) -> None:
    disk.arrive(link, *(trim(8, 100, tag) for tag in range(2, 12)))
    link.deliver(trim(8, 100, 1))
    drain(port)
    assert disk.calls == [("discard", 4096)]
    assert sorted(tags_of(link)) == list(range(1, 12))
    first, *repeats = link.sent
    for response in repeats:
        assert response[:20] + response[24:] == first[:20] + first[24:]
    assert (first[:12], first[27], port.repeats) == (CLIENT + TARGET, 0x40, 10)


def test_equal_request_after_the_response_is_executed(
    port: Port, link: AnyLink, disk: SlowDisk
) -> None:
    disk.arrive(link, write(5, b"a", 2))
    link.deliver(write(5, b"a", 1))
    drain(port)
    for letter, tag in ((b"b", 3), (b"a", 4)):
        link.deliver(write(5, letter, tag))
        drain(port)
    assert disk.content(5) == b"a"
    assert (len(disk.calls), port.repeats) == (3, 1)


def test_repeated_write_does_not_undo_a_newer_one(
    port: Port, link: AnyLink, disk: SlowDisk
) -> None:
    disk.arrive(link, write(9, b"x", 2), write(5, b"b", 3), write(5, b"a", 4))
    link.deliver(write(5, b"a", 1))
    drain(port)
    assert disk.content(5) == b"b"
    assert sorted(tags_of(link)) == [1, 2, 3, 4]


def test_requests_that_differ_are_executed_in_order(
    port: Port, link: AnyLink, disk: SlowDisk
) -> None:
    lbas = [*range(40)]
    disk.arrive(link, *(write(lba, b"x", lba) for lba in lbas[1:20]))
    link.deliver(write(0, b"x", 0))
    drain(port)
    link.deliver(*(write(lba, b"y", lba) for lba in lbas[20:]))
    drain(port)
    assert disk.calls == [("write", lba * 512) for lba in lbas]
    assert tags_of(link) == lbas


def test_repeats_of_requests_that_wait_are_not_executed(
    port: Port, link: AnyLink, disk: SlowDisk
) -> None:
    waiting = [ata(READ, lba, tag=lba + 10 * turn) for turn in (1, 2) for lba in (1, 2)]
    disk.arrive(link, *waiting)
    link.deliver(trim(8, 1, 1))
    drain(port)
    assert disk.calls == [("discard", 4096), ("read", 512), ("read", 1024)]
    assert sorted(tags_of(link)) == [1, 11, 12, 21, 22]
    lengths = {tag: len(link.sent[at]) for at, tag in enumerate(tags_of(link))}
    assert lengths == {1: 60} | dict.fromkeys((11, 12, 21, 22), 36 + 512)


def test_repeats_get_the_same_error(port: Port, link: AnyLink, disk: SlowDisk) -> None:
    for number, flags in ((errno.EIO, b"\x18\0"), (errno.ENODEV, b"\x1c\x03")):
        disk.calls.clear()
        link.sent.clear()
        disk.failure = number
        disk.arrive(link, write(5, b"a", 2))
        link.deliver(write(5, b"a", 1))
        drain(port)
        assert [frame[14:16] for frame in link.sent] == [flags] * 2
        assert len(disk.calls) == 1


def test_other_clients_get_the_response_unless_access_is_restricted(
    port: Port, link: AnyLink, disk: SlowDisk
) -> None:
    for state, calls in ((ClientState(), 1), (ClientState(mask=(CLIENT, OTHER)), 2)):
        port.targets[0].export.state = state
        disk.calls.clear()
        link.sent.clear()
        disk.arrive(link, sent_by(OTHER, write(5, b"a", 2)))
        link.deliver(write(5, b"a", 1))
        drain(port)
        assert [frame[:6] for frame in link.sent] == [CLIENT, OTHER]
        assert len(disk.calls) == calls


def test_repeat_on_another_interface_gets_the_response(
    disk: SlowDisk, make_engine: MakeEngine
) -> None:
    links = [MemoryRingLink(), MemoryRingLink()]
    links[1].mac = bytes.fromhex("525400000077")
    export = Export(Address(7, 3), disk)
    ports = [Port(link) for link in links]
    for port in ports:
        port.add(export, make_engine)
        port.peers = ports
    disk.arrive(links[1], sent_by(OTHER, write(5, b"a", 2)), write(6, b"c", 3))
    links[0].deliver(write(5, b"a", 1))
    drain(*ports)
    assert disk.calls == [("write", 2560), ("write", 3072)]
    assert [tags_of(link) for link in links] == [[1], [2, 3]]
    assert links[1].sent[0][:12] == OTHER + links[1].mac


def test_frames_of_the_fast_path_stay_in_order(tmp_path: Path, disk: SlowDisk) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    link = MemoryRingLink()
    port = Port(link)
    port.add(Export(Address(7, 3), disk))
    with image.open("r+b") as file:
        fast = FileDisk(file.fileno(), 0, 1 << 20, read_only=False)
        port.add(Export(Address(7, 4), fast))

        def at_four(request: bytes) -> bytes:
            return request[:18] + b"\x04" + request[19:]

        link.deliver(at_four(write(5, b"0", 1)), at_four(write(5, b"0", 2)))
        drain(port)
        disk.arrive(link, at_four(write(5, b"a", 4)))
        link.deliver(trim(8, 1, 3))
        port.serve(0.0)
        link.deliver(at_four(write(5, b"b", 5)))
        drain(port)
        assert tags_of(link) == [1, 2, 3, 4, 5]
        assert image.read_bytes()[5 * 512 : 5 * 512 + 1] == b"b"
        port.close()


def test_quick_requests_are_executed_each_time() -> None:
    # Without a slow one before them, equal requests may depend on each other.
    disk = SlowDisk()
    target = serve(Export(Address(7, 3), disk))
    assert [ask(target, write(5, b"a"))[27] for _ in range(3)] == [0x40] * 3
    assert len(disk.calls) == 3
