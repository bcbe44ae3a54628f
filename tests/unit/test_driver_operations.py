"""Operations that the kernel's driver lacks: FUA, TRIM, and read-only disks."""

from __future__ import annotations

from struct import iter_unpack
from typing import TYPE_CHECKING

import pytest

from aoe.ata import ATA_DATA, SECTOR, AFlag, Opcode
from aoe.errors import AccessError, DeviceError, UnsupportedError, UsageError
from aoe.identify import FeatureSet
from initiator.driver.bio import Bio, Op
from initiator.driver.options import Options

if TYPE_CHECKING:
    from tests.unit.conftest import Connect, Sent, World

LARGEST_RANGE = 65535


def opcodes(frames: list[Sent]) -> list[int]:
    return [frame.registers.command for frame in frames]


def answer_all(world: World) -> list[int]:
    """Let the target answer everything; return the opcodes it received."""
    seen = []
    while frames := world.take():
        seen += opcodes(frames)
        world.respond(*frames)
    return seen


def ranges(frame: Sent) -> list[tuple[int, int]]:
    """Return first sector and count of each range of a TRIM."""
    data = frame.raw[ATA_DATA:]
    assert len(data) == frame.registers.count * SECTOR
    entries = [entry for (entry,) in iter_unpack("<Q", data)]
    return [(entry & (1 << 48) - 1, entry >> 48) for entry in entries if entry >> 48]


# --- FUA ------------------------------------------------------------------------------


def test_fua_is_one_frame_if_the_target_supports_it(connect: Connect) -> None:
    world = connect()
    world.target.supports_fua = True
    for sector in (0, 8):
        world.write(sector, b"x" * SECTOR, fua=True)
    [first, _] = world.take()
    assert first.registers.command == Opcode.WRITE_DMA_FUA_EXT
    assert first.registers.aflags == AFlag.EXTENDED | AFlag.WRITE
    world.respond(first)
    assert [bio.error for bio in world.ended] == [None]
    assert world.target.disk[:SECTOR] == b"x" * SECTOR
    assert world.target.flushes == 0


def test_after_a_rejected_fua_write_and_flush_are_used(connect: Connect) -> None:
    world = connect()
    world.write(0, b"x" * SECTOR, fua=True)
    assert answer_all(world) == [
        Opcode.WRITE_DMA_FUA_EXT,
        Opcode.WRITE_EXT,
        Opcode.FLUSH,
    ]
    world.write(1, b"y" * SECTOR, fua=True)
    assert answer_all(world) == [Opcode.WRITE_EXT, Opcode.FLUSH]
    assert [bio.error for bio in world.ended] == [None, None]
    assert world.target.disk[: 2 * SECTOR] == b"x" * SECTOR + b"y" * SECTOR


def test_fua_is_tried_again_after_changed_identify_data(
    connect: Connect,
) -> None:
    world = connect()
    world.write(0, b"x" * SECTOR, fua=True)
    answer_all(world)
    world.bring_up()
    world.write(0, b"y" * SECTOR, fua=True)
    assert Opcode.WRITE_DMA_FUA_EXT not in answer_all(world)
    world.target.supports_fua = True
    world.target.feature_sets = FeatureSet.DMA
    world.bring_up()
    world.write(0, b"z" * SECTOR, fua=True)
    assert answer_all(world) == [Opcode.WRITE_DMA_FUA_EXT]


def test_fua_of_several_frames_is_writes_and_one_flush(connect: Connect) -> None:
    world = connect()
    world.target.supports_fua = True
    data = bytes(range(256)) * 20
    world.write(0, data, fua=True)
    frames = world.take()
    assert opcodes(frames) == [Opcode.WRITE_EXT] * 5
    world.respond(*frames[1:])
    assert world.take() == []
    world.respond(frames[0])
    [flush] = world.take()
    assert flush.registers.command == Opcode.FLUSH
    assert world.ended == []
    world.respond(flush)
    assert [bio.error for bio in world.ended] == [None]
    assert world.target.disk[: len(data)] == data


