"""A record of writes and flushes across crashes of the target's host.

A flush that was answered with success covers every write that was answered before it
was sent, unless an earlier flush has failed: what had been answered before that may be
lost, and the client was told so.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from tests.ledger import ORIGINAL, SECTOR, number_in


@dataclass(slots=True)
class CrashLedger:
    """Writes by number, in the order of sending; those to a sector never overlap.

    All methods may be called from several threads.

    Attributes:
        sent: the sectors of each write, from number 1 on.
        promised: the newest write of each sector that a flush has covered.
        flushes: flushes that were answered with success.
        failures: flushes that failed.
    """

    sent: list[range] = field(default_factory=list)
    promised: dict[int, int] = field(default_factory=dict)
    flushes: int = 0
    failures: int = 0
    _answered: list[int] = field(default_factory=list)
    _forgiven: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, lba: int, count: int) -> int:
        """Record a write that is about to be sent; return its number."""
        with self._lock:
            self.sent.append(range(lba, lba + count))
            return len(self.sent)

    def answer(self, number: int) -> None:
        """Record that a write was answered with success."""
        with self._lock:
            self._answered.append(number)

    @property
    def answered(self) -> int:
        """How many writes were answered with success."""
        return len(self._answered)

    def flushed(self, answered: int) -> None:
        """Record the success of a flush that was sent after ``answered`` answers."""
        with self._lock:
            self.flushes += 1
            for number in self._answered[self._forgiven : answered]:
                for lba in self.sent[number - 1]:
                    self.promised[lba] = max(number, self.promised.get(lba, 0))

    def flush_failed(self) -> None:
        """Record that a flush failed: what was answered before may be lost."""
        with self._lock:
            self.failures += 1
            self._forgiven = len(self._answered)

    def faults(self, disk: bytes) -> list[str]:
        """Compare what is stable with the record; describe each wrong sector."""
        wrote: dict[int, set[int]] = {}
        for number, sectors in enumerate(self.sent, 1):
            for lba in sectors:
                wrote.setdefault(lba, {ORIGINAL}).add(number)
        found = []
        for lba in range(len(disk) // SECTOR):
            raw = disk[lba * SECTOR : (lba + 1) * SECTOR]
            promised = self.promised.get(lba, ORIGINAL)
            try:
                held = number_in(raw, lba)
            except ValueError as error:
                found.append(f"sector {lba}: {error}")
                continue
            if held is None or held not in wrote.get(lba, {ORIGINAL}):
                found.append(f"sector {lba}: holds {held}, which was not written")
            elif held < promised:
                found.append(
                    f"sector {lba}: holds write {held}, although write {promised} "
                    "was flushed"
                )
        return found
