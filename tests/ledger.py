"""A record of writes to a disk, and sectors that identify the write they are from.

Each sector contains the number of its write, its LBA and a checksum. The contents of a
disk can later be compared with the record: whether each sector was written there, is
recent enough, and is not torn.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

SECTOR = 512
MAGIC = b"ledger\x01\n"
ORIGINAL = 0
"""The number of the contents before the first write."""
_HEAD = struct.Struct("<8sQQ")
_CHECKSUM = struct.Struct("<I")
_ZEROS = bytes(SECTOR)


def make_sector(number: int, lba: int) -> bytes:
    """Return the sector that write ``number`` writes at ``lba``."""
    head = _HEAD.pack(MAGIC, number, lba)
    body = (head * (SECTOR // len(head) + 1))[: SECTOR - _CHECKSUM.size]
    return body + _CHECKSUM.pack(crc32(body))


def make_sectors(number: int, lba: int, count: int) -> bytes:
    """Return the data of a write of several sectors."""
    return b"".join(make_sector(number, lba + place) for place in range(count))


def number_in(raw: bytes, lba: int) -> int | None:
    """Return the number of the write that a sector is from; None if it is all zeroes.

    Raises:
        ValueError: the sector is from another LBA, torn, or not from a write.
    """
    if raw == _ZEROS:
        return None
    magic, number, place = _HEAD.unpack_from(raw)
    if magic != MAGIC or place != lba or raw != make_sector(number, lba):
        raise ValueError("not from a write to this sector")
    return int(number)


class Request(NamedTuple):
    """A write or trim that has been sent.

    Args:
        number: from 1, in the order of sending.
        lba: the first sector.
        sector_count: number of sectors.
        is_trim: a trim, after which sectors are zero.
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
    """A record of requests sent and answered; no two in flight overlap.

    Args:
        is_sync: an answered write is on stable storage.
    """

    is_sync: bool = False
    sent: int = 0
    answered: list[Request] = field(default_factory=list)
    promised: int = 0
    """How many of ``answered`` must be on stable storage, from the first."""
    in_flight: dict[int, Request] = field(default_factory=dict)
    busy: set[int] = field(default_factory=set)
    """Sectors of requests in flight."""

    def is_free(self, lba: int, count: int) -> bool:
        """Return True if a request would overlap none in flight."""
        return self.busy.isdisjoint(range(lba, lba + count))

    def send(self, lba: int, count: int, *, is_trim: bool = False) -> Request:
        """Record a request that is about to be sent."""
        self.sent += 1
        request = Request(self.sent, lba, count, is_trim)
        self.in_flight[request.number] = request
        self.busy.update(request.sectors)
        return request

    def answer(self, number: int) -> None:
        """Record the response to a request."""
        request = self.in_flight.pop(number)
        self.busy.difference_update(request.sectors)
        self.answered.append(request)
        if self.is_sync:
            self.promised = len(self.answered)

    def flushed(self, answered: int) -> None:
        """Record the response to a FLUSH that was sent after ``answered`` responses."""
        self.promised = max(self.promised, answered)

    def faults(self, disk: bytes) -> list[str]:
        """Compare a disk with the record; describe each wrong sector.

        A target that is killed must not lose requests that it has answered, flushed or
        not, since their data is in the page cache. Of a request in flight all, some or
        no sectors may have been written.
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
    allowed_names = " or ".join(map(_name, expected))
    return f"holds {_name(number)}, not {allowed_names}"


def _name(number: int | None) -> str:
    return "zeros" if number is None else f"write {number}"
