"""The initiator's fast path gives the same results as the slow path."""

from __future__ import annotations

import os
from collections import Counter, deque
from random import Random
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aoe.header import TAG_COUNTER, Command, Header
from initiator.driver.bio import Bio, BioVec, Op, UserPages, bio_for
from initiator.driver.options import Options
from initiator.io.host import Host
from tests.asking import CLIENT
from tests.links import MemoryRingLink
from tests.unit.conftest import ADDRESS, FakeTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe.net.rings import Rings
    from initiator.driver.aoedev import AoeDev

SECTORS = 2048
BAD = 1900
"""Sectors from here on can be neither read nor written."""
STEP = 0.01
"""Seconds between two calls of ``Host.run_once``."""
CONTENT = Random(0).randbytes(SECTORS * 512)


class HostRings(MemoryRingLink):
    """A link with rings in memory, and a file descriptor to poll."""

    def __init__(self, mtu: int) -> None:
        super().__init__(mtu)
        self.mac = CLIENT
        self._ends = os.pipe()

    def fileno(self) -> int:
        return self._ends[0]

    def close(self) -> None:
        super().close()
        for end in self._ends:
            os.close(end)


class RingsOnSlowPath(HostRings):
    """The same link, whose frames all take the slow path."""

    @property
    def rings(self) -> Rings | None:
        return None


class Wire:
    """A host, a target, the network between them, and the clock.

    Args:
        link: the host's link.
        trouble: probability of each fault, 0 to 1.
        seed: for the faults.
    """

    def __init__(self, link: HostRings, trouble: float = 0, seed: int = 0) -> None:
        self.link = link
        self.disk = bytearray(CONTENT)
        self.target = FakeTarget(self.disk, buffers=24)
        self.now = 1000.0
        self.requests: list[bytes] = []
        self._random, self._trouble = Random(seed), 0.0
        self._held: deque[tuple[float, bytes]] = deque()
        with mock.patch("initiator.io.host.time", self):
            self.host = Host([link], Options(tag_base=7))
        self.host.driver.discover(ADDRESS)
        self.run(lambda: ADDRESS in self.host.driver.devices and self._device.ssize > 0)
        self.host.driver.open(self._device)
        self._trouble = trouble

    @property
    def _device(self) -> AoeDev:
        return self.host.driver.devices[ADDRESS]

    def monotonic(self) -> float:
        return self.now

    def run_once(self) -> None:
        """Run the host once, and deliver requests and responses."""
        with mock.patch("initiator.io.host.time", self):
            self.host.run_once(0)
        self.requests += self.link.sent
        for request in self.link.sent:
            self._carry(request)
        self.link.sent.clear()
        while self._held and self._held[0][0] <= self.now:
            self.link.deliver(self._held.popleft()[1])
        self.now += STEP

    def run(self, done: Callable[[], bool]) -> None:
        for _ in range(20_000):
            if done():
                return
            self.run_once()
        raise AssertionError

    def submit(self, bio: Bio) -> None:
        self.host.submit(self._device, bio)

    def _is_faulty(self) -> bool:
        return self._random.random() < self._trouble

    def _carry(self, request: bytes) -> None:
        if self._is_faulty():
            return
        for _ in range(1 + self._is_faulty()):
            response = bytes(self.answer(request))
            if self._is_faulty():
                continue
            if self._is_faulty():
                self.link.deliver(response[: self._random.randrange(14, 36)])
            if self._is_faulty() and response[19] == Command.ATA:
                foreign = response[:6] + b"\2\0\0\0\0\x99" + bytes(len(response) - 12)
                self.link.deliver(foreign[:12] + response[12:36] + foreign[36:])
            if self._is_faulty():
                late = self.now + self._random.random()
                self._held.append((late, response))
                self._held = deque(sorted(self._held))
            else:
                self.link.deliver(response)

    def answer(self, request: bytes) -> bytearray:
        is_ata = Header.unpack_from(request).command == Command.ATA
        lba = int.from_bytes(request[28:34], "little")
        if is_ata and request[27] in (0x24, 0x34) and lba + request[26] > BAD:
            return self.target.report(request, 1, 0x10)
        return self.target.answer(request)


@pytest.fixture
def wire() -> Iterator[Wire]:
    link = HostRings(9000)
    yield Wire(link)
    link.close()


