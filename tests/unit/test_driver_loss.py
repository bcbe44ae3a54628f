"""Expired frames, retransmissions, device failure and late responses."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aoe.ata import SECTOR
from aoe.errors import BusyError, DeviceError, NotFoundError
from initiator.driver.bio import Bio, Op, bio_for
from initiator.driver.options import Options
from initiator.driver.timing import KernelTiming

if TYPE_CHECKING:
    from tests.unit.conftest import Connect, Sent, World

KERNEL = Options.kernel()
USER = Options()
in_both_modes = pytest.mark.parametrize(
    "options", [USER, KERNEL], ids=["user", "kernel"]
)
RTO = {USER: 0.25, KERNEL: 14.748}
"""Seconds: the kernel's RTO after one sample of 0."""


def expire_all(world: World, seconds: float) -> None:
    """Let enough time pass for all outstanding frames to expire."""
    world.take()
    world.wait(seconds)


# --- retransmission -------------------------------------------------------------------


@in_both_modes
def test_k48_a_frame_is_retransmitted_after_its_rto(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    world.read(0, bytearray(SECTOR))
    world.take()
    world.wait(RTO[options] - 0.001)
    assert world.frames == []
    world.wait(0.102)
    assert len(world.take()) == 1
    assert world.device.retransmits == 1


def test_k48_the_kernel_does_not_back_off(connect: Connect) -> None:
    world = connect(KERNEL)
    world.read(0, bytearray(SECTOR))
    world.wait(100)
    times = [f.time for f in world.take()]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(gaps) == 6
    assert all(RTO[KERNEL] <= gap <= RTO[KERNEL] + 0.1001 for gap in gaps)


def test_i8_prompt_backs_off_to_half_a_second(connect: Connect) -> None:
    world = connect()
    for _ in range(50):
        world.read(0, bytearray(SECTOR))
        [request] = world.take()
        world.now += 0.001
        world.respond(request)
    world.read(0, bytearray(SECTOR))
    world.wait(3)
    times = [f.time for f in world.take()]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps[:5] == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.32], rel=0.101)
    assert all(0.44 < gap <= 0.501 for gap in gaps[5:])


def test_prompt_a_target_slower_than_the_rto_gets_few_retransmissions(
    connect: Connect,
) -> None:
    """Responses to earlier tags are not accepted (K25), but extend the timeout."""
    world = connect()
    ended: list[Bio] = []
    world.submit(bio_for(Op.READ, 0, bytearray(SECTOR), ended.append))
    pending: list[tuple[float, Sent]] = []
    start = world.now
    while not ended and world.now < start + 60:
        world.wait(0.05)
        pending += [(f.time + 3.0, f) for f in world.take()]
        while pending and pending[0][0] <= world.now:
            world.respond(pending.pop(0)[1])
    assert ended
    assert world.now < start + 10


def test_prompt_a_target_that_stalled_gets_a_retransmission_soon(
    connect: Connect,
) -> None:
    """Its queued requests are answered, but the last transmission may be lost."""
    world = connect()
    world.read(0, bytearray(SECTOR))
    world.wait(4)
    *kept, _ = world.take()
    start = world.now
    world.respond(*kept)
    while not world.ended:
        world.wait(0.01)
        world.run_until_idle()
    assert world.now - start < 0.3


def test_k48_the_kernel_computes_the_rto_in_the_timer(
    connect: Connect,
) -> None:
    world = connect(KERNEL)
    world.read(0, bytearray(SECTOR))
    world.take()
    for _ in range(2000):
        world.device.timing.sample(0.001)
    world.wait(0.1)
    assert len(world.take()) == 1


def test_k48_the_kernels_timer_runs_every_100_ms(connect: Connect) -> None:
    world = connect(KERNEL)
    for _ in range(3):
        due = world.driver.next_timeout()
        assert due == pytest.approx(world.now + 0.1)
        world.wait(0.1)


def test_prompt_needs_no_timer_while_nothing_is_outstanding(connect: Connect) -> None:
    world = connect()
    assert world.driver.next_timeout() is None


def test_k46_a_round_trip_starts_with_the_last_transmission(connect: Connect) -> None:
    world = connect(KERNEL)
    world.read(0, bytearray(SECTOR))
    world.wait(15)
    again = world.take()[-1]
    world.now = again.time + 0.5
    world.respond(again)
    expected = KernelTiming()
    for rtt in (0, 0.5):
        expected.sample(rtt)
    assert world.device.timing.timeout(0) == expected.timeout(0)


