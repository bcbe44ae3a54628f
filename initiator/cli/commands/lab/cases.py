"""``aoe lab``: simulate the page reference counts of block I/O over AoE."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any, Final

import click

from aoe.common.commandline import ADDRESS, json_option, print_json
from aoe.common.completion import complete_interfaces
from aoe.errors import AoEError, UsageError
from initiator.cli.commands.lab.costs import costs
from initiator.cli.commands.lab.explore import explore
from initiator.cli.commands.lab.group import (
    LabGroup,
    load_entry_points,
    plugin_option,
)
from initiator.cli.commands.lab.replay import replay
from initiator.cli.commands.lab.switches import (
    axis_option,
    kernel_option,
    output_file,
    switch_options,
    table_console,
)
from initiator.cli.complete import complete_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe.address import Address
    from aoe.net.link import Link
    from initiator.lab.cases import Case, Result
    from initiator.lab.wire import CaseRun

    Command = Callable[..., None]

_TIMEOUT: Final = 5.0
"""Seconds to wait for a target on an interface."""

# Modules of the lab are imported on use, so that other commands start faster.


@click.group(cls=LabGroup)
@plugin_option
def lab() -> None:
    """Simulate the page reference counts of AoE block I/O.

    \b
    Try:  aoe lab matrix
          aoe lab explain none@2.6.21/rawalloc_highorder_tail/clean/NOSG

    A case is policy/submitter/event/nic: the policy for page references, the submitter
    that owns the memory, the event that happens to the frame, and the type of NIC. Each
    case runs on a modelled machine of its own. Its AoE driver is pyaoe's own driver
    with the options of Linux 6.1, without its fast path.

    The names of each axis are listed at the end.
    """
    load_entry_points()


@lab.command()
@axis_option("policy", "Policy for page references.", multiple=True)
@axis_option("submitter", "Submitter of the bio, which owns its memory.", multiple=True)
@axis_option("event", "Event that happens to the frame.", multiple=True)
@axis_option("nic", "Type of NIC: SG, NOSG or COW.", multiple=True)
@kernel_option(multiple=True)
@switch_options
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, a line per case.")
@output_file("--html", "Write a heat map to this file; its cells open their cases.")
@json_option
def matrix(
    *,
    policies: tuple[str, ...],
    submitters: tuple[str, ...],
    events: tuple[str, ...],
    nics: tuple[str, ...],
    kernels: tuple[str, ...],
    as_csv: bool,
    html: IO[str] | None,
    as_json: bool,
    **switches: Any,  # noqa: ANN401 - the arguments of Switches
) -> None:
    """Run all cases, or some of them, and show the outcomes.

    \b
    Try:  aoe lab matrix
          aoe lab matrix -p a -p e -s rawalloc_highorder_tail
          aoe lab matrix --csv >cases.csv
          aoe lab matrix --html matrix.html

    Each option may be repeated. The submitters xfs_get_free_page, jbd_get_free_page and
    jbd_kmalloc are not in the matrix, and run only if given.
    """
    from initiator.lab.cases import Switches, all_cases, on_kernels, run_case
    from initiator.lab.reports.tables import record, write_csv

    policies = on_kernels(policies, kernels)
    cases = list(all_cases(policies, submitters, events, nics))
    keep = html is not None
    with _counting("running", len(cases)) as advance:
        results = [
            advance(run_case(case, Switches(**switches), keep_entries=keep))
            for case in cases
        ]
    if html is not None:
        from initiator.lab.reports.heat_map import heat_map

        html.write(heat_map(results))
    if as_json:
        print_json(
            "lab matrix",
            switches=switches,
            cases=[record(result) for result in results],
        )
    elif as_csv:
        write_csv(results, sys.stdout)
    else:
        chosen = bool(policies or submitters or events or nics)
        _print_tables(results, cells=chosen)


def _print_tables(results: list[Result], *, cells: bool) -> None:
    from initiator.lab.reports.tables import (
        cell_tables,
        cost_table,
        legend,
        outcome_table,
    )

    console = table_console()
    console.print(outcome_table(results))
    console.print(cost_table(results))
    for table in cell_tables(results, console.width) if cells else ():
        console.print(table)
    for line in legend(results):
        console.print(line, soft_wrap=True)


@contextmanager
def _counting(what: str, total: int) -> Iterator[Callable[[Result], Result]]:
    """Show the number of finished cases if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda result: result
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=total)

        def advance(result: Result) -> Result:
            bar.advance(task)
            return result

        yield advance


def _case(parts: tuple[str, ...], kernel: str | None) -> Case:
    from initiator.lab.cases import Case

    case = Case.parse("/".join(parts))
    return case.on_kernel(kernel) if kernel else case