class Script:
    """Bios of all kinds that do not overlap."""

    def __init__(self, wire: Wire, seed: int) -> None:
        self._wire = wire
        self._random = Random(seed)
        self.ended: Counter[Bio] = Counter()
        self.bios: list[Bio] = []
        sector = 0
        while sector < SECTORS - 80:
            sector += self._random.choice((0, 1, 9))
            count = self._random.choice((1, 2, 8, 8, 17, 40, 64))
            self.bios.append(self._bio(sector, count))
            sector += count

    def _bio(self, sector: int, count: int) -> Bio:
        op = self._random.choice((Op.READ, Op.READ, Op.WRITE, Op.WRITE, Op.FLUSH))
        if op is Op.FLUSH:
            return Bio(op, 0, self._end)
        data = bytearray(count * 512)
        if op is Op.WRITE:
            data[:] = self._random.randbytes(len(data))
        fua = op is Op.WRITE and self._random.random() < 0.1
        at = self._random.randrange(1, len(data))
        page = UserPages(data)
        vecs = [BioVec(page, 0, at), BioVec(page, at, len(data) - at)]
        if self._random.random() < 0.7:
            return bio_for(op, sector, data, self._end, fua=fua)
        return Bio(op, sector, self._end, vecs, fua=fua)

    def _end(self, bio: Bio) -> None:
        self.ended[bio] += 1

    def run_all(self) -> list[tuple[str, bytes]]:
        """Submit all bios, several at a time; return error and memory of each."""
        for bio in self.bios:
            self._wire.submit(bio)
            while self._random.random() < 0.3:
                self._wire.run_once()
        self._wire.run(lambda: len(self.ended) == len(self.bios))
        assert set(self.ended.values()) == {1}
        return [(str(bio.error), _memory(bio)) for bio in self.bios]

    def expected(self, disk: bytes) -> list[bytes]:
        """Return the data of successful bios, as the final disk has it."""
        return [
            disk[bio.sector * 512 :][: bio.size]
            for bio in self.bios
            if bio.error is None and bio.op is not Op.FLUSH
        ]


def _memory(bio: Bio) -> bytes:
    return b"".join(
        bytes(page.data[offset : offset + length]) for page, offset, length in bio.vecs
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    trouble=st.sampled_from((0.0, 0.02, 0.1)),
    mtu=st.sampled_from((1500, 9000)),
)
def test_both_paths_give_the_same_results(seed: int, trouble: float, mtu: int) -> None:
    outcomes, disks = [], []
    for kind in (HostRings, RingsOnSlowPath):
        link = kind(mtu)
        wire = Wire(link, trouble, seed)
        script = Script(wire, seed)
        outcomes.append(script.run_all())
        good = [_memory(bio) for bio in script.bios if not bio.error and bio.size]
        assert good == script.expected(bytes(wire.disk))
        disks.append(bytes(wire.disk))
        link.close()
    assert outcomes[0] == outcomes[1]
    assert disks[0] == disks[1]


def on_both_paths() -> Iterator[Wire]:
    for kind in (HostRings, RingsOnSlowPath):
        link = kind(9000)
        yield Wire(link)
        link.close()


def test_without_faults_both_paths_send_the_same_frames() -> None:
    sent = []
    for wire in on_both_paths():
        ended: list[Bio] = []
        for lba in range(0, 200, 8):
            op = Op.WRITE if lba % 3 else Op.READ
            wire.submit(bio_for(op, lba, bytearray(4096), ended.append))
        wire.submit(bio_for(Op.READ, 300, bytearray(100 * 512), ended.append))
        wire.run(lambda ended=ended: len(ended) == 26)  # type: ignore[misc] # of this iteration
        sent.append(wire.requests)
    assert sent[0] == sent[1]


def test_plain_reads_and_writes_do_not_take_the_slow_path(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Bio] = []

    def bios() -> list[Bio]:
        # The first responses of each length take the slow path.
        pairs = [(Op.READ, 8 * number) for number in range(40)]
        pairs += [(Op.WRITE, 8 * number) for number in range(40, 80)]
        return [bio_for(op, at, bytearray(4096), ended.append) for op, at in pairs]

    for bio in bios():
        wire.submit(bio)
    wire.run(lambda: len(ended) == 80)

    def fail(*_: object) -> None:
        raise AssertionError

    driver = wire.host.driver
    monkeypatch.setattr(driver, "receive", fail)
    monkeypatch.setattr(driver, "transmit", fail)
    for bio in bios():
        wire.submit(bio)
    wire.run(lambda: len(ended) == 160)
    assert not any(bio.error for bio in ended)


