"""Compare the speed of pyaoe with that of vblade and NBD on this machine."""

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
from scripts.bench_images import DISK, memory_directory
from scripts.bench_rig import RunSettings
from scripts.bench_run import Bench
from scripts.bench_stats import decode, encode
from scripts.bench_tools import Tools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from scripts.bench_cells import Cell
    from scripts.bench_stats import Report

DEFAULT_SETTINGS: Final = RunSettings(rounds=5, seconds=1.0, copy_size=1 << 30, tries=3)
QUICK_SETTINGS: Final = RunSettings(rounds=1, seconds=0.2, copy_size=16 << 20, tries=1)
FILE: Final = click.Path(path_type=Path, dir_okay=False)
PROGRAM: Final = click.Path(path_type=Path, dir_okay=False, exists=True)
SPARE: Final = 1 << 30
"""Bytes that must stay free in the directory of the images."""


class RunOptions(TypedDict):
    """The options that control how to measure."""

    quick: bool
    rounds: int | None
    seconds: float | None
    tries: int | None
    load: Path | None
    echo: Path | None
    where: Path | None


def select_cells(names: Sequence[str]) -> list[Cell]:
    """Return the cells whose names start with one of ``names``; without any, all cells.

    Raises:
        UsageError: no cell's name starts with one of them.
    """
    for name in names:
        if not any(cell.name.startswith(name) for cell in CELLS):
            known = ", ".join(cell.name for cell in CELLS)
            raise UsageError(name, "no such cell", f"Cells: {known}")
    return [cell for cell in CELLS if not names or cell.name.startswith(tuple(names))]


def progress(total: int) -> Callable[[str], None]:
    """Return a function that shows a progress line on a terminal.

    Called with an empty string, it clears the line. If standard error is not a
    terminal it does nothing.
    """
    start = time.monotonic()
    done = 0

    def show(what: str) -> None:
        nonlocal done
        left = (time.monotonic() - start) / done * (total - done) if done else 0.0
        done += bool(what)
        rest = f", about {left / 60:.0f} min left" if left >= 60 else ""
        line = f"{done} of {total}: {what}{rest}" if what else ""
        click.echo(f"\r\033[K{line}", err=True, nl=False)

    return show if sys.stderr.isatty() else lambda _what: None


def measure(bench: Bench) -> Report:
    """Measure all cells, and print each when it is complete."""
    print_header(bench.report)
    show = progress(bench.steps)
    try:
        for cell in bench.cells:
            result = bench.measure(cell, show)
            show("")
            print_lines(bench_table.cell_lines(result))
    finally:
        show("")
    return bench.report


def print_header(report: Report) -> None:
    """Print the header of the table."""
    click.echo(bench_table.header(report))
    click.echo(bench_table.column_headings())


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of the table."""
    for line in lines:
        click.echo(line)


def read_report(path: Path) -> Report:
    """Read a file that ``--json`` has written.

    Raises:
        AoEError: it cannot be read, or is not such a file.
    """
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise from_os_error(str(path), error) from error


def check_writable(path: Path | None) -> None:
    """Check before the measurement that an output file can be written.

    Raises:
        NotFoundError: its directory does not exist.
        AccessError: not permitted.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise NotFoundError(str(path.parent), "no such directory")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise AccessError(str(path), "not writable")


def _exit_on_sigterm(_number: int, _frame: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


@click.command()
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Only cells whose names start with NAME.",
)
@click.option("--list", "only_list", is_flag=True, help="List the cells and exit.")
@click.option("--quick", is_flag=True, help="One short round, to check that it works.")
@click.option(
    "--rounds", type=click.IntRange(1), help="Rounds of each cell (default 5)."
)
@click.option("--seconds", type=SECONDS, help="Length of a measurement (default 1).")
@click.option(
    "--tries",
    type=click.IntRange(1),
    help="Attempts at an undisturbed measurement (default 3).",
)
@click.option(
    "--load",
    type=PROGRAM,
    help="Load generator to use instead of aoe bench.",
)
@click.option("--echo", type=PROGRAM, help="Target without a disk to compare with.")
@click.option("--json", "json_file", type=FILE, help="Write all samples to this file.")
@click.option("--svg", "svg_file", type=FILE, help="Write the chart to this file.")
@click.option(
    "--from", "source", type=FILE, help="Show a file that --json has written."
)
@click.option(
    "--dir",
    "where",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Directory for the images (default: in memory if there is room, else the "
    "directory for temporary files).",
)
def bench(
    *,
    only: tuple[str, ...],
    only_list: bool,
    source: Path | None,
    json_file: Path | None,
    svg_file: Path | None,
    **run_options: Unpack[RunOptions],
) -> None:
    """Compare pyaoe with vblade and NBD over TCP on this machine, and print ratios.

    \b
    Try:  scripts/bench --quick
          scripts/bench --json bench.json --svg bench.svg
          scripts/bench --only read --only write --load ./aoeload --echo ./aoeecho

    A full run takes about six minutes, in two network namespaces with a veth pair
    between them. The sides of a cell alternate, servers on one core and the load on
    another. A measurement is repeated if other processes wanted the cores.

    A load generator is called with -i IF -t SHELF.SLOT -q DEPTH -n SECTORS
    -o read|write -p rand -S SECTORS-OF-DISK -T SECONDS -V 0, and prints one line of
    JSON: iops, p50 and p99 in microseconds, retx, bad, err. An echo target is called
    with SHELF SLOT IF none, and responds to queries, reads and writes without a disk.
    """
    selected = select_cells(only)
    if only_list:
        print_lines(f"{cell.name:<14} {cell.title}" for cell in selected)
        return
    for file in (json_file, svg_file):
        check_writable(file)
    if source is not None:
        report = read_report(source)
        print_header(report)
        for result in report.results:
            print_lines(bench_table.cell_lines(result))
    else:
        report = run_all(selected, run_options)
    print_lines(bench_table.notes(report))
    if json_file is not None:
        json_file.write_bytes(encode(report))
    if svg_file is not None:
        svg_file.write_text(bench_chart.write(report))


def run_all(selected: Sequence[Cell], run_options: RunOptions) -> Report:
    """Measure cells in new network namespaces, and remove all temporary files.

    Raises:
        UsageError: ``--echo`` without ``--load``.
        AoEError: a program could not be run, or failed.
    """
    if run_options["echo"] and not run_options["load"]:
        why = "does not respond to IDENTIFY, which aoe bench needs"
        raise UsageError("--echo", why, "Give --load as well")
    tools = Tools.find(run_options["load"], run_options["echo"])
    ensure_root_or_user_namespace()
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    settings = run_settings(run_options)
    where = run_options["where"] or memory_directory(
        2 * settings.copy_size + DISK + SPARE
    )
    with tempfile.TemporaryDirectory(prefix="pyaoe-bench-", dir=where) as directory:
        return measure(Bench(selected, tools, settings, Path(directory)))


def run_settings(run_options: RunOptions) -> RunSettings:
    """Return the settings of ``--quick`` or the default, changed by other options."""
    settings = QUICK_SETTINGS if run_options["quick"] else DEFAULT_SETTINGS
    return replace(
        settings,
        rounds=run_options["rounds"] or settings.rounds,
        seconds=run_options["seconds"] or settings.seconds,
        tries=run_options["tries"] or settings.tries,
    )


if __name__ == "__main__":
    run(bench, "bench")
