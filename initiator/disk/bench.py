"""How fast a disk is: operations of one kind kept in flight for some time.

::

    depth operations --> Disk.submit ... end_io --> the next in its place

A latency is the time from ``Disk.submit`` to ``end_io``: with more in flight than the
driver's window, it includes the wait for one's turn.
"""

from __future__ import annotations

import os
import random
import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from aoe.ata import SECTOR
from aoe.errors import UsageError
from initiator.driver.bio import Op, bio_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe.errors import AoEError
    from initiator.disk.disk import Disk
    from initiator.driver.bio import Bio

    Pattern = Literal["read", "write", "randread", "randwrite", "mix"]

PATTERNS: Final = ("read", "write", "randread", "randwrite", "mix")
_REPORT_INTERVAL: Final = 0.1
# Members of an enum take a search each time they are named or hashed.
_READ: Final = Op.READ


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of the disk.

    Args:
        pattern: one of ``PATTERNS``; ``mix`` reads and writes at random places.
        length: bytes of one operation.
        offset: where the part of the disk begins that is used, in bytes.
        size: bytes of that part, at least ``length``.
        depth: operations in flight.
        seconds: for how long new ones begin.
        read_share: how many operations of a ``mix`` read, 0 to 1.
        seed: of all that is random about places and kinds.
    """

    pattern: Pattern = "randread"
    length: int = 4096
    offset: int = 0
    size: int = 1 << 30
    depth: int = 32
    seconds: float = 10.0
    read_share: float = 0.7
    seed: int = 0

    @property
    def writes(self) -> bool:
        """Some of it overwrites what is on the disk."""
        return self.pattern in ("write", "randwrite", "mix")

    def check(self) -> None:
        """Make sure that it can be done.

        Raises:
            UsageError: not whole sectors, or more than there is room for.
        """
        if self.length <= 0 or self.length % SECTOR or self.offset % SECTOR:
            raise UsageError("bench", f"not whole sectors of {SECTOR} bytes")
        if self.size < self.length:
            why = f"{self.size} bytes have no room for operations of {self.length}"
            raise UsageError("bench", why)

    def operations(self) -> Iterator[tuple[Op, int]]:
        """Yield kinds and places, in bytes, without end."""
        chance = random.Random(self.seed)  # noqa: S311 - places, not secrets
        number, slots = 0, self.size // self.length
        in_order = self.pattern in ("read", "write")
        op = Op.WRITE if self.writes else Op.READ
        while True:
            slot = number % slots if in_order else int(chance.random() * slots)
            if self.pattern == "mix":
                reads = chance.random() < self.read_share
                op = Op.READ if reads else Op.WRITE
            yield op, self.offset + slot * self.length
            number += 1


@dataclass(slots=True)
class Result:
    """What came of it.

    Args:
        load: what was asked.
        seconds: from the first submission to the last end.
        latencies: seconds of each operation, by kind, in the order of their ends.
        retransmits: frames that were sent again meanwhile.
    """

    load: Load
    seconds: float = 0.0
    latencies: dict[Op, array[float]] = field(default_factory=dict)
    retransmits: int = 0

    def operations(self, op: Op | None = None) -> int:
        """Count those that ended, of one kind or of all."""
        return sum(
            len(latencies)
            for kind, latencies in self.latencies.items()
            if op in (None, kind)
        )

    def rate(self, op: Op | None = None) -> float:
        """Return operations a second."""
        return self.operations(op) / self.seconds if self.seconds else 0.0


def percentile(ordered: array[float] | list[float], share: float) -> float:
    """Return what a share of the values, in ascending order, does not exceed.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5), percentile([1.0, 2.0, 3.0, 4.0], 0.99)
    (2.0, 4.0)
    """
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * share // 1)
    return ordered[min(len(ordered), max(1, int(rank))) - 1]


def run_bench(
    disk: Disk, load: Load, advance: Callable[[int], None] = lambda _: None
) -> Result:
    """Put a load on a disk, and wait for the end of all of it.

    Args:
        disk: where.
        load: what; ``Load.check`` is done here.
        advance: is told now and then how many bytes more were moved.

    Raises:
        UsageError: as ``Load.check``, or it reaches beyond the disk.
        AoEError: an operation failed; those in flight were waited for.
    """
    load.check()
    if load.offset + load.size > disk.size:
        why = f"{load.size} bytes at {load.offset} reach beyond its {disk.size} bytes"
        raise UsageError(str(disk.address), why)
    return _Run(disk, load, advance).run()


class _Run:
    """One run: as many bios as may be in flight, used again and again."""

    def __init__(self, disk: Disk, load: Load, advance: Callable[[int], None]) -> None:
        self._disk = disk
        self._load = load
        self._advance = advance
        self._operations = load.operations()
        self._outstanding = 0
        self._error: AoEError | None = None
        self._idle: list[Bio] = []
        self._began: dict[Bio, float] = {}
        self._told = 0
        self._reads: array[float] = array("d")
        self._writes: array[float] = array("d")
        self.result = Result(
            load, latencies={Op.READ: self._reads, Op.WRITE: self._writes}
        )

    def run(self) -> Result:
        before = self._disk.retransmits
        # A target may keep zeroes in less room, and random bytes not.
        for _ in range(self._load.depth):
            buffer = bytearray(os.urandom(self._load.length))
            self._idle.append(bio_for(Op.READ, 0, buffer, self._end))
        started = tell_at = time.monotonic()
        deadline = started + self._load.seconds
        while (now := time.monotonic()) < deadline and self._error is None:
            while self._idle and self._error is None:
                self._start(self._idle.pop())
            self._disk.host.run_once(max(0.0, min(deadline - now, _REPORT_INTERVAL)))
            if now >= tell_at:
                tell_at = now + _REPORT_INTERVAL
                self._tell()
        self._disk.host.run_until(lambda: not self._outstanding)
        self._tell()
        if self._error is not None:
            raise self._error
        self.result.seconds = time.monotonic() - started
        self.result.retransmits = self._disk.retransmits - before
        return self.result

    def _start(self, bio: Bio) -> None:
        bio.op, offset = next(self._operations)
        bio.sector = offset // SECTOR
        self._began[bio] = time.monotonic()
        self._outstanding += 1
        self._disk.submit_bio(bio)

    def _end(self, bio: Bio) -> None:
        self._outstanding -= 1
        latencies = self._reads if bio.op is _READ else self._writes
        latencies.append(time.monotonic() - self._began[bio])
        self._idle.append(bio)
        if bio.error is not None and self._error is None:
            self._error = bio.error

    def _tell(self) -> None:
        done = self.result.operations() * self._load.length
        self._advance(done - self._told)
        self._told = done
