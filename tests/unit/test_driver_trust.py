"""Checks of responses, and changes of an open device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aoe.ata import SECTOR, Opcode
from aoe.errors import DeviceError, UsageError
from aoe.header import TAG_USER, ErrorCode
from initiator.driver.bio import Op, bio_for
from initiator.driver.options import Options

if TYPE_CHECKING:
    from tests.unit.conftest import Connect

FOREIGN_MAC = b"\x52\x54\x00\xae\x00\x66"


def spoof(response: bytearray) -> bytearray:
    """Replace the source MAC of a response."""
    response[6:12] = FOREIGN_MAC
    return response


# --- responses ------------------------------------------------------------------------


@pytest.mark.parametrize("op", [Op.READ, Op.WRITE])
def test_i1_a_response_from_an_unknown_mac_is_ignored(connect: Connect, op: Op) -> None:
    world = connect()
    data = bytearray(b"\xee" * SECTOR)
    bio = world.submit(bio_for(op, 0, data, world.ended.append))
    [request] = world.take()
    response = world.target.answer(request.raw)
    world.deliver(spoof(bytearray(response)))
    assert world.ended == []
    assert data == b"\xee" * SECTOR
    assert world.driver.foreign == 1
    world.deliver(response)
    assert world.ended == [bio]


def test_i1_an_aoe_error_from_an_unknown_mac_is_ignored(connect: Connect) -> None:
    world = connect()
    world.read(0, bytearray(SECTOR))
    [request] = world.take()
    world.deliver(spoof(world.target.refuse(request.raw, ErrorCode.RESERVED)))
    assert world.ended == []


def test_k13_kernel_mode_accepts_a_response_from_an_unknown_mac(
    connect: Connect,
) -> None:
    world = connect(Options.kernel())
    bio = world.read(0, bytearray(SECTOR))
    [request] = world.take()
    world.deliver(spoof(world.target.answer(request.raw)))
    assert world.ended == [bio]


def test_k25_a_late_response_does_not_complete_a_later_read(
    connect: Connect,
) -> None:
    """The read was sent twice; the first transmission is answered after its end."""
    world = connect()
    old = bytearray(SECTOR)
    world.read(0, old)
    [first] = world.take()
    stale = world.target.answer(first.raw)
    world.wait(0.3)
    [second] = world.take()
    world.respond(second)
    world.write(0, b"n" * SECTOR)
    world.run_until_idle()
    new = bytearray(SECTOR)
    bio = world.read(0, new)
    [third] = world.take()
    assert third.tag not in (first.tag, second.tag)
    world.deliver(stale)
    assert bio not in world.ended
    assert new == bytes(SECTOR)
    world.respond(third)
    assert new == b"n" * SECTOR


# --- size -----------------------------------------------------------------------------


@pytest.mark.parametrize("sectors", [100, 2000])
def test_k19_by_default_an_open_device_gets_its_new_size(
    connect: Connect, sectors: int
) -> None:
    world = connect()
    told: list[int] = []
    world.device.on_resize.append(lambda: told.append(world.device.ssize))
    world.driver.open(world.device)
    world.target.disk = bytearray(sectors * SECTOR)
    world.deliver(world.target.announce())
    world.run_until_idle()
    assert world.device.ssize == sectors
    assert told == [sectors]
    world.deliver(world.target.announce())
    world.run_until_idle()
    assert told == [sectors]


def test_identify_is_sent_as_soon_as_a_full_window_opens(connect: Connect) -> None:
    world = connect(buffers=1)
    world.driver.open(world.device)
    world.read(0, bytearray(8 * SECTOR))
    frames = world.take()
    assert len(frames) == 1
    world.target.disk += bytes(SECTOR)
    world.deliver(world.target.announce(TAG_USER))
    world.deliver(world.target.announce(TAG_USER))
    assert world.take() == []
    world.respond(*frames)
    asked = []
    while frames := world.take():
        asked += [f.registers.command for f in frames]
        world.respond(*frames)
    assert asked.count(Opcode.IDENTIFY) == 1
    assert world.device.ssize == 513
    assert len(world.ended) == 1


def test_identify_of_an_open_device_does_not_reset_the_estimate(
    connect: Connect,
) -> None:
    world = connect()
    world.driver.open(world.device)
    for _ in range(50):
        world.read(0, bytearray(SECTOR))
        [request] = world.take()
        world.now += 0.001
        world.respond(request)
    before = world.device.timing.timeout(0)
    world.deliver(world.target.announce())
    assert world.device.timing.timeout(0) == before


def test_bios_beyond_the_new_end_of_a_device_fail(connect: Connect) -> None:
    world = connect()
    world.driver.open(world.device)
    before = world.read(400, bytearray(SECTOR))
    frames = world.take()
    del world.target.disk[100 * SECTOR :]
    world.deliver(world.target.announce())
    world.respond(*frames)
    world.run_until_idle()
    after = world.read(400, bytearray(SECTOR))
    assert type(before.error) is DeviceError
    assert type(after.error) is UsageError
    assert world.ended == [before, after]
