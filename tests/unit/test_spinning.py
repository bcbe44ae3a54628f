from __future__ import annotations

import pytest

from aoe.net.busy_poll import SPIN_LIMIT, Spinner


class World:
    """A clock that goes on with each look, and a frame that comes at its time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.comes = 0.0
        self.looked = 0
        self.spinner = Spinner()

    def look(self) -> bool:
        self.looked += 1
        self.now += 1e-6
        return self.now >= self.comes

    def spin(self, after: float) -> bool:
        self.comes = self.now + after
        return self.spinner.spin([self.look])

    def doze(self, seconds: float, times: int = 1) -> None:
        for _ in range(times):
            self.spinner.slept(seconds)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr("aoe.net.busy_poll.time.monotonic", lambda: world.now)
    return world


def test_an_idle_target_never_looks(world: World) -> None:
    world.doze(1.0, times=100)
    assert not world.spin(0.0)
    assert world.looked == 0


def test_a_client_that_asks_again_at_once_is_looked_for(world: World) -> None:
    world.doze(SPIN_LIMIT / 2)
    assert all(world.spin(SPIN_LIMIT / 2) for _ in range(100))


def test_looking_has_an_end(world: World) -> None:
    world.doze(SPIN_LIMIT / 2)
    before = world.now
    assert not world.spin(1.0)
    assert world.now - before < 2 * SPIN_LIMIT


def test_each_time_in_vain_takes_twice_as_much_to_try_again(world: World) -> None:
    for price in (1, 2, 4, 8):
        world.doze(SPIN_LIMIT / 2, times=price - 1)
        world.looked = 0
        assert not world.spin(1.0)
        assert world.looked == 0
        world.doze(SPIN_LIMIT / 2)
        assert not world.spin(1.0)
        assert world.looked > 0
    world.doze(SPIN_LIMIT / 2, times=16)
    assert world.spin(SPIN_LIMIT / 2)
    assert not world.spin(1.0)
    world.doze(SPIN_LIMIT / 2, times=2)
    assert world.spin(SPIN_LIMIT / 2)


def test_a_frame_that_came_while_others_had_the_core_is_no_success(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others_run() -> None:
        world.now += 30 * SPIN_LIMIT

    monkeypatch.setattr("aoe.net.busy_poll.os.sched_yield", others_run)
    world.doze(SPIN_LIMIT / 2)
    assert not world.spin(SPIN_LIMIT * 20)
    world.looked = 0
    assert not world.spin(0.0)
    assert world.looked == 0