_case_argument = click.argument(
    "parts", nargs=-1, required=True, metavar="POLICY/SUBMITTER/EVENT/NIC"
)


@lab.command()
@_case_argument
@kernel_option()
@switch_options
@click.option(
    "--against",
    metavar="CASE",
    help="Compare with this case: show the events of both, and which only one has.",
)
@output_file("--html", "Write a self-contained HTML page with a timeline to this file.")
@output_file("--svg", "Write the timeline as a picture to this file.")
@output_file("--trace", "Write a Chrome trace to this file, for ui.perfetto.dev.")
@json_option
def explain(
    *,
    parts: tuple[str, ...],
    against: str | None,
    kernel: str | None,
    html: IO[str] | None,
    svg: IO[str] | None,
    trace: IO[str] | None,
    as_json: bool,
    **switches: Any,  # noqa: ANN401 - the arguments of Switches
) -> None:
    """Run one case and print its events step by step.

    \b
    Try:  aoe lab explain none@2.6.21/rawalloc_highorder_tail/clean/NOSG
          aoe lab explain a rawalloc_highorder_tail late_txdone COW --html a.html
          aoe lab explain a/pagecache/clean/SG --against a/pagecache/clean/NOSG
    """
    from initiator.lab.cases import Switches, run_case

    chosen = Switches(**switches)
    result = run_case(_case(parts, kernel), chosen, keep_entries=True)
    other = None
    if against is not None:
        other = run_case(_case((against,), kernel), chosen, keep_entries=True)
    if html is not None:
        from initiator.lab.reports.comparison import comparison_page
        from initiator.lab.reports.html_page import html_page

        html.write(comparison_page(result, other) if other else html_page(result))
    if svg is not None:
        from initiator.lab.reports.html_page import picture_file

        svg.write(picture_file(result))
    if trace is not None:
        import json

        from initiator.lab.reports.chrome_trace import chrome_trace

        json.dump(chrome_trace(result), trace, indent=1)
    if as_json:
        compared = {"against": _explanation(other)} if other else {}
        print_json("lab explain", **_explanation(result), switches=switches, **compared)
    elif other is not None:
        _print_comparison(result, other)
    else:
        _print_events(result)


def _explanation(result: Result) -> dict[str, object]:
    from initiator.lab.reports.tables import (
        describe_case,
        event_record,
        named_rules,
        record,
    )
    from initiator.rules import rule_record

    faults, entries = result.journal.faults, result.journal.entries
    return {
        **record(result),
        "meanings": {axis: text for axis, _, text in describe_case(result.case)},
        "first_fault": next(map(event_record, faults), None),
        "first_act": next(map(event_record, map(result.journal.act_of, faults)), None),
        "events": [event_record(entry) for entry in entries],
        "rules": [rule_record(rule) for rule in named_rules(entries)],
    }


def _print_comparison(result: Result, other: Result) -> None:
    from initiator.lab.reports.comparison import comparison_lines
    from initiator.lab.reports.tables import rule_lines, verdict

    for sign, each in (("<", result), (">", other)):
        click.secho(f"{sign} {each.case}{each.switches.options}", bold=True)
        for line in verdict(each):
            click.echo(f"  {line}")
    click.echo()
    colors = {"<": "cyan", ">": "yellow"}
    for sign, line in comparison_lines(result, other):
        click.secho(f"{sign or ' '} {line}", fg=colors.get(sign))
    click.echo("\nRules, in full with: aoe rule NUMBER")
    for line in rule_lines([*result.journal.entries, *other.journal.entries]):
        click.echo(line)


def _print_events(result: Result) -> None:
    from initiator.lab.reports.tables import (
        describe_case,
        event_lines,
        rule_lines,
        verdict,
    )

    click.secho(f"{result.case}{result.switches.options}", bold=True)
    for axis, name, meaning in describe_case(result.case):
        click.echo(f"  {axis:<10} {name:<24} {meaning}")
    click.echo()
    for line, is_fault in event_lines(result.journal.entries):
        click.secho(line, fg="red" if is_fault else None, bold=is_fault)
    click.echo("\nRules, in full with: aoe rule NUMBER")
    for line in rule_lines(result.journal.entries):
        click.echo(line)
    click.echo()
    for line in verdict(result):
        click.echo(line)


