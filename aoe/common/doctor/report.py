"""Output and exit code of the ``doctor`` commands."""

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
    """Print findings as they are made, or all of them as JSON.

    Raises:
        click.exceptions.Exit: there is a ``fail`` among them; the exit code is 1.
    """
    printed = []
    for finding in findings:
        printed.append(finding)
        if not as_json:
            # Not collected first: checks of the network take seconds.
            click.echo(describe_finding(finding))
    if as_json:
        print_json("doctor", findings=[asdict(each) for each in printed])
    exit_if_failed(printed)


def exit_if_failed(findings: Iterable[Finding]) -> None:
    """Exit with code 1 if there is a ``fail`` among the findings.

    Raises:
        click.exceptions.Exit: there is one.
    """
    if any(each.verdict is Verdict.FAIL for each in findings):
        raise click.exceptions.Exit(1)


def describe_finding(finding: Finding) -> str:
    """Return a finding as a line, with its fix, if any, on a second line."""
    verdict = click.style(f"{finding.verdict:<4}", fg=_COLOURS[finding.verdict])
    line = f"{verdict}  {finding.subject}: {finding.check}: {finding.text}"
    return f"{line}\n      {finding.fix}" if finding.fix else line
