from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.errors import UsageError
from target.disks.blocks import BlockDisk
from target.disks.memory import MemoryDisk

BLOCK, SIZE = 4096, 32 << 10


class WholeBlocks(MemoryDisk):
    """A disk that accepts only whole blocks."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        assert offset % BLOCK == len(buffer) % BLOCK == 0
        super().read_into(offset, buffer)

    def write_from(self, offset: int, data: memoryview) -> None:
        assert offset % BLOCK == len(data) % BLOCK == 0
        super().write_from(offset, data)

    def discard(self, offset: int, length: int) -> None:
        assert offset % BLOCK == length % BLOCK == 0
        super().discard(offset, length)


SPANS = st.tuples(st.integers(0, SIZE // 512 - 1), st.integers(1, SIZE // 512)).map(
    lambda span: (span[0] * 512, min(span[0] + span[1], SIZE // 512) * 512)
)


@given(st.lists(st.tuples(SPANS, st.sampled_from("rwd")), max_size=8))
def test_read_modify_write_preserves_neighbouring_sectors(
    steps: list[tuple[tuple[int, int], str]],
) -> None:
    model = bytearray(os.urandom(SIZE))
    disk = BlockDisk(WholeBlocks(bytes(model)), BLOCK, "disk")
    for (start, end), step in steps:
        if step == "w":
            model[start:end] = os.urandom(end - start)
            disk.write_from(start, memoryview(model[start:end]))
        elif step == "d":
            model[start:end] = bytes(end - start)
            disk.discard(start, end - start)
        buffer = bytearray(end - start)
        disk.read_into(start, memoryview(buffer))
        assert buffer == model[start:end]
    whole = bytearray(SIZE)
    disk.read_into(0, memoryview(whole))
    assert whole == model
    disk.close()


def test_size_that_is_not_a_multiple_of_the_block_is_refused() -> None:
    disk = MemoryDisk(SIZE + 512)
    with pytest.raises(UsageError) as caught:
        BlockDisk(disk, BLOCK, "disk")
    assert str(caught.value) == (
        "disk: 33,280 bytes is not a multiple of the block size, 4,096. "
        "Make it 36864 bytes"
    )
    disk.close()
