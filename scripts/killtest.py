"""Kill the target under load with SIGKILL, and check the disk for lost writes.

Each round serves an image, writes to it with many requests outstanding, and kills the
target at a random time. Then every sector must hold the newest acknowledged write to
it, or a later one without a response. Nothing else of the image may have changed. The
seed determines the requests and the delay; which of them are acknowledged before the
kill depends on the machine.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import click

from aoe.common.commandline import run
from aoe.errors import AoEError
from aoe.net.netns import Wire, ensure_root_or_user_namespace
from scripts.killtest_crash import (
    FRONT_ENDS,
    CrashResult,
    crash_plans,
    run_crashes,
    summarise_crashes,
)
from tests.asking import ata
from tests.ledger import ORIGINAL, SECTOR, Ledger, make_sectors
from tests.serving import Client, client, finish, ready_line, start

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

ROUNDS: Final = 200
MTU: Final = 9000
FRAME_SECTORS: Final = 17
GUARD: Final = 1 << 18
"""Bytes of the image before and after the exported range."""
SIZE: Final = 4 << 20
SECTORS: Final = SIZE // SECTOR
DEPTH: Final = 32
"""Requests outstanding."""
MODES: Final = ("page cache", "--sync", "overlay", "overlay --sync")
MAX_DELAY: Final = 0.4
"""Maximum seconds from the first write to the kill."""
QUIET: Final = 0.05
"""Seconds without a response after which a killed target sends no more."""
FLUSH_TAG: Final = 1 << 31
"""Tag bit of FLUSH; the other bits count the writes acknowledged before it."""
GUARDS: Final = bytes(range(256)) * (GUARD // 256)
READ, WRITE, TRIM, FLUSHES = 0x24, 0x34, 0x06, (0xE7, 0xEA)


class Plan(NamedTuple):
    """The parameters of a round.

    Args:
        number: number of the round, from 1.
        mode: one of ``MODES``.
        delay: seconds from the first write to the kill.
        flush_every: requests between two FLUSHes.
        hot: writes go to the first ``hot`` sectors.
        seed: seed of the writes.
    """

    number: int
    mode: str
    delay: float
    flush_every: int
    hot: int
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.number:4} {self.mode:14} killed after {self.delay * 1e3:5.1f} ms, "
            f"a flush every {self.flush_every}, {self.hot} sectors"
        )

    @property
    def is_sync(self) -> bool:
        """Return True if an acknowledged write is durable."""
        return "--sync" in self.mode

    @property
    def is_overlay(self) -> bool:
        """Return True if the base image must not change."""
        return self.mode.startswith("overlay")


def plans(rounds: int, seed: int) -> Iterator[Plan]:
    """Yield the plans of all rounds; the modes alternate."""
    draw = Random(seed)  # noqa: S311 - not for cryptography
    for number in range(rounds):
        yield Plan(
            number + 1,
            MODES[number % len(MODES)],
            draw.uniform(0.0, MAX_DELAY),
            draw.randint(4, 64),
            draw.choice((256, 2048, SECTORS)),
            draw.getrandbits(32),
        )


class Result(NamedTuple):
    """The result of a round.

    Args:
        plan: its parameters.
        ledger: the requests and responses.
        flushes: acknowledged FLUSHes.
        faults: differences found on the disk, a line each.
    """

    plan: Plan
    ledger: Ledger
    flushes: int
    faults: list[str]


_R = TypeVar("_R", Result, CrashResult)


class Load:
    """A load of writes with many requests outstanding, until the target is killed.

    Args:
        asking: the client.
        plan: the parameters of the round.
    """

    def __init__(self, asking: Client, plan: Plan) -> None:
        self.ledger = Ledger(is_sync=plan.is_sync)
        self.flushes = 0
        self._asking = asking
        self._plan = plan
        self._draw = Random(plan.seed)  # noqa: S311 - not for cryptography
        self._is_flushing = False

    def run(self, process: subprocess.Popen[str]) -> None:
        """Write until a timer kills the target, then receive its last responses."""
        timer = threading.Timer(self._plan.delay, process.kill)
        timer.start()
        while not timer.finished.is_set():
            self._fill()
            self._take(QUIET)
        while self._take(QUIET):
            pass
        timer.join()

    def _fill(self) -> None:
        ledger = self.ledger
        while len(ledger.in_flight) < DEPTH:
            count = self._draw.randint(1, FRAME_SECTORS)
            lba = self._draw.randrange(self._plan.hot - FRAME_SECTORS)
            if not ledger.is_free(lba, count):
                return
            self._asking.send(self._request(lba, count))
            if ledger.sent % self._plan.flush_every == 0 and not self._is_flushing:
                self._flush()

    def _request(self, lba: int, count: int) -> bytes:
        if self._draw.random() < 0.03:
            number = self.ledger.send(lba, count, is_trim=True).number
            entry = (lba | count << 48).to_bytes(8, "little").ljust(SECTOR, b"\0")
            return ata(TRIM, aflags=0x41, feature=1, data=entry, tag=number)
        number = self.ledger.send(lba, count).number
        data = make_sectors(number, lba, count)
        return ata(WRITE, lba, count, aflags=0x41, data=data, tag=number)

    def _flush(self) -> None:
        self._is_flushing = True
        tag = FLUSH_TAG | len(self.ledger.answered)
        opcode = self._draw.choice(FLUSHES)
        self._asking.send(ata(opcode, count=0, tag=tag))

    def _take(self, timeout: float) -> bool:
        response = self._asking.receive(timeout)
        if not response or response[19]:
            return bool(response)  # A timeout, or an announcement (query config).
        tag = int.from_bytes(response[20:24], "big")
        if response[14] != 0x18 or response[27] != 0x40:
            raise AoEError(f"request {tag:#x}", f"failed: {response[:36].hex()}")
        if tag & FLUSH_TAG:
            self.ledger.flushed(tag ^ FLUSH_TAG)
            self.flushes += 1
            self._is_flushing = False
        else:
            self.ledger.answer(tag)
        return True


def run_round(plan: Plan, wire: Wire, directory: Path) -> Result:
    """Run a round with an image in an empty directory."""
    image, overlay = directory / "disk.img", directory / "changes.ovl"
    original = GUARDS + make_sectors(ORIGINAL, 0, SECTORS) + GUARDS
    image.write_bytes(original)
    args = ["serve", "e7.3", wire.interface, image, "--force", "--no-state"]
    args += ["--offset", f"{GUARD >> 10}K", "--length", f"{SIZE >> 20}M"]
    args += ["--sync"] * plan.is_sync
    args += ["--overlay", overlay] if plan.is_overlay else []
    with client(wire) as asking:
        process = start(wire.target, *args)
        ready_line(process)
        load = Load(asking, plan)
        load.run(process)
        finish(process)
        after = image.read_bytes()
        disk = after[GUARD : GUARD + SIZE]
        faults = []
        if plan.is_overlay:
            disk = read_back(wire, asking, args)
            faults += ["the base image has changed"] * (after != original)
    faults += load.ledger.faults(disk)
    if after[:GUARD] + after[GUARD + SIZE :] != GUARDS * 2:
        faults.append("bytes outside the exported range have changed")
    return Result(plan, load.ledger, load.flushes, faults)


def read_back(wire: Wire, asking: Client, args: Sequence[object]) -> bytes:
    """Serve the disk again, and read all of it."""
    process = start(wire.target, *args)
    ready_line(process)
    parts = [
        read(asking, lba, min(FRAME_SECTORS, SECTORS - lba))
        for lba in range(0, SECTORS, FRAME_SECTORS)
    ]
    finish(process, signal.SIGTERM)
    return b"".join(parts)


def read(asking: Client, lba: int, count: int) -> bytes:
    """Read sectors; ignore announcements and late responses."""
    request = ata(READ, lba, count, tag=lba)
    asking.send(request)
    while response := asking.receive():
        if response[19:24] == request[19:24]:
            return response[36:]
    raise AoEError("killtest", f"no response to a read of sector {lba}")


# --- output -------------------------------------------------------------------------


def run_all(rounds: int, seed: int, directory: Path) -> Iterator[Result]:
    """Run all rounds on one veth pair."""
    with Wire(MTU) as wire:
        for plan in plans(rounds, seed):
            subdirectory = directory / str(plan.number)
            subdirectory.mkdir()
            yield run_round(plan, wire, subdirectory)
            shutil.rmtree(subdirectory)


def summarise(title: str, results: Sequence[Result]) -> str:
    """Return the sums of some rounds as a line."""
    ledgers = [result.ledger for result in results]
    acknowledged = sum(len(ledger.answered) for ledger in ledgers)
    faults = sum(len(result.faults) for result in results)
    return (
        f"{title:14} {len(results):4} rounds, {sum(each.sent for each in ledgers):,} "
        f"requests, {acknowledged:,} acknowledged, "
        f"{sum(each.promised for each in ledgers):,} of these made durable by "
        f"{sum(result.flushes for result in results):,} flushes or --sync, "
        f"{sum(len(each.in_flight) for each in ledgers):,} without a response: "
        f"{faults} faults"
    )


@click.command()
@click.option("--rounds", default=ROUNDS, show_default=True, help="Number of kills.")
@click.option("--seed", default=1, show_default=True, help="Seed of the plans.")
@click.option("--list", "only_list", is_flag=True, help="Show the plans and exit.")
@click.option(
    "--crash",
    is_flag=True,
    help="Crash the target's host: what was not flushed is lost.",
)
@click.option(
    "--dir",
    "where",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Directory for the images (default: that for temporary files).",
)
def killtest(
    rounds: int, seed: int, where: Path | None, *, only_list: bool, crash: bool
) -> None:
    """Kill a target under load repeatedly, and check for lost writes."""
    if only_list:
        for plan in crash_plans(rounds, seed) if crash else plans(rounds, seed):
            click.echo(plan)
        return
    ensure_root_or_user_namespace()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="killtest-", dir=where) as directory:
        if crash:
            faults = report_crashes(rounds, seed, Path(directory))
        else:
            faults = report_kills(rounds, seed, Path(directory))
    click.echo(f"seed {seed}, {time.monotonic() - started:.0f} s")
    if faults:
        raise AoEError("killtest", "writes were lost", f"Repeat with --seed {seed}")


def report_kills(rounds: int, seed: int, directory: Path) -> int:
    """Run and print the rounds with kills; return the number of faults."""
    results = list(show_progress(rounds, run_all(rounds, seed, directory)))
    for mode in MODES:
        click.echo(summarise(mode, [r for r in results if r.plan.mode == mode]))
    click.echo(summarise("all", results))
    return sum(len(result.faults) for result in results)


def report_crashes(rounds: int, seed: int, directory: Path) -> int:
    """Run and print the rounds with crashes; return the number of faults."""
    results = list(show_progress(rounds, run_crashes(rounds, seed, directory)))
    for name in FRONT_ENDS:
        chosen = [each for each in results if each.plan.front_end == name]
        click.echo(summarise_crashes(name, chosen))
    click.echo(summarise_crashes("all", results))
    return sum(len(result.faults) for result in results)


def show_progress(rounds: int, results: Iterator[_R]) -> Iterator[_R]:
    """Yield results; print their faults, and how many there are."""
    for number, result in enumerate(results, 1):
        yield result
        if sys.stderr.isatty():
            click.echo(f"\r{number} of {rounds} rounds", err=True, nl=False)
        for fault in result.faults[:10]:
            click.echo(f"{result.plan}: {fault}")
    if sys.stderr.isatty():
        click.echo("\r", err=True, nl=False)


if __name__ == "__main__":
    run(killtest, "killtest")
