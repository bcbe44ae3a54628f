"""Kill the target in the middle of its work, and see what has become of the disk.

Each round serves an image, writes to it with many requests outstanding, and ends the
target with SIGKILL at a random moment. Then every sector must hold the newest write to
it that was answered, or a later one that was not; nothing else of the image may have
changed. What a round does is the same for the same seed; what was answered when it was
killed is up to the machine.
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
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from aoe.common.commandline import run
from aoe.errors import AoEError
from aoe.net.netns import Wire, ensure_root_or_user_namespace
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
"""Bytes of the image on both sides of what is served."""
SIZE: Final = 4 << 20
SECTORS: Final = SIZE // SECTOR
DEPTH: Final = 32
"""Requests outstanding."""
MODES: Final = ("page cache", "--sync", "overlay", "overlay --sync")
LATEST: Final = 0.4
"""Seconds after the first write at which a target is killed at the latest."""
QUIET: Final = 0.05
"""Seconds without an answer after which a killed target's last one has come."""
FLUSH_TAG: Final = 1 << 31
"""Bit of the tags of FLUSH, whose other bits count what was answered before."""
GUARDS: Final = bytes(range(256)) * (GUARD // 256)
READ, WRITE, TRIM, FLUSHES = 0x24, 0x34, 0x06, (0xE7, 0xEA)


class Plan(NamedTuple):
    """What one round does.

    Args:
        number: from 1 on.
        mode: one of ``MODES``.
        delay: seconds from the first write to the kill.
        flush_every: requests between two FLUSHes.
        hot: sectors that the writes go to, from the first on.
        seed: of the writes.
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
        """Whether an answer to a write promises that it is stable."""
        return "--sync" in self.mode

    @property
    def is_overlay(self) -> bool:
        """Whether the image must not be written to."""
        return self.mode.startswith("overlay")


def plans(rounds: int, seed: int) -> Iterator[Plan]:
    """Make the plan of each round; the modes take turns."""
    draw = Random(seed)  # noqa: S311 - a plan is no secret
    for number in range(rounds):
        yield Plan(
            number + 1,
            MODES[number % len(MODES)],
            draw.uniform(0.0, LATEST),
            draw.randint(4, 64),
            draw.choice((256, 2048, SECTORS)),
            draw.getrandbits(32),
        )


class Result(NamedTuple):
    """What came of a round.

    Args:
        plan: what it was to do.
        ledger: what was sent and answered.
        flushes: FLUSHes that were answered.
        faults: what is wrong with the disk, a line each.
    """

    plan: Plan
    ledger: Ledger
    flushes: int
    faults: list[str]


class Load:
    """Writes to a target with many requests outstanding, until nothing comes back.

    Args:
        asking: the client's end of the wire.
        plan: what to write.
    """

    def __init__(self, asking: Client, plan: Plan) -> None:
        self.ledger = Ledger(is_sync=plan.is_sync)
        self.flushes = 0
        self._asking = asking
        self._plan = plan
        self._draw = Random(plan.seed)  # noqa: S311 - nor is what is written
        self._is_flushing = False

    def run(self, process: subprocess.Popen[str]) -> None:
        """Write until the target has been killed, by a timer, and take what it sent."""
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
        reply = self._asking.receive(timeout)
        if not reply or reply[19]:
            return bool(reply)  # Nothing more, or only the target's announcement.
        tag = int.from_bytes(reply[20:24], "big")
        if reply[14] != 0x18 or reply[27] != 0x40:
            raise AoEError(f"request {tag:#x}", f"failed: {reply[:36].hex()}")
        if tag & FLUSH_TAG:
            self.ledger.flushed(tag ^ FLUSH_TAG)
            self.flushes += 1
            self._is_flushing = False
        else:
            self.ledger.answer(tag)
        return True


def play(plan: Plan, wire: Wire, place: Path) -> Result:
    """Play one round with an image in an empty directory."""
    image, overlay = place / "disk.img", place / "changes.ovl"
    original = GUARDS + make_sectors(ORIGINAL, 0, SECTORS) + GUARDS
    image.write_bytes(original)
    words = ["serve", "e7.3", wire.interface, image, "--force", "--no-state"]
    words += ["--offset", f"{GUARD >> 10}K", "--length", f"{SIZE >> 20}M"]
    words += ["--sync"] * plan.is_sync
    words += ["--overlay", overlay] if plan.is_overlay else []
    with client(wire) as asking:
        process = start(wire.target, *words)
        ready_line(process)
        load = Load(asking, plan)
        load.run(process)
        finish(process)
        after = image.read_bytes()
        disk = after[GUARD : GUARD + SIZE]
        faults = []
        if plan.is_overlay:
            disk = read_back(wire, asking, words)
            faults += ["the base was written to"] * (after != original)
    faults += load.ledger.faults(disk)
    if after[:GUARD] + after[GUARD + SIZE :] != GUARDS * 2:
        faults.append("bytes outside what is served were changed")
    return Result(plan, load.ledger, load.flushes, faults)


def read_back(wire: Wire, asking: Client, words: Sequence[object]) -> bytes:
    """Serve again what was served when the target was killed, and read all of it."""
    process = start(wire.target, *words)
    ready_line(process)
    parts = [
        read(asking, lba, min(FRAME_SECTORS, SECTORS - lba))
        for lba in range(0, SECTORS, FRAME_SECTORS)
    ]
    finish(process, signal.SIGTERM)
    return b"".join(parts)


def read(asking: Client, lba: int, count: int) -> bytes:
    """Read sectors; what else arrives is an announcement, or late."""
    request = ata(READ, lba, count, tag=lba)
    asking.send(request)
    while reply := asking.receive():
        if reply[19:24] == request[19:24]:
            return reply[36:]
    raise AoEError("killtest", f"no answer to a read of sector {lba}")


# --- what it says -------------------------------------------------------------------


def play_all(rounds: int, seed: int, directory: Path) -> Iterator[Result]:
    """Play so many rounds on one wire."""
    with Wire(MTU) as wire:
        for plan in plans(rounds, seed):
            place = directory / str(plan.number)
            place.mkdir()
            yield play(plan, wire, place)
            shutil.rmtree(place)


def summarise(title: str, results: Sequence[Result]) -> str:
    """Write the figures of some rounds as a line."""
    books = [result.ledger for result in results]
    kept = sum(len(book.answered) for book in books)
    lost = sum(len(result.faults) for result in results)
    return (
        f"{title:14} {len(results):4} rounds, {sum(book.sent for book in books):,} "
        f"requests, {kept:,} answered, {sum(book.promised for book in books):,} of "
        f"these promised stable by {sum(result.flushes for result in results):,} "
        f"flushes or --sync, {sum(len(book.in_flight) for book in books):,} cut off: "
        f"{lost} faults"
    )


@click.command()
@click.option("--rounds", default=ROUNDS, show_default=True, help="Kills.")
@click.option("--seed", default=1, show_default=True, help="Same seed, same plans.")
@click.option("--list", "only_list", is_flag=True, help="Only show the plans.")
@click.option(
    "--dir",
    "where",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where the images go; the system's directory for such things if not given.",
)
def killtest(rounds: int, seed: int, where: Path | None, *, only_list: bool) -> None:
    """Kill a target under load, again and again, and look for lost writes."""
    if only_list:
        for plan in plans(rounds, seed):
            click.echo(plan)
        return
    ensure_root_or_user_namespace()
    started = time.monotonic()
    results = []
    with tempfile.TemporaryDirectory(prefix="killtest-", dir=where) as directory:
        for result in play_all(rounds, seed, Path(directory)):
            results.append(result)
            if sys.stderr.isatty():
                click.echo(f"\r{len(results)} of {rounds} rounds", err=True, nl=False)
            for fault in result.faults[:10]:
                click.echo(f"{result.plan}: {fault}")
    if sys.stderr.isatty():
        click.echo("\r", err=True, nl=False)
    for mode in MODES:
        click.echo(summarise(mode, [r for r in results if r.plan.mode == mode]))
    click.echo(summarise("all", results))
    click.echo(f"seed {seed}, {time.monotonic() - started:.0f} s")
    if any(result.faults for result in results):
        raise AoEError("killtest", "writes were lost", f"Again with --seed {seed}")


if __name__ == "__main__":
    run(killtest, "killtest")
