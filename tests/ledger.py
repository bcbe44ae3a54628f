"""Sectors that say what they are, and the book of what was promised about them.

Each sector that is written holds the number of its write, its own address and a
checksum. So whatever is found on a disk later, the book can tell whether that was
written there at all, whether it is new enough, and whether it is whole.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

SECTOR = 512
MAGIC = b"ledger\x01\n"
ORIGINAL = 0
"""The number of what was there before the first write."""
_HEAD = struct.Struct("<8sQQ")
_CHECKSUM = struct.Struct("<I")
_ZEROS = bytes(SECTOR)


def make_sector(number: int, lba: int) -> bytes:
    """Make the sector that write ``number`` puts at ``lba``."""
    head = _HEAD.pack(MAGIC, number, lba)
    body = (head * (SECTOR // len(head) + 1))[: SECTOR - _CHECKSUM.size]
    return body + _CHECKSUM.pack(crc32(body))


def make_sectors(number: int, lba: int, count: int) -> bytes:
    """Make what a write of several sectors holds."""
    return b"".join(make_sector(number, lba + place) for place in range(count))


def number_in(raw: bytes, lba: int) -> int | None:
    """Return the number of the write that a sector is of; None for all zeros.

    Raises:
        ValueError: it is of another place, or torn, or something else altogether.
    """
    if raw == _ZEROS:
        return None
    magic, number, place = _HEAD.unpack_from(raw)
    if magic != MAGIC or place != lba or raw != make_sector(number, lba):
        raise ValueError("nothing that was ever written there")
    return int(number)


class Request(NamedTuple):
    """A write or trim that has been sent.

    Args:
        number: from 1 on, in the order of sending.
        lba: the first sector.
        sector_count: how many.
        is_trim: it leaves zeros.
    """

    number: int
    lba: int
    sector_count: int
    is_trim: bool

    @property
    def sectors(self) -> range:
        return range(self.lba, self.lba + self.sector_count)


@dataclass(slots=True)
class Ledger:
    """What was sent and answered, of requests of which no two in flight overlap.

    Args:
        is_sync: an answer to a write is the promise that it is stable.
    """

    is_sync: bool = False
    sent: int = 0
    answered: list[Request] = field(default_factory=list)
    promised: int = 0
    """How many of ``answered`` must be stable, from the first on."""
    in_flight: dict[int, Request] = field(default_factory=dict)
    busy: set[int] = field(default_factory=set)
    """Sectors of requests in flight."""

    def is_free(self, lba: int, count: int) -> bool:
        """Tell whether a request may be sent without an older one in its way."""
        return self.busy.isdisjoint(range(lba, lba + count))

    def send(self, lba: int, count: int, *, is_trim: bool = False) -> Request:
        """Enter a request that is about to be sent."""
        self.sent += 1
        request = Request(self.sent, lba, count, is_trim)
        self.in_flight[request.number] = request
        self.busy.update(request.sectors)
        return request

    def answer(self, number: int) -> None:
        """Enter the answer to a request: it has been done."""
        request = self.in_flight.pop(number)
        self.busy.difference_update(request.sectors)
        self.answered.append(request)
        if self.is_sync:
            self.promised = len(self.answered)

    def flushed(self, answered: int) -> None:
        """Enter the answer to a FLUSH that was sent after so many other answers."""
        self.promised = max(self.promised, answered)

    def faults(self, disk: bytes) -> list[str]:
        """Compare a disk with the book, and say of each sector what is wrong with it.

        A program that is killed loses nothing that it has answered, promised or not: it
        has handed that to the system. Of what was in flight all, some or none is there.
        """
        newest: dict[int, Request] = {}
        for request in self.answered:
            newest |= dict.fromkeys(request.sectors, request)
        maybe = {lba: r for r in self.in_flight.values() for lba in r.sectors}
        found = []
        for lba in range(len(disk) // SECTOR):
            raw = disk[lba * SECTOR : (lba + 1) * SECTOR]
            certain = newest.get(lba, Request(ORIGINAL, lba, 1, is_trim=False))
            allowed = [certain, maybe[lba]] if lba in maybe else [certain]
            fault = _fault(raw, lba, allowed)
            if fault:
                found.append(f"sector {lba}: {fault}")
        return found


def _fault(raw: bytes, lba: int, allowed: list[Request]) -> str:
    try:
        number = number_in(raw, lba)
    except ValueError as error:
        return str(error)
    expected = [None if each.is_trim else each.number for each in allowed]
    if number in expected:
        return ""
    wanted = " or ".join(map(_name, expected))
    return f"holds {_name(number)}, not {wanted}"


def _name(number: int | None) -> str:
    return "zeros" if number is None else f"write {number}"
