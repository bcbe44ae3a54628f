"""``aoe lab costs``: what policies cost a workload."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from aoe.common.commandline import json_option, print_json
from initiator.cli.commands.lab.switches import axis_option, table_console

if TYPE_CHECKING:
    from initiator.lab.workload import WorkloadCosts

# Modules of the lab are imported on use, so that other commands start faster.


@click.command()
@axis_option("policy", "Policy for page references.", multiple=True)
@axis_option(
    "submitter",
    "Submitter of the writes, which owns their memory.",
    default="xfs_kmalloc_subpage",
    show_default=True,
)
@axis_option("nic", "Type of NIC: SG, NOSG or COW.", default="NOSG", show_default=True)
@click.option(
    "--writes",
    type=click.IntRange(0, 100_000),
    default=100,
    show_default=True,
    help="Number of writes, undisturbed.",
)
@click.option(
    "--kmallocs",
    type=click.IntRange(0, 1_000_000),
    default=10_000,
    show_default=True,
    help="Number of other objects of 1 KiB that are allocated and freed.",
)
@json_option
def costs(
    *,
    policies: tuple[str, ...],
    submitter: str,
    nic: str,
    writes: int,
    kmallocs: int,
    as_json: bool,
) -> None:
    """Show what policies cost a workload.

    \b
    Try:  aoe lab costs
          aoe lab costs -p a -p b -p c+ --writes 1000 --kmallocs 100000

    Most kmallocs never reach a disk. A policy that takes references to slab objects
    pays for all of them, one in the driver or the file system only for writes. -p may
    be repeated; by default all policies are listed.
    Operations are increments and decrements of page counts.
    """
    from initiator.lab.kernel.policy import MATRIX_POLICIES
    from initiator.lab.workload import workload_costs

    found = [
        workload_costs(policy, submitter, nic, writes, kmallocs)
        for policy in policies or MATRIX_POLICIES
    ]
    if as_json:
        print_json(
            "lab costs",
            submitter=submitter,
            nic=nic,
            writes=writes,
            kmallocs=kmallocs,
            policies=[asdict(each) for each in found],
        )
        return
    click.echo(
        f"{writes:,} writes of {submitter} to {nic}, {kmallocs:,} other kmallocs of "
        "1 KiB\n"
    )
    _print_table(found)


def _print_table(found: list[WorkloadCosts]) -> None:
    from initiator.lab.reports.tables import workload_table

    table_console().print(workload_table(found))
