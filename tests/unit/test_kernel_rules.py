"""Rules of the kernel's driver, K1 to K64.

Further rules are tested in ``test_driver_*.py``, ``test_timing.py`` and
``test_lab_*.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aoe.ata import SECTOR
from aoe.errors import DeviceError, UsageError
from aoe.identify import Identity
from initiator.driver.options import Options

if TYPE_CHECKING:
    from tests.unit.conftest import Connect, Sent, World

KERNEL = Options.kernel()
USER = Options()
in_both_modes = pytest.mark.parametrize(
    "options", [USER, KERNEL], ids=["user", "kernel"]
)


# --- objects --------------------------------------------------------------------------


@in_both_modes
def test_k1_k3_k4_a_device_has_targets_by_mac_and_their_interfaces(
    connect: Connect, options: Options
) -> None:
    world = connect(options, mtus=(1500, 1500))
    second = world.second_mac()
    world.deliver(second.announce(), 1)
    for frame in world.take():
        world.deliver(second.answer(frame.raw), 1)
    assert list(world.driver.devices) == [world.target.address]
    transmissions = [
        (target.addr, [ifp.netdev for ifp in target.ifs])
        for target in world.device.targets
    ]
    assert transmissions == [
        (world.target.mac, world.ports),
        (world.second_mac().mac, world.ports[1:]),
    ]


def test_k2_k65_states_of_a_device(connect: Connect) -> None:
    world = connect(is_up=False)
    world.deliver(world.target.announce())
    device = world.device
    seen = [device.status]
    world.run_until_idle()
    seen.append(device.status)
    device.kickme = True
    seen.append(device.status)
    device.kickme = False
    world.driver.open(device)
    world.driver.fail(device, DeviceError("e1.2", "pulled out"))
    seen.append(device.status)
    device.kickme = True
    seen.append(device.status)
    assert seen == ["down", "up", "up,kickme", "down,closewait", "down,kickme"]


@in_both_modes
def test_k5_k54_waited_times_of_a_frame(connect: Connect, options: Options) -> None:
    world = connect(replace(options, verify_paths=False))
    world.read(0, bytearray(SECTOR))
    world.wait(60)
    [frame] = world.device.factive.values()
    assert frame.waited == frame.waited_total == pytest.approx(frame.sent)
    assert frame.sent > 30


@in_both_modes
def test_k6_one_bio_at_a_time_is_split_into_frames(
    connect: Connect, options: Options
) -> None:
    world = connect(options, buffers=4)
    bios = [world.read(8 * number, bytearray(8 * SECTOR)) for number in range(3)]
    buf = world.device.buf
    assert buf is not None
    assert (buf.bio, buf.nframesout) == (bios[0], 2)
    assert list(world.device.bios) == bios[1:]


def test_k7_a_target_has_eight_interfaces_at_most(connect: Connect) -> None:
    world = connect(mtus=[1500] * 9)
    [target] = world.device.targets
    assert [ifp.netdev for ifp in target.ifs] == world.ports[:8]
    assert "too many interfaces" in world.driver.log[-1]


def test_k8_parameters() -> None:
    assert (KERNEL.deadsecs, KERNEL.maxout) == (USER.deadsecs, USER.maxout) == (180, 64)


def test_k23_a_device_may_shrink_while_frames_are_outstanding(connect: Connect) -> None:
    world = connect(KERNEL)
    last = world.read(511, bytearray(SECTOR))
    [request] = world.take()
    world.deliver(world.target.announce())
    [identify] = world.take()
    page = Identity(256).pack()
    world.deliver(world.target.report(identify.raw, data=page))
    assert world.device.ssize == 256
    world.respond(request)
    beyond = world.read(256, bytearray(SECTOR))
    assert world.ended == [last, beyond]
    assert last.error is None
    assert isinstance(beyond.error, UsageError)


def test_k37_a_flush_succeeds_without_a_frame_in_kernel_mode(connect: Connect) -> None:
    world = connect(KERNEL)
    bio = world.flush()
    assert (world.ended, bio.error, world.frames) == ([bio], None, [])


# --- changed interfaces ---------------------------------------------------------------


def test_a_changed_mtu_applies_at_once_and_a_query_is_sent(
    connect: Connect,
) -> None:
    world = connect(USER, mtus=[9000])
    world.driver.open(world.device)
    buffer = bytearray(17 * SECTOR)
    world.read(0, buffer)
    world.take()
    world.ports[0].mtu = 1500
    world.driver.netdev_changed(world.ports[0], world.now)
    [query] = world.take()
    assert query.raw[:6] == b"\xff" * 6
    header = query.header
    assert (header.shelf, header.slot) == world.target.address
    world.wait(0.001)
    assert {f.registers.count for f in world.frames} == {2}
    world.run_until_idle()
    assert buffer == world.target.disk[: 17 * SECTOR]


def test_no_query_is_sent_for_closed_devices(connect: Connect) -> None:
    world = connect()
    world.driver.discover_open()
    assert world.frames == []


# --- step by step ---------------------------------------------------------------------


def window_fields(world: World) -> tuple[int, int, int, int, int]:
    """Return window, taint and outstanding frames of the first target."""
    target = world.device.targets[0]
    window = target.window
    return window.nout, window.maxout, window.ssthresh, window.next_cwnd, target.taint


def transmissions(frames: list[Sent]) -> list[tuple[float, int, str]]:
    """Return time, sector and interface of each frame."""
    return [(round(f.time, 3), f.registers.lba, f.port.name) for f in frames]


def test_k41_to_k57_losses_step_by_step(connect: Connect) -> None:
    """Computed by hand: two interfaces, eight buffers, twelve sectors."""
    world = connect(KERNEL, mtus=(1500, 1500), buffers=8)
    world.driver.open(world.device)
    timing = world.device.timing
    # K15, K46, K47: one response, to IDENTIFY, with a round-trip time of 0.
    assert window_fields(world) == (0, 4, 4, 8, 0)
    assert timing.timeout(0) == pytest.approx(14.748046)

    # K42, K45: half the buffer count, on alternating interfaces.
    world.read(0, bytearray(12 * SECTOR))
    first = world.take()
    assert transmissions(first) == [
        (0, 0, "eth0"),
        (0, 2, "eth1"),
        (0, 4, "eth0"),
        (0, 6, "eth1"),
    ]

    # K45: one of eight responses to the next widening; K27: room for one frame.
    world.wait(1)
    world.respond(first[0])
    assert transmissions(world.take()) == [(1, 8, "eth0")]
    assert window_fields(world) == (4, 4, 4, 7, 0)
    assert timing.timeout(0) == pytest.approx(13.723640)

    # K48-K50: the next tick. Three frames expire, and the window is full with one.
    world.wait(12.85)
    assert world.take() == []
    assert window_fields(world) == (1, 1, 2, 7, 39)
    assert [f.sector for f in world.device.rexmitq.values()] == [6, 2, 4]
    # K44: three reassignments; no untainted target has a frame outstanding.
    assert world.device.kicked == 3

    # K42, K57: the frame expires too. One rotation by reassign, one by resend.
    world.wait(1)
    [again] = world.take()
    assert transmissions([again]) == [(14.8, 6, "eth0")]
    assert window_fields(world) == (1, 1, 2, 7, 120)
    assert [f.sector for f in world.device.rexmitq.values()] == [2, 4, 8]
    assert [ifp.lost for ifp in world.device.targets[0].ifs] == [2, 2]

    # K45: slow start up to ssthresh; K50: a response clears `lost` of its interface.
    world.wait(0.45)
    world.respond(again)
    third = world.take()
    assert transmissions(third) == [(15.3, 2, "eth0"), (15.3, 4, "eth0")]
    assert window_fields(world) == (2, 2, 2, 7, 119)
    assert [ifp.lost for ifp in world.device.targets[0].ifs] == [0, 2]

    # K51: a deferred frame is answered; the window does not change.
    [waiting] = world.device.rexmitq.values()
    assert waiting.sector == 8
    before = window_fields(world)
    stale = world.target.report(bytes(waiting.skb.head), data=bytes(1024))
    world.deliver(stale)
    assert window_fields(world) == (*before[:4], 118)

    # K45: both responses arrived at a full window: two of eight.
    world.respond(*third)
    assert transmissions(world.take()) == [(15.3, 10, "eth1")]
    assert window_fields(world) == (1, 2, 2, 5, 116)
