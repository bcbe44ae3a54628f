"""Measure the time to full throughput after a target was stopped and continued.

A target on a veth pair between two namespaces is read or written continuously. It gets
SIGSTOP and some seconds later SIGCONT. Full throughput is reached when 200 ms move 80 %
of the data that they moved before the stop.
"""

from __future__ import annotations

import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from aoe.common.commandline import print_json, run
from aoe.common.process.programs import program_command
from aoe.errors import AoEError, NotFoundError
from aoe.net.netns import Wire, ensure_root_or_user_namespace
from initiator.disk.disk import Disk
from initiator.driver.bio import Bio, Op
from initiator.driver.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 1 << 30
"""Large enough that no sector is written twice within ``Options.quarantine``."""
CHUNK = 64 << 10
DEPTH = 8
SPAN = 0.2
"""Seconds over which throughput is measured."""
FULL = 0.8
"""Fraction of the previous throughput that counts as full."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result with one timing.

    Args:
        timing: a key of ``TIMINGS``.
        before_mib_s: MiB/s before the stop: the lower quartile of ten spans.
        first_response_s: seconds from SIGCONT to the first completed chunk.
        full_speed_s: seconds from SIGCONT to full throughput; None if it was not
            reached in time.
        retransmits: frames retransmitted since SIGSTOP.
        errors: failed chunks.
    """

    timing: str
    before_mib_s: float
    first_response_s: float | None
    full_speed_s: float | None
    retransmits: int
    errors: int


class Load:
    """A sequential load of a disk that wraps at its end, ``DEPTH`` chunks in flight.

    Attributes:
        ended: completion times of chunks.
        errors: failed chunks.
    """

    def __init__(self, disk: Disk, op: Op) -> None:
        self._op = op
        self.ended: list[float] = []
        self.errors = 0
        self._disk = disk
        self._offset = 0
        self._running = 0

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Run until ``until()`` is true; return False after ``limit`` seconds."""
        end = time.monotonic() + limit
        while not until():
            if time.monotonic() > end:
                return False
            while self._running < DEPTH:
                self._running += 1
                self._disk.submit(self._op, self._offset, bytearray(CHUNK), self._end)
                self._offset = (self._offset + CHUNK) % SIZE
            self._disk.host.run_once(0.02)
        return True

    def _end(self, bio: Bio) -> None:
        self._running -= 1
        if bio.error is None:
            self.ended.append(time.monotonic())
        else:
            self.errors += 1

    def rate(self, start: float) -> float:
        """Return the throughput in MiB/s of the span that begins at ``start``."""
        count = sum(start <= when < start + SPAN for when in self.ended)
        return count * CHUNK / SPAN / (1 << 20)

    def is_full_speed(self, before: float) -> bool:
        """Return True if the last span had full throughput."""
        return self.rate(time.monotonic() - SPAN) >= FULL * before


@dataclass(frozen=True, slots=True)
class Trial:
    """The parameters of a measurement.

    Args:
        op: operation of the load.
        server: ``aoe-target`` or ``vblade``.
        mtu: MTU of the veth pair.
        freeze: seconds from SIGSTOP to SIGCONT.
        limit: seconds to wait for full throughput.
    """

    op: Op
    server: str
    mtu: int
    freeze: float
    limit: float


def measure(timing: str, trial: Trial) -> Result:
    """Stop and continue a target under load, and measure its recovery."""
    freeze, limit = trial.freeze, trial.limit
    with tempfile.TemporaryDirectory() as directory, Wire(trial.mtu) as wire:
        target = SERVERS[trial.server](wire, Path(directory) / "disk.img")
        with wire.initiator.enter():
            disk = Disk.open("e0.0", wire.interface, options=TIMINGS[timing])
        with disk:
            load = Load(disk, trial.op)
            begin = time.monotonic()
            load.run(lambda: False, 4)
            spans = [begin + 2 + SPAN * number for number in range(10)]
            # The lower quartile: other processes may slow single spans down.
            before, *_ = statistics.quantiles(map(load.rate, spans))
            retransmits = disk.retransmits
            target.send_signal(signal.SIGSTOP)
            load.run(lambda: False, freeze)
            load.ended.clear()
            target.send_signal(signal.SIGCONT)
            start = time.monotonic()
            done = load.run(lambda: load.is_full_speed(before), limit)
            return Result(
                timing,
                round(before, 1),
                round(load.ended[0] - start, 3) if load.ended else None,
                round(time.monotonic() - start, 3) if done else None,
                disk.retransmits - retransmits,
                load.errors,
            )


def serve(wire: Wire, image: Path) -> subprocess.Popen[str]:
    """Start ``aoe-target``, and wait until it is ready."""
    serve = [*program_command("aoe-target"), "serve", "e0.0", wire.interface]
    target: subprocess.Popen[str] = wire.target.popen(
        [*serve, str(image), "--create", str(SIZE)],
        stdout=subprocess.PIPE,
        text=True,
    )
    if target.stdout is None or not target.stdout.readline():
        raise AoEError("aoe-target", "did not start")
    return target


def serve_with_vblade(wire: Wire, image: Path) -> subprocess.Popen[str]:
    """Start vblade; discovery retries until it is ready."""
    program = shutil.which("vblade", path="/usr/sbin:/usr/bin")
    if program is None:
        raise NotFoundError("vblade", "not installed", "apt install vblade")
    with image.open("wb") as file:
        file.truncate(SIZE)
    args = [program, "0", "0", wire.interface, str(image)]
    return wire.target.popen(args, stdout=subprocess.DEVNULL)


TIMINGS: Final = {"prompt": Options(), "kernel": Options.kernel()}
"""``Options.kernel()`` also changes the tags, from which it measures round trips."""
SERVERS: Final = {"aoe-target": serve, "vblade": serve_with_vblade}


@click.command()
@click.option("--write", "writes", is_flag=True, help="Write instead of read.")
@click.option("--server", type=click.Choice(list(SERVERS)), default="aoe-target")
@click.option("--mtu", default=9000, show_default=True)
@click.option("--freeze", default=4.0, show_default=True, help="Seconds to stop it.")
@click.option(
    "--limit",
    default=60.0,
    show_default=True,
    help="Seconds to wait for full throughput.",
)
@click.option(
    "--timing",
    "timings",
    multiple=True,
    type=click.Choice(list(TIMINGS)),
    default=("prompt", "kernel"),
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
    """Measure the time to full throughput after a target was stopped."""
    ensure_root_or_user_namespace()
    op = Op.WRITE if writes else Op.READ
    trial = Trial(op, server, mtu, freeze, limit)
    results = []
    if not as_json:
        click.echo(
            "timing   before       first response  full speed  retransmits  errors"
        )
    for timing in timings:
        result = measure(timing, trial)
        results.append(result)
        if not as_json:
            click.echo(
                f"{timing:<8} {result.before_mib_s:>6.0f} MiB/s "
                f"{seconds(result.first_response_s):>15} "
                f"{seconds(result.full_speed_s):>11} "
                f"{result.retransmits:>12} {result.errors:>7}"
            )
    if as_json:
        trial_fields = {**asdict(trial), "op": op.name.lower()}
        print_json("frozen", **trial_fields, results=list(map(asdict, results)))
    if any(result.full_speed_s is None for result in results):
        raise NotFoundError(server, f"not at full throughput after {limit:g} s")


def seconds(number: float | None) -> str:
    """Format a time; None is "never"."""
    return "never" if number is None else f"{number:.2f} s"


if __name__ == "__main__":
    run(main, "frozen")
