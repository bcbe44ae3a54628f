"""A path that carries less than both ends announce (P23)."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from aoe.ata import ATA_DATA, SECTOR
from initiator.driver.bio import Op, bio_for
from initiator.driver.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.driver.bio import Bio
    from tests.unit.conftest import Connect, World


class Path:
    """A path with a smaller MTU than both ends, and random loss."""

    def __init__(self, world: World, sectors: int, loss: float = 0) -> None:
        self._world = world
        self._random = Random(0)
        self.sectors, self.loss = sectors, loss
        self.round_trip = 0.001
        self.is_dead = False
        self.carried = 0
        self.warnings: list[str] = []
        world.driver.on_warning = lambda _, text: self.warnings.append(text)
        world.driver.open(world.device)
        bio = world.read(0, bytearray(SECTOR))
        self.run(1, lambda: bio in world.ended)

    def _loses(self, frame: bytes | bytearray) -> bool:
        is_lost = self._random.random() < self.loss or self.is_dead
        return is_lost or len(frame) > ATA_DATA + self.sectors * SECTOR

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        world = self._world
        end = world.now + seconds
        while world.now < end and not until():
            for request in world.take():
                if self._loses(request.raw):
                    continue
                response = world.target.answer(request.raw)
                world.now += self.round_trip / 8
                if not self._loses(response):
                    world.deliver(response, request.port)
                    self.carried += 1
            world.wait(0.0 if world.frames else 0.005)

    def finish(self, bios: list[Bio], seconds: float) -> None:
        ended = self._world.ended
        self.run(seconds, lambda: all(bio in ended for bio in bios))
        assert [bio.error for bio in bios if bio in ended] == [None] * len(bios)


def submit(world: World, op: Op, count: int = 4) -> list[Bio]:
    """Read or write some ranges of 64 sectors."""
    return [
        world.submit(bio_for(op, 64 * number, bytearray(b"w" * 32768), _ended(world)))
        for number in range(count)
    ]


def _ended(world: World) -> Callable[[Bio], None]:
    return world.ended.append


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE])
@pytest.mark.parametrize("sectors", [1, 2, 7, 8, 16])
def test_p23_smaller_frames_are_used_on_a_narrow_path(
    connect: Connect, op: Op, sectors: int
) -> None:
    """At once: what a switch drops is dropped each time."""
    world = connect(mtus=(9000,))
    path = Path(world, sectors)
    assert world.device.maxbcnt == 17 * SECTOR
    path.finish(submit(world, op), 5)
    assert world.device.maxbcnt == sectors * SECTOR
    assert world.is_up
    [warning] = path.warnings
    assert warning.startswith("eth0 to 52:54:00:ae:00:01: the path carries ")
    assert (
        f"carries {sectors * SECTOR} bytes of data per frame, both ends 8704: "
        in warning
    )
    if op is Op.WRITE:
        assert world.target.disk[: 4 * 32768] == b"w" * 4 * 32768


def test_p23_a_path_that_becomes_wider_is_used_at_full_length(
    connect: Connect,
) -> None:
    world = connect(mtus=(9000,))
    path = Path(world, 2)
    path.finish(submit(world, Op.READ), 5)
    for sectors, expected in ((2, 2), (17, 17)):
        path.sectors = sectors
        world.deliver(world.target.announce())
        path.run(5)
        assert world.device.maxbcnt == expected * SECTOR
    assert len(path.warnings) == 2
    assert "8704 bytes per frame again" in path.warnings[1]
    path.finish(submit(world, Op.READ), 1)


def test_p23_a_limited_path_stays_limited_after_losses(connect: Connect) -> None:
    world = connect(mtus=(9000,))
    path = Path(world, 8)
    path.finish(submit(world, Op.READ), 5)
    bios = submit(world, Op.READ)
    path.is_dead = True
    path.run(3)
    path.is_dead = False
    path.finish(bios, 5)
    path.run(5)
    assert world.device.maxbcnt == 8 * SECTOR
    assert len(path.warnings) == 1


def test_p23_a_path_that_becomes_narrow_is_noticed(connect: Connect) -> None:
    world = connect(mtus=(9000,))
    path = Path(world, 17)
    path.finish(submit(world, Op.READ), 1)
    path.sectors = 8
    path.finish(submit(world, Op.WRITE), 5)
    assert world.device.maxbcnt == 8 * SECTOR


@pytest.mark.parametrize("lowered_at", [0.1, 0.3, 0.5, 0.7])
def test_p23_no_test_is_longer_than_an_mtu_that_was_lowered_meanwhile(
    connect: Connect, lowered_at: float
) -> None:
    """What the interface cannot send raises in the test's interface."""
    world = connect(mtus=(9000,))
    path = Path(world, 8)
    bios = submit(world, Op.READ)
    path.run(lowered_at)
    world.ports[0].mtu = 1500
    world.driver.netdev_changed(world.ports[0], world.now)
    path.finish(bios, 10)
    assert world.device.maxbcnt == 2 * SECTOR


def test_p23_it_takes_less_than_ten_seconds_with_any_round_trip_time(
    connect: Connect,
) -> None:
    world = connect(mtus=(9000,))
    path = Path(world, 8)
    path.round_trip = 0.25
    path.finish(submit(world, Op.READ, 1), 10)
    assert world.device.maxbcnt == 8 * SECTOR


def test_p23_random_loss_is_not_taken_for_a_narrow_path(connect: Connect) -> None:
    world = connect(mtus=(9000,))
    path = Path(world, 17, loss=0.1)
    for _ in range(50):
        path.finish(submit(world, Op.READ), 60)
    assert path.warnings == []
    assert world.device.maxbcnt == 17 * SECTOR


@pytest.mark.parametrize("seconds", [0.3, 0.6, 1, 1.3, 3, 10])
def test_p23_a_target_that_stalls_is_not_taken_for_a_narrow_path(
    connect: Connect, seconds: float
) -> None:
    world = connect(mtus=(9000,))
    path = Path(world, 17)
    bios = submit(world, Op.READ)
    path.is_dead = True
    path.run(seconds)
    path.is_dead = False
    path.finish(bios, 5)
    path.run(5)
    assert path.warnings == []
    assert world.device.maxbcnt == 17 * SECTOR


def test_p23_a_target_that_is_gone_is_not_flooded_with_tests(connect: Connect) -> None:
    world = connect(mtus=(9000,))
    path = Path(world, 17)
    submit(world, Op.READ, 1)
    path.is_dead = True
    before = len(world.driver.log)
    sent = 0
    for _ in range(100):
        world.wait(0.5)
        sent += len(world.take())
    assert before < len(world.driver.log)
    # A frame is retransmitted twice a second at most, and a test every two seconds.
    assert sent < 50 * (4 * 2 + 4)


def test_p23_the_kernels_options_do_not_test(connect: Connect) -> None:
    world = connect(Options.kernel(), mtus=(9000,))
    path = Path(world, 2)
    [bio] = submit(world, Op.READ, 1)
    path.run(60)
    assert world.device.maxbcnt == 17 * SECTOR
    assert bio not in world.ended
