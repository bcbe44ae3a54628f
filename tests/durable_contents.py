"""A model of durability: what each response guarantees to be on stable storage.

The contents of a disk are a dictionary of sectors by LBA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from tests.asking import ata

if TYPE_CHECKING:
    from collections.abc import Iterator

    Content: TypeAlias = dict[int, bytes]

SECTOR = 512
WRITE, FUA, TRIM, SET_FEATURES = 0x34, 0x3D, 0x06, 0xEF
FLUSHES = (0xE7, 0xEA)
FLUSHING_OPCODES = (*FLUSHES, 0xE0, 0xE2, 0xE6)
"""FLUSH, STANDBY, SLEEP: all completed writes become stable."""
CACHE_OFF, CACHE_ON = 0x82, 0x02


class Requests:
    """A sequence of requests, with tags from 1 on."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def put(
        self, opcode: int, lba: int = 0, data: bytes = b"", feature: int = 0
    ) -> None:
        """Add an ATA request."""
        tag, count = len(self.frames) + 1, len(data) // SECTOR
        aflags = 0x41 if data else 0x40
        words = {"aflags": aflags, "feature": feature, "tag": tag}
        self.frames.append(ata(opcode, lba, count, data=data, **words))

    def write(self, lba: int, count: int = 1, opcode: int = WRITE) -> None:
        """Add a write of bytes that depend on the request's number."""
        self.put(opcode, lba, bytes([len(self.frames) % 255 + 1]) * SECTOR * count)

    def trim(self, lba: int, count: int) -> None:
        """Add a TRIM of one range."""
        entry = (lba | count << 48).to_bytes(8, "little")
        self.put(TRIM, data=entry.ljust(SECTOR, b"\0"), feature=1)


def changes(request: bytes) -> Content:
    """Return the sectors that a request changes, with their new contents."""
    opcode, data = request[27], request[36:]
    if opcode in (WRITE, FUA):
        lba = int.from_bytes(request[28:34], "little")
        count = len(data) // SECTOR
        return {lba + place: data[place * SECTOR :][:SECTOR] for place in range(count)}
    if opcode == TRIM:
        lba, count = (int.from_bytes(data[a:b], "little") for a, b in ((0, 6), (6, 8)))
        return dict.fromkeys(range(lba, lba + count), bytes(SECTOR))
    return {}


def durable_contents(requests: list[bytes], *, is_sync: bool) -> Iterator[Content]:
    """Yield the contents that must be stable after each response."""
    completed: Content = {}
    stable: Content = {}
    is_cached = not is_sync
    for request in requests:
        opcode, changed = request[27], changes(request)
        if opcode == SET_FEATURES:
            is_cached = request[25] == CACHE_ON and not is_sync
        completed |= changed
        for lba in changed:
            # Old or new contents may be on stable storage now.
            stable.pop(lba, None)
        is_flush = opcode in FLUSHING_OPCODES
        if is_flush or not is_cached:
            stable = dict(completed)
        elif opcode == FUA:
            stable |= changed
        yield dict(stable)


def missing(wanted: Content, disk: bytes) -> list[int]:
    """Return the LBAs of sectors that do not have the wanted contents."""
    return [
        lba
        for lba, data in wanted.items()
        if disk[lba * SECTOR : (lba + 1) * SECTOR] != data
    ]
