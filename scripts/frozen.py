"""Freeze a target under load, let it go on, and measure until all is as it was.

A target is served on a wire between two namespaces, and read or written all the time.
It gets SIGSTOP, some seconds later SIGCONT; then we look at how much was moved in each
200 ms, until that is 80 % of what it was before.
"""

from __future__ import annotations

import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from aoe.common.commandline import print_json, run
from aoe.errors import AoEError, NotFoundError
from aoe.net.netns import Wire, ensure_root_or_user_namespace
from initiator.disk.disk import Disk
from initiator.driver.bio import Bio, Op
from initiator.driver.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 1 << 30
"""So large that no place is written twice within ``Options.linger``."""
PIECE = 64 << 10
DEPTH = 8
SPAN = 0.2
"""Seconds in which bytes are counted."""
ENOUGH = 0.8
"""What part of the speed before counts as all of it."""


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured with one timing.

    Args:
        timing: a key of ``MANNERS``.
        before_mib_s: MiB a second before the freeze, at least in three of four spans.
        first_answer_s: seconds from SIGCONT until a first piece was done.
        full_speed_s: seconds from SIGCONT until it was as fast as before; None if that
            did not happen in time.
        retransmits: frames sent again from SIGSTOP on.
        errors: pieces that failed.
    """

    timing: str
    before_mib_s: float
    first_answer_s: float | None
    full_speed_s: float | None
    retransmits: int
    errors: int


class Load:
    """A disk that is busy from beginning to end, over and over, with several pieces.

    Attributes:
        ended: when pieces were done.
        errors: pieces that failed.
    """

    def __init__(self, disk: Disk, op: Op) -> None:
        self._op = op
        self.ended: list[float] = []
        self.errors = 0
        self._disk = disk
        self._offset = 0
        self._running = 0

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Go on until something is so; tell whether it was within ``limit`` seconds."""
        end = time.monotonic() + limit
        while not until():
            if time.monotonic() > end:
                return False
            while self._running < DEPTH:
                self._running += 1
                self._disk.submit(self._op, self._offset, bytearray(PIECE), self._end)
                self._offset = (self._offset + PIECE) % SIZE
            self._disk.host.run_once(0.02)
        return True

    def _end(self, bio: Bio) -> None:
        self._running -= 1
        if bio.error is None:
            self.ended.append(time.monotonic())
        else:
            self.errors += 1

    def rate(self, start: float) -> float:
        """Return MiB a second in the span from ``start`` on."""
        count = sum(start <= when < start + SPAN for when in self.ended)
        return count * PIECE / SPAN / (1 << 20)

    def is_as_fast(self, before: float) -> bool:
        """Tell whether the last span was as fast as it was before."""
        return self.rate(time.monotonic() - SPAN) >= ENOUGH * before


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tried.

    Args:
        op: what the load does.
        server: ``ours`` or ``vblade``.
        mtu: of the wire.
        freeze: seconds for which the target stands still.
        limit: seconds to look on, afterwards.
    """

    op: Op
    server: str
    mtu: int
    freeze: float
    limit: float


def measure(timing: str, trial: Trial) -> Result:
    """Freeze a target that is under load, and look what happens."""
    freeze, limit = trial.freeze, trial.limit
    with tempfile.TemporaryDirectory() as directory, Wire(trial.mtu) as wire:
        target = SERVERS[trial.server](wire, Path(directory) / "disk.img")
        with wire.initiator.enter():
            disk = Disk.open("e0.0", wire.interface, options=MANNERS[timing])
        with disk:
            load = Load(disk, trial.op)
            begin = time.monotonic()
            load.run(lambda: False, 4)
            spans = [begin + 2 + SPAN * number for number in range(10)]
            # A busy machine slows a span down here and there.
            before, *_ = statistics.quantiles(map(load.rate, spans))
            resent = disk.retransmits
            target.send_signal(signal.SIGSTOP)
            load.run(lambda: False, freeze)
            load.ended.clear()
            target.send_signal(signal.SIGCONT)
            go = time.monotonic()
            done = load.run(lambda: load.is_as_fast(before), limit)
            return Result(
                timing,
                round(before, 1),
                round(load.ended[0] - go, 3) if load.ended else None,
                round(time.monotonic() - go, 3) if done else None,
                disk.retransmits - resent,
                load.errors,
            )


def serve(wire: Wire, image: Path) -> subprocess.Popen[str]:
    """Start a target and wait until it is ready."""
    words = ["-m", "target", "serve", "e0.0", wire.interface, str(image)]
    target: subprocess.Popen[str] = wire.target.popen(
        [sys.executable, *words, "--create", str(SIZE)],
        stdout=subprocess.PIPE,
        text=True,
    )
    if target.stdout is None or not target.stdout.readline():
        raise AoEError("aoe-target", "ended at once")
    return target


def serve_with_vblade(wire: Wire, image: Path) -> subprocess.Popen[str]:
    """Start Debian's vblade; the first query finds out when it is ready."""
    program = shutil.which("vblade", path="/usr/sbin:/usr/bin")
    if program is None:
        raise NotFoundError("vblade", "not installed", "apt install vblade")
    with image.open("wb") as file:
        file.truncate(SIZE)
    words = [program, "0", "0", wire.interface, str(image)]
    return wire.target.popen(words, stdout=subprocess.DEVNULL)


MANNERS: Final = {"prompt": Options(), "kernel": Options.kernel()}
"""The kernel's is more than its timing: in its tags, answers say when they were due."""
SERVERS: Final = {"ours": serve, "vblade": serve_with_vblade}


@click.command()
@click.option("--write", "writes", is_flag=True, help="Write instead of reading.")
@click.option("--server", type=click.Choice(list(SERVERS)), default="ours")
@click.option("--mtu", default=9000, show_default=True)
@click.option("--freeze", default=4.0, show_default=True, help="Seconds to freeze it.")
@click.option("--limit", default=60.0, show_default=True, help="Seconds to look on.")
@click.option(
    "--timing",
    "timings",
    multiple=True,
    type=click.Choice(list(MANNERS)),
    default=("prompt", "kernel"),
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def main(
    *,
    writes: bool,
    server: str,
    mtu: int,
    freeze: float,
    limit: float,
    timings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure how soon a target that was frozen is at full speed again."""
    ensure_root_or_user_namespace()
    op = Op.WRITE if writes else Op.READ
    trial = Trial(op, server, mtu, freeze, limit)
    results = []
    if not as_json:
        click.echo("timing   before       first answer  full speed  sent again  errors")
    for timing in timings:
        result = measure(timing, trial)
        results.append(result)
        if not as_json:
            click.echo(
                f"{timing:<8} {result.before_mib_s:>6.0f} MiB/s "
                f"{seconds(result.first_answer_s):>13} "
                f"{seconds(result.full_speed_s):>11} "
                f"{result.retransmits:>11} {result.errors:>7}"
            )
    if as_json:
        trial_fields = {**asdict(trial), "op": op.name.lower()}
        print_json("frozen", **trial_fields, results=list(map(asdict, results)))
    if any(result.full_speed_s is None for result in results):
        raise NotFoundError(server, f"not at full speed again within {limit:g} s")


def seconds(number: float | None) -> str:
    """Write a time, or that there was none."""
    return "never" if number is None else f"{number:.2f} s"


if __name__ == "__main__":
    run(main, "frozen")
