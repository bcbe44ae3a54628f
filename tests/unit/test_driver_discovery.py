"""Discovery: queries, query config responses, and IDENTIFY."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aoe.address import BROADCAST, Address
from aoe.ata import SECTOR, Status
from aoe.config import Config
from aoe.header import Command
from initiator.driver.options import Options

if TYPE_CHECKING:
    from tests.unit.conftest import Connect, Sent

KERNEL = Options.kernel()
USER = Options()
in_both_modes = pytest.mark.parametrize(
    "options", [USER, KERNEL], ids=["user", "kernel"]
)


def commands(frames: list[Sent]) -> list[int]:
    """Return the AoE command of queries, and the ATA opcode of other frames."""
    return [
        f.registers.command if f.header.command == Command.ATA else f.header.command
        for f in frames
    ]


# --- queries --------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "tag"), [(KERNEL, "00000000"), (USER, "80000000")])
def test_k12_k130_a_query_is_32_bytes_to_the_broadcast_address(
    connect: Connect, options: Options, tag: str
) -> None:
    world = connect(options, is_up=False)
    world.driver.discover()
    [query] = world.take()
    assert query.raw.hex() == (
        "ffffffffffff 020000000000 88a2 10 00 ffff ff 01" + tag + "0000 0000 00 00 0000"
    ).replace(" ", "")


def test_k11_a_query_is_sent_on_every_interface_with_its_mac(connect: Connect) -> None:
    world = connect(mtus=(1500, 9000, 1500), is_up=False)
    world.driver.discover()
    sent = world.take()
    assert [f.port for f in sent] == world.ports
    assert [f.header.src for f in sent] == [port.mac for port in world.ports]


def test_k10_a_query_for_one_device_is_broadcast_too(connect: Connect) -> None:
    world = connect(is_up=False)
    world.driver.discover(Address(7, 3))
    [query] = world.take()
    assert (query.header.shelf, query.header.slot) == (7, 3)
    assert query.header.dst == b"\xff" * 6


def test_k10_only_the_last_close_sends_a_query(connect: Connect) -> None:
    world = connect()
    world.driver.open(world.device)
    world.driver.open(world.device)
    world.driver.close(world.device)
    assert world.take() == []
    world.driver.close(world.device)
    [query] = world.take()
    assert query.header.command == Command.CONFIG
    assert (query.header.shelf, query.header.slot) == world.target.address


# --- query config responses -----------------------------------------------------------


@in_both_modes
def test_a_device_is_up_after_identify(connect: Connect, options: Options) -> None:
    world = connect(options, is_up=False)
    world.driver.discover()
    world.respond(*world.take())
    assert not world.is_up
    world.run_until_idle()
    assert world.is_up
    assert world.device.ssize == 512
    assert world.device.fw_ver == 0x4001
    assert world.device.identity == world.target.identity


@in_both_modes
def test_p48_an_announcement_needs_no_query(connect: Connect, options: Options) -> None:
    world = connect(options, is_up=False)
    world.deliver(world.target.announce(tag=0))
    world.run_until_idle()
    assert world.is_up


@pytest.mark.parametrize(
    ("options", "tag", "is_heard"),
    [
        (KERNEL, 0x8000_0000, False),
        (KERNEL, 0x0001_0000, True),
        (USER, 0x8000_0001, True),
        (USER, 0x0001_0000, False),
    ],
)
def test_k13_p11_responses_with_tags_of_other_initiators_are_dropped(
    connect: Connect, options: Options, tag: int, *, is_heard: bool
) -> None:
    world = connect(options, is_up=False)
    world.deliver(world.target.announce(tag))
    assert bool(world.driver.devices) == is_heard


@in_both_modes
@pytest.mark.parametrize(
    ("shelf", "slot"), [(0xFFFF, 2), (1, 0xFF), (0x0FFF, 2), BROADCAST]
)
def test_k14_invalid_addresses_are_rejected_and_logged(
    connect: Connect, options: Options, shelf: int, slot: int
) -> None:
    world = connect(options, is_up=False)
    world.target.address = Address(shelf, slot)
    world.deliver(world.target.announce())
    assert world.driver.devices == {}
    assert world.take() == []
    assert f"e{shelf}.{slot}" in world.driver.log[-1]


def test_k14_config_string_and_ccmd_are_ignored(connect: Connect) -> None:
    world = connect(KERNEL, is_up=False)
    world.target.config = Config(
        buffer_count=16, sector_count=2, ccmd=9, string=b"", declared=60_000
    )
    world.bring_up()
    assert world.is_up


def test_devices_that_are_not_in_only_are_ignored(connect: Connect) -> None:
    world = connect(Options(only=[Address(1, 3)]), is_up=False)
    world.deliver(world.target.announce())
    assert world.driver.devices == {}
    world.target.address = Address(1, 3)
    world.deliver(world.target.announce())
    assert list(world.driver.devices) == [Address(1, 3)]


@pytest.mark.parametrize(
    ("timing", "buffers", "maxout"),
    [
        ("kernel", 0, 0),
        ("kernel", 1, 0),
        ("kernel", 2, 1),
        ("kernel", 3, 1),
        ("kernel", 16, 8),
        ("kernel", 1000, 32),
        ("prompt", 0, 1),
        ("prompt", 1, 1),
        ("prompt", 2, 1),
        ("prompt", 3, 1),
        ("prompt", 16, 8),
        ("prompt", 1000, 32),
    ],
)
def test_k15_k16_i4_the_buffer_count_limits_outstanding_frames(
    connect: Connect, timing: str, buffers: int, maxout: int
) -> None:
    world = connect(Options(timing=timing), buffers=buffers, is_up=False)
    world.deliver(world.target.announce())
    identify = world.take()
    assert commands(identify) == [0xEC] * bool(maxout)
    world.respond(*identify)
    assert world.is_up == bool(maxout)
    if maxout:
        world.read(0, bytearray(128 << 10))
        assert len(world.take()) == maxout


@in_both_modes
def test_k15_a_lower_buffer_count_resets_the_window_of_a_known_target(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    world.driver.open(world.device)
    world.target.config = replace(world.target.config, buffer_count=4)
    world.deliver(world.target.announce())
    world.read(0, bytearray(128 << 10))
    assert len(world.take()) == 1


def test_k7_a_target_never_has_more_than_512_frames(connect: Connect) -> None:
    world = connect(Options(maxout=5000), buffers=5000)
    assert world.device.targets[0].window.nframes == 512


# --- IDENTIFY -------------------------------------------------------------------------


def test_k20_k131_identify(connect: Connect) -> None:
    world = connect(KERNEL, is_up=False)
    world.now = 100.0
    world.deliver(world.target.announce())
    [identify] = world.take()
    assert identify.raw.hex() == (
        "525400ae0001 020000000000 88a2 10 00 0001 02 00 000161a8"
        "00 00 01 ec 00 00 00 a0 00 00 0000"
    ).replace(" ", "")


def test_k20_identify_resets_the_estimate(connect: Connect) -> None:
    world = connect(KERNEL)
    for _ in range(100):
        world.device.timing.sample(0.001)
    world.deliver(world.target.announce())
    assert world.device.timing.timeout(0) == pytest.approx(16.5)


@in_both_modes
def test_k19_every_response_of_a_closed_device_is_followed_by_identify(
    connect: Connect, options: Options
) -> None:
    world = connect(options, mtus=(1500, 1500))
    for port in (0, 1):
        world.deliver(world.target.announce(), port)
    assert commands(world.take()) == [0xEC, 0xEC]


def test_k19_the_kernel_keeps_the_size_of_an_open_device(
    connect: Connect,
) -> None:
    world = connect(Options.kernel())
    world.driver.open(world.device)
    world.target.config = replace(world.target.config, firmware=2, sector_count=1)
    del world.target.disk[SECTOR:]
    world.deliver(world.target.announce())
    assert world.take() == []
    assert (world.device.fw_ver, world.device.ssize) == (0x4001, 512)
    assert world.device.maxbcnt == 512


@in_both_modes
def test_k22_a_closed_device_gets_its_new_size(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    world.target.disk += bytes(SECTOR)
    world.bring_up()
    assert world.device.ssize == 513
    assert world.is_up


@in_both_modes
@pytest.mark.parametrize("length", [0, 24, 511])
def test_k21_a_short_identify_response_is_logged(
    connect: Connect, options: Options, length: int
) -> None:
    world = connect(options, is_up=False)
    world.deliver(world.target.announce())
    [identify] = world.take()
    response = world.target.answer(identify.raw)
    world.deliver(response[: 36 + length])
    assert not world.is_up
    assert "runt" in world.driver.log[-1]
    world.deliver(response)
    assert world.driver.unexpected + world.driver.foreign == 1
    assert not world.is_up


@in_both_modes
def test_k60_a_failed_identify_leaves_the_device_down(
    connect: Connect, options: Options
) -> None:
    world = connect(options, is_up=False)
    world.deliver(world.target.announce())
    [identify] = world.take()
    world.deliver(world.target.report(identify.raw, Status.ERROR, 4, bytes(512)))
    assert not world.is_up
    assert "command aborted" in world.driver.log[-1]


def identify_page(**words: int) -> bytes:
    page = bytearray(512)
    for name, value in words.items():
        index = int(name.removeprefix("w"))
        page[2 * index : 2 * index + 2] = value.to_bytes(2, "little")
    return bytes(page)


@pytest.mark.parametrize(
    ("page", "ext", "size"),
    [
        (identify_page(w60=0x5678, w61=0x0234, w100=9), False, 0x0234_5678),
        (identify_page(w83=1 << 10, w60=9, w100=1, w102=2), True, 0x2_0000_0001),
        (identify_page(w86=1 << 10, w60=9, w101=3), True, 0x3_0000),
        # Sectors that cannot be addressed do not count.
        (identify_page(w60=1, w61=0xFFFF), False, 1 << 28),
        (identify_page(w83=1 << 10, w103=0xFFFF), True, 1 << 48),
    ],
)
def test_k21_k35_size_with_and_without_lba48(
    connect: Connect, page: bytes, size: int, *, ext: bool
) -> None:
    world = connect(is_up=False)
    world.deliver(world.target.announce())
    [identify] = world.take()
    world.deliver(world.target.report(identify.raw, data=page))
    assert (world.device.ext, world.device.ssize) == (ext, size)
