"""Vectored I/O at any byte offset, by read-modify-write with range locks."""

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


class DeferredDisk:
    """A disk that queues bios; the test completes them in any order."""

    def __init__(self) -> None:
        self.data = bytearray(random.Random(1).randbytes(SIZE))
        self.bios: list[Bio] = []
        self.errors: list[AoEError | None] = []
        self.error: AoEError | None = None
        self.view = ReadModifyWriteView(self.bios.append)

    def complete(self, number: int = 0) -> None:
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

    def complete_all(self) -> None:
        while self.bios:
            self.complete()

    def write(self, offset: int, *pieces: bytes) -> None:
        self.view.writev(offset, pieces, self.errors.append)


@given(
    offset=st.integers(0, SIZE),
    cuts=st.lists(st.integers(0, 900), max_size=5),
)
def test_writev_changes_only_its_range_and_readv_returns_it(
    offset: int, cuts: list[int]
) -> None:
    disk = DeferredDisk()
    length = min(sum(cuts), SIZE - offset)
    before = bytes(disk.data)
    data = random.Random(2).randbytes(length)
    bounds = [min(sum(cuts[:n]), length) for n in range(len(cuts) + 1)]
    pieces = [data[a:b] for a, b in pairwise(bounds)]
    disk.write(offset, *pieces)
    disk.complete_all()
    assert disk.data == before[:offset] + data + before[offset + length :]
    buffers = [bytearray(len(piece)) for piece in pieces]
    disk.view.readv(offset, buffers, disk.errors.append)
    disk.complete_all()
    assert buffers == pieces
    assert disk.errors == [None, None]


@given(
    writes=st.lists(
        st.tuples(st.integers(0, SIZE // 40 - 1), st.integers(1, 40)), max_size=12
    ),
    rng=st.randoms(use_true_random=False),
)
def test_concurrent_writes_to_one_sector_do_not_lose_updates(
    writes: list[tuple[int, int]], rng: random.Random
) -> None:
    """The writes do not overlap, but many of them share a sector."""
    disk = DeferredDisk()
    expected = bytearray(disk.data)
    by_place = dict(writes)
    for place, length in by_place.items():
        data = rng.randbytes(length)
        expected[40 * place : 40 * place + length] = data
        disk.write(40 * place, data)
    while disk.bios:
        disk.complete(rng.randrange(len(disk.bios)))
    assert len(disk.errors) == len(by_place)
    assert disk.data == expected


def test_aligned_writes_do_not_read_first() -> None:
    disk = DeferredDisk()
    disk.write(SECTOR, bytes(2 * SECTOR))
    assert [bio.op for bio in disk.bios] == [Op.WRITE]


def test_a_write_fails_if_its_read_fails() -> None:
    disk = DeferredDisk()
    before = bytes(disk.data)
    disk.write(100, b"x" * SECTOR)
    disk.write(100, b"y")
    disk.error = DeviceError("e1.2", "is broken")
    disk.complete()
    disk.complete()
    assert disk.errors == [disk.error]
    assert disk.data == before
    disk.error = None
    disk.complete_all()
    assert disk.data[100] == ord("y")
    assert disk.errors[1] is None
