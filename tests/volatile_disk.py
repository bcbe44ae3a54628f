"""A disk that simulates power failures."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

SECTOR = 512


class VolatileDisk:
    """A disk that loses a random subset of the sectors that were not flushed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.read_only = False
        self.stable = bytearray(size)
        self.cached = bytearray(size)
        self.pending: list[tuple[int, bytes]] = []
        self.refuses_to_flush = False

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.cached[offset : offset + len(buffer)]

    def write_from(self, offset: int, data: memoryview) -> None:
        assert offset >= 0
        assert offset + len(data) <= self.size
        self.cached[offset : offset + len(data)] = data
        end = offset + len(data)
        while offset < end:
            cut = min(end, offset - offset % SECTOR + SECTOR)
            self.pending.append((offset, bytes(self.cached[offset:cut])))
            offset = cut

    def discard(self, offset: int, length: int) -> None:
        self.write_from(offset, memoryview(bytes(length)))

    def flush(self) -> None:
        if self.refuses_to_flush:
            raise OSError(errno.EIO, "input/output error")
        self.stable[:] = self.cached
        self.pending.clear()

    def lose_power(self, rng: random.Random) -> None:
        for offset, data in self.pending:
            if rng.random() < 0.5:
                self.stable[offset : offset + len(data)] = data
        self.pending.clear()
        self.cached[:] = self.stable

    def find_fault(self) -> str:
        return ""

    def close(self) -> None:
        pass


class WriteThroughDisk(VolatileDisk):
    """The same without a write cache: writes and discards are stable on return."""

    def write_from(self, offset: int, data: memoryview) -> None:
        super().write_from(offset, data)
        self.flush()
