"""A block device in memory whose bios are completed by the test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.ata import SECTOR
from aoe.errors import AoEError, UsageError
from initiator.driver.bio import Bio, Op

if TYPE_CHECKING:
    import random


class BioDisk:
    """A device that queues bios; data is transferred when a bio is completed.

    Attributes:
        data: the contents.
        bios: the queued bios, oldest first.
        done: the completed operations, with LBA and sector count.
        stable: the number of completed FUA bios.
        failure: the error of the next bio.
    """

    def __init__(self, sectors: int, *, at_once: bool = False) -> None:
        self.data = bytearray(sectors * SECTOR)
        self.bios: list[Bio] = []
        self.done: list[tuple[Op, int, int]] = []
        self.stable = 0
        self.failure: AoEError | None = None
        self.at_once = at_once

    def submit(self, bio: Bio) -> None:
        assert bio.size % SECTOR == 0
        if bio.sector * SECTOR + bio.size > len(self.data):
            bio.error = UsageError("disk", "beyond the end of the device")
            bio.end_io(bio)
            return
        self.bios.append(bio)
        if self.at_once:
            self.end()

    def end(self, index: int = 0) -> None:
        """Execute a bio, and complete it."""
        bio = self.bios.pop(index)
        self.stable += bio.fua
        self.done.append((bio.op, bio.sector, bio.size // SECTOR))
        bio.error, self.failure = self.failure, None
        at = bio.sector * SECTOR
        for page, offset, length in bio.vecs if bio.error is None else ():
            if bio.op is Op.READ:
                page.data[offset : offset + length] = self.data[at : at + length]
            else:
                self.data[at : at + length] = page.data[offset : offset + length]
            at += length
        if bio.op is Op.DISCARD and bio.error is None:
            self.data[at : at + bio.size] = b"\xdb" * bio.size
        bio.end_io(bio)

    def end_all(self, rng: random.Random | None = None) -> None:
        """Complete all bios, also new ones, in random order if ``rng`` is given."""
        while self.bios:
            self.end(rng.randrange(len(self.bios)) if rng else 0)