@in_both_modes
def test_k43_a_reused_frame_has_no_retransmission_state(
    connect: Connect, options: Options
) -> None:
    world = connect(replace(options, verify_paths=False))
    world.read(0, bytearray(SECTOR))
    while len(world.frames) < 6:
        world.wait(0.01)
    old = world.take()[-1]
    world.respond(old)
    world.wait(200)
    timeout = world.device.timing.timeout(0)

    world.read(0, bytearray(SECTOR))
    world.wait(100)

    assert len(world.ended) == 1
    first, second, *_ = world.take()
    assert first.skb is old.skb
    assert timeout <= second.time - first.time <= timeout + 0.1001


@in_both_modes
def test_k25_k52_k136_a_retransmission_has_a_new_tag_in_the_same_frame(
    connect: Connect, options: Options
) -> None:
    world = connect(options, mtus=(1500, 1500), buffers=4)
    world.write(8, b"x" * SECTOR)
    [first] = world.take()
    world.wait(RTO[options] + 0.1)
    [again] = world.take()
    assert again.skb is first.skb
    assert again.raw[24:] == first.raw[24:]
    assert again.tag != first.tag
    # The kernel's first loss is after more than 10 s and taints the target: it calls
    # reassign_frame, which only rotates the interface (K57).
    assert (again.port is first.port) == (options is KERNEL)
    assert again.header.src == again.port.mac
    jiffies = int(again.time * 250)
    assert world.driver.log[-1] == (
        f"     retransmit e1.2 oldtag={first.tag:08x}@{jiffies:08x} "
        f"newtag={again.tag:08x} s={first.port.mac.hex()} d=525400ae0001 nout=1"
    )


