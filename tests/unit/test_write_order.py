"""Overlapping writes are never outstanding together, nor with a late duplicate."""

from __future__ import annotations

import random
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aoe.ata import SECTOR, Opcode
from aoe.errors import DeviceError
from aoe.identify import FeatureSet
from initiator.driver.bio import Bio, Op, bio_for
from initiator.driver.options import Options

if TYPE_CHECKING:
    from tests.unit.conftest import Connect, Sent, World

QUARANTINE = Options().quarantine


def delay_the_first(world: World, sector: int = 0) -> tuple[Sent, Sent]:
    """Write; return the first transmission, delayed, and the one answered."""
    world.write(sector, b"o" * SECTOR)
    [late] = world.take()
    world.wait(0.3)
    [again] = world.take()
    world.respond(again)
    assert len(world.ended) == 1
    return late, again


def test_a_write_is_queued_while_an_earlier_one_is_quarantined(
    connect: Connect,
) -> None:
    world = connect()
    delay_the_first(world)
    bio = world.write(0, b"n" * SECTOR)
    assert world.take() == []
    assert world.device.write_locks.queued_total == 1
    world.wait(QUARANTINE - 0.31)
    assert world.take() == []
    world.wait(0.02)
    world.run_until_idle()
    assert bio in world.ended
    assert world.target.disk[:SECTOR] == b"n" * SECTOR


def test_the_quarantine_ends_when_each_transmission_is_answered(
    connect: Connect,
) -> None:
    world = connect()
    late, _ = delay_the_first(world)
    bio = world.write(0, b"n" * SECTOR)
    world.respond(late)
    world.run_until_idle()
    assert bio in world.ended
    assert world.now < 1


def test_responses_to_earlier_transmissions_count_before_the_last(
    connect: Connect,
) -> None:
    world = connect()
    world.write(0, b"o" * SECTOR)
    [late] = world.take()
    world.wait(0.3)
    [again] = world.take()
    world.respond(late, again)
    bio = world.write(0, b"n" * SECTOR)
    world.run_until_idle()
    assert bio in world.ended


def test_an_aoe_error_to_an_earlier_transmission_counts(
    connect: Connect,
) -> None:
    world = connect()
    late, _ = delay_the_first(world)
    bio = world.write(0, b"n" * SECTOR)
    world.deliver(world.target.refuse(late.raw))
    world.run_until_idle()
    assert bio in world.ended


def test_queued_writes_are_granted_although_a_new_write_expired_the_quarantine(
    connect: Connect,
) -> None:
    world = connect()
    delay_the_first(world)
    second = world.write(0, b"n" * SECTOR)
    world.now += 2 * QUARANTINE
    third = world.write(0, b"m" * SECTOR)
    while world.driver.next_timeout() is not None:
        world.wait(0)
        world.run_until_idle()
    assert world.ended[1:] == [second, third]
    assert world.target.disk[:SECTOR] == b"m" * SECTOR


@pytest.mark.parametrize(("sector", "waits"), [(3, False), (4, True), (5, True)])
def test_only_overlapping_writes_are_queued(
    connect: Connect, sector: int, *, waits: bool
) -> None:
    world = connect()
    world.write(4, b"o" * 2 * SECTOR)
    world.take()
    world.wait(0.3)
    world.respond(*world.take())
    world.write(sector, b"n" * SECTOR)
    assert bool(world.take()) is not waits


def test_reads_and_flushes_are_never_queued(connect: Connect) -> None:
    world = connect()
    delay_the_first(world)
    world.read(0, bytearray(SECTOR))
    world.flush()
    assert len(world.take()) == 2


def test_a_write_is_queued_until_an_overlapping_one_ends(
    connect: Connect,
) -> None:
    """Otherwise a retransmission of the first could arrive after the second."""
    world = connect()
    older = world.write(0, b"o" * 2 * SECTOR)
    newer = world.write(1, b"n" * SECTOR)
    [frame] = world.take()
    assert frame.registers.count == 2
    world.respond(frame)
    world.run_until_idle()
    assert world.ended == [older, newer]
    assert world.target.disk[: 2 * SECTOR] == b"o" * SECTOR + b"n" * SECTOR


def test_queued_writes_are_granted_in_order(connect: Connect) -> None:
    world = connect()
    for letter, sector, count in ((b"a", 0, 2), (b"b", 1, 2), (b"c", 2, 2)):
        world.write(sector, letter * count * SECTOR)
    free = world.write(8, b"d" * SECTOR)
    [first, other] = world.take()
    world.respond(other, first)
    world.run_until_idle()
    assert world.ended[0] is free
    expected = b"a" * SECTOR + b"b" * SECTOR + b"c" * 2 * SECTOR
    assert world.target.disk[: 4 * SECTOR] == expected


def test_trims_are_locked_like_writes(connect: Connect) -> None:
    world = connect(is_up=False)
    world.target.feature_sets = FeatureSet.TRIM
    world.bring_up()
    world.discard(0, 8)
    world.write(7, b"n" * SECTOR)
    [trim] = world.take()
    assert trim.registers.command == Opcode.DATA_SET_MANAGEMENT
    world.wait(0.3)
    world.respond(*world.take())
    assert world.take() == []
    world.respond(trim)
    world.run_until_idle()
    assert world.target.disk[7 * SECTOR : 8 * SECTOR] == b"n" * SECTOR


