"""How fast pyaoe is beside its peers on this machine, as ratios."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TypedDict, Unpack

import click

from aoe.common.commandline import SECONDS, run
from aoe.errors import AccessError, NotFoundError, UsageError, from_os_error
from aoe.net.netns import ensure_root_or_user_namespace
from scripts import bench_chart, bench_table
from scripts.bench_cells import CELLS
from scripts.bench_images import DISK, memory_place
from scripts.bench_rig import Pace
from scripts.bench_run import Bench
from scripts.bench_stats import decode, encode
from scripts.bench_tools import Tools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scripts.bench_cells import Cell
    from scripts.bench_stats import Report

USUAL: Final = Pace(rounds=5, seconds=1.0, copy_size=1 << 30, tries=3)
QUICK: Final = Pace(rounds=1, seconds=0.2, copy_size=16 << 20, tries=1)
FILE: Final = click.Path(path_type=Path, dir_okay=False)
PROGRAM: Final = click.Path(path_type=Path, dir_okay=False, exists=True)
SPARE: Final = 1 << 30
"""Bytes that must stay free where the images are."""


class How(TypedDict):
    """What options say of the way to measure."""

    quick: bool
    rounds: int | None
    seconds: float | None
    tries: int | None
    load: Path | None
    echo: Path | None
    where: Path | None


def choose(names: Sequence[str]) -> list[Cell]:
    """Return the cells of which a name begins like one of these; all without any.

    Raises:
        UsageError: there is none.
    """
    for name in names:
        if not any(cell.name.startswith(name) for cell in CELLS):
            known = ", ".join(cell.name for cell in CELLS)
            raise UsageError(name, "no such cell", f"There are: {known}")
    return [cell for cell in CELLS if not names or cell.name.startswith(tuple(names))]


def progress(total: int) -> Callable[[str], None]:
    """Return what shows on a terminal how far it is; told nothing, it clears that."""
    start = time.monotonic()
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        left = (time.monotonic() - start) / done * (total - done) if done else 0.0
        done += bool(what)
        rest = f", about {left / 60:.0f} min left" if left >= 60 else ""
        line = f"{done} of {total}: {what}{rest}" if what else ""
        click.echo(f"\r\033[K{line}", err=True, nl=False)

    return tell if sys.stderr.isatty() else lambda _what: None


def measure(bench: Bench) -> Report:
    """Measure it all, and print each cell when it is done."""
    print_head(bench.report)
    tell = progress(bench.steps)
    try:
        for cell in bench.cells:
            result = bench.measure(cell, tell)
            tell("")
            print_lines(bench_table.block(result))
    finally:
        tell("")
    return bench.report


def print_head(report: Report) -> None:
    """Print what stands above the cells."""
    click.echo(bench_table.head(report))
    click.echo(bench_table.column_names())


def print_lines(lines: Iterable[str]) -> None:
    """Print some lines of the table."""
    for line in lines:
        click.echo(line)


def read_report(path: Path) -> Report:
    """Read what --json has written.

    Raises:
        AoEError: it cannot be read, or is something else.
    """
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise from_os_error(str(path), error) from error


def check_place(path: Path | None) -> None:
    """Make sure, before minutes pass, that a file can be written in the end.

    Raises:
        NotFoundError: its directory is not there.
        AccessError: it is, and may not be written to.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise NotFoundError(str(path.parent), "no such directory")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise AccessError(str(path), "not writable")


def _end(_number: int, _frame: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


@click.command()
@click.option("--only", multiple=True, metavar="NAME", help="Cells that begin so.")
@click.option("--list", "only_list", is_flag=True, help="List the cells.")
@click.option("--quick", is_flag=True, help="One short round: does it work at all?")
@click.option("--rounds", type=click.IntRange(1), help="Of each cell: 5.")
@click.option("--seconds", type=SECONDS, help="Of one measurement: 1.")
@click.option("--tries", type=click.IntRange(1), help="For one nobody disturbs: 3.")
@click.option(
    "--load",
    type=PROGRAM,
    help="Let this load the targets, instead of aoe bench.",
)
@click.option("--echo", type=PROGRAM, help="Compare with this, which has no disk.")
@click.option("--json", "json_file", type=FILE, help="Write all samples there.")
@click.option("--svg", "svg_file", type=FILE, help="Draw the chart there.")
@click.option("--from", "source", type=FILE, help="Show what --json has written.")
@click.option(
    "--dir",
    "where",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where the images go: in memory if there is room, else where temporary "
    "files go.",
)
def bench(
    *,
    only: tuple[str, ...],
    only_list: bool,
    source: Path | None,
    json_file: Path | None,
    svg_file: Path | None,
    **how: Unpack[How],
) -> None:
    """Measure pyaoe against vblade and NBD over TCP, here, and print ratios.

    \b
    Try:  scripts/bench --quick
          scripts/bench --json bench.json --svg bench.svg
          scripts/bench --only read --only write --load ./aoeload --echo ./aoeecho

    All of it takes about six minutes, in two network namespaces with a wire between
    them. Ours and theirs take turns, the servers on one core and the load on another;
    what something else disturbs is measured again.

    A load generator is called with -i IF -t SHELF.SLOT -q DEPTH -n SECTORS
    -o read|write -p rand -S SECTORS-OF-DISK -T SECONDS -V 0, and prints one line of
    JSON: iops, p50 and p99 in microseconds, retx, bad, err. An echo is called with
    SHELF SLOT IF none, and answers queries, reads and writes at once.
    """
    chosen = choose(only)
    if only_list:
        print_lines(f"{cell.name:<14} {cell.title}" for cell in chosen)
        return
    for file in (json_file, svg_file):
        check_place(file)
    if source is not None:
        report = read_report(source)
        print_head(report)
        for result in report.results:
            print_lines(bench_table.block(result))
    else:
        report = run_all(chosen, how)
    print_lines(bench_table.notes(report))
    if json_file is not None:
        json_file.write_bytes(encode(report))
    if svg_file is not None:
        svg_file.write_text(bench_chart.write(report))


def run_all(chosen: Sequence[Cell], how: How) -> Report:
    """Measure cells in namespaces of our own; nothing is left behind.

    Raises:
        UsageError: an echo without what can ask it.
        AoEError: something could not be run, or did not work.
    """
    if how["echo"] and not how["load"]:
        why = "answers no IDENTIFY, which aoe bench wants"
        raise UsageError("--echo", why, "Give a --load too")
    tools = Tools.find(how["load"], how["echo"])
    ensure_root_or_user_namespace()
    signal.signal(signal.SIGTERM, _end)
    pace = choose_pace(how)
    where = how["where"] or memory_place(2 * pace.copy_size + DISK + SPARE)
    with tempfile.TemporaryDirectory(prefix="pyaoe-bench-", dir=where) as directory:
        return measure(Bench(chosen, tools, pace, Path(directory)))


def choose_pace(how: How) -> Pace:
    """Return how much to measure: quick or not, but for what was said."""
    pace = QUICK if how["quick"] else USUAL
    return replace(
        pace,
        rounds=how["rounds"] or pace.rounds,
        seconds=how["seconds"] or pace.seconds,
        tries=how["tries"] or pace.tries,
    )


if __name__ == "__main__":
    run(bench, "bench")
