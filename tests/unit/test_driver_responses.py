"""Responses: ATA status, data, AoE errors, and unexpected ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aoe.ata import ATA_DATA, SECTOR
from aoe.errors import BusyError, DeviceError, NotFoundError
from initiator.driver.options import Options
from initiator.driver.timing import KernelTiming

if TYPE_CHECKING:
    from tests.unit.conftest import Connect

KERNEL = Options.kernel()
USER = Options()
in_both_modes = pytest.mark.parametrize(
    "options", [USER, KERNEL], ids=["user", "kernel"]
)


# --- ATA status -----------------------------------------------------------------------


@in_both_modes
@pytest.mark.parametrize("bit", [0x80, 0x20, 0x08, 0x01])
@pytest.mark.parametrize("is_write", [False, True])
def test_k60_a_bad_status_fails_the_bio_without_a_retry(
    connect: Connect, options: Options, bit: int, *, is_write: bool
) -> None:
    world = connect(options)
    buffer = bytearray(SECTOR)
    world.write(0, bytes(SECTOR)) if is_write else world.read(0, buffer)
    [request] = world.take()
    world.deliver(world.target.report(request.raw, bit, 0x10, b"\xee" * SECTOR))
    [bio] = world.ended
    assert isinstance(bio.error, DeviceError)
    assert f"status {0x40 | bit:#04x}, error 0x10" in str(bio.error)
    assert buffer == bytes(SECTOR)
    world.wait(60)
    assert world.take() == []


@in_both_modes
@pytest.mark.parametrize("status", [0x00, 0x40, 0x10, 0x04, 0x02, 0x56])
def test_k60_any_other_status_is_success(
    connect: Connect, options: Options, status: int
) -> None:
    world = connect(options)
    world.write(0, bytes(SECTOR))
    [request] = world.take()
    response = world.target.answer(request.raw)
    response[25], response[27] = 0xFF, status
    world.deliver(response)
    assert [bio.error for bio in world.ended] == [None]


@in_both_modes
def test_k63_the_other_frames_of_a_failed_bio_still_run(
    connect: Connect, options: Options
) -> None:
    world = connect(options, buffers=2)
    world.write(0, b"w" * 4096)
    [first] = world.take()
    world.deliver(world.target.report(first.raw, 0x01, 0x04))
    assert world.ended == []
    world.run_until_idle()
    [bio] = world.ended
    assert "command aborted" in str(bio.error)
    assert world.target.disk[1024:4096] == b"w" * 3072


@in_both_modes
def test_k63_a_bio_ends_with_its_first_error(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    world.read(0, bytearray(2048))
    first, second = world.take()
    world.deliver(world.target.report(first.raw, 0x01, 0x40))
    world.deliver(world.target.report(second.raw, 0x01, 0x04))
    [bio] = world.ended
    assert "uncorrectable data" in str(bio.error)


# --- data -----------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [1, 512, 513, 1024])
def test_k61_a_runt_fails_a_read_in_kernel_mode(connect: Connect, missing: int) -> None:
    world = connect(Options.kernel())
    buffer = bytearray(1024)
    world.read(0, buffer)
    [request] = world.take()
    response = world.target.answer(request.raw)
    world.deliver(response[:-missing])
    [bio] = world.ended
    assert f"runt: {1024 - missing} of 1024 bytes" in str(bio.error)
    assert buffer == bytes(1024)


def test_k61_a_runt_is_ignored_by_default(connect: Connect) -> None:
    world = connect()
    buffer = bytearray(1024)
    world.read(0, buffer)
    [request] = world.take()
    response = world.target.answer(request.raw)
    world.deliver(response[:-1])
    assert world.ended == []
    assert world.driver.runts == 1
    assert buffer == bytes(1024)
    world.deliver(response)
    assert [bio.error for bio in world.ended] == [None]
    assert buffer == world.target.disk[:1024]


def test_k61_the_third_runt_fails_a_read(
    connect: Connect,
) -> None:
    world = connect()
    bio = world.read(0, bytearray(1024))
    for _ in range(3):
        [request] = world.take()
        world.deliver(world.target.answer(request.raw)[:-512])
        world.wait(0.55 if not world.ended else 0)
        world.frames = world.frames[-1:]
    assert world.ended == [bio]
    assert "runt: 512 of 1024 bytes" in str(bio.error)


@in_both_modes
@pytest.mark.parametrize("excess", [1, 24, 512])
def test_k61_excess_data_is_ignored(
    connect: Connect, options: Options, excess: int
) -> None:
    world = connect(options)
    memory = bytearray(2048)
    world.read(2, memoryview(memory)[:1024])
    [request] = world.take()
    world.deliver(world.target.answer(request.raw) + b"\xee" * excess)
    assert [bio.error for bio in world.ended] == [None]
    assert memory == world.target.disk[1024:2048] + bytes(1024)


@in_both_modes
@pytest.mark.parametrize("length", [ATA_DATA, 60, 36 + 512])
def test_k61_a_response_to_a_write_may_have_any_length(
    connect: Connect, options: Options, length: int
) -> None:
    world = connect(options)
    world.write(0, bytes(SECTOR))
    [request] = world.take()
    world.deliver(world.target.answer(request.raw).ljust(length, b"\xee")[:length])
    assert [bio.error for bio in world.ended] == [None]


@in_both_modes
@pytest.mark.parametrize("mtu", [1500, 9000])
def test_k33_data_is_copied_to_the_pages_of_the_bio(
    connect: Connect, options: Options, mtu: int
) -> None:
    world = connect(options, mtus=[mtu])
    buffer = bytearray(100 * SECTOR)
    world.read(7, buffer)
    world.run_until_idle()
    assert buffer == world.target.disk[7 * SECTOR : 107 * SECTOR]
    world.write(200, bytes(buffer))
    world.run_until_idle()
    assert world.target.disk[200 * SECTOR : 300 * SECTOR] == buffer
    assert [bio.error for bio in world.ended] == [None, None]


@in_both_modes
def test_completed_reads_and_writes_are_counted(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    world.read(0, bytearray(4096))
    world.write(0, bytes(2048))
    world.flush()
    world.run_until_idle()
    target = world.device.targets[0]
    assert (target.rpkts, target.wpkts) == (4, 2)


@in_both_modes
def test_k45_responses_at_a_full_window_widen_it(
    connect: Connect, options: Options
) -> None:
    world = connect(options, buffers=4)
    world.driver.open(world.device)
    world.read(0, bytearray(100 * SECTOR))
    out = world.take()
    assert len(out) == 2
    for _ in range(4):
        world.respond(out.pop(0))
        out += world.take()
        assert len(out) == 2
    world.respond(out.pop(0))
    out += world.take()
    assert len(out) == 3


# --- AoE errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (1, DeviceError, "unrecognized command code"),
        (2, DeviceError, "bad argument parameter"),
        (4, DeviceError, "config string present"),
        (5, DeviceError, "unsupported version"),
        (6, BusyError, "target is reserved"),
        (0, DeviceError, "unknown error 0"),
        (99, DeviceError, "unknown error 99"),
    ],
)
def test_k62_an_aoe_error_ends_its_bio_at_once(
    connect: Connect, code: int, kind: type[DeviceError | BusyError], text: str
) -> None:
    world = connect()
    world.read(0, bytearray(SECTOR))
    [request] = world.take()
    world.deliver(world.target.refuse(request.raw, code))
    [bio] = world.ended
    assert type(bio.error) is kind
    assert str(bio.error) == f"e1.2: {text}"
    assert f"ecode={code}" in world.driver.log[-1]
    world.wait(60)
    assert world.take() == []


def test_k27_after_an_aoe_error_new_frames_are_sent(connect: Connect) -> None:
    world = connect(buffers=2)
    buffer = bytearray(2048)
    world.read(0, bytearray(2048))
    world.read(4, buffer)
    [first] = world.take()
    world.deliver(world.target.refuse(first.raw))
    world.run_until_idle()
    refused, fine = world.ended
    assert (refused.sector, fine.sector) == (0, 4)
    assert refused.error is not None
    assert fine.error is None
    assert buffer == world.target.disk[2048:4096]
    assert world.device.targets[0].window.nout == 0


def test_an_aoe_error_to_a_deferred_frame_ends_it(connect: Connect) -> None:
    world = connect(buffers=4)
    world.read(0, bytearray(2048))
    _, second = world.take()
    world.wait(0.3)
    world.deliver(world.target.refuse(second.raw, 6))
    world.run_until_idle()
    [bio] = world.ended
    assert isinstance(bio.error, BusyError)


def test_an_aoe_error_to_identify_is_logged_without_a_retransmission(
    connect: Connect,
) -> None:
    world = connect(is_up=False)
    world.deliver(world.target.announce())
    [identify] = world.take()
    world.deliver(world.target.refuse(identify.raw, 6))
    assert "target is reserved" in world.driver.log[-1]
    world.wait(60)
    assert world.take() == []
    assert not world.is_up


def test_i3_an_aoe_error_without_an_outstanding_frame_has_no_effect(
    connect: Connect,
) -> None:
    world = connect()
    world.read(0, bytearray(SECTOR))
    [request] = world.take()
    refusal = world.target.refuse(request.raw)
    strange, query = bytearray(refusal), bytearray(refusal)
    strange[23] ^= 1
    query[19] = 1
    world.deliver(strange)
    world.deliver(query)
    assert world.ended == []
    world.respond(request)
    assert [bio.error for bio in world.ended] == [None]


def test_k62_kernel_mode_retransmits_after_an_aoe_error(
    connect: Connect,
) -> None:
    world = connect(KERNEL)
    world.read(0, bytearray(SECTOR))
    [request] = world.take()
    world.deliver(world.target.refuse(request.raw, 6))
    assert world.ended == []
    assert "ecode=6" in world.driver.log[-1]
    world.wait(14.9)
    [again] = world.take()
    assert again.registers == request.registers
    world.respond(again)
    assert [bio.error for bio in world.ended] == [None]


def test_k62_kernel_mode_fails_the_device_after_deadsecs_of_aoe_errors(
    connect: Connect,
) -> None:
    world = connect(KERNEL)
    world.read(0, bytearray(SECTOR))
    while not world.ended:
        for request in world.take():
            world.deliver(world.target.refuse(request.raw))
        world.wait(1)
    assert 181 <= world.now <= 197
    assert isinstance(world.ended[0].error, NotFoundError)


# --- unexpected responses -------------------------------------------------------------


@in_both_modes
def test_k58_k64_the_second_response_to_a_tag_is_unexpected(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    buffer = bytearray(SECTOR)
    world.read(0, buffer)
    [request] = world.take()
    world.respond(request)
    buffer[:] = b"mine now" * 64
    world.respond(request)
    assert len(world.ended) == 1
    assert buffer == b"mine now" * 64
    assert world.driver.unexpected == 1
    assert world.driver.log[-1] == (
        f" unexpected rsp e1.2    tag={request.tag:08x}@00000000 "
        f"s=525400ae0001 d=020000000000"
    )


@in_both_modes
def test_k58_a_response_of_an_unknown_device_is_logged(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    world.read(0, bytearray(SECTOR))
    [request] = world.take()
    response = world.target.answer(request.raw)
    response[17] = 9
    world.deliver(response)
    assert world.ended == []
    assert "no such device e9.2" in world.driver.log[-1]


@pytest.mark.parametrize(
    ("options", "timeout"),
    [
        (KERNEL, (20.0, 40.0)),
        (USER, (0.2, 0.3)),
        # User tags do not contain the time of transmission.
        (Options(timing="kernel"), (12.0, 14.0)),
    ],
)
def test_k59_late_responses_inflate_the_estimate_in_kernel_mode_only(
    connect: Connect, options: Options, timeout: tuple[float, float]
) -> None:
    world = connect(options)
    world.read(0, bytearray(SECTOR))
    [request] = world.take()
    world.respond(request)
    world.now += 20
    world.respond(request)
    shortest, longest = timeout
    assert shortest < world.device.timing.timeout(0) < longest


def test_k59_the_sample_is_the_tags_age_in_jiffies(connect: Connect) -> None:
    world = connect(KERNEL)
    world.now = 65_530.5 / 250
    world.read(0, bytearray(SECTOR))
    [request] = world.take()
    world.respond(request)
    # The low half of jiffies wraps in between.
    world.now += 10 / 250
    world.respond(request)
    expected = KernelTiming()
    # Eleven ticks have begun since, but only ten have passed.
    for rtt in (0, 0, 0.044):
        expected.sample(rtt)
    assert world.device.timing.timeout(0) == expected.timeout(0)


def test_the_log_keeps_the_last_100_lines(connect: Connect) -> None:
    world = connect()
    world.read(0, bytearray(SECTOR))
    [request] = world.take()
    for _ in range(150):
        world.respond(request)
    assert world.driver.unexpected == 149
    assert len(world.driver.log) == 100
