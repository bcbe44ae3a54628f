"""A device in memory whose bios end when, and as, a test says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.ata import SECTOR
from aoe.errors import AoEError, UsageError
from initiator.driver.bio import Bio, Op

if TYPE_CHECKING:
    import random


class BioDisk:
    """Keeps bios until they are told to end; reads and writes happen only then.

    Attributes:
        data: what is on it.
        bios: those that wait, oldest first.
        done: the operations that have ended, with their sectors.
        stable: the bios that were FUA.
        failure: what the next bio fails with.
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
            bio.error = UsageError("platter", "beyond the end of the device")
            bio.end_io(bio)
            return
        self.bios.append(bio)
        if self.at_once:
            self.end()

    def end(self, index: int = 0) -> None:
        """Do what a bio wants, and end it."""
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

    def end_all(self, dice: random.Random | None = None) -> None:
        """End all that wait and all that follow, in any order that the dice say."""
        while self.bios:
            self.end(dice.randrange(len(self.bios)) if dice else 0)