@in_both_modes
def test_k25_only_a_response_to_the_last_tag_is_accepted(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    buffer = bytearray(SECTOR)
    world.read(0, buffer)
    [first] = world.take()
    world.wait(RTO[options] + 0.1)
    [again] = world.take()
    world.respond(first)
    assert world.ended == []
    assert world.driver.unexpected == 1
    world.respond(again)
    assert [bio.error for bio in world.ended] == [None]
    assert buffer == world.target.disk[:SECTOR]


def test_k45_k50_after_a_loss_the_kernel_sends_one_frame(connect: Connect) -> None:
    world = connect(KERNEL)
    world.read(0, bytearray(4096))
    expire_all(world, 14.9)
    [again] = world.take()
    window = world.device.targets[0].window
    assert (window.nout, window.maxout, window.ssthresh) == (1, 1, 4)
    assert len(world.device.rexmitq) == 3
    assert again.registers.lba == 2
    world.respond(again)
    assert [f.registers.lba for f in world.take()] == [4, 0]


def test_k49_the_kernel_retransmits_by_hash_bucket(connect: Connect) -> None:
    """The order is that of the tags modulo 61, not that of transmission."""
    world = connect(KERNEL, buffers=16)
    world.read(0, bytearray(8 * 1024))
    sent = world.take()
    world.wait(14.9)
    again = world.take()
    while len(again) < len(sent):
        world.respond(again[-1])
        again += world.take()
    order = [f.registers.lba for f in sorted(sent, key=lambda f: f.tag % 61)]
    assert order == [2, 8, 14, 4, 10, 0, 6, 12]
    assert [f.registers.lba for f in again] == order


def test_prompt_retransmits_in_the_order_of_transmission(connect: Connect) -> None:
    world = connect(USER, buffers=8)
    world.read(0, bytearray(4 * 1024))
    world.take()
    world.wait(0.25)
    assert [f.registers.lba for f in world.take()] == [0, 2]


def test_prompt_retransmits_half_of_a_lost_burst(connect: Connect) -> None:
    world = connect()
    world.read(0, bytearray(8192))
    expire_all(world, 0.25)
    assert len(world.take()) == 4


@in_both_modes
def test_k51_a_response_to_a_deferred_frame_is_accepted(
    connect: Connect, options: Options
) -> None:
    world = connect(options, buffers=4)
    buffer = bytearray(2048)
    bio = world.read(0, buffer)
    sent = world.take()
    world.wait(RTO[options] + 0.1)
    [again] = world.take()
    [second] = [f for f in sent if f.registers != again.registers]
    before = world.device.targets[0].window.maxout

    world.respond(second)

    assert world.device.targets[0].window.maxout == before
    assert world.driver.unexpected == 0
    assert world.take() == []
    world.respond(again)
    assert world.ended == [bio]
    assert bio.error is None
    assert buffer == world.target.disk[:2048]


@in_both_modes
def test_k63_a_bio_that_is_not_completely_split_does_not_end(
    connect: Connect, options: Options
) -> None:
    world = connect(options, buffers=4)
    other = world.read(100, bytearray(SECTOR))
    buffer = bytearray(2048)
    bio = world.read(0, buffer)
    _, first = world.take()
    world.wait(RTO[options] + 0.1)
    # The other bio's frame fills the window, so the second frame cannot be built yet.
    world.respond(first)
    assert world.ended == []
    world.run_until_idle()
    assert world.ended == [other, bio]
    assert buffer == world.target.disk[:2048]


@in_both_modes
def test_k27_deferred_frames_are_sent_before_new_ones(
    connect: Connect, options: Options
) -> None:
    world = connect(options, buffers=4)
    world.read(0, bytearray(4 * SECTOR))
    world.read(8, bytearray(2 * SECTOR))
    expire_all(world, RTO[options] + 0.1)
    [again] = world.take()
    world.respond(again)
    assert {again.registers.lba, world.frames[0].registers.lba} == {0, 2}


@in_both_modes
def test_k50_the_only_interface_is_never_ejected(
    connect: Connect, options: Options
) -> None:
    world = connect(options, buffers=2)
    world.read(0, bytearray(SECTOR))
    world.wait(170)
    world.run_until_idle()
    assert [bio.error for bio in world.ended] == [None]


# --- device failure -------------------------------------------------------------------


def busy_world(connect: Connect, options: Options) -> World:
    """Return a device with active, deferred, partly split and queued bios."""
    world = connect(options, buffers=4)
    world.driver.open(world.device)
    for sector in range(0, 40, 8):
        world.read(sector, bytearray(4096))
    expire_all(world, RTO[options] + 0.1)
    assert world.device.factive
    assert world.device.rexmitq
    assert world.device.buf
    assert world.device.bios
    return world


@in_both_modes
def test_k54_after_deadsecs_every_bio_fails_once(
    connect: Connect, options: Options
) -> None:
    world = busy_world(connect, options)
    world.wait(180.9 - world.now)
    assert world.ended == []
    world.wait(RTO[options] + 1)
    assert [bio.sector for bio in world.ended] == [0, 8, 16, 24, 32]
    assert all(isinstance(bio.error, NotFoundError) for bio in world.ended)
    world.wait(400)
    assert len(world.ended) == 5


@in_both_modes
def test_k54_with_deadsecs_0_a_device_never_fails(
    connect: Connect, options: Options
) -> None:
    never = Options(tags=options.tags, timing=options.timing, deadsecs=0)
    world = connect(never)
    world.read(0, bytearray(SECTOR))
    world.wait(1000)
    assert world.ended == []
    world.run_until_idle()
    assert [bio.error for bio in world.ended] == [None]


@in_both_modes
def test_k54_responses_to_other_frames_do_not_prevent_failure(
    connect: Connect, options: Options
) -> None:
    """Only the time since the frame was first sent counts."""
    world = connect(options)
    world.driver.open(world.device)
    stuck = world.read(0, bytearray(SECTOR))
    while not world.ended and world.now < 250:
        world.wait(5)
        world.take()
        world.deliver(world.target.announce())
    assert world.ended == [stuck]
    assert 181 <= world.now <= 200


@in_both_modes
def test_k55_a_failed_device_ends_each_bio_once(
    connect: Connect, options: Options
) -> None:
    world = busy_world(connect, options)
    error = DeviceError("e1.2", "pulled out")
    world.driver.fail(world.device, error)
    assert [bio.sector for bio in world.ended] == [0, 8, 16, 24, 32]
    assert all(bio.error is error for bio in world.ended)
    assert world.device.ssize == 0
    world.run_until_idle()
    assert len(world.ended) == 5


@in_both_modes
def test_k55_failing_a_device_resets_its_windows(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    world.read(0, bytearray(8192))
    world.driver.fail(world.device, DeviceError("e1.2", "pulled out"))
    window = world.device.targets[0].window
    assert (window.nout, window.maxout, window.ssthresh) == (0, 1, 8)


def test_k63_a_bio_keeps_its_first_error_when_the_device_fails(
    connect: Connect,
) -> None:
    world = connect()
    world.read(0, bytearray(4 * SECTOR))
    first, _ = world.take()
    world.deliver(world.target.refuse(first.raw, 6))
    world.driver.fail(world.device, DeviceError("e1.2", "pulled out"))
    [bio] = world.ended
    assert isinstance(bio.error, BusyError)


@in_both_modes
def test_k55_bios_submitted_during_the_failure_end_too(
    connect: Connect, options: Options
) -> None:
    world = connect(options)

    def submit_next(_: Bio) -> None:
        world.read(1, bytearray(SECTOR))

    world.submit(bio_for(Op.READ, 0, bytearray(SECTOR), submit_next))
    world.driver.fail(world.device, DeviceError("e1.2", "pulled out"))
    [second] = world.ended
    assert second.sector == 1
    assert second.error is not None
