"""The results of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aoe.errors import AoEError


class Verdict(StrEnum):
    """The severity of a finding.

    ``fail`` keeps AoE from working, ``warn`` makes it slower or less reliable.
    """

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Args:
        subject: what was checked: ``host``, an interface, an address, a file.
        check: the name of the check, one or two words.
        verdict: the severity.
        text: the state that was found, and its effect on AoE.
        fix: what to do about it, a command where there is one; empty if nothing.
    """

    subject: str
    check: str
    verdict: Verdict
    text: str
    fix: str = ""


def ok(subject: str, check: str, text: str, fix: str = "") -> Finding:
    """Return a finding that needs no action."""
    return Finding(subject, check, Verdict.OK, text, fix)


def warn(subject: str, check: str, text: str, fix: str = "") -> Finding:
    """Return a finding about something that works, but not as well as it could."""
    return Finding(subject, check, Verdict.WARN, text, fix)


def fail(subject: str, check: str, text: str, fix: str = "") -> Finding:
    """Return a finding about something that keeps AoE from working."""
    return Finding(subject, check, Verdict.FAIL, text, fix)


def from_error(
    check: str, error: AoEError, verdict: Verdict = Verdict.FAIL, subject: str = ""
) -> Finding:
    """Return a finding with the text and the fix of an error."""
    return Finding(subject or error.what, check, verdict, error.why, error.fix)
