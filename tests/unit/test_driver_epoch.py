"""A FLUSH that covers writes of an earlier boot of the target's host fails (P84)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aoe.address import Address
from aoe.ata import ATA_DATA, SECTOR, Opcode
from aoe.errors import AoEError, DeviceError
from aoe.header import TAG_USER
from aoe.identify import FeatureSet, Identity
from initiator.driver.bio import Bio, Op
from initiator.driver.flush.epoch import EpochGuard
from initiator.driver.options import Options
from initiator.driver.structs import Buf, Frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.conftest import Connect, World

WRITE, FLUSH, IDENTIFY = Opcode.WRITE_EXT, Opcode.FLUSH, Opcode.IDENTIFY


@pytest.fixture
def world(connect: Connect) -> World:
    return opened(connect(is_up=False))


def opened(world: World) -> World:
    world.target.epoch = 1
    world.bring_up()
    world.driver.open(world.device)
    return world


def answer_all(world: World) -> list[int]:
    """Let the target answer everything; return the opcodes it received."""
    seen = []
    while frames := world.take():
        seen += [frame.registers.command for frame in frames if not frame.raw[19]]
        world.respond(*frames)
    return seen


def write(world: World, sector: int = 0) -> AoEError | None:
    world.write(sector, b"x" * SECTOR)
    answer_all(world)
    return world.ended.pop().error


def flush(world: World) -> AoEError | None:
    world.flush()
    answer_all(world)
    return world.ended.pop().error


def restart(world: World) -> None:
    """Restart the target's host, which announces the target again."""
    world.target.epoch += 1
    world.bring_up()


def test_p84_flush_of_writes_that_a_restart_lost_fails_until_reopened(
    world: World,
) -> None:
    assert write(world) is None
    restart(world)
    for _ in range(3):
        assert write(world) is None
        error = flush(world)
        assert isinstance(error, DeviceError)
        assert "writes that were answered may be lost" in str(error)
    world.driver.close(world.device)
    answer_all(world)
    world.driver.open(world.device)
    assert (write(world), flush(world)) == (None, None)


def test_p84_restart_without_announcement_is_found(world: World) -> None:
    write(world)
    world.target.epoch += 1
    assert flush(world) is not None


@pytest.mark.parametrize("change", ["write", "trim"])
def test_p84_identify_follows_a_flush_that_has_something_to_cover(
    connect: Connect, change: str
) -> None:
    world = connect(is_up=False)
    world.target.feature_sets = FeatureSet.TRIM
    opened(world)
    world.flush()
    assert answer_all(world) == [FLUSH]
    if change == "write":
        world.write(0, bytes(SECTOR))
    else:
        world.discard(0, 8)
    answer_all(world)
    world.flush()
    assert answer_all(world) == [FLUSH, IDENTIFY]
    world.flush()
    assert answer_all(world) == [FLUSH]
    assert not any(bio.error for bio in world.ended)


def test_p84_without_an_epoch_nothing_is_sent_or_compared(connect: Connect) -> None:
    world = connect()
    world.driver.open(world.device)
    write(world)
    world.flush()
    assert answer_all(world) == [FLUSH]
    world.target.epoch = 5
    world.bring_up()
    assert write(world) is None
    assert flush(world) is None


def test_p84_restart_of_a_target_without_an_epoch_is_reported(
    connect: Connect,
) -> None:
    world = connect()
    lines: list[str] = []
    world.driver.on_warning = lambda _, text: lines.append(text)
    world.driver.open(world.device)
    for change in (write, flush):
        change(world)
        world.bring_up()
    assert len(lines) == 1
    assert "writes that were not flushed are lost" in lines[0]


def test_p84_epoch_that_disappears_is_a_change(world: World) -> None:
    write(world)
    world.target.epoch = 0
    assert flush(world) is not None


def test_p84_restart_with_nothing_to_lose_is_no_error(world: World) -> None:
    assert (write(world), flush(world)) == (None, None)
    restart(world)
    assert (write(world), flush(world)) == (None, None)
    world.target.epoch += 1
    assert flush(world) is None


def test_p84_restart_between_flush_and_check_is_found(world: World) -> None:
    write(world)
    world.flush()
    [sent] = world.take()
    world.respond(sent)
    world.target.epoch += 1
    answer_all(world)
    assert world.ended[-1].error is not None


def test_p84_write_in_flight_at_the_check_belongs_to_either_boot(world: World) -> None:
    # Executed before the restart, answered after IDENTIFY was: not the new boot's.
    world.write(0, b"x" * SECTOR)
    [late] = world.take()
    answer = world.target.answer(late.raw)
    restart(world)
    world.deliver(answer)
    assert world.ended.pop().error is None
    assert flush(world) is not None