def test_fua_without_lba48_is_a_write_and_a_flush(connect: Connect) -> None:
    world = connect(lba48=False)
    world.target.supports_fua = True
    world.write(0, bytes(SECTOR), fua=True)
    assert answer_all(world) == [Opcode.WRITE, Opcode.FLUSH]


def test_fua_fails_when_its_flush_fails(connect: Connect) -> None:
    world = connect()
    world.write(0, bytes(2048), fua=True)
    world.respond(*world.take())
    [flush] = world.take()
    world.deliver(world.target.report(flush.raw, 0x21, 0x04))
    [bio] = world.ended
    assert "device fault" in str(bio.error)


def test_fua_with_a_failed_write_sends_no_flush(connect: Connect) -> None:
    world = connect()
    world.write(0, bytes(2048), fua=True)
    first, second = world.take()
    world.deliver(world.target.report(first.raw, 0x21, 0x04))
    world.respond(second)
    assert world.take() == []
    assert len(world.ended) == 1


def test_fua_succeeds_with_each_of_its_frames_lost_once(connect: Connect) -> None:
    world = connect()
    world.write(0, b"x" * 2048, fua=True)
    seen = []
    for number in range(20):
        frames = world.take()
        seen += opcodes(frames)
        if number % 2:
            world.respond(*frames)
        world.wait(0.6)
    assert [bio.error for bio in world.ended] == [None]
    assert seen[-1] == Opcode.FLUSH


def test_k37_kernel_mode_ignores_fua(connect: Connect) -> None:
    world = connect(Options.kernel())
    world.target.supports_fua = True
    world.write(0, bytes(SECTOR), fua=True)
    assert answer_all(world) == [Opcode.WRITE_EXT]


def test_fua_fails_with_the_device(connect: Connect) -> None:
    world = connect()
    bio = world.write(0, bytes(2048), fua=True)
    world.respond(*world.take())
    world.driver.fail(world.device, DeviceError("e1.2", "is gone"))
    assert world.ended == [bio]
    assert "is gone" in str(bio.error)


# --- TRIM -----------------------------------------------------------------------------


def trimming(connect: Connect, sectors: int = 512) -> World:
    world = connect(is_up=False)
    world.target.feature_sets = FeatureSet.TRIM
    world.target.disk = bytearray(b"\xee" * SECTOR * sectors)
    world.bring_up()
    return world


def test_a_discard_is_sent_as_trim(connect: Connect) -> None:
    world = trimming(connect)
    world.discard(3, 7)
    [frame] = world.take()
    assert frame.registers.command == Opcode.DATA_SET_MANAGEMENT
    assert frame.registers.feature == 1
    assert AFlag.WRITE & frame.registers.aflags
    assert ranges(frame) == [(3, 7)]
    world.respond(frame)
    assert [bio.error for bio in world.ended] == [None]
    disk = bytes(world.target.disk)
    assert disk.count(0) == 7 * SECTOR
    assert disk[3 * SECTOR : 10 * SECTOR] == bytes(7 * SECTOR)


def test_a_large_discard_is_split_by_ranges_and_frames(
    connect: Connect,
) -> None:
    world = connect(is_up=False)
    world.target.feature_sets = FeatureSet.TRIM
    world.bring_up()
    count = 3 * 64 * LARGEST_RANGE
    world.device.ssize = count + 8
    world.discard(8, count)
    frames = world.take()
    pieces = [each for frame in frames for each in ranges(frame)]
    assert all(frame.registers.count == 1 for frame in frames)
    assert all(length <= LARGEST_RANGE for _, length in pieces)
    assert pieces[0][0] == 8
    ends = [first + length for first, length in pieces]
    assert ends[:-1] == [first for first, _ in pieces[1:]]
    assert ends[-1] == 8 + count
    # Blocks of 4096 bytes are not divided between ranges.
    assert all(end % 8 == 0 for end in ends[:-1])


