"""Paths: frame sizes, choice of target and interface, checks of received frames."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aoe.ata import SECTOR, Opcode
from aoe.errors import DeviceError
from aoe.header import TAG_USER, Flag
from initiator.driver.bio import Op, bio_for
from initiator.driver.options import Options

if TYPE_CHECKING:
    from tests.unit.conftest import Connect

KERNEL = Options.kernel()
USER = Options()
in_both_modes = pytest.mark.parametrize(
    "options", [USER, KERNEL], ids=["user", "kernel"]
)


# --- frame sizes ----------------------------------------------------------------------


@in_both_modes
@pytest.mark.parametrize(
    ("mtu", "sector_count", "sectors"),
    [
        (1500, 255, 2),
        (1045, 255, 1),
        (1059, 255, 1),
        (1060, 255, 2),
        (4200, 255, 8),
        (9000, 255, 17),
        (9216, 255, 17),
        (16110, 255, 31),
        (65535, 255, 127),
        (65536, 255, 127),
        (547, 255, 2),
        (36, 255, 2),
        (9000, 16, 16),
        (9000, 1, 1),
        (9000, 0, 2),
        (1500, 0, 2),
    ],
)
def test_k17_p23_frames_are_as_large_as_both_ends_allow(
    connect: Connect, options: Options, mtu: int, sector_count: int, sectors: int
) -> None:
    world = connect(options, mtus=[mtu], sector_count=sector_count)
    world.read(0, bytearray(128 * SECTOR))
    assert world.take()[0].registers.count == sectors
    assert world.device.maxbcnt == sectors * SECTOR


def test_k18_frames_have_at_most_255_sectors(connect: Connect) -> None:
    world = connect(mtus=[1 << 20])
    world.read(0, bytearray(512 * SECTOR))
    assert [f.registers.count for f in world.take()] == [255, 255, 2]


@in_both_modes
def test_k18_the_smallest_path_limits_all_frames(
    connect: Connect, options: Options
) -> None:
    world = connect(options, mtus=(9000, 1500))
    assert world.device.maxbcnt == 1024
    other = world.second_mac(sector_count=1)
    world.deliver(other.announce())
    world.run_until_idle()
    assert world.device.maxbcnt == 512


@in_both_modes
def test_k18_a_target_that_allows_more_does_not_raise_the_limit(
    connect: Connect, options: Options
) -> None:
    world = connect(options, sector_count=1)
    world.deliver(world.second_mac().announce())
    assert world.device.maxbcnt == 512


def test_k18_k52_outstanding_frames_keep_their_size(connect: Connect) -> None:
    world = connect(Options.kernel(), mtus=[9000], buffers=2)
    world.driver.open(world.device)
    world.read(0, bytearray(34 * SECTOR))
    [first] = world.take()
    world.target.config = replace(world.target.config, sector_count=2)
    world.deliver(world.target.announce())
    world.wait(15)
    resent = world.take()[-1]
    assert resent.registers == first.registers
    assert resent.registers.count == 17
    world.respond(resent)
    [second] = world.take()
    assert (second.registers.lba, second.registers.count) == (17, 2)


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE])
def test_frames_are_truncated_when_a_path_becomes_narrower(
    connect: Connect, op: Op
) -> None:
    world = connect(Options(), mtus=[9000])
    world.driver.open(world.device)
    data = bytearray(os.urandom(34 * SECTOR))
    before = bytes(world.target.disk)
    bio = world.submit(bio_for(op, 3, data, world.ended.append))
    assert [f.registers.count for f in world.take()] == [17, 17]
    world.target.config = replace(world.target.config, sector_count=5)
    world.deliver(world.target.announce())
    # They are retransmitted at once, since none of them can have arrived.
    world.wait(0.001)
    seen = []
    while sent := world.take():
        moving = [f for f in sent if f.registers.command != Opcode.IDENTIFY]
        seen += [(f.registers.lba, f.registers.count) for f in moving]
        for each in sent:
            world.respond(each)
    assert sorted(seen) == [
        *((lba, 5) for lba in (3, 8, 13)),
        (18, 2),
        *((lba, 5) for lba in (20, 25, 30)),
        (35, 2),
    ]
    assert bio in world.ended
    after = world.target.disk[3 * SECTOR : 37 * SECTOR]
    assert data == after
    assert op is Op.WRITE or bytes(world.target.disk) == before


def test_remainders_of_truncated_frames_fail_with_the_device(connect: Connect) -> None:
    world = connect(Options(), mtus=[9000], buffers=2)
    world.driver.open(world.device)
    bio = world.read(0, bytearray(17 * SECTOR))
    world.target.config = replace(world.target.config, sector_count=2)
    world.deliver(world.target.announce(TAG_USER))
    world.wait(0.001)
    assert world.device.followups
    world.driver.fail(world.device, DeviceError("e1.2", "is gone"))
    assert not world.device.followups
    assert world.ended == [bio]


# --- several paths --------------------------------------------------------------------


@in_both_modes
def test_k42_interfaces_rotate_from_the_second(
    connect: Connect, options: Options
) -> None:
    world = connect(options, mtus=(1500, 1500))
    world.driver.open(world.device)
    world.device.targets[0].ifp = 0
    world.read(0, bytearray(8 * SECTOR))
    sent = world.take()
    assert [f.port.name for f in sent] == ["eth1", "eth0", "eth1", "eth0"]
    assert [f.header.src for f in sent] == [f.port.mac for f in sent]


@in_both_modes
def test_k42_the_first_frame_is_sent_on_the_second_interface(
    connect: Connect, options: Options
) -> None:
    world = connect(options, mtus=(1500, 1500), buffers=2, is_up=False)
    for port in (0, 1):
        world.deliver(world.target.announce(), port)
    # The IDENTIFY, sent on the first interface, takes one place of the window. With
    # verify_paths, the second interface has a frame of its own.
    identify = world.take()
    names = ["eth0", "eth1"]
    assert [f.port.name for f in identify] == names[: 1 + options.verify_paths]
    world.respond(*identify)
    world.read(0, bytearray(SECTOR))
    [first] = world.take()
    assert first.port.name == "eth1"


@in_both_modes
def test_k41_targets_with_an_open_window_are_used_round_robin(
    connect: Connect, options: Options
) -> None:
    world = connect(options, buffers=8)
    other = world.second_mac(buffers=4)
    world.deliver(other.announce())
    world.run_until_idle()
    world.driver.open(world.device)
    world.device.tgt = 0

    world.read(0, bytearray(32 * SECTOR))

    macs = [f.header.dst for f in world.take()]
    first, second = world.target.mac, other.mac
    assert macs == [second, first, second, first, first, first]


def test_i1_responses_of_any_announced_mac_are_accepted(connect: Connect) -> None:
    world = connect()
    other = world.second_mac()
    world.deliver(other.announce())
    world.run_until_idle()
    buffer = bytearray(SECTOR)
    world.read(1, buffer)
    [request] = world.take()
    world.deliver(other.answer(request.raw))
    assert [bio.error for bio in world.ended] == [None]
    assert buffer == world.target.disk[SECTOR : 2 * SECTOR]


# --- received frames ------------------------------------------------------------------


def truncated(frame: bytearray, length: int) -> bytearray:
    return frame[:length]


def with_byte(frame: bytearray, offset: int, value: int) -> bytearray:
    frame[offset] = value
    return frame


@in_both_modes
def test_k13_frames_that_are_not_responses_are_ignored(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    world.read(0, bytearray(SECTOR))
    [request] = world.take()
    response = world.target.answer(request.raw)
    lines = len(world.driver.log)
    for frame in (
        bytearray(),
        truncated(response, 23),
        truncated(response, 35),
        with_byte(bytearray(response), 12, 0x08),
        with_byte(bytearray(response), 14, 0x10),
        with_byte(bytearray(response), 19, 0xF0),
        with_byte(bytearray(response), 19, 0xFF),
    ):
        world.deliver(frame)
    assert (world.ended, world.take(), len(world.driver.log)) == ([], [], lines)


@in_both_modes
@pytest.mark.parametrize("command", [2, 3, 4, 0xEF])
def test_k13_responses_to_other_commands_are_logged(
    connect: Connect, options: Options, command: int
) -> None:
    world = connect(options)
    world.read(0, bytearray(SECTOR))
    [request] = world.take()
    world.deliver(with_byte(world.target.answer(request.raw), 19, command))
    assert world.ended == []
    assert f"command {command}" in world.driver.log[-1]


@in_both_modes
@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(
            14, 0x00 | Flag.RESPONSE, id="version 0, as vblade announces (I3)"
        ),
        pytest.param(14, 0x1B, id="reserved flags"),
        pytest.param(15, 0xEE, id="error without its flag"),
        pytest.param(0, 0x52, id="destination"),
        pytest.param(6, 0x52, id="source"),
        pytest.param(24, 0xFF, id="aflags (K61)"),
        pytest.param(26, 0xFF, id="sector count (K61, I5)"),
        pytest.param(28, 0xFF, id="LBA (K61)"),
    ],
)
def test_k13_fields_that_are_not_checked(
    connect: Connect, options: Options, offset: int, value: int
) -> None:
    world = connect(options)
    world.read(0, bytearray(SECTOR))
    [request] = world.take()
    world.deliver(with_byte(world.target.answer(request.raw), offset, value))
    assert [bio.error for bio in world.ended] == [None]


def test_k13_an_announcement_of_version_0_is_accepted(connect: Connect) -> None:
    world = connect(is_up=False)
    world.deliver(with_byte(world.target.announce(), 14, int(Flag.RESPONSE)))
    assert world.target.address in world.driver.devices