def test_k81_writes_of_a_failed_device_are_quarantined(connect: Connect) -> None:
    """The bio has ended with an error, but its frame may still arrive."""
    world = connect()
    world.write(0, b"o" * SECTOR)
    [delayed] = world.take()
    world.driver.fail(world.device, DeviceError("e1.2", "pulled out"))
    world.bring_up()
    bio = world.write(0, b"n" * SECTOR)
    assert world.take() == []
    world.target.answer(delayed.raw)
    world.wait(QUARANTINE + 0.01)
    world.run_until_idle()
    assert bio in world.ended
    assert world.target.disk[:SECTOR] == b"n" * SECTOR


def test_queued_writes_fail_with_the_device(connect: Connect) -> None:
    world = connect()
    delay_the_first(world)
    bio = world.write(0, b"n" * SECTOR)
    world.driver.fail(world.device, DeviceError("e1.2", "pulled out"))
    assert world.ended[-1] is bio
    assert "pulled out" in str(bio.error)


def test_kernel_mode_has_no_range_locks(connect: Connect) -> None:
    world = connect(Options.kernel())
    world.write(0, b"o" * SECTOR)
    world.write(0, b"n" * SECTOR)
    assert len(world.take()) == 2


def test_the_quarantine_is_at_least_four_rtos(connect: Connect) -> None:
    world = connect()
    for _ in range(50):
        world.device.timing.sample(3.0)
    world.write(0, b"o" * SECTOR)
    world.take()
    world.wait(3.5)
    world.respond(world.take()[-1])
    world.write(0, b"n" * SECTOR)
    world.wait(QUARANTINE)
    assert world.take() == []


# --- networks with a limited frame lifetime -------------------------------------------


class Network:
    """A network that loses, delays and reorders frames, and duplicates responses.

    Args:
        world: a driver and its target.
        seed: of the random choices.
        lifetime: maximum seconds that a frame is in flight.
    """

    def __init__(self, world: World, seed: int, lifetime: float) -> None:
        self.world = world
        self.luck = random.Random(seed)
        self.lifetime = lifetime
        self._events: list[tuple[float, int, bytes, bool]] = []
        self._serial = 0

    def _carry(self, frame: bytes, *, to_target: bool) -> None:
        delay = self.luck.choice([0.001, 0.001, 0.01, 0.2, 0.9]) * self.lifetime
        self._serial += 1
        event = (self.world.now + delay, self._serial, frame, to_target)
        heappush(self._events, event)

    def take_sent(self) -> None:
        """Take the frames that the driver has sent."""
        for sent in self.world.take():
            if self.luck.random() > 0.3:
                self._carry(sent.raw, to_target=True)

    def step(self) -> bool:
        """Run the next event; return False if there is none."""
        self.take_sent()
        world = self.world
        due = world.driver.next_timeout()
        arrival = self._events[0][0] if self._events else None
        if due is None and arrival is None:
            return False
        if arrival is None or (due is not None and due < arrival):
            assert due is not None
            world.now = max(world.now, due)
            world.driver.handle_timer(world.now)
            return True
        world.now, _, frame, to_target = heappop(self._events)
        if not to_target:
            world.deliver(frame)
            return True
        response = world.target.answer(frame)
        for _ in range(self.luck.choice([0, 1, 1, 1, 2])):
            self._carry(bytes(response), to_target=False)
        return True


def rewrite(world: World, seed: int, lifetime: float) -> list[int]:
    """Write at random; return the sectors that do not hold the last write."""
    network = Network(world, seed, lifetime)
    luck = network.luck
    world.target.disk[:] = bytes(len(world.target.disk))
    acknowledged = [0] * 16
    out = 0

    def ended(bio: Bio) -> None:
        nonlocal out
        out -= 1
        assert bio.error is None
        [vec] = bio.vecs
        first, count = bio.sector, bio.size // SECTOR
        acknowledged[first : first + count] = [vec.page.data[0]] * count

    for number in range(1, 41):
        first = luck.randrange(12)
        data = bytes([number]) * SECTOR * luck.randint(1, 4)
        out += 1
        world.submit(bio_for(Op.WRITE, first, data, ended))
        network.take_sent()
        while out > luck.randrange(3):
            assert network.step()
    while network.step():
        pass
    disk = world.target.disk
    return [s for s in range(16) if disk[s * SECTOR] != acknowledged[s]]


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_a_disk_holds_the_last_acknowledged_write(connect: Connect, seed: int) -> None:
    """The lifetime of frames is at most ``Options.quarantine``."""
    assert rewrite(connect(), seed, QUARANTINE) == []


def test_without_range_locks_a_disk_does_not(connect: Connect) -> None:
    careless = Options(quarantine=0)
    spoilt = [
        seed for seed in range(60) if rewrite(connect(careless), seed, QUARANTINE)
    ]
    assert len(spoilt) > 10
