"""``aoe-target doctor``: what is wrong here, and how to mend it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from aoe.commandline import json_option, print_json
from aoe.completion import complete_file, complete_interfaces

if TYPE_CHECKING:
    from target.doctor import Finding

_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.argument(
    "interfaces",
    nargs=-1,
    metavar="[IFACE]...",
    shell_complete=complete_interfaces,
)
@click.option(
    "--path",
    "paths",
    multiple=True,
    metavar="PATH",
    shell_complete=complete_file,
    help="Look at this disk image, block device or NBD export too.",
)
@json_option
def doctor(
    interfaces: tuple[str, ...], paths: tuple[str, ...], *, as_json: bool
) -> None:
    """Find what is wrong here, and say how to mend it.

    \b
    Try:  aoe-target doctor
          aoe-target doctor eth0 --path disk.img

    It looks at rights, interfaces, MTU, losses, buffers, other targets on the wire and
    those that run here; without IFACE at every Ethernet interface that is up. Nothing
    is changed; queries are broadcast on each.

    Exit codes: 0 nothing keeps AoE from working, 1 something does.
    """
    from target.doctor import Verdict, examine

    findings = []
    for finding in examine(interfaces, paths):
        findings.append(finding)
        if not as_json:
            # At once: asking the wire takes its time.
            click.echo(_describe(finding))
    if as_json:
        print_json("doctor", findings=[asdict(each) for each in findings])
    if any(each.verdict is Verdict.FAIL for each in findings):
        raise click.exceptions.Exit(1)


def _describe(finding: Finding) -> str:
    verdict = click.style(f"{finding.verdict:<4}", fg=_COLOURS[finding.verdict])
    line = f"{verdict}  {finding.subject}: {finding.check}: {finding.text}"
    return f"{line}\n      {finding.cure}" if finding.cure else line
