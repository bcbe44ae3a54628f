"""Read-modify-write: adjacent bytes do not change, and no write is lost."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.errors import AoEError, DeviceError
from initiator.disk.read_modify_write import ReadModifyWriteView
from initiator.driver.bio import Bio, Op
from tests.bio_disk import BioDisk

if TYPE_CHECKING:
    from collections.abc import Callable

SECTORS = 8
SIZE = SECTORS * 512


def filled_disk(*, at_once: bool = False) -> BioDisk:
    disk = BioDisk(SECTORS, at_once=at_once)
    disk.data[:] = random.Random(0).randbytes(SIZE)
    return disk


def make_done() -> tuple[list[AoEError | None], Callable[[AoEError | None], None]]:
    errors: list[AoEError | None] = []
    return errors, errors.append


ranges = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted)


@given(bounds=ranges, at_once=st.booleans())
def test_a_read_of_any_range_is_one_bio(*, bounds: list[int], at_once: bool) -> None:
    start, end = bounds
    disk = filled_disk(at_once=at_once)
    buffer = bytearray(end - start)
    errors, done = make_done()
    ReadModifyWriteView(disk.submit).read(start, buffer, done)
    disk.end_all()
    assert errors == [None]
    assert buffer == disk.data[start:end]
    assert len(disk.done) == 1


@given(bounds=ranges, at_once=st.booleans())
def test_a_write_of_any_range_changes_nothing_else(
    *, bounds: list[int], at_once: bool
) -> None:
    start, end = bounds
    disk = filled_disk(at_once=at_once)
    expected = bytearray(disk.data)
    data = random.Random(1).randbytes(end - start)
    expected[start:end] = data
    errors, done = make_done()
    ReadModifyWriteView(disk.submit).write(start, data, done)
    disk.end_all()
    assert errors == [None]
    assert disk.data == expected
    partial = {sector for sector in (start, end) if sector % 512 and start < end}
    reads = [each for each in disk.done if each[0] is Op.READ]
    assert len(reads) == len({at // 512 for at in partial})


@given(
    st.lists(st.integers(0, SIZE), min_size=2, max_size=40, unique=True).map(sorted),
    st.randoms(use_true_random=False),
)
def test_adjacent_writes_are_all_kept(
    boundaries: list[int], rng: random.Random
) -> None:
    """They share sectors but no bytes, and are outstanding together in any order."""
    disk = filled_disk()
    view = ReadModifyWriteView(disk.submit)
    expected = bytearray(disk.data)
    pieces = list(pairwise(boundaries))
    rng.shuffle(pieces)
    errors, done = make_done()
    for start, end in pieces:
        data = rng.randbytes(end - start)
        expected[start:end] = data
        view.write(start, data, done)
    disk.end_all(rng)
    assert errors == [None] * len(pieces)
    assert disk.data == expected


def test_a_whole_sector_write_is_queued_behind_a_partial_write() -> None:
    disk = filled_disk()
    view = ReadModifyWriteView(disk.submit)
    errors, done = make_done()
    view.write(510, b"four", done)
    view.write(0, b"x" * 512, done)
    view.write(1024, b"y" * 512, done)
    assert [(bio.op, bio.sector) for bio in disk.bios] == [
        (Op.READ, 0),
        (Op.READ, 1),
        (Op.WRITE, 2),
    ]
    disk.end_all()
    assert errors == [None] * 3
    assert disk.data[:514] == b"x" * 512 + b"ur"


def test_a_partial_write_is_queued_behind_whole_sector_writes() -> None:
    disk = filled_disk()
    view = ReadModifyWriteView(disk.submit)
    errors, done = make_done()
    view.write(0, b"x" * 512, done)
    view.write(1, b"abc", done)
    view.write(0, b"z", done)
    assert len(disk.bios) == 1
    disk.end_all()
    assert errors == [None] * 3
    assert disk.data[:512] == b"zabc" + b"x" * 508


def test_a_failed_read_fails_the_write_and_releases_the_lock() -> None:
    disk = filled_disk()
    before = bytes(disk.data)
    view = ReadModifyWriteView(disk.submit)
    errors, done = make_done()
    view.write(510, b"four", done)
    view.write(500, b"waits", done)
    disk.failure = failure = DeviceError("e7.3", "no such sector")
    disk.end()
    assert errors == []
    disk.end()
    assert errors == [failure]
    disk.end_all()
    assert errors == [failure, None]
    assert disk.data[:512] == before[:500] + b"waits" + before[505:512]


def test_2000_queued_writes_fail_without_recursion() -> None:
    def fail(bio: Bio) -> None:
        bio.error = DeviceError("e7.3", "device is not up")
        bio.end_io(bio)

    pending: list[Bio] = []
    view = ReadModifyWriteView(pending.append)
    errors, done = make_done()
    for _ in range(2000):
        view.write(1, b"x", done)
    view.submit = fail
    pending[0].error = DeviceError("e7.3", "device is not up")
    pending[0].end_io(pending[0])
    assert len(errors) == 2000
    assert all(isinstance(error, DeviceError) for error in errors)


@pytest.mark.parametrize("at_once", [True, False])
def test_zeroes_are_written_in_pieces(*, at_once: bool) -> None:
    disk = BioDisk(3 << 11, at_once=at_once)
    disk.data[:] = b"\xff" * len(disk.data)
    errors, done = make_done()
    view = ReadModifyWriteView(disk.submit)
    view.write_zeroes(700, 5 << 19, done, fua=True)
    view.write_zeroes(3 << 20, 0, done)
    disk.end_all()
    assert errors == [None, None]
    assert disk.data.count(0) == 5 << 19
    assert not any(disk.data[700 : 700 + (5 << 19)])
    assert max(sectors for _, _, sectors in disk.done) == 1 << 11


def test_zeroing_stops_at_the_first_failed_piece() -> None:
    disk = BioDisk(3 << 11)
    errors, done = make_done()
    ReadModifyWriteView(disk.submit).write_zeroes(0, 3 << 20, done)
    disk.failure = failure = DeviceError("e7.3", "no")
    disk.end_all()
    assert errors == [failure]
    assert len(disk.done) == 1


def test_fua_applies_to_whole_and_partial_sectors() -> None:
    disk = filled_disk(at_once=True)
    errors, done = make_done()
    view = ReadModifyWriteView(disk.submit)
    view.write(512, b"x" * 512, done, fua=True)
    view.write(3, b"x", done, fua=True)
    assert disk.stable == 2
    view.write(3, b"x", done)
    assert disk.stable == 2
    assert errors == [None] * 3


@given(ranges)
def test_trim_discards_only_whole_sectors(bounds: list[int]) -> None:
    start, end = bounds
    disk = filled_disk(at_once=True)
    expected = bytearray(disk.data)
    inner = slice(-(-start // 512) * 512, end // 512 * 512)
    expected[inner] = b"\xdb" * len(expected[inner])
    errors, done = make_done()
    ReadModifyWriteView(disk.submit).trim(start, end - start, done)
    assert errors == [None]
    assert disk.data == expected


@given(bounds=ranges, at_once=st.booleans())
def test_punch_trims_whole_sectors_and_zeroes_the_rest(
    *, bounds: list[int], at_once: bool
) -> None:
    start, end = bounds
    disk = filled_disk(at_once=at_once)
    expected = bytearray(disk.data)
    expected[start:end] = bytes(end - start)
    inner = slice(-(-start // 512) * 512, end // 512 * 512)
    expected[inner] = b"\xdb" * len(expected[inner])
    errors, done = make_done()
    ReadModifyWriteView(disk.submit).punch(start, end - start, done, fua=True)
    disk.end_all()
    assert errors == [None]
    assert disk.data == expected
    trimmed = inner.start < inner.stop
    assert not trimmed or disk.done[-1][0] is Op.FLUSH


def test_a_failed_punch_reports_one_error() -> None:
    disk = filled_disk()
    errors, done = make_done()
    ReadModifyWriteView(disk.submit).punch(500, 1024, done, fua=True)
    disk.failure = failure = DeviceError("e7.3", "no such sector")
    disk.end_all()
    assert errors == [failure]
    assert Op.FLUSH not in {operation for operation, _, _ in disk.done}


def test_a_write_is_queued_behind_an_overlapping_trim() -> None:
    disk = filled_disk()
    view = ReadModifyWriteView(disk.submit)
    errors, done = make_done()
    view.trim(0, 1024, done)
    view.write(512, b"x" * 512, done)
    assert len(disk.bios) == 1
    disk.end_all()
    assert errors == [None] * 2
    assert disk.data[:1024] == b"\xdb" * 512 + b"x" * 512
