"""What an examination finds, thing by thing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aoe.errors import AoEError


class Verdict(StrEnum):
    """How a thing is: ``fail`` keeps AoE from working, ``warn`` makes it worse."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        subject: whose it is: ``host``, an interface, an address, a file.
        check: what was looked at, one or two words.
        verdict: how it is.
        text: a sentence: what it is, and what that means for AoE.
        fix: what to do about it, a command where there is one; empty if nothing.
    """

    subject: str
    check: str
    verdict: Verdict
    text: str
    fix: str = ""


def ok(subject: str, check: str, text: str, fix: str = "") -> Finding:
    """Find that it is well."""
    return Finding(subject, check, Verdict.OK, text, fix)


def warn(subject: str, check: str, text: str, fix: str = "") -> Finding:
    """Find that it works, and could do so better."""
    return Finding(subject, check, Verdict.WARN, text, fix)


def fail(subject: str, check: str, text: str, fix: str = "") -> Finding:
    """Find that it does not work."""
    return Finding(subject, check, Verdict.FAIL, text, fix)


def from_error(
    check: str, error: AoEError, verdict: Verdict = Verdict.FAIL, subject: str = ""
) -> Finding:
    """Take an error for a finding: it has the sentence and the fix."""
    return Finding(subject or error.what, check, verdict, error.why, error.fix)
