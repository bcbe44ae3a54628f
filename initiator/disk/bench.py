"""Benchmark a disk with a constant number of outstanding operations.

::

    depth operations --> Disk.submit ... end_io --> submit the next one

A latency is the time from ``Disk.submit`` to ``end_io``. If more operations are
outstanding than the driver's window allows, it includes the time in the driver's queue.
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
# Access to a member of an enum is a lookup each time, a global is faster.
_READ: Final = Op.READ


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The parameters of a benchmark.

    Args:
        pattern: one of ``PATTERNS``; ``mix`` is random reads and writes.
        length: bytes per operation.
        offset: start of the region of the disk that is used, in bytes.
        size: bytes of the region, at least ``length``.
        depth: outstanding operations.
        seconds: how long new operations are started.
        read_share: fraction of reads in a ``mix``, 0 to 1.
        seed: for random offsets and operations.
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
        """Whether it overwrites the disk's contents."""
        return self.pattern in ("write", "randwrite", "mix")

    def check(self) -> None:
        """Check lengths and offsets.

        Raises:
            UsageError: not whole sectors, or the region is smaller than an operation.
        """
        if self.length <= 0 or self.length % SECTOR or self.offset % SECTOR:
            raise UsageError("bench", f"not whole sectors of {SECTOR} bytes")
        if self.size < self.length:
            why = f"operations of {self.length} bytes do not fit into {self.size} bytes"
            raise UsageError("bench", why)

    def operations(self) -> Iterator[tuple[Op, int]]:
        """Yield operations and their offsets in bytes, without end."""
        rng = random.Random(self.seed)  # noqa: S311 - offsets, not secrets
        number, slots = 0, self.size // self.length
        in_order = self.pattern in ("read", "write")
        op = Op.WRITE if self.writes else Op.READ
        while True:
            slot = number % slots if in_order else int(rng.random() * slots)
            if self.pattern == "mix":
                reads = rng.random() < self.read_share
                op = Op.READ if reads else Op.WRITE
            yield op, self.offset + slot * self.length
            number += 1


@dataclass(slots=True)
class Result:
    """The result of a benchmark.

    Args:
        load: the parameters.
        seconds: from the first submission to the last completion.
        latencies: latencies in seconds by operation, in the order of completion.
        retransmits: frames retransmitted meanwhile.
    """

    load: Load
    seconds: float = 0.0
    latencies: dict[Op, array[float]] = field(default_factory=dict)
    retransmits: int = 0

    def operations(self, op: Op | None = None) -> int:
        """Return the number of completed operations, of one kind or of all."""
        return sum(
            len(latencies)
            for kind, latencies in self.latencies.items()
            if op in (None, kind)
        )

    def rate(self, op: Op | None = None) -> float:
        """Return operations per second."""
        return self.operations(op) / self.seconds if self.seconds else 0.0


def percentile(ordered: array[float] | list[float], share: float) -> float:
    """Return the smallest value that a share of all values does not exceed.

    The values are in ascending order.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5), percentile([1.0, 2.0, 3.0, 4.0], 0.99)
    (2.0, 4.0)
    """
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * share // 1)
    return ordered[min(len(ordered), max(1, int(rank))) - 1]


def run_bench(
    disk: Disk, load: Load, progress: Callable[[int], None] = lambda _: None
) -> Result:
    """Run a benchmark until all its operations have completed.

    Args:
        disk: the disk.
        load: the parameters.
        progress: called about every 100 ms with the number of bytes moved since.

    Raises:
        UsageError: as ``Load.check``, or the region reaches beyond the disk.
        AoEError: an operation failed; outstanding ones have completed.
    """
    load.check()
    if load.offset + load.size > disk.size:
        why = f"{load.size} bytes at {load.offset} reach beyond its {disk.size} bytes"
        raise UsageError(str(disk.address), why)
    return _Run(disk, load, progress).run()


class _Run:
    """A benchmark in progress: ``depth`` bios, reused for all operations."""

    def __init__(self, disk: Disk, load: Load, progress: Callable[[int], None]) -> None:
        self._disk = disk
        self._load = load
        self._progress = progress
        self._operations = load.operations()
        self._outstanding = 0
        self._error: AoEError | None = None
        self._idle: list[Bio] = []
        self._began: dict[Bio, float] = {}
        self._reported = 0
        self._reads: array[float] = array("d")
        self._writes: array[float] = array("d")
        self.result = Result(
            load, latencies={Op.READ: self._reads, Op.WRITE: self._writes}
        )

    def run(self) -> Result:
        before = self._disk.retransmits
        # Random data, since storage may compress or deduplicate zeroes.
        for _ in range(self._load.depth):
            buffer = bytearray(os.urandom(self._load.length))
            self._idle.append(bio_for(Op.READ, 0, buffer, self._end))
        started = report_at = time.monotonic()
        deadline = started + self._load.seconds
        while (now := time.monotonic()) < deadline and self._error is None:
            while self._idle and self._error is None:
                self._start(self._idle.pop())
            self._disk.host.run_once(max(0.0, min(deadline - now, _REPORT_INTERVAL)))
            if now >= report_at:
                report_at = now + _REPORT_INTERVAL
                self._report()
        self._disk.host.run_until(lambda: not self._outstanding)
        self._report()
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

    def _report(self) -> None:
        done = self.result.operations() * self._load.length
        self._progress(done - self._reported)
        self._reported = done
