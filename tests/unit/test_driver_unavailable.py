"""A disk that its target cannot reach at present is waited for (AoE error 3, P14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aoe.ata import SECTOR
from aoe.errors import DeviceError
from aoe.header import ErrorCode
from initiator.driver.bio import Op, bio_for
from initiator.driver.options import Options
from tests.unit.conftest import ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.address import Address
    from initiator.driver.bio import Bio
    from tests.unit.conftest import Connect, FakeTarget, Sent, World

_STEP = 0.05


class Storage:
    """Storage that may be unavailable, behind one or two targets with the same disk."""

    def __init__(self, world: World, *others: FakeTarget) -> None:
        self._world = world
        self._targets = {each.mac: each for each in (world.target, *others)}
        self.unavailable: set[bytes] = set()
        self.requests: list[Sent] = []
        self.warnings: list[str] = []

        def record(address: Address, text: str) -> None:
            assert address == ADDRESS
            self.warnings.append(text)

        world.driver.on_warning = record

    def fail(self) -> None:
        self.unavailable |= {*self._targets}

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Answer requests for a while."""
        world = self._world
        end = world.now + seconds
        while world.now < end and not until():
            requests = world.take()
            self.requests += requests
            for request in requests:
                target = self._targets[request.raw[:6]]
                answer = target.answer(request.raw)
                if target.mac in self.unavailable:
                    code = ErrorCode.DEVICE_UNAVAILABLE
                    answer = target.refuse(request.raw, code)
                world.deliver(answer, request.port)
            world.wait(0.0 if world.frames else _STEP)

    def run_all(self, bios: list[Bio]) -> None:
        ended = self._world.ended
        self.run(5, lambda: all(bio in ended for bio in bios))
        assert [bio.error for bio in bios] == [None] * len(bios)


def start(world: World, count: int = 30) -> list[Bio]:
    """Submit reads and writes, several frames each, and a flush."""
    bios = [
        bio_for(
            Op.WRITE if number % 2 else Op.READ,
            16 * number % 512,
            bytearray(b"w" * 8 * SECTOR),
            world.ended.append,
        )
        for number in range(count)
    ]
    bios.append(bio_for(Op.FLUSH, 0, b"", world.ended.append))
    return [world.submit(bio) for bio in bios]


@pytest.mark.parametrize("timing", ["prompt", "kernel"])
def test_p14_a_failover_of_20_seconds_is_waited_for(
    connect: Connect, timing: str
) -> None:
    world = connect(Options(timing=timing))
    storage = Storage(world)
    storage.run_all(start(world))
    storage.fail()
    bios = start(world)
    storage.requests.clear()
    storage.run(20)
    assert not any(bio in world.ended for bio in bios)
    # At first one window, then about one request per second.
    assert len(storage.requests) < 60
    assert storage.warnings == [
        "device unavailable (AoE error 3): asking again for up to 180 s"
    ]
    storage.unavailable.clear()
    storage.run_all(bios)
    assert len(storage.warnings) == 2
    assert storage.warnings[1].startswith("available again after 2")
    for bio in bios[1:-1:2]:
        at = bio.sector * SECTOR
        assert world.target.disk[at : at + 8 * SECTOR] == b"w" * 8 * SECTOR


def test_p14_requests_during_the_pause_are_not_sent(connect: Connect) -> None:
    world = connect()
    storage = Storage(world)
    storage.fail()
    world.read(0, bytearray(SECTOR))
    storage.run(2)
    storage.requests.clear()
    bios = start(world, 200)
    storage.run(2)
    assert 0 < len(storage.requests) < 10
    storage.unavailable.clear()
    storage.run_all(bios)


@pytest.mark.parametrize("deadsecs", [5, 60])
def test_p14_the_device_is_down_after_deadsecs(connect: Connect, deadsecs: int) -> None:
    world = connect(Options(deadsecs=deadsecs))
    storage = Storage(world)
    storage.fail()
    bios = start(world)
    storage.run(deadsecs - 0.2)
    assert not world.ended
    storage.run(2.5)
    assert {type(bio.error) for bio in bios} == {DeviceError}
    assert "device unavailable for" in str(bios[0].error)
    assert not world.is_up
    storage.unavailable.clear()
    world.deliver(world.target.announce())
    storage.run(0.2)
    assert world.is_up
    storage.run_all(start(world))


def test_p14_many_short_pauses_are_reported_once(connect: Connect) -> None:
    world = connect()
    storage = Storage(world)
    for _ in range(10):
        storage.fail()
        bios = start(world)
        storage.run(0.5)
        storage.unavailable.clear()
        storage.run_all(bios)
    assert len(storage.warnings) == 2


def test_p14_a_request_that_is_lost_in_the_pause_is_sent_again(
    connect: Connect,
) -> None:
    world = connect()
    storage = Storage(world)
    storage.fail()
    bios = start(world)
    storage.run(2)
    for _ in range(100):
        world.wait(0.05)
        world.take()
    storage.unavailable.clear()
    storage.run_all(bios)


def test_p14_another_server_of_the_disk_is_used_meanwhile(connect: Connect) -> None:
    world = connect()
    other = world.second_mac()
    world.deliver(other.announce())
    storage = Storage(world, other)
    storage.run(0.1)
    storage.unavailable = {world.target.mac}
    for _ in range(10):
        storage.run_all(start(world))
    assert storage.warnings == []
    storage.unavailable.clear()
    storage.run(5)
    storage.requests.clear()
    for _ in range(10):
        storage.run_all(start(world))
    assert {each.raw[:6] for each in storage.requests} == {world.target.mac, other.mac}


@pytest.mark.parametrize("first", [False, True])
def test_p14_all_servers_of_a_disk_are_asked(connect: Connect, *, first: bool) -> None:
    world = connect()
    other = world.second_mac()
    world.deliver(other.announce())
    storage = Storage(world, other)
    storage.run(0.1)
    storage.fail()
    bios = start(world)
    storage.run(10)
    storage.unavailable = {other.mac if first else world.target.mac}
    storage.run_all(bios)
