"""Bytes over sectors: nothing beside them changes, and nobody's write is undone."""

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


def filled(*, at_once: bool = False) -> BioDisk:
    platter = BioDisk(SECTORS, at_once=at_once)
    platter.data[:] = random.Random(0).randbytes(SIZE)
    return platter


def ending() -> tuple[list[AoEError | None], Callable[[AoEError | None], None]]:
    ends: list[AoEError | None] = []
    return ends, ends.append


windows = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted)


@given(window=windows, at_once=st.booleans())
def test_a_read_of_any_window_is_one_bio(*, window: list[int], at_once: bool) -> None:
    start, end = window
    platter = filled(at_once=at_once)
    buffer = bytearray(end - start)
    ends, done = ending()
    ReadModifyWriteView(platter.submit).read(start, buffer, done)
    platter.end_all()
    assert ends == [None]
    assert buffer == platter.data[start:end]
    assert len(platter.done) == 1


@given(window=windows, at_once=st.booleans())
def test_a_write_of_any_window_changes_nothing_else(
    *, window: list[int], at_once: bool
) -> None:
    start, end = window
    platter = filled(at_once=at_once)
    wanted = bytearray(platter.data)
    data = random.Random(1).randbytes(end - start)
    wanted[start:end] = data
    ends, done = ending()
    ReadModifyWriteView(platter.submit).write(start, data, done)
    platter.end_all()
    assert ends == [None]
    assert platter.data == wanted
    partial = {sector for sector in (start, end) if sector % 512 and start < end}
    reads = [each for each in platter.done if each[0] is Op.READ]
    assert len(reads) == len({at // 512 for at in partial})


@given(
    st.lists(st.integers(0, SIZE), min_size=2, max_size=40, unique=True).map(sorted),
    st.randoms(use_true_random=False),
)
def test_writes_beside_each_other_all_land(
    borders: list[int], dice: random.Random
) -> None:
    """They share sectors but no bytes, and run at the same time, in any order."""
    platter = filled()
    view = ReadModifyWriteView(platter.submit)
    wanted = bytearray(platter.data)
    pieces = list(pairwise(borders))
    dice.shuffle(pieces)
    ends, done = ending()
    for start, end in pieces:
        data = dice.randbytes(end - start)
        wanted[start:end] = data
        view.write(start, data, done)
    platter.end_all(dice)
    assert ends == [None] * len(pieces)
    assert platter.data == wanted


def test_a_whole_sector_waits_for_the_one_who_patches_it() -> None:
    platter = filled()
    view = ReadModifyWriteView(platter.submit)
    ends, done = ending()
    view.write(510, b"four", done)
    view.write(0, b"x" * 512, done)
    view.write(1024, b"y" * 512, done)
    assert [(bio.op, bio.sector) for bio in platter.bios] == [
        (Op.READ, 0),
        (Op.READ, 1),
        (Op.WRITE, 2),
    ]
    platter.end_all()
    assert ends == [None] * 3
    assert platter.data[:514] == b"x" * 512 + b"ur"


def test_who_patches_waits_for_whole_sectors_on_their_way() -> None:
    platter = filled()
    view = ReadModifyWriteView(platter.submit)
    ends, done = ending()
    view.write(0, b"x" * 512, done)
    view.write(1, b"abc", done)
    view.write(0, b"z", done)
    assert len(platter.bios) == 1
    platter.end_all()
    assert ends == [None] * 3
    assert platter.data[:512] == b"zabc" + b"x" * 508


def test_a_sector_that_cannot_be_read_is_not_written() -> None:
    platter = filled()
    before = bytes(platter.data)
    view = ReadModifyWriteView(platter.submit)
    ends, done = ending()
    view.write(510, b"four", done)
    view.write(500, b"waits", done)
    platter.failure = failure = DeviceError("e7.3", "no such sector")
    platter.end()
    assert ends == []
    platter.end()
    assert ends == [failure]
    platter.end_all()
    assert ends == [failure, None]
    assert platter.data[:512] == before[:500] + b"waits" + before[505:512]


def test_many_who_wait_all_fail_and_none_is_forgotten() -> None:
    def refuse(bio: Bio) -> None:
        bio.error = DeviceError("e7.3", "device is not up")
        bio.end_io(bio)

    kept: list[Bio] = []
    view = ReadModifyWriteView(kept.append)
    ends, done = ending()
    for _ in range(2000):
        view.write(1, b"x", done)
    view.submit = refuse
    kept[0].error = DeviceError("e7.3", "device is not up")
    kept[0].end_io(kept[0])
    assert len(ends) == 2000
    assert all(isinstance(error, DeviceError) for error in ends)


@pytest.mark.parametrize("at_once", [True, False])
def test_zeroes_are_written_in_pieces(*, at_once: bool) -> None:
    platter = BioDisk(3 << 11, at_once=at_once)
    platter.data[:] = b"\xff" * len(platter.data)
    ends, done = ending()
    view = ReadModifyWriteView(platter.submit)
    view.write_zeroes(700, 5 << 19, done, fua=True)
    view.write_zeroes(3 << 20, 0, done)
    platter.end_all()
    assert ends == [None, None]
    assert platter.data.count(0) == 5 << 19
    assert not any(platter.data[700 : 700 + (5 << 19)])
    assert max(sectors for _, _, sectors in platter.done) == 1 << 11


def test_zeroes_end_with_the_first_piece_that_fails() -> None:
    platter = BioDisk(3 << 11)
    ends, done = ending()
    ReadModifyWriteView(platter.submit).write_zeroes(0, 3 << 20, done)
    platter.failure = failure = DeviceError("e7.3", "no")
    platter.end_all()
    assert ends == [failure]
    assert len(platter.done) == 1


def test_a_stable_write_is_one_whatever_its_ends() -> None:
    platter = filled(at_once=True)
    ends, done = ending()
    view = ReadModifyWriteView(platter.submit)
    view.write(512, b"x" * 512, done, fua=True)
    view.write(3, b"x", done, fua=True)
    assert platter.stable == 2
    view.write(3, b"x", done)
    assert platter.stable == 2
    assert ends == [None] * 3


@given(windows)
def test_whole_sectors_are_trimmed_and_nothing_else(window: list[int]) -> None:
    start, end = window
    platter = filled(at_once=True)
    wanted = bytearray(platter.data)
    inner = slice(-(-start // 512) * 512, end // 512 * 512)
    wanted[inner] = b"\xdb" * len(wanted[inner])
    ends, done = ending()
    ReadModifyWriteView(platter.submit).trim(start, end - start, done)
    assert ends == [None]
    assert platter.data == wanted


@given(window=windows, at_once=st.booleans())
def test_holes_are_trimmed_and_what_is_around_them_zeroed(
    *, window: list[int], at_once: bool
) -> None:
    start, end = window
    platter = filled(at_once=at_once)
    wanted = bytearray(platter.data)
    wanted[start:end] = bytes(end - start)
    inner = slice(-(-start // 512) * 512, end // 512 * 512)
    wanted[inner] = b"\xdb" * len(wanted[inner])
    ends, done = ending()
    ReadModifyWriteView(platter.submit).punch(start, end - start, done, fua=True)
    platter.end_all()
    assert ends == [None]
    assert platter.data == wanted
    trimmed = inner.start < inner.stop
    assert not trimmed or platter.done[-1][0] is Op.FLUSH


def test_a_hole_that_fails_is_told_once() -> None:
    platter = filled()
    ends, done = ending()
    ReadModifyWriteView(platter.submit).punch(500, 1024, done, fua=True)
    platter.failure = failure = DeviceError("e7.3", "no such sector")
    platter.end_all()
    assert ends == [failure]
    assert Op.FLUSH not in {operation for operation, _, _ in platter.done}


def test_a_trim_and_a_write_of_the_same_keep_their_order() -> None:
    platter = filled()
    view = ReadModifyWriteView(platter.submit)
    ends, done = ending()
    view.trim(0, 1024, done)
    view.write(512, b"x" * 512, done)
    assert len(platter.bios) == 1
    platter.end_all()
    assert ends == [None] * 2
    assert platter.data[:1024] == b"\xdb" * 512 + b"x" * 512