def test_an_empty_discard_succeeds_without_a_frame(connect: Connect) -> None:
    world = trimming(connect)
    bio = world.discard(3, 0)
    assert world.ended == [bio]
    assert world.take() == []


def test_a_discard_beyond_the_end_fails(connect: Connect) -> None:
    world = trimming(connect, 16)
    bio = world.discard(15, 2)
    assert isinstance(bio.error, UsageError)
    assert world.take() == []


@pytest.mark.parametrize("options", [Options(), Options.kernel()])
def test_k38_a_discard_without_trim_is_unsupported_at_once(
    connect: Connect, options: Options
) -> None:
    world = connect(options)
    if options.tags == "kernel":
        world.target.feature_sets = FeatureSet.TRIM
        world.bring_up()
    bio = world.discard(0, 1)
    assert type(bio.error) is UnsupportedError
    assert world.take() == []


def test_an_aborted_trim_is_unsupported(
    connect: Connect,
) -> None:
    world = trimming(connect)
    bio = world.discard(0, 1)
    [frame] = world.take()
    world.deliver(world.target.report(frame.raw, 0x01, 0x04))
    assert type(bio.error) is UnsupportedError
    assert world.ended == [bio]


def test_a_lost_trim_is_retransmitted_unchanged(connect: Connect) -> None:
    world = trimming(connect)
    world.discard(0, 5)
    [lost] = world.take()
    world.wait(0.5)
    [again] = world.take()
    assert again.raw[ATA_DATA:] == lost.raw[ATA_DATA:]
    assert again.tag != lost.tag
    world.respond(again)
    assert [bio.error for bio in world.ended] == [None]


# --- read-only disks ------------------------------------------------------------------


def test_p40_a_write_to_a_read_only_disk_raises_access_error(connect: Connect) -> None:
    world = connect()
    world.target.read_only = True
    assert world.device.read_only is None
    bio = world.write(0, bytes(SECTOR))
    world.run_until_idle()
    assert isinstance(bio.error, AccessError)
    assert "read-only" in str(bio.error)
    assert world.device.read_only is True


def test_p40_fua_and_trim_to_a_read_only_disk_raise_access_error(
    connect: Connect,
) -> None:
    world = trimming(connect)
    world.target.read_only = True
    written = world.write(0, bytes(SECTOR), fua=True)
    world.run_until_idle()
    trimmed = world.discard(0, 1)
    world.run_until_idle()
    assert isinstance(written.error, AccessError)
    assert isinstance(trimmed.error, AccessError)


def test_p40_reads_do_not_set_read_only(
    connect: Connect,
) -> None:
    world = connect()
    world.target.read_only = True
    world.read(0, bytearray(SECTOR))
    world.run_until_idle()
    assert world.device.read_only is None


def test_p40_a_successful_write_clears_read_only(
    connect: Connect,
) -> None:
    world = connect()
    world.target.read_only = True
    world.write(0, bytes(SECTOR))
    world.run_until_idle()
    world.target.read_only = False
    bio = world.write(0, bytes(SECTOR))
    world.run_until_idle()
    assert bio.error is None
    assert world.device.read_only is False


def test_p48_an_announcement_clears_read_only(connect: Connect) -> None:
    world = connect()
    world.write(0, bytes(SECTOR))
    world.run_until_idle()
    world.target.read_only = True
    world.bring_up()
    bio = world.write(0, bytes(SECTOR))
    world.run_until_idle()
    assert isinstance(bio.error, AccessError)


def test_an_empty_write_is_not_sent_as_discard(connect: Connect) -> None:
    world = connect()
    bio = world.submit(Bio(Op.WRITE, 0, world.ended.append))
    assert world.ended == [bio]
    assert bio.error is None
