"""``aoe lab replay``: judge a trace of a real kernel."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import click

from aoe.common.commandline import json_option, print_json
from aoe.errors import UsageError, from_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from click.shell_completion import CompletionItem

    from initiator.lab.traces.rules import TraceRule
    from initiator.lab.traces.verdict import Verdict

# Modules of the lab are imported on use, so that other commands start faster.

_UNDECIDED: Final = 6
_REPORT_LINES: Final = 20_000
"""Lines between two updates of the progress bar."""


def _complete_rule(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    from click.shell_completion import CompletionItem

    from initiator.lab.traces.rules import RULES

    return [
        CompletionItem(rule.name, help=rule.title)
        for rule in RULES
        if rule.name.startswith(incomplete)
    ]


@click.command()
@click.argument("file", required=False, metavar="[FILE]", type=click.Path())
@click.option(
    "--rule",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=_complete_rule,
    help="Judge by this rule only, for example freed-twice; may be repeated.",
)
@click.option(
    "--remember",
    type=click.IntRange(min=1),
    metavar="PAGES",
    help="Pages, blocks and bios to remember. Default: 65,536, which takes up to "
    "250 MiB of memory.",
)
@click.option(
    "--html",
    type=click.File("w", lazy=True),
    metavar="FILE",
    help="Write a self-contained HTML page to this file.",
)
@click.option(
    "--bpftrace",
    is_flag=True,
    help="Print the bpftrace script for kernels without CONFIG_DEBUG_PAGE_REF.",
)
@json_option
def replay(
    *,
    file: str | None,
    names: tuple[str, ...],
    remember: int | None,
    html: IO[str] | None,
    bpftrace: bool,
    as_json: bool,
) -> None:
    """Judge a trace of a real kernel by the rules of page counts.

    \b
    Try:  aoe lab replay trace.txt --html trace.html
          trace-cmd report | aoe lab replay -
          perf script | aoe lab replay - --rule freed-twice
          aoe lab replay --bpftrace >pages.bt

    FILE is the text that trace-cmd report, perf script, /sys/kernel/tracing/trace or
    the bpftrace script has printed; - is standard input. Events that the judge does not
    know are skipped. Which kernel is needed, and what each rule means, is in
    aoe-lab(1). The trace may have any size: it is read once, and a bounded number of
    pages is remembered.

    Exit codes: 0 no violation, 1 at least one, 2 FILE is not a trace, 6 undecided: no
    rule could be judged.
    """
    if bpftrace:
        from initiator.lab.traces.parser import bpftrace_script

        click.echo(bpftrace_script(), nl=False)
        return
    if file is None:
        fix = "Give the path of a trace, - for standard input, or --bpftrace"
        raise UsageError("FILE", "missing", fix)
    name = "standard input" if file == "-" else file
    verdict, lines = _judge(file, name, _rules(names), remember)
    if html is not None:
        from initiator.lab.traces.html_page import html_page

        html.write(html_page(verdict, name, lines))
    if as_json:
        from initiator.lab.traces.report import record

        print_json("lab replay", file=name, **record(verdict, lines))
    else:
        _print(verdict, name, lines)
    undecided = verdict.outcome == "undecided"
    click.get_current_context().exit(_UNDECIDED if undecided else bool(verdict.pages))


def _rules(names: Iterable[str]) -> list[TraceRule]:
    from initiator.lab.traces.rules import BY_NAME

    for name in names:
        if name not in BY_NAME:
            raise UsageError(name, f"no such rule (have: {', '.join(BY_NAME)})")
    return [rule for rule in BY_NAME.values() if not names or rule.name in names]


def _judge(
    file: str, name: str, rules: list[TraceRule], remember: int | None
) -> tuple[Verdict, int]:
    """Return the verdict, and the number of lines of the trace."""
    from initiator.lab.traces.judge import LIMIT, Judge
    from initiator.lab.traces.parser import TraceParser, read_lines
    from initiator.lab.traces.report import used_events

    parser = TraceParser(name)
    with _opened(file, name) as (trace, size), _progress(size) as report:
        lines = _reported(read_lines(trace, name), report)
        verdict = Judge(remember or LIMIT, rules).judge(parser.events(lines))
    if not used_events(verdict):
        raise UsageError(
            name,
            f"no event of pages or bios in {parser.lines:,} lines",
            "Record page_ref, kmem and block events; aoe-lab(1) has the commands",
        )
    return verdict, parser.lines


@contextmanager
def _opened(file: str, name: str) -> Iterator[tuple[IO[bytes], int]]:
    """Open a trace; yield it and its size, 0 if unknown."""
    if file == "-":
        yield sys.stdin.buffer, 0
        return
    try:
        with Path(file).open("rb") as trace:
            yield trace, Path(file).stat().st_size
    except OSError as error:
        raise from_os_error(name, error) from error


def _reported(
    lines: Iterable[str], report: Callable[[int], None] | None
) -> Iterator[str]:
    if report is None:
        yield from lines
        return
    read = 0
    for number, line in enumerate(lines):
        read += len(line)
        if number % _REPORT_LINES == 0:
            report(read)
        yield line


@contextmanager
def _progress(size: int) -> Iterator[Callable[[int], None] | None]:
    """Show how much of the trace was read if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeElapsedColumn

    with Progress(
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("reading", total=size or None)
        yield lambda read: bar.update(task, completed=read)


def _print(verdict: Verdict, name: str, lines: int) -> None:
    from initiator.lab.traces.report import (
        rule_lines,
        story_lines,
        summary,
        verdict_lines,
    )

    click.secho(name, bold=True)
    click.echo(f"  {summary(verdict, lines)}\n")
    for story in verdict.stories:
        for line, is_fault in story_lines(story):
            click.secho(line, fg="red" if is_fault else None, bold=is_fault)
        click.echo()
    click.echo("Rules, in full with: aoe rule NUMBER")
    for line in rule_lines(verdict):
        click.echo(line)
    click.echo()
    for line in verdict_lines(verdict):
        click.echo(line)
