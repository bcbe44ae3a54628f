"""What the judge found in a trace."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from initiator.lab.traces.rules import RULES

if TYPE_CHECKING:
    from initiator.lab.traces.rules import TraceRule


class Step(NamedTuple):
    """An event in the history of a page.

    Args:
        line: line in the trace.
        head: the text before the event: task, CPU and time.
        name: tracepoint.
        before, after: page count; None if unknown.
        note: further details.
    """

    line: int
    head: str
    name: str
    before: int | None = None
    after: int | None = None
    note: str = ""


class Violation(NamedTuple):
    """A broken rule.

    Args:
        line: line of the event that broke it.
        rule: name of the rule.
        note: what happened.
    """

    line: int
    rule: str
    note: str


@dataclass(slots=True)
class Story:
    """A page with violations.

    Args:
        pfn: page frame number.
        steps: its events, from a few before the first violation on.
        violations: in the order of the trace.
        omitted: events that followed and are not in ``steps``.
    """

    pfn: int
    steps: list[Step]
    violations: list[Violation] = field(default_factory=list)
    omitted: int = 0


@dataclass(slots=True)
class Verdict:
    """What the judge found.

    Args:
        rules: the rules that the trace was judged by.
        limit: pages, blocks and bios that are remembered.
        events: number of events by name.
        found: number of violations by rule.
        pages: number of pages with violations.
        stories: the pages that are described, in the order of their first violation.
        shared: pages not compared at completion, because they have a mapping.
        forgotten: pages, blocks and bios forgotten at the limit.
    """

    rules: tuple[TraceRule, ...]
    limit: int
    events: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    pages: int = 0
    stories: list[Story] = field(default_factory=list)
    shared: int = 0
    forgotten: int = 0

    @property
    def worst(self) -> TraceRule | None:
        """The broken rule with the worst outcome, or None."""
        return next((rule for rule in RULES if self.found[rule.name]), None)

    @property
    def judged(self) -> list[TraceRule]:
        """The rules whose events the trace has."""
        return [rule for rule in self.rules if not rule.missing(self.events)]

    @property
    def outcome(self) -> str:
        """The worst outcome, ``ok``, or ``undecided`` if no rule could be judged."""
        if self.worst:
            return self.worst.fault.value
        return "ok" if self.judged else "undecided"

    @property
    def is_complete(self) -> bool:
        """Every rule was judged, by all events."""
        whole = not self.forgotten and not self.events["lost"]
        return whole and self.judged == list(self.rules)
