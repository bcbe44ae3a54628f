"""How a ``doctor`` command tells its findings, and how it ends."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from aoe.common.commandline import print_json
from aoe.common.doctor.findings import Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


def report(findings: Iterable[Finding], *, as_json: bool) -> None:
    """Print findings as they come, then exit: 0 nothing has failed, 1 something has.

    Raises:
        click.exceptions.Exit: something has failed.
    """
    seen = []
    for finding in findings:
        seen.append(finding)
        if not as_json:
            # At once: asking the wire takes its time.
            click.echo(describe_finding(finding))
    if as_json:
        print_json("doctor", findings=[asdict(each) for each in seen])
    exit_by(seen)


def exit_by(findings: Iterable[Finding]) -> None:
    """End the command with code 1 if something has failed.

    Raises:
        click.exceptions.Exit: it has.
    """
    if any(each.verdict is Verdict.FAIL for each in findings):
        raise click.exceptions.Exit(1)


def describe_finding(finding: Finding) -> str:
    """Write a finding in a line, and its fix, if it has one, in another."""
    verdict = click.style(f"{finding.verdict:<4}", fg=_COLOURS[finding.verdict])
    line = f"{verdict}  {finding.subject}: {finding.check}: {finding.text}"
    return f"{line}\n      {finding.fix}" if finding.fix else line