@lab.command("run")
@_case_argument
@click.option(
    "--wire", is_flag=True, help="Send real frames to aoe-target on a veth pair."
)
@click.option(
    "-i",
    "--interface",
    metavar="IFACE",
    shell_complete=complete_interfaces,
    help="Send real frames to a target on this interface.",
)
@click.option(
    "--address",
    type=ADDRESS,
    default="e0.0",
    show_default=True,
    shell_complete=complete_address,
    help="Address of this target.",
)
@click.option(
    "--overwrite", is_flag=True, help="Allow overwriting the first sectors of its disk."
)
@click.option(
    "--force",
    is_flag=True,
    help="Overwrite them although this host has attached or mounted the disk.",
)
@kernel_option()
@switch_options
@json_option
def run_command(
    *,
    parts: tuple[str, ...],
    kernel: str | None,
    wire: bool,
    interface: str | None,
    address: Address,
    overwrite: bool,
    force: bool,
    as_json: bool,
    **switches: Any,  # noqa: ANN401 - the arguments of Switches
) -> None:
    """Run one case, and compare the disk with the submitted data.

    \b
    Try:  aoe lab run none@2.6.21/pagecache/stale_clone+rewrite_in_place/SG --wire
          aoe lab run e/pagecache/clean/SG -i eth0 --address e0.0 --overwrite

    Without options, target and disk are in memory. With --wire, aoe-target serves a
    file at the other end of a veth pair, which needs root or user namespaces. With -i,
    any target on the network can be used. The outcome must be the same as in memory.

    Exit codes: 0 same outcome as in memory, 1 another outcome.
    """
    from initiator.lab.cases import Switches
    from initiator.lab.wire import run_and_read_back

    case, chosen = _case(parts, kernel), Switches(**switches)
    if interface is not None and wire:
        raise UsageError(
            "--wire", "excludes -i: it creates its own interfaces", "Choose one"
        )
    if interface is not None and not overwrite:
        raise UsageError(
            str(address),
            "would be overwritten from its first sector",
            "Add --overwrite",
        )
    case_run = in_memory = run_and_read_back(case, switches=chosen)
    if interface is not None:
        from initiator.lab.wire import on_interface

        with (
            on_interface(interface, address) as peer,
            _claimed(peer.link, address, force=force),
        ):
            case_run = run_and_read_back(case, peer, peer.link.mac, chosen)
    elif wire:
        from aoe.net.netns import ensure_root_or_user_namespace
        from initiator.lab.wire import Bench

        ensure_root_or_user_namespace()
        with Bench() as bench:
            case_run = bench.run(case, chosen)
    place = f"{address} on {interface}" if interface else "a veth pair" if wire else ""
    _print_run(case_run, in_memory, place, as_json=as_json)
    if not case_run.agrees_with(in_memory):
        there, here = case_run.result.outcome, in_memory.result.outcome
        raise AoEError(str(case), f"{there} on {place}, {here} in memory")


@contextmanager
def _claimed(link: Link, address: Address, *, force: bool) -> Iterator[None]:
    """Claim a target's disk while the context is active, unless ``force`` is set."""
    from aoe.identify import Identity
    from initiator.client.claims import claimed
    from initiator.client.remote import open_target

    if force:
        yield
        return
    with open_target([link], address, _TIMEOUT) as target:
        identity = Identity.unpack(target.identity_page())
        path = (link.name, target.mac)
    fix = "Detach it or wait for the end of the process, or use --force"
    with claimed(address, identity, [path], fix):
        yield


def _print_run(
    case_run: CaseRun, in_memory: CaseRun, place: str, *, as_json: bool
) -> None:
    from initiator.lab.reports.tables import dump_lines, record

    result = case_run.result
    if as_json:
        print_json(
            "lab run",
            **record(result),
            switches=asdict(result.switches),
            run_on=place or "memory",
            outcome_in_memory=in_memory.result.outcome,
            agrees=case_run.agrees_with(in_memory),
            submitted=case_run.submitted.hex(),
            on_disk=case_run.on_disk.hex(),
        )
        return
    click.secho(f"{result.case}{result.switches.options}", bold=True)
    if not case_run.submitted:
        click.echo("The machine stopped before anything was submitted.")
    else:
        same = case_run.submitted == case_run.on_disk
        what = "what was submitted" if same else "not what was submitted"
        click.echo(f"The disk holds {what}, {len(case_run.submitted)} bytes:\n")
        for line, is_amiss in dump_lines(case_run.submitted, case_run.on_disk):
            click.secho(f"  {line}", fg="red" if is_amiss else None)
    click.echo()
    for where, each in ((place, case_run), ("memory", in_memory)):
        if where:
            flags = f" ({', '.join(each.result.flags)})" if each.result.flags else ""
            click.echo(f"Outcome, {where + ':':<14} {each.result.outcome}{flags}")
    click.echo(f"Why: {result.reason}")


lab.add_command(costs)
lab.add_command(explore)
lab.add_command(replay)
