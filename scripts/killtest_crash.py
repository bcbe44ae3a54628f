"""Crash the host of the target under load, and check what a FLUSH has promised.

Each round serves an image whose unflushed data a crash loses, writes to it through
``Disk``, NBD or FUSE, and crashes and reboots the host while requests are outstanding.
The load goes on with the rebooted target; then the host crashes again. Each sector must
hold the newest write to it that a successful FLUSH has covered, or a later one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from aoe.common.nbd import NbdCommand
from aoe.errors import AoEError
from aoe.net.netns import Wire
from initiator.disk.disk import Disk
from target.disks.nbd.address import NbdAddress
from target.disks.nbd.socket_client import SocketConnection
from target.disks.nbd.wire import NbdRequest
from tests.crash_ledger import CrashLedger
from tests.crashing import VolatileFile, crashing_host
from tests.ledger import ORIGINAL, SECTOR, make_sectors
from tests.programs import AOE
from tests.serving import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SECTORS: Final = 4096
WORKERS: Final = 4
LONGEST: Final = 64
"""Most sectors in a write."""
DELAY: Final = (0.1, 0.5)
"""Seconds of load before a crash."""
DEADLINE: Final = 60.0
FRONT_ENDS: Final = ("Disk", "NBD", "FUSE")


class CrashPlan(NamedTuple):
    """The parameters of a round.

    Args:
        number: number of the round, from 1.
        front_end: one of ``FRONT_ENDS``.
        before: seconds of load before the first crash.
        after: seconds of load after the reboot.
        flush_every: writes between two flushes of a worker.
        seed: seed of the writes and of what is lost.
    """

    number: int
    front_end: str
    before: float
    after: float
    flush_every: int
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.number:4} {self.front_end:5} crashed after "
            f"{self.before * 1e3:5.1f} ms, a flush every {self.flush_every} writes"
        )


def crash_plans(rounds: int, seed: int) -> Iterator[CrashPlan]:
    """Yield the plans of all rounds; the front ends alternate."""
    draw = Random(seed)  # noqa: S311 - not for cryptography
    for number in range(rounds):
        yield CrashPlan(
            number + 1,
            FRONT_ENDS[number % len(FRONT_ENDS)],
            draw.uniform(*DELAY),
            draw.uniform(*DELAY),
            draw.randint(2, 16),
            draw.getrandbits(32),
        )


class CrashResult(NamedTuple):
    """The result of a round.

    Args:
        plan: its parameters.
        ledger: the writes and flushes.
        lost: sectors that the crashes have lost.
        faults: what a flush had covered and is gone, a line each.
    """

    plan: CrashPlan
    ledger: CrashLedger
    lost: int
    faults: list[str]


class Volume(Protocol):
    """What a worker writes to; errors are ``AoEError`` or ``OSError``."""

    def write(self, offset: int, data: bytes) -> None:
        """Write whole sectors."""

    def flush(self) -> None:
        """Make all answered writes stable."""

    def close(self) -> None:
        """Close it."""


class NbdVolume:
    """A connection to ``aoe attach --nbd``."""

    def __init__(self, path: Path) -> None:
        address = NbdAddress.parse(f"nbd+unix:///?socket={path}")
        self._connection = SocketConnection(address, time.monotonic() + TIMEOUT)

    def _request(self, request: NbdRequest) -> None:
        error = self._connection.request(request, time.monotonic() + DEADLINE)
        if error:
            raise OSError(error, os.strerror(error))

    def write(self, offset: int, data: bytes) -> None:
        """Write whole sectors."""
        view = memoryview(data)
        self._request(
            NbdRequest(
                command=NbdCommand.WRITE, offset=offset, length=len(data), data=view
            )
        )

    def flush(self) -> None:
        """Make all answered writes stable."""
        self._request(NbdRequest(command=NbdCommand.FLUSH))

    def close(self) -> None:
        """Close it."""
        self._connection.close()


class FileVolume:
    """The file of ``aoe attach --fuse``."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR)

    def write(self, offset: int, data: bytes) -> None:
        """Write whole sectors."""
        while data:
            done = os.pwrite(self._fd, data, offset)
            offset, data = offset + done, data[done:]

    def flush(self) -> None:
        """Make all answered writes stable."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            os.close(self._fd)


class Worker(threading.Thread):
    """Writes to a part of the disk, and flushes all of it.

    Args:
        plan: the parameters of the round.
        place: number of the part.
        parts: number of parts.
        ledger: the record of the round.
        open_volume: opens the disk.
    """

    def __init__(
        self,
        plan: CrashPlan,
        place: int,
        parts: int,
        ledger: CrashLedger,
        open_volume: Callable[[], Volume],
    ) -> None:
        super().__init__(daemon=True)
        self._draw = Random(plan.seed + place)  # noqa: S311 - not for cryptography
        self._every = plan.flush_every
        self._first = SECTORS // parts * place
        self._last = self._first + SECTORS // parts
        self._ledger = ledger
        self._open = open_volume
        self.is_ending = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Write and flush until ``is_ending`` is set."""
        try:
            volume = self._open()
            try:
                while not self.is_ending.is_set():
                    if not self._burst(volume):
                        volume.close()
                        volume = self._open()
            finally:
                volume.close()
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            self.error = error

    def _burst(self, volume: Volume) -> bool:
        # Returns False after an error, after which the disk is opened again.
        ledger = self._ledger
        try:
            for _ in range(self._every):
                count = self._draw.randint(1, LONGEST)
                lba = self._draw.randrange(self._first, self._last - count)
                number = ledger.send(lba, count)
                volume.write(lba * SECTOR, make_sectors(number, lba, count))
                ledger.answer(number)
                if self.is_ending.is_set():
                    return True
        except (AoEError, OSError):
            return False
        answered = ledger.answered
        try:
            volume.flush()
        except (AoEError, OSError):
            ledger.flush_failed()
            return False
        ledger.flushed(answered)
        return True


