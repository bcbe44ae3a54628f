"""The verdict on a trace as text and as a JSON record."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from aoe.common.sizes import format_count
from initiator.lab.traces.parser import describe_head
from initiator.lab.traces.rules import BY_NAME
from initiator.rules import rule_title

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.lab.traces.rules import TraceRule
    from initiator.lab.traces.verdict import Step, Story, Verdict, Violation

_WIDTH: Final = 80
_MARKS: Final = ("other", "lost", "pages.bt")
"""Names of events that are about the trace itself."""
UNDECIDED: Final = "No rule could be judged: the trace misses the events above"


def first_and_worst(verdict: Verdict) -> tuple[Violation, Violation] | None:
    """Return the first violation, and the first of those with the worst outcome."""
    found = [each for story in verdict.stories for each in story.violations]
    worst = verdict.worst
    if not found or worst is None:
        return None
    first = min(found)
    worse = [each for each in found if BY_NAME[each.rule].fault is worst.fault]
    return first, min(worse, default=first)


def used_events(verdict: Verdict) -> int:
    """Return the number of events that the trace was judged by."""
    return sum(n for name, n in verdict.events.items() if name not in _MARKS)


def summary(verdict: Verdict, lines: int) -> str:
    """Return the size of the trace in one line."""
    used, others = used_events(verdict), verdict.events["other"]
    rest = f", {others:,} other events" if others else ""
    return f"{lines:,} lines, {used:,} events of pages and bios{rest}"


def remarks(verdict: Verdict) -> Iterator[str]:
    """Yield what limits the verdict, a sentence each."""
    if lost := verdict.events["lost"]:
        yield (
            f"The kernel lost events {format_count(lost, 'time')}; after that, nothing "
            "that happened before was used."
        )
    if verdict.forgotten:
        yield (
            f"Forgotten pages, blocks and bios: {verdict.forgotten:,}, as more than "
            f"{verdict.limit:,} were in use; faults of these may be missing. Remember "
            "more with --remember."
        )
    if verdict.shared:
        yield (
            f"Pages not compared at completion: {verdict.shared:,}, as they have a "
            "mapping and others may reference them at any time."
        )
    if verdict.pages > len(verdict.stories):
        yield (
            f"Pages with violations: {verdict.pages:,}; the first "
            f"{len(verdict.stories)} are listed."
        )


def rule_states(verdict: Verdict) -> Iterator[tuple[TraceRule, str]]:
    """Yield each rule, and the number of violations or why there is no answer."""
    for rule in verdict.rules:
        missing = rule.missing(verdict.events)
        if number := verdict.found[rule.name]:
            yield rule, format_count(number, "violation")
        elif missing:
            yield rule, f"not judged: the trace has no {_either(missing)}"
        else:
            yield rule, "kept"


def _either(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


# --- text -----------------------------------------------------------------------


def story_lines(story: Story) -> Iterator[tuple[str, bool]]:
    """Yield the lines about a page, and whether each is a violation."""
    broken: dict[int, list[Violation]] = {}
    for violation in story.violations:
        broken.setdefault(violation.line, []).append(violation)
    words = dict.fromkeys(BY_NAME[each.rule].fault.value for each in story.violations)
    yield f"page {story.pfn:#x}: {', '.join(words)}", True
    rows = [("line", "seconds", "task", "event", "count"), *_rows(story.steps)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, step in zip(rows, (None, *story.steps), strict=True):
        violations = broken.pop(step.line, []) if step else []
        line, seconds, *rest = row
        cells = [f"{line:>{widths[0]}}", f"{seconds:>{widths[1]}}"]
        cells += [f"{word:<{w}}" for word, w in zip(rest, widths[2:], strict=True)]
        text = f"{'>>' if violations else '  '} {'  '.join(cells)}".rstrip()
        note = step.note if step else ""
        if note and len(text) + 2 + len(note) <= _WIDTH:
            text, note = f"{text}  {note}", ""
        yield text, bool(violations)
        if note:
            yield f"{'':<{widths[0] + 5}}{note}", False
        for violation in violations:
            for line in _violation_lines(violation, widths[0] + 5):
                yield line, True
    for violation in (each for rest in broken.values() for each in rest):
        yield f">> {violation.line:>{widths[0]}}", True
        for line in _violation_lines(violation, widths[0] + 5):
            yield line, True
    if story.omitted:
        yield f"   ... {story.omitted:,} more events of this page", False


def _rows(steps: Sequence[Step]) -> Iterator[tuple[str, str, str, str, str]]:
    start = None
    for step in steps:
        task, time = describe_head(step.head)
        start = time if start is None else start
        seconds = f"{time - start:.6f}"
        yield f"{step.line}", seconds, task, step.name, counts(step)


def counts(step: Step) -> str:
    """Return the page count before and after an event, as far as known."""
    if step.after is None:
        return ""
    if step.before is None or step.before == step.after:
        return str(step.after)
    return f"{step.before} -> {step.after}"


def _violation_lines(violation: Violation, indent: int) -> list[str]:
    rule = BY_NAME[violation.rule]
    text = f"{rule.name} ({rule.number}): {violation.note}"
    space = " " * indent
    return textwrap.wrap(
        text, _WIDTH, initial_indent=space, subsequent_indent=space + "  "
    )


def rule_lines(verdict: Verdict) -> Iterator[str]:
    """Yield the lines about the rules."""
    for rule, state in rule_states(verdict):
        text = f"  {rule.name:<14} {rule.number:<5} {state}"
        yield from textwrap.wrap(text, _WIDTH, subsequent_indent=" " * 23)


def verdict_lines(verdict: Verdict) -> Iterator[str]:
    """Yield the outcome, the first and the worst violation, and remarks."""
    part = ", as far as judged" if verdict.judged and not verdict.is_complete else ""
    yield f"Outcome: {verdict.outcome}{part}"
    found = first_and_worst(verdict)
    if found is None:
        yield "No violation" if verdict.judged else UNDECIDED
    else:
        first, worst = found
        named = [("First violation", first)]
        if worst.rule != first.rule:
            named.append(("Worst violation", worst))
        for word, violation in named:
            yield from textwrap.wrap(f"{word}: {describe(violation)}", _WIDTH)
    for remark in remarks(verdict):
        yield from textwrap.wrap(remark, _WIDTH)


def describe(violation: Violation) -> str:
    """Return a violation as a sentence, with its rule."""
    rule = BY_NAME[violation.rule]
    return (
        f"{rule.name} at line {violation.line}, {rule.fault.value}: {violation.note} "
        f"({rule.number}, {rule_title(rule.number)})"
    )


# --- JSON -----------------------------------------------------------------------


def record(verdict: Verdict, lines: int) -> dict[str, object]:
    """Return the verdict as a record."""
    found = first_and_worst(verdict)
    return {
        "lines": lines,
        "events": dict(sorted(verdict.events.items())),
        "outcome": verdict.outcome,
        "complete": verdict.is_complete,
        "violations": verdict.found.total(),
        "first_violation": _violation_record(found[0]) if found else None,
        "worst_violation": _violation_record(found[1]) if found else None,
        "rules": [
            {
                "name": rule.name,
                "rule": rule.number,
                "title": rule.title,
                "outcome": rule.fault.value,
                "violations": verdict.found[rule.name],
                "judged": not rule.missing(verdict.events),
                "missing": list(rule.missing(verdict.events)),
            }
            for rule in verdict.rules
        ],
        "pages_with_violations": verdict.pages,
        "pages": [_story_record(story) for story in verdict.stories],
        "remembered": verdict.limit,
        "forgotten": verdict.forgotten,
        "not_compared": verdict.shared,
    }


def _story_record(story: Story) -> dict[str, object]:
    return {
        "pfn": story.pfn,
        "violations": [_violation_record(each) for each in story.violations],
        "events": [_step_record(step) for step in story.steps],
        "omitted": story.omitted,
    }


def _violation_record(violation: Violation) -> dict[str, object]:
    rule = BY_NAME[violation.rule]
    return {
        "line": violation.line,
        "name": rule.name,
        "rule": rule.number,
        "outcome": rule.fault.value,
        "note": violation.note,
    }


def _step_record(step: Step) -> dict[str, object]:
    task, time = describe_head(step.head)
    return {
        "line": step.line,
        "task": task,
        "time": time,
        "event": step.name,
        "before": step.before,
        "count": step.after,
        "note": step.note,
    }
