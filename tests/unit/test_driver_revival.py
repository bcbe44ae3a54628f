"""Failed devices that respond again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aoe.ata import SECTOR
from aoe.errors import DeviceError
from aoe.header import Command
from initiator.driver.aoedev import State
from initiator.driver.options import Options

if TYPE_CHECKING:
    from tests.unit.conftest import Connect

in_both_modes = pytest.mark.parametrize(
    "options", [Options(), Options.kernel()], ids=["user", "kernel"]
)


@in_both_modes
def test_k56_an_open_device_stays_down_until_its_last_close(
    connect: Connect, options: Options
) -> None:
    world = connect(replace(options, revive=False))
    world.driver.open(world.device)
    world.driver.fail(world.device, DeviceError("e1.2", "pulled out"))
    assert world.device.state.value == "down,closewait"
    world.deliver(world.target.announce())
    assert world.take() == []

    world.driver.close(world.device)
    assert world.device.state is State.DOWN
    assert [f.header.command for f in world.frames] == [Command.CONFIG]
    world.run_until_idle()
    assert world.is_up
    assert world.device.ssize == 512
    buffer = bytearray(SECTOR)
    world.read(3, buffer)
    world.run_until_idle()
    assert buffer == world.target.disk[3 * SECTOR : 4 * SECTOR]


def test_k56_by_default_an_open_device_is_used_again_when_it_responds(
    connect: Connect,
) -> None:
    world = connect(Options())
    world.driver.open(world.device)
    world.driver.fail(world.device, DeviceError("e1.2", "pulled out"))
    world.read(3, bytearray(SECTOR))
    assert world.ended[0].error is not None
    world.deliver(world.target.announce())
    world.run_until_idle()
    assert world.is_up
    buffer = bytearray(SECTOR)
    world.read(3, buffer)
    world.run_until_idle()
    assert world.ended[1].error is None
    assert buffer == world.target.disk[3 * SECTOR : 4 * SECTOR]


def test_a_device_opened_while_down_is_used_when_it_responds(
    connect: Connect,
) -> None:
    world = connect(Options())
    world.driver.fail(world.device, DeviceError("e1.2", "pulled out"))
    world.driver.open(world.device)
    world.deliver(world.target.announce())
    world.run_until_idle()
    assert world.is_up


@in_both_modes
def test_an_announcement_revives_a_closed_device(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    world.driver.fail(world.device, DeviceError("e1.2", "pulled out"))
    assert not world.is_up
    world.bring_up()
    assert world.is_up