def test_p84_retransmitted_identify_does_not_clear_writes_after_it(
    world: World,
) -> None:
    world.deliver(world.target.announce(TAG_USER))
    world.take()
    # The first IDENTIFY is lost; the write is executed before the restart.
    assert write(world) is None
    world.target.epoch += 1
    world.wait(1)
    assert IDENTIFY in answer_all(world)
    assert flush(world) is not None


def test_p84_writes_after_an_identify_that_saw_the_restart_are_of_the_new_boot(
    world: World,
) -> None:
    write(world)
    flush(world)
    world.target.epoch += 1
    world.deliver(world.target.announce())
    world.write(0, b"x" * SECTOR)
    answer_all(world)
    assert flush(world) is None


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_p84_after_a_pause_nothing_is_written_before_identify_is_answered(
    world: World, lost: int
) -> None:
    write(world)
    flush(world)
    world.target.epoch += 1
    world.driver.identify_open(world.now)
    world.write(0, b"x" * SECTOR)
    for _ in range(lost):
        assert {frame.registers.command for frame in world.take()} == {IDENTIFY}
        world.wait(1)
    assert answer_all(world)[0] == IDENTIFY
    assert world.ended.pop().error is None
    assert flush(world) is None


def test_p84_after_a_pause_unflushed_writes_are_still_compared(world: World) -> None:
    write(world)
    world.target.epoch += 1
    world.driver.identify_open(world.now)
    world.write(0, b"x" * SECTOR)
    assert answer_all(world) == [IDENTIFY, WRITE]
    assert flush(world) is not None


def test_p84_another_disk_does_not_set_the_epoch() -> None:
    guard = EpochGuard(Address(1, 2))
    guard.reopen(Identity(8, serial="one", epoch=1).pack())
    f = Frame()
    for page in (
        Identity(8, serial="another", epoch=77).pack(),
        Identity(8, serial="one", epoch=1).pack(),
    ):
        guard.on_sent(f, ())
        assert guard.on_identify(f, bytes(ATA_DATA) + page) is None
    f.buf = Buf(Bio(Op.FLUSH, 0, lambda _bio: None))
    f.buf.covers = guard.answered = 1
    assert guard.on_flushed(f.buf)
    assert guard.on_identify(f, bytes(ATA_DATA) + page) is None


@pytest.mark.parametrize("supports_fua", [False, True])
def test_p84_fua_write_is_covered_when_it_ends(
    connect: Connect, *, supports_fua: bool
) -> None:
    world = connect(is_up=False)
    world.target.supports_fua = supports_fua
    opened(world)
    world.write(0, b"x" * SECTOR, fua=True)
    answer_all(world)
    restart(world)
    assert flush(world) is None
    # With WRITE and FLUSH instead, the write itself is checked.
    world.write(0, b"x" * SECTOR, fua=True)
    frames = world.take()
    while frames and frames[0].registers.command != FLUSH:
        world.respond(*frames)
        frames = world.take()
    world.target.epoch += 1
    world.respond(*frames)
    answer_all(world)
    assert (world.ended[-1].error is None) == supports_fua


@pytest.mark.parametrize(
    "spoil",
    [
        lambda world, request: world.target.refuse(request),
        lambda world, request: world.target.report(request, 0x21, 0x04),
        lambda world, request: world.target.report(request, data=bytes(100)),
    ],
)
def test_p84_flush_that_cannot_be_checked_fails(
    world: World, spoil: Callable[[World, bytes], bytearray]
) -> None:
    write(world)
    world.flush()
    world.respond(*world.take())
    [identify] = world.take()
    world.deliver(spoil(world, identify.raw))
    assert world.ended[-1].error is not None


def test_p84_lost_check_is_repeated(world: World) -> None:
    write(world)
    world.flush()
    world.respond(*world.take())
    assert len(world.take()) == 1
    world.wait(1)
    assert IDENTIFY in answer_all(world)
    assert world.ended[-1].error is None


def test_p84_flush_fails_if_the_device_goes_down_during_the_check(
    connect: Connect,
) -> None:
    world = opened(connect(Options(deadsecs=5), is_up=False))
    write(world)
    world.flush()
    world.respond(*world.take())
    world.wait(10)
    assert "no response" in str(world.ended[-1].error)


def test_p84_concurrent_flushes_are_each_checked_once(world: World) -> None:
    write(world)
    world.flush()
    world.respond(*world.take())
    write_bio = world.write(8, b"y" * SECTOR)
    frames = world.take()
    world.respond(*[f for f in frames if f.registers.command == WRITE])
    assert write_bio.error is None
    world.flush()
    world.respond(*[f for f in frames if f.registers.command == IDENTIFY])
    answer_all(world)
    assert not any(bio.error for bio in world.ended)
    assert len(world.ended) == 3
