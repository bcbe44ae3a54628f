"""Failing paths: ejected interfaces, tainted targets and probes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aoe.ata import ATA_DATA, SECTOR, Opcode, Registers, Status
from initiator.driver.aoedev import SKBPOOL_LIMIT
from initiator.driver.options import Options
from initiator.driver.skbuff import Skb
from initiator.driver.structs import AoeTgt
from initiator.driver.timing import KernelTiming, PromptTiming, Window

if TYPE_CHECKING:
    from tests.unit.conftest import Connect, FakeTarget, Sent, World

KERNEL = Options.kernel()
USER = Options()
in_both_modes = pytest.mark.parametrize(
    "options", [USER, KERNEL], ids=["user", "kernel"]
)


# --- interfaces -----------------------------------------------------------------------


def lose_on_second(world: World, *, responses: int = 0) -> list[str]:
    """Read on two interfaces; on the second, all frames but every n-th are lost."""
    world.driver.open(world.device)
    for sector in range(40):
        world.read(sector, bytearray(SECTOR))
    used = []
    while len(world.ended) < 40:
        for frame in world.take():
            used.append(frame.port.name)
            count = used.count("eth1")
            if frame.port is world.ports[0] or (responses and not count % responses):
                world.respond(frame)
            world.now += 0.001
        if not world.frames:
            world.wait(0.1)
    return used


@pytest.mark.parametrize(("options", "bytes_a_frame"), [(USER, 8704), (KERNEL, 1024)])
def test_k50_an_interface_is_ejected_after_too_many_losses(
    connect: Connect, options: Options, bytes_a_frame: int
) -> None:
    """The kernel changes the frame size only with the next announcement."""
    world = connect(options, mtus=(9000, 1500), buffers=2)
    used = lose_on_second(world)
    # The fifth loss ejects it; further frames may have been sent before.
    assert 5 <= used.count("eth1") <= 7
    assert set(used[-20:]) == {"eth0"}
    assert world.device.maxbcnt == bytes_a_frame
    world.deliver(world.target.announce(), 0)
    assert world.device.maxbcnt == 17 * SECTOR
    # The next announcement received on it adds it again (K4).
    world.run_until_idle()
    world.deliver(world.target.announce(), 1)
    world.run_until_idle()
    assert world.device.maxbcnt == 1024


@in_both_modes
def test_k50_a_response_clears_the_losses_of_an_interface(
    connect: Connect, options: Options
) -> None:
    world = connect(options, mtus=(9000, 1500), buffers=2)
    used = lose_on_second(world, responses=4)
    assert used.count("eth1") > 20
    assert world.device.maxbcnt == 1024


@in_both_modes
def test_k50_an_announcement_does_not_clear_losses(
    connect: Connect, options: Options
) -> None:
    world = connect(options, mtus=(9000, 1500), buffers=2)
    [target] = world.device.targets
    target.ifs[1].lost = 3
    world.deliver(world.target.announce(), 1)
    assert target.ifs[1].lost == 3


@in_both_modes
def test_k50_the_interface_after_an_ejected_one_is_used(
    connect: Connect, options: Options
) -> None:
    world = connect(options, mtus=(1500, 1500, 1500))
    [target] = world.device.targets
    target.ifp = 1
    target.eject(target.ifs[1])
    assert target.ifs[target.ifp].netdev is world.ports[2]
    target.eject(target.ifs[1])
    assert not target.can_send
    target.rotate()
    assert target.can_send


# --- when to taint --------------------------------------------------------------------


def test_k57_taint_values_after_successive_penalties() -> None:
    target = AoeTgt(bytes(6), Window(16))
    seen = []
    for _ in range(7):
        target.raise_taint(KernelTiming.max_taint)
        seen.append(target.taint)
    assert seen == [3, 12, 39, 120, 363, 1000, 1000]


@pytest.mark.parametrize(
    ("waited", "deadsecs", "targets", "is_tainted"),
    [
        (10.9, 180, 1, False),
        (11.0, 180, 1, True),
        (4.9, 12, 3, False),
        (5.0, 12, 3, True),
        (0.9, 2, 4, False),
        (1.0, 2, 4, True),
        (1000.0, 0, 1, False),
    ],
)
def test_k50_the_kernel_taints_after_a_long_wait(
    waited: float, deadsecs: float, targets: int, *, is_tainted: bool
) -> None:
    """More than deadsecs divided by the targets, or 10 s, in whole seconds."""
    assert KernelTiming().should_taint(waited, 9, deadsecs, targets) == is_tainted


def test_prompt_taints_after_two_losses_without_a_response() -> None:
    timing = PromptTiming()
    assert [timing.should_taint(0.1, unanswered, 0, 1) for unanswered in (0, 1, 2)] == [
        False,
        False,
        True,
    ]


class TwoTargets:
    """An open device with two MAC addresses."""

    def __init__(
        self, connect: Connect, options: Options, buffers: int = 16, mtu: int = 1500
    ) -> None:
        self.world = connect(options, buffers=buffers, mtus=[mtu])
        self.first = self.world.target
        self.second = self.world.second_mac(buffers=buffers)
        self.world.deliver(self.second.announce())
        self.world.run_until_idle()
        self.world.driver.open(self.world.device)
        self.one, self.other = self.world.device.targets

    def sent_to(self, peer: FakeTarget) -> list[Sent]:
        """Take the frames sent to one of them, and leave those to the other."""
        frames = self.world.take()
        self.world.frames = [f for f in frames if f.header.dst != peer.mac]
        return [f for f in frames if f.header.dst == peer.mac]

    def taint_first(self, taint: int) -> None:
        """Taint the first and let it respond, so that a probe is sent to it."""
        for sector in (0, 2):
            self.world.read(sector, bytearray(2 * SECTOR))
        [request] = self.sent_to(self.first)
        self.world.run_until_idle()
        self.one.taint = taint + 1
        self.world.respond(request)

    def run(
        self, seconds: float, *alive: FakeTarget, reads: bool = False
    ) -> list[Sent]:
        """Let time pass while some respond at once; return the frames to the others."""
        world = self.world
        lost: list[Sent] = []
        responses = {peer.mac: peer for peer in alive}
        end = world.now + seconds
        while world.now < end:
            if reads:
                world.read(0, bytearray(8 * SECTOR))
            while frames := world.take():
                for frame in frames:
                    if peer := responses.get(frame.header.dst):
                        world.deliver(peer.answer(frame.raw))
                    else:
                        lost.append(frame)
            world.wait(0.005)
        return lost


def is_probe(frame: Sent) -> bool:
    is_read = frame.registers.command in (Opcode.READ, Opcode.READ_EXT)
    return is_read and len(frame.raw) > ATA_DATA


@in_both_modes
def test_k41_a_tainted_target_is_used_only_if_all_are(
    connect: Connect, options: Options
) -> None:
    two = TwoTargets(connect, options)
    two.one.taint = 5
    two.world.read(0, bytearray(6 * SECTOR))
    assert two.sent_to(two.first) == []
    assert len(two.sent_to(two.second)) == 3
    two.other.taint = 5
    two.world.read(0, bytearray(4 * SECTOR))
    assert len(two.sent_to(two.first)) == len(two.sent_to(two.second)) == 1


def test_k50_the_kernels_first_loss_taints_the_target(
    connect: Connect,
) -> None:
    world = connect(KERNEL)
    world.read(0, bytearray(SECTOR))
    world.wait(15)
    assert world.device.targets[0].taint == 3


# --- frames of a tainted target -------------------------------------------------------


@in_both_modes
def test_k57_a_lost_frame_moves_to_another_target_and_its_own_is_probed(
    connect: Connect, options: Options
) -> None:
    two = TwoTargets(connect, options)
    buffer = bytearray(4 * SECTOR)
    two.world.read(0, buffer)
    [stuck] = two.sent_to(two.first)
    two.world.run_until_idle()
    two.one.taint = 3

    two.world.wait(0.3 if options is USER else 17)

    [probe, *_] = two.sent_to(two.first)
    [moved, *_] = two.sent_to(two.second)
    assert is_probe(probe)
    assert moved.registers == stuck.registers
    assert moved.skb is stuck.skb
    assert (two.one.nout_probes, two.world.device.retransmits) == (1, 1)
    two.world.respond(moved)
    assert [bio.error for bio in two.world.ended] == [None]
    assert buffer == two.world.target.disk[: 4 * SECTOR]


@in_both_modes
@pytest.mark.parametrize(
    ("mtu", "frags"), [(1500, [1024]), (9000, [4096, 4096, 512])], ids=str
)
def test_k57a_k135_a_probe_is_a_read_with_zero_payload(
    connect: Connect, options: Options, mtu: int, frags: list[int]
) -> None:
    two = TwoTargets(connect, options, mtu=mtu)
    two.taint_first(3)
    [probe] = two.sent_to(two.first)
    sectors = sum(frags) // SECTOR
    assert probe.registers == Registers(0x40, 0, sectors, Opcode.READ_EXT, 0)
    assert probe.raw[ATA_DATA:] == bytes(sum(frags))
    assert probe.frags == frags


@in_both_modes
def test_k57_each_response_lowers_the_taint(connect: Connect, options: Options) -> None:
    """One probe after the other, whatever the responses contain."""
    two = TwoTargets(connect, options)
    two.taint_first(2)
    for left in (1, 0):
        assert two.one.taint == left + 1
        [probe] = two.sent_to(two.first)
        assert two.one.nout_probes == 1
        two.world.deliver(two.first.report(probe.raw, Status.ERROR))
    assert (two.one.taint, two.one.nout_probes) == (0, 0)
    assert two.world.take() == []


@in_both_modes
def test_k57_k58_the_probe_interval_grows_with_the_taint(
    connect: Connect, options: Options
) -> None:
    two = TwoTargets(connect, replace(options, verify_paths=False))
    two.taint_first(1000)
    timing = two.world.device.timing
    for _ in range(2000):
        timing.sample(0.001)
    lines = len(two.world.driver.log)
    probes = [f for f in two.run(20, two.second) if is_probe(f)]
    gaps = [after.time - one.time for one, after in itertools.pairwise(probes)]
    pause = timing.probe_interval(two.one.taint)
    assert len(gaps) >= 5
    if options is USER:
        assert all(pause <= gap <= 0.51 for gap in gaps)
    else:
        assert all(pause <= gap <= pause + 0.1001 for gap in gaps)
        assert pause == pytest.approx(3.0, rel=0.1)
    assert len(two.world.driver.log) == lines


@in_both_modes
def test_k57_no_probe_is_sent_if_all_targets_are_tainted(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    world.driver.open(world.device)
    world.device.targets[0].taint = 9
    world.read(0, bytearray(6 * SECTOR))
    frames = world.take()
    world.respond(*frames)
    assert world.device.targets[0].taint == 6
    assert world.take() == []


@in_both_modes
def test_k57_a_lost_probe_is_dropped_when_all_targets_are_tainted(
    connect: Connect, options: Options
) -> None:
    two = TwoTargets(connect, options)
    two.taint_first(9)
    two.world.take()
    two.other.taint = 9
    two.world.wait(17)
    assert two.world.take() == []
    assert two.one.nout_probes == 0
    assert not two.world.device.rexmitq
    assert not two.world.device.factive


@in_both_modes
def test_k54_a_probe_does_not_fail_the_device(
    connect: Connect, options: Options
) -> None:
    two = TwoTargets(connect, options)
    two.taint_first(9)
    two.run(400, two.second)
    assert two.world.is_up
    assert two.one.taint > 9


def test_k42_k57_reassign_with_one_target_rotates_its_interface(
    connect: Connect,
) -> None:
    """With one target and two interfaces, the frame is sent on the same interface."""
    world = connect(KERNEL, mtus=(1500, 1500))
    world.read(0, bytearray(SECTOR))
    world.wait(100)
    ports = [f.port.name for f in world.take()]
    assert len(ports) == 7
    assert len(set(ports)) == 1


# --- prompt: a path without responses -------------------------------------------------


def test_prompt_a_target_without_responses_does_not_block_the_device(
    connect: Connect,
) -> None:
    two = TwoTargets(connect, USER, buffers=64)
    two.run(0.5, two.first, two.second, reads=True)
    two.run(1, two.second, reads=True)
    pending = len(two.world.ended)
    two.run(0.2, two.second, reads=True)
    assert len(two.world.ended) - pending >= 40
    assert {bio.error for bio in two.world.ended} == {None}
    assert two.one.taint == PromptTiming.max_taint


def test_prompt_a_target_that_responds_again_is_used_within_a_second(
    connect: Connect,
) -> None:
    two = TwoTargets(connect, USER, buffers=64)
    two.run(0.5, two.first, two.second, reads=True)
    two.run(10, two.second, reads=True)
    two.run(1, two.first, two.second, reads=True)
    assert two.one.taint == 0
    lost = two.run(0.1, two.first, reads=True)
    assert lost


def test_prompt_sporadic_losses_do_not_taint(connect: Connect) -> None:
    two = TwoTargets(connect, USER)
    world = two.world
    for number in range(300):
        world.read(0, bytearray(16 * SECTOR))
        for frame in world.take():
            if number % 3 or frame.header.dst != two.first.mac:
                world.respond(frame)
            world.now += 0.001
        world.wait(0.01)
        assert two.one.taint == 0


def test_prompt_retransmissions_back_off_if_no_target_responds(
    connect: Connect,
) -> None:
    two = TwoTargets(connect, USER)
    two.run(0.5, two.first, two.second, reads=True)
    two.world.read(0, bytearray(8 * SECTOR))
    assert len(two.run(10, reads=False)) < 60
    two.run(1, two.first, two.second)
    assert not two.world.device.factive
    assert {bio.error for bio in two.world.ended} == {None}


# --- KICKME ---------------------------------------------------------------------------


@pytest.mark.parametrize("kick", [True, False])
def test_k44_the_timer_restarts_transmission(connect: Connect, *, kick: bool) -> None:
    """In the kernel, since blk-mq, the timer only checks for another bio."""
    world = connect(replace(KERNEL, kick=kick))
    device = world.device
    device.targets[0].ffree[0].skb.dataref = 2
    for _ in range(SKBPOOL_LIMIT):
        device.skbpool.append(Skb())
        device.skbpool[-1].dataref = 2
    world.read(0, bytearray(SECTOR))
    assert (device.status, device.kicked, world.frames) == ("up,kickme", 1, [])
    device.skbpool[0].dataref = 1
    world.wait(0.1)
    assert device.status == "up"
    assert len(world.frames) == kick
    world.read(0, bytearray(SECTOR))
    world.run_until_idle()
    assert len(world.ended) == 2
