"""No tag returns while a response to its earlier use may arrive (P10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.ata import SECTOR
from aoe.header import TAG_COUNTER
from initiator.driver.options import Options
from initiator.driver.requests import TagBlocks

if TYPE_CHECKING:
    from tests.unit.conftest import Connect, World

LIFETIME = Options().quarantine


def number_tags(world: World, count: int) -> None:
    """Number tags as that many requests do."""
    world.device.lasttag += count


@pytest.mark.parametrize("bits", [19, 20, 21])
def test_p10_a_late_response_is_not_taken_for_that_of_another_sector(
    connect: Connect, bits: int
) -> None:
    """After 2**bits requests within the lifetime of frames, here one second."""
    world = connect(Options(tag_base=5))
    first = bytearray(SECTOR)
    world.read(3, first)
    [late] = world.take()
    number = world.device.lasttag
    world.wait(0.3)
    world.run_until_idle()
    assert first == world.target.disk[3 * SECTOR : 4 * SECTOR]
    number_tags(world, (1 << bits) - 1 - (world.device.lasttag - number))
    world.wait(1.0)
    other = bytearray(SECTOR)
    bio = world.read(7, other)
    world.respond(late)
    assert bio not in world.ended
    world.run_until_idle()
    world.wait(LIFETIME)
    world.run_until_idle()
    assert (bio in world.ended, bio.error) == (True, None)
    assert other == world.target.disk[7 * SECTOR : 8 * SECTOR]


def test_p10_requests_wait_until_tags_may_be_used_again(connect: Connect) -> None:
    world = connect()
    for _ in range(2):
        world.read(3, bytearray(SECTOR))
        world.run_until_idle()
        number_tags(world, TAG_COUNTER)
        bios = [world.read(sector, bytearray(4 * SECTOR)) for sector in range(9)]
        world.wait(LIFETIME - 0.1)
        assert world.take() == []
        world.wait(0.2)
        world.run_until_idle()
        assert all(bio in world.ended for bio in bios)


def test_p10_retransmissions_wait_for_tags_too(connect: Connect) -> None:
    world = connect()
    bio = world.read(3, bytearray(SECTOR))
    world.take()
    number_tags(world, TAG_COUNTER)
    world.wait(LIFETIME - 0.1)
    assert world.take() == []
    world.wait(0.5)
    world.run_until_idle()
    assert bio in world.ended


def test_p10_an_idle_device_does_not_wait(connect: Connect) -> None:
    world = connect()
    for _ in range(100):
        world.wait(0.1)
        bio = world.read(3, bytearray(SECTOR))
        world.run_until_idle()
        assert bio in world.ended
        # 0.9 million requests per second.
        number_tags(world, 90_000)


@given(
    st.lists(
        st.tuples(st.integers(1, 60_000), st.floats(0, 0.2)), min_size=100, max_size=300
    ),
    st.floats(0.1, 8),
)
def test_p10_a_tag_is_used_again_after_the_lifetime_only(
    batches: list[tuple[int, float]], lifetime: float
) -> None:
    """With any number of requests at any times."""
    tags = TagBlocks()
    used: list[tuple[int, float]] = []
    """The number before each batch, and its time."""
    number, now, oldest = 0, 0.0, 0
    for count, gap in batches:
        now += gap
        if not tags.reach(number, now, lifetime):
            assert tags.free_at is not None
            now = tags.free_at
            assert tags.reach(number, now, lifetime)
        used.append((number, now))
        number += count
        while oldest < len(used) - 1 and used[oldest + 1][0] + TAG_COUNTER < number:
            oldest += 1
        if used[oldest][0] + TAG_COUNTER < number:
            assert now >= used[oldest][1] + lifetime


# --- a response with another LBA ------------------------------------------------------


def with_lba(response: bytearray, lba: int) -> bytearray:
    response[28:34] = lba.to_bytes(6, "little")
    return response


def read(world: World, sector: int, *, lba: int | None = None) -> bytearray:
    """Read a sector from a target that responds with ``lba``."""
    data = bytearray(SECTOR)
    bio = world.read(sector, data)
    [request] = world.take()
    response = world.target.answer(request.raw)
    world.deliver(response if lba is None else with_lba(response, lba))
    assert (bio in world.ended) == any(data)
    return data


@pytest.mark.parametrize("lba48", [False, True])
def test_p35_a_response_with_the_lba_of_another_request_is_ignored(
    connect: Connect, *, lba48: bool
) -> None:
    world = connect(lba48=lba48)
    disk = world.target.disk
    assert read(world, 5) == disk[5 * SECTOR : 6 * SECTOR]
    data = bytearray(SECTOR)
    bio = world.read(7, data)
    [request] = world.take()
    early = with_lba(world.target.report(request.raw, data=b"x" * SECTOR), 5)
    world.deliver(early)
    assert bio not in world.ended
    assert not any(data)
    world.respond(request)
    assert (bio in world.ended, data) == (True, disk[7 * SECTOR : 8 * SECTOR])
    write = world.write(9, b"w" * SECTOR)
    [request] = world.take()
    world.deliver(with_lba(world.target.report(request.raw), 5))
    assert write not in world.ended
    world.respond(request)
    assert write in world.ended


def test_p35_targets_that_do_not_repeat_the_lba_are_used_as_others(
    connect: Connect,
) -> None:
    """9front's returns the LBA after the last sector, others may return none."""
    world = connect()
    for sector in range(0, 20, 5):
        data = world.target.disk[sector * SECTOR :][:SECTOR]
        assert read(world, sector, lba=sector + 1) == data
        assert read(world, sector, lba=0) == data


def test_p35_a_target_may_stop_repeating_the_lba(connect: Connect) -> None:
    """Another program may serve the disk now, from the same MAC address."""
    world = connect()
    assert any(read(world, 5))
    data = bytearray(SECTOR)
    bio = world.read(7, data)
    for _ in range(40):
        for request in world.take():
            world.deliver(with_lba(world.target.answer(request.raw), 0))
        world.wait(0.1)
    assert (bio in world.ended, bio.error) == (True, None)
    assert data == world.target.disk[7 * SECTOR : 8 * SECTOR]
    assert any(read(world, 9, lba=0))


def test_p32_a_failure_may_have_the_lba_of_the_bad_sector(connect: Connect) -> None:
    world = connect()
    assert any(read(world, 5))
    bio = world.read(7, bytearray(2 * SECTOR))
    [request] = world.take()
    world.deliver(with_lba(world.target.report(request.raw, 1, 0x40), 8))
    assert "uncorrectable" in str(bio.error)
