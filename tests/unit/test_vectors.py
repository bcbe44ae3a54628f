"""Reads and writes at any byte: nothing beside them changes, whatever runs at once."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from aoe.ata import SECTOR
from aoe.errors import DeviceError
from initiator.disk.read_modify_write import ReadModifyWriteView
from initiator.driver.bio import Bio, Op

if TYPE_CHECKING:
    from aoe.errors import AoEError

SIZE = 8 * SECTOR


class LazyDisk:
    """Keeps bios and carries them out when it is told to, in any order."""

    def __init__(self) -> None:
        self.data = bytearray(random.Random(1).randbytes(SIZE))
        self.bios: list[Bio] = []
        self.errors: list[AoEError | None] = []
        self.error: AoEError | None = None
        self.view = ReadModifyWriteView(self.bios.append)

    def carry_out(self, number: int = 0) -> None:
        bio = self.bios.pop(number)
        bio.error = self.error
        at = bio.sector * SECTOR
        assert bio.size % SECTOR == 0
        for page, offset, length in bio.vecs:
            memory = page.data[offset : offset + length]
            if bio.op is Op.READ:
                memory[:] = self.data[at : at + length]
            else:
                self.data[at : at + length] = memory
            at += length
        bio.end_io(bio)

    def settle(self) -> None:
        while self.bios:
            self.carry_out()

    def write(self, offset: int, *pieces: bytes) -> None:
        self.view.writev(offset, pieces, self.errors.append)


@given(
    offset=st.integers(0, SIZE),
    cuts=st.lists(st.integers(0, 900), max_size=5),
)
def test_any_bytes_are_written_and_read_back_and_no_others(
    offset: int, cuts: list[int]
) -> None:
    disk = LazyDisk()
    length = min(sum(cuts), SIZE - offset)
    before = bytes(disk.data)
    data = random.Random(2).randbytes(length)
    bounds = [min(sum(cuts[:n]), length) for n in range(len(cuts) + 1)]
    pieces = [data[a:b] for a, b in pairwise(bounds)]
    disk.write(offset, *pieces)
    disk.settle()
    assert disk.data == before[:offset] + data + before[offset + length :]
    buffers = [bytearray(len(piece)) for piece in pieces]
    disk.view.readv(offset, buffers, disk.errors.append)
    disk.settle()
    assert buffers == pieces
    assert disk.errors == [None, None]


@given(
    writes=st.lists(
        st.tuples(st.integers(0, SIZE // 40 - 1), st.integers(1, 40)), max_size=12
    ),
    luck=st.randoms(use_true_random=False),
)
def test_writes_at_once_undo_nothing_of_each_other(
    writes: list[tuple[int, int]], luck: random.Random
) -> None:
    """They lie apart by bytes, and many in one sector."""
    disk = LazyDisk()
    expected = bytearray(disk.data)
    places = dict(writes)
    for place, length in places.items():
        data = luck.randbytes(length)
        expected[40 * place : 40 * place + length] = data
        disk.write(40 * place, data)
    while disk.bios:
        disk.carry_out(luck.randrange(len(disk.bios)))
    assert len(disk.errors) == len(places)
    assert disk.data == expected


def test_whole_sectors_are_not_read_first() -> None:
    disk = LazyDisk()
    disk.write(SECTOR, bytes(2 * SECTOR))
    assert [bio.op for bio in disk.bios] == [Op.WRITE]


def test_a_write_fails_when_what_it_keeps_cannot_be_read() -> None:
    disk = LazyDisk()
    before = bytes(disk.data)
    disk.write(100, b"x" * SECTOR)
    disk.write(100, b"y")
    disk.error = DeviceError("e1.2", "is broken")
    disk.carry_out()
    disk.carry_out()
    assert disk.errors == [disk.error]
    assert disk.data == before
    disk.error = None
    disk.settle()
    assert disk.data[100] == ord("y")
    assert disk.errors[1] is None
