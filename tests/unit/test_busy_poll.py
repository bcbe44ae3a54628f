"""Adaptive busy polling: conditions, duration and back-off."""

from __future__ import annotations

import pytest

from aoe.net.busy_poll import BUSY_POLL_LIMIT, BusyPoller


class World:
    """A clock that advances with each check, and a frame that arrives at a set time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.arrival = 0.0
        self.checks = 0
        self.poller = BusyPoller()

    def has_frame(self) -> bool:
        self.checks += 1
        self.now += 1e-6
        return self.now >= self.arrival

    def poll(self, after: float) -> bool:
        self.arrival = self.now + after
        return self.poller.poll([self.has_frame])

    def sleep(self, seconds: float, times: int = 1) -> None:
        for _ in range(times):
            self.poller.record_sleep(seconds)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr("aoe.net.busy_poll.time.monotonic", lambda: world.now)
    return world


def test_an_idle_target_never_polls(world: World) -> None:
    world.sleep(1.0, times=100)
    assert not world.poll(0.0)
    assert world.checks == 0


def test_it_polls_while_a_client_responds_quickly(world: World) -> None:
    world.sleep(BUSY_POLL_LIMIT / 2)
    assert all(world.poll(BUSY_POLL_LIMIT / 2) for _ in range(100))


def test_a_poll_times_out(world: World) -> None:
    world.sleep(BUSY_POLL_LIMIT / 2)
    before = world.now
    assert not world.poll(1.0)
    assert world.now - before < 2 * BUSY_POLL_LIMIT


def test_each_timeout_doubles_the_back_off_and_a_success_resets_it(
    world: World,
) -> None:
    for backoff in (1, 2, 4, 8):
        world.sleep(BUSY_POLL_LIMIT / 2, times=backoff - 1)
        world.checks = 0
        assert not world.poll(1.0)
        assert world.checks == 0
        world.sleep(BUSY_POLL_LIMIT / 2)
        assert not world.poll(1.0)
        assert world.checks > 0
    world.sleep(BUSY_POLL_LIMIT / 2, times=16)
    assert world.poll(BUSY_POLL_LIMIT / 2)
    assert not world.poll(1.0)
    world.sleep(BUSY_POLL_LIMIT / 2, times=2)
    assert world.poll(BUSY_POLL_LIMIT / 2)


def test_a_frame_that_arrived_while_another_task_ran_is_a_timeout(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_another_task() -> None:
        world.now += 30 * BUSY_POLL_LIMIT

    monkeypatch.setattr("aoe.net.busy_poll.os.sched_yield", run_another_task)
    world.sleep(BUSY_POLL_LIMIT / 2)
    assert not world.poll(BUSY_POLL_LIMIT * 20)
    world.checks = 0
    assert not world.poll(0.0)
    assert world.checks == 0