def attach(wire: Wire, stack: ExitStack, *words: object) -> None:
    """Start ``aoe attach``, and kill it at the end."""
    command = [*AOE, "attach", "e7.3", "-i", wire.interface, *map(str, words)]
    read, write = os.pipe()
    process = wire.initiator.popen(
        [*command, "--ready-fd", str(write)], pass_fds=[write]
    )
    os.close(write)
    with os.fdopen(read, "rb") as ready:
        if not ready.read():
            raise AoEError("aoe attach", "did not start")

    def end() -> None:
        process.kill()
        process.wait(TIMEOUT)

    stack.callback(end)


def open_front_end(
    plan: CrashPlan, wire: Wire, directory: Path, stack: ExitStack
) -> tuple[int, Callable[[], Volume]]:
    """Return the number of workers, and what opens the disk for each."""
    if plan.front_end == "NBD":
        socket = directory / "nbd"
        attach(wire, stack, "--nbd", socket)
        return WORKERS, lambda: NbdVolume(socket)
    if plan.front_end == "FUSE":
        file = directory / "file"
        attach(wire, stack, "--fuse", file)
        stack.callback(
            lambda: (
                shutil.which("umount")
                and wire.initiator.run(["umount", "-l", str(file)], capture_output=True)
            )
        )
        return WORKERS, lambda: FileVolume(file)

    def open_disk() -> Volume:
        with wire.initiator.enter():
            return Disk.open("e7.3", wire.interface, timeout=TIMEOUT)

    return 1, open_disk


def run_crash_round(plan: CrashPlan, wire: Wire, directory: Path) -> CrashResult:
    """Run a round with an image in an empty directory."""
    draw = Random(plan.seed)  # noqa: S311 - not for cryptography
    file = VolatileFile(make_sectors(ORIGINAL, 0, SECTORS))
    ledger = CrashLedger()
    with crashing_host(wire, directory, file) as host, ExitStack() as stack:
        count, open_volume = open_front_end(plan, wire, directory, stack)
        workers = [
            Worker(plan, place, count, ledger, open_volume) for place in range(count)
        ]
        for worker in workers:
            worker.start()
        time.sleep(plan.before)
        host.crash(draw)
        host.boot()
        time.sleep(plan.after)
        for worker in workers:
            worker.is_ending.set()
        for worker in workers:
            worker.join(DEADLINE)
            if worker.is_alive() or worker.error is not None:
                raise AoEError("a worker", f"hangs or failed: {worker.error!r}")
        host.crash(draw)
    return CrashResult(plan, ledger, file.lost, ledger.faults(file.stable))


def run_crashes(rounds: int, seed: int, directory: Path) -> Iterator[CrashResult]:
    """Run all rounds on one veth pair."""
    with Wire(9000) as wire:
        for plan in crash_plans(rounds, seed):
            subdirectory = directory / str(plan.number)
            subdirectory.mkdir()
            yield run_crash_round(plan, wire, subdirectory)
            shutil.rmtree(subdirectory)


def summarise_crashes(title: str, results: Sequence[CrashResult]) -> str:
    """Return the sums of some rounds as a line."""
    ledgers = [result.ledger for result in results]
    return (
        f"{title:5} {len(results):4} rounds, "
        f"{sum(len(each.sent) for each in ledgers):,} writes, "
        f"{sum(each.answered for each in ledgers):,} acknowledged, "
        f"{sum(each.flushes for each in ledgers):,} flushes, "
        f"{sum(each.failures for each in ledgers):,} failed; "
        f"{sum(result.lost for result in results):,} sectors lost in crashes: "
        f"{sum(len(result.faults) for result in results)} faults"
    )
