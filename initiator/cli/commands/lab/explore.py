"""``aoe lab explore``: search all orders of events for one that violates a policy."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import IO, TYPE_CHECKING, Any, Final

import click

from aoe.common.commandline import json_option, print_json
from initiator.cli.commands.lab.switches import (
    axis_option,
    kernel_option,
    output_file,
    switch_options,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from initiator.lab.explorer.explore import Exploration

    Command = Callable[..., None]

_UNDECIDED: Final = 6
"""Exit code; the lower ones are those of ``aoe.errors``."""

# Modules of the lab are imported on use, so that other commands start faster.


def _bound(
    name: str, help_text: str, *, least: int = 0, most: int | None = None
) -> Callable[[Command], Command]:
    return click.option(
        f"--{name}",
        type=click.IntRange(least, most),
        default=1,
        show_default=True,
        help=help_text,
    )


@click.command()
@axis_option("policy", "Policy for page references.", required=True)
@axis_option("nic", "Type of NIC: SG, NOSG or COW.", required=True)
@axis_option(
    "submitter",
    "Submitter of the bios, which owns their memory. If repeated, the submitters "
    "alternate.",
    multiple=True,
    required=True,
)
@_bound("bios", "Number of writes submitted.", least=1)
@_bound("buffers", "Buffers per bio.", least=1)
@_bound("retransmissions", "Maximum retransmissions per frame.")
@_bound("duplicates", "Maximum number of duplicated responses.")
@_bound("reallocations", "Maximum allocations of memory by other users.")
@_bound("failures", "Maximum number of device failures.", most=1)
@click.option(
    "--steps",
    "max_steps",
    type=click.IntRange(min=1),
    help="Maximum number of events in an order.",
)
@click.option(
    "--states",
    "max_states",
    type=click.IntRange(min=1),
    default=2_000_000,
    show_default=True,
    help="Stop after this many states.",
)
@click.option(
    "--violation",
    "violations",
    multiple=True,
    metavar="FAULT",
    help="Fault to search for; may be repeated. Default: BUG, double-free, "
    "premature-free, leak, underflow; others: wrong-bytes, bad-page.",
)
@kernel_option()
@switch_options
@output_file(
    "--html", "Write a page with the order of events that violates the policy."
)
@json_option
def explore(
    *,
    policy: str,
    nic: str,
    submitters: tuple[str, ...],
    violations: tuple[str, ...],
    html: IO[str] | None,
    as_json: bool,
    kernel: str | None,
    **options: Any,  # noqa: ANN401 - the arguments of Bounds and Switches
) -> None:
    """Search all orders of events for one that violates a policy.

    \b
    Try:  aoe lab explore -p a -n COW -s rawalloc_highorder_tail
          aoe lab explore -p e -n COW -s xfs_kmalloc_subpage --bios 2 --steps 12
          aoe lab explore -p b -n SG -s xfs_kmalloc_subpage --violation wrong-bytes

    A breadth-first search over the states of the modelled machine. The events are: a
    bio is submitted; a clone leaves its queue, is sent, lost or freed; a response
    arrives, or arrives twice; a frame times out; the device fails; the owner of a
    buffer frees it or writes to it; slab returns its empty slabs to the page allocator;
    another user allocates memory. Equal states are visited once. The shortest order of
    events that violates the policy is printed.

    Exit codes: 0 safe within the bounds, 1 a violation was found, 6 undecided: the
    search was cut short.
    """
    from initiator.lab.cases import Switches, on_kernels
    from initiator.lab.explorer.explore import VIOLATIONS, parse_faults
    from initiator.lab.explorer.explore import explore as search

    switches = {each.name: options.pop(each.name) for each in fields(Switches)}
    (policy,) = on_kernels([policy], [kernel] if kernel else [])
    with _progress() as report:
        found = search(
            policy,
            nic,
            submitters,
            violations=parse_faults(violations) or VIOLATIONS,
            progress=report,
            switches=Switches(**switches),
            **options,
        )
    if html is not None:
        from initiator.lab.reports.explored import exploration_page

        html.write(exploration_page(found))
    if as_json:
        print_json("lab explore", **record(found))
    else:
        _print(found)
    click.get_current_context().exit(_UNDECIDED if found.undecided else not found.safe)


def record(found: Exploration) -> dict[str, object]:
    """Return the JSON of an exploration."""
    from initiator.lab.reports.tables import event_record

    setting = found.config
    return {
        "policy": setting.policy,
        "nic": setting.nic,
        "submitters": setting.submitters,
        "switches": asdict(setting.switches),
        "bounds": asdict(setting.bounds),
        "violations": sorted(fault.value for fault in setting.violations),
        "safe": found.safe,
        "undecided": found.undecided or None,
        "complete": found.complete,
        "steps": found.steps,
        "states": found.states,
        "edges": found.edges,
        "seconds": round(found.seconds, 3),
        "states_per_second": round(found.states_per_second),
        "counterexample": found.counterexample,
        "fault": event_record(found.fault) if found.fault else None,
        "events": [event_record(entry) for entry in found.journal.entries]
        if found.journal
        else None,
    }


def _print(found: Exploration) -> None:
    from initiator.lab.reports.explored import (
        bounds,
        conclusion,
        effort,
        looked_for,
        setting,
    )
    from initiator.lab.reports.tables import event_lines

    click.secho(setting(found), bold=True)
    click.echo(f"  bounds       {bounds(found)}")
    click.echo(f"  looking for  {looked_for(found)}")
    click.echo()
    color = "yellow" if found.undecided else "green" if found.safe else "red"
    click.secho(conclusion(found), fg=color)
    if found.fault is not None and found.journal is not None:
        for number, text in enumerate(found.counterexample or (), 1):
            click.echo(f"  {number:>3}. {text}")
        click.echo()
        for line, is_fault in event_lines(found.journal.entries):
            click.secho(line, fg="red" if is_fault else None, bold=is_fault)
    click.echo()
    click.echo(effort(found))


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Show the depth and the number of states if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("exploring", total=None)
        yield lambda steps, states: bar.update(
            task, description=f"orders of {steps} steps, {states:,} states"
        )