def test_a_frame_of_the_fast_path_is_retransmitted_with_a_new_tag_k52(
    wire: Wire,
) -> None:
    ended: list[Bio] = []
    data = bytearray(b"\x5a" * 4096)
    wire.submit(bio_for(Op.WRITE, 16, data, ended.append))
    with mock.patch.object(wire, "_carry"):
        wire.run_once()
    [lost] = wire.requests[-1:]
    wire.run(lambda: bool(ended))
    again = wire.requests[-1]
    assert lost[:20] == again[:20]
    assert lost[20:24] != again[20:24]
    assert lost[24:] == again[24:]
    assert wire.disk[16 * 512 : 24 * 512] == data


def test_p10_requests_wait_until_tags_may_be_used_again() -> None:
    for wire in on_both_paths():
        ended: list[Bio] = []
        for _ in range(2):
            wire.submit(bio_for(Op.READ, 16, bytearray(4096), ended.append))
        wire.run(lambda ended=ended: len(ended) == 2)  # type: ignore[misc] # of this iteration
        # As after so many requests.
        wire.host.driver.devices[ADDRESS].lasttag += TAG_COUNTER
        started = wire.now
        sent = len(wire.requests)
        wire.submit(bio_for(Op.READ, 24, bytearray(4096), ended.append))
        while wire.now < started + 1.9:
            wire.run_once()
        assert len(wire.requests) == sent
        wire.run(lambda ended=ended: len(ended) == 3)  # type: ignore[misc] # of this iteration
        assert wire.now < started + 2.2


def test_a_runt_is_left_to_the_slow_path_k61(wire: Wire) -> None:
    ended: list[Bio] = []

    def truncated_response(request: bytes) -> bytearray:
        return wire.target.answer(request)[:548]

    for number in range(2):
        # In the second round, the frame geometries are installed.
        buffers = [bytearray(4096) for _ in range(2)]
        for buffer in buffers:
            wire.submit(bio_for(Op.READ, 8 * number, buffer, ended.append))
        with mock.patch.object(wire, "answer", truncated_response):
            wire.run_once()
        wire.run(lambda number=number: len(ended) == 2 * number + 2)  # type: ignore[misc] # of this iteration
        assert buffers == [CONTENT[number * 4096 :][:4096]] * 2
    assert wire.host.driver.runts == 4


def test_a_response_from_an_unknown_mac_is_left_to_the_slow_path_k13(
    wire: Wire,
) -> None:
    ended: list[Bio] = []
    for number in range(2):
        wire.submit(bio_for(Op.READ, 0, bytearray(4096), ended.append))
        with mock.patch.object(wire, "_carry"):
            wire.run_once()
        [ifp] = wire.host.driver.devices[ADDRESS].targets[0].ifs
        ifp.lost = 3
        response = wire.answer(wire.requests[-1])
        response[6:12] = b"\2\0\0\0\0\x99"
        wire.link.deliver(bytes(response))
        wire.run_once()
        assert (ifp.lost, len(ended), wire.host.driver.foreign) == (
            3,
            number,
            number + 1,
        )
        wire.run(lambda number=number: len(ended) == number + 1)  # type: ignore[misc] # of this iteration
        assert ifp.lost == 0


def test_end_io_may_wait_for_another_bio(wire: Wire) -> None:
    ended: list[str] = []
    other = bio_for(Op.READ, 8, bytearray(4096), lambda _: ended.append("other"))

    def wait_for_other(_: Bio) -> None:
        wire.run(lambda: "other" in ended)
        ended.append("first")

    wire.submit(bio_for(Op.READ, 0, bytearray(4096), wait_for_other))
    wire.submit(other)
    wire.run(lambda: len(ended) == 2)
    assert ended == ["other", "first"]


def test_an_exception_of_end_io_propagates_and_other_bios_end(
    wire: Wire,
) -> None:
    ended: list[Bio] = []

    def fail(_: Bio) -> None:
        raise ZeroDivisionError

    for lba in range(0, 80, 8):
        wire.submit(
            bio_for(Op.READ, lba, bytearray(4096), fail if lba == 40 else ended.append)
        )
    with pytest.raises(ZeroDivisionError):
        wire.run(lambda: len(ended) == 9)
    wire.run(lambda: len(ended) == 9)


def test_windows_grow_as_on_the_slow_path() -> None:
    windows = []
    for wire in on_both_paths():
        ended: list[Bio] = []
        for number in range(2000):
            wire.submit(bio_for(Op.READ, number % 100, bytearray(512), ended.append))
        wire.run(lambda ended=ended: len(ended) == 2000)  # type: ignore[misc] # of this iteration
        windows.append(wire.host.driver.devices[ADDRESS].targets[0].window.maxout)
    assert windows == [24, 24]
