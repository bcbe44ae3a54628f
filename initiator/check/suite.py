"""The list of all checks, and selection by rule."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from aoe.errors import UsageError
from initiator.check.model import Check, Needs
from initiator.check.rules import (
    config,
    framing,
    header,
    identify,
    masks,
    reads,
    reserves,
    writes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_TABLES: Final = (
    header.table,
    framing.table,
    identify.table,
    reads.table,
    config.table,
    reserves.table,
    writes.table,
    masks.table,
)
_RULE: Final = re.compile(r"P?(\d+)(?:-P?(\d+))?", re.ASCII | re.IGNORECASE)


def _in_order(tables: Iterable[Iterable[Check]]) -> tuple[Check, ...]:
    # Hazardous checks run last: the target may not survive them.
    checks = [check for table in tables for check in table]
    return tuple(sorted(checks, key=lambda check: bool(check.needs & Needs.HAZARD)))


CHECKS: Final = _in_order(_TABLES)
"""All checks in the order of execution."""


def parse_rules(text: str) -> frozenset[int]:
    """Parse rules such as ``P19``, ``P38,P52`` or ``P61-P70``.

    >>> sorted(parse_rules("P38,p52-54"))
    [38, 52, 53, 54]

    Raises:
        UsageError: the text has another form.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        match = _RULE.fullmatch(part.strip())
        if match is None:
            raise UsageError(part, "not a rule", "Write P38,P52 or P61-P70")
        first = int(match[1])
        numbers |= set(range(first, int(match[2] or first) + 1))
    return frozenset(numbers)


def choose(rules: frozenset[int]) -> tuple[Check, ...]:
    """Return the checks of these rules, or all checks if no rules are given.

    Raises:
        UsageError: no check tests any of the rules.
    """
    if not rules:
        return CHECKS
    chosen = tuple(check for check in CHECKS if rules & set(check.rules))
    if not chosen:
        names = ",".join(f"P{rule}" for rule in sorted(rules)[:5])
        raise UsageError(names, "no check tests it", "List the checks with: --list")
    return chosen
