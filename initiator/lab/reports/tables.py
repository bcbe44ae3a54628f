"""Reports on cases as tables, CSV, JSON records and text.

All information is in the text; colors only emphasize. rich is imported where a table
is built.
"""

from __future__ import annotations

import csv
from collections import Counter
from typing import IO, TYPE_CHECKING, Final

from aoe.errors import UsageError
from initiator.lab.cases import ALL_SUBMITTERS, EVENTS, Case, Result, policy_or_driver
from initiator.lab.drivers.models import DRIVERS
from initiator.lab.kernel.kernels import KERNELS
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import (
    DRIVER,
    MATRIX_POLICIES,
    POLICIES,
)
from initiator.lab.reports.legend import NICS, OUTCOMES
from initiator.rules import load_all_rules, rule_title

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.box import Box
    from rich.table import Table
    from rich.text import Text

    from aoe.common.rules import Rule
    from initiator.lab.kernel.journal import Entry
    from initiator.lab.workload import WorkloadCosts

COSTS: Final = ("gets", "puts", "copied", "wasted", "held", "deferred")
COLUMNS: Final = (
    *Case._fields,
    *("outcome", "flags", "reason"),
    *COSTS,
    *("longest_reference", "kernel"),
)
"""Columns of the CSV and keys of a record."""

COLORS: Final = {
    "BUG": "bold white on red",
    "double-free": "bold red",
    "premature-free": "red",
    "wrong-bytes": "bold magenta",
    "leak": "bold yellow",
    "underflow": "yellow",
    "bad-page": "yellow",
    "ok": "green",
}
AXES: Final = {
    "policy": tuple(dict.fromkeys([*MATRIX_POLICIES, *POLICIES, DRIVER, *DRIVERS])),
    "submitter": tuple(ALL_SUBMITTERS),
    "event": tuple(EVENTS),
    "nic": tuple(Nic.__members__),
    "kernel": tuple(KERNELS),
}
"""The names of each axis. A policy may also be followed by ``@`` and a kernel."""
_CELL: Final = 16
"""Maximum width of a cell including its border, in terminal columns."""


def check_names(axis: str, names: Iterable[str]) -> None:
    """Check names of an axis: policy, submitter, event, nic or kernel.

    Raises:
        UsageError: a name is unknown.
    """
    for name in names:
        if axis == "policy":
            policy_or_driver(name)
        elif name not in AXES[axis]:
            have = ", ".join(AXES[axis])
            raise UsageError(name, f"no such {axis} (have: {have})")


# --- records --------------------------------------------------------------------


def record(result: Result) -> dict[str, object]:
    """Return a result as a record with the keys ``COLUMNS``; flags are a list."""
    return {
        **result.case._asdict(),
        "outcome": result.outcome,
        "flags": list(result.flags),
        "reason": result.reason,
        **result.costs,
        "longest_reference": result.longest_reference,
        "kernel": policy_or_driver(result.case.policy)[1].name,
    }


def write_csv(results: Iterable[Result], file: IO[str]) -> None:
    """Write a heading and a line per result; flags are separated by spaces."""
    lines = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    lines.writeheader()
    for result in results:
        lines.writerow(record(result) | {"flags": " ".join(result.flags)})


def event_record(entry: Entry) -> dict[str, object]:
    """Return an entry of a journal as a record; fields that do not apply are null."""
    return {
        "step": entry.step,
        "actor": entry.actor,
        "action": entry.action,
        "page": entry.page,
        "before": entry.before,
        "count": entry.count,
        "rule": entry.rule,
        "note": entry.note,
        "fault": entry.fault.value if entry.fault else None,
        "owner": entry.owner,
        "bio": entry.bio,
        "skb": entry.skb,
        "clone": entry.clone,
        "time": round(entry.time, 6),
    }


# --- tables ---------------------------------------------------------------------


def outcome_table(results: Sequence[Result]) -> Table:
    """Count the outcomes of each policy, worst first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Outcomes: number of cases, worst first", box=_box())
    table.add_column("policy", no_wrap=True)
    for outcome in OUTCOMES:
        heading = Text(outcome.replace("-", "\n"), style=COLORS[outcome])
        table.add_column(heading, justify="right", no_wrap=True)
    for policy, mine in _by_policy(results):
        counts = Counter(result.outcome for result in mine)
        numbers = [
            Text(str(counts[word]), style=COLORS[word]) if counts[word] else Text("·")
            for word in OUTCOMES
        ]
        table.add_row(policy, *numbers)
    return table


def cost_table(results: Sequence[Result]) -> Table:
    """Sum the costs of each policy, with the longest time that a reference was held."""
    from rich.table import Table

    table = Table(title="Costs: sums over the same cases", box=_box())
    table.add_column("policy", no_wrap=True)
    for heading in (
        *("gets", "puts", "bytes\ncopied", "bytes\nwasted"),
        *("bytes\nheld", "objects\ndeferred", "longest\nreference"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for policy, mine in _by_policy(results):
        sums = [sum(result.costs[name] for result in mine) for name in COSTS]
        longest = max(result.longest_reference for result in mine)
        cells = [_number(each) for each in sums]
        table.add_row(policy, *cells, f"{longest:g} s" if longest else "·")
    return table


def workload_table(found: Sequence[WorkloadCosts]) -> Table:
    """Return the costs of a workload by policy."""
    from rich.table import Table

    table = Table(box=_box())
    table.add_column("policy", no_wrap=True)
    for heading in (
        *("operations\nof writes", "operations of\nother kmallocs"),
        *("bytes\ncopied", "bytes\nwasted"),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found:
        others = each.kmallocs.gets + each.kmallocs.puts
        if each.writes is None:
            table.add_row(each.policy, "BUG", _number(others), "", "")
            continue
        table.add_row(
            each.policy,
            _number(each.writes.gets + each.writes.puts),
            _number(others),
            _number(each.writes.copied),
            _number(each.writes.wasted),
        )
    return table


def _number(value: int) -> str:
    return f"{value:,}" if value else "·"


def cell_tables(results: Sequence[Result], width: int) -> Iterator[Table]:
    """Yield tables of single outcomes with a column per submitter.

    The columns are split over several tables to fit into ``width``.
    """
    axes = [Case._fields.index(name) for name in ("policy", "nic", "event")]
    several = [axis for axis in axes if len({r.case[axis] for r in results}) > 1]
    title = " ".join(results[0].case[axis] for axis in axes if axis not in several)
    labels = sum(max(len(r.case[axis]) for r in results) + 3 for axis in several)
    submitters = list(dict.fromkeys(result.case.submitter for result in results))
    room = max(1, (width - labels - 2) // _CELL)
    for start in range(0, len(submitters), room):
        chosen = submitters[start : start + room]
        yield _cell_table(results, several, chosen, title)


def _cell_table(
    results: Sequence[Result], axes: Sequence[int], chosen: Sequence[str], title: str
) -> Table:
    from rich.table import Table

    table = Table(title=title or None, box=_box())
    for axis in axes:
        table.add_column(Case._fields[axis], no_wrap=True)
    for submitter in chosen:
        table.add_column(submitter.replace("_", "\n"), no_wrap=True)
    cells = {result.case: result for result in results}
    rows = dict.fromkeys(
        (r.case.policy, r.case.nic, r.case.event)
        for r in sorted(results, key=_policy_then_nic)
    )
    last: list[str] = []
    for policy, nic, event in rows:
        names = [Case(policy, "", event, nic)[axis] for axis in axes]
        if last and names[:-1] != last[:-1]:
            table.add_section()
        row = [cells.get(Case(policy, each, event, nic)) for each in chosen]
        table.add_row(*_unrepeated(names, last), *map(_cell, row))
        last = names
    return table


def _policy_then_nic(result: Result) -> tuple[int, str, int]:
    policy, _, _, nic = result.case
    known = list(AXES["policy"])
    order = known.index(policy) if policy in known else len(known)
    return order, policy, AXES["nic"].index(nic)


def _unrepeated(names: list[str], last: list[str]) -> list[str]:
    """Blank names that are equal to the row above, from the left on."""
    shown = list(names)
    for index, (name, above) in enumerate(zip(names[:-1], last, strict=False)):
        if name != above:
            break
        shown[index] = ""
    return shown


def _cell(result: Result | None) -> Text:
    from rich.text import Text

    if result is None:
        return Text("")
    return Text(result.outcome, style=COLORS[result.outcome])


def _by_policy(results: Iterable[Result]) -> Iterator[tuple[str, list[Result]]]:
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.case.policy, []).append(result)
    yield from found.items()


def _box() -> Box:
    from rich.box import SIMPLE_HEAD

    return SIMPLE_HEAD


def legend(results: Sequence[Result]) -> Iterator[str]:
    """Yield the meanings of the outcomes in a table, and a command to continue with."""
    found = {result.outcome for result in results}
    for word, meaning in OUTCOMES.items():
        if word in found:
            yield f"{word:<15} {meaning}"
    worst = min(results, key=lambda result: list(OUTCOMES).index(result.outcome))
    yield f"\nSteps of a case: aoe lab explain {worst.case}"


# --- one case -------------------------------------------------------------------


def describe_case(case: Case) -> list[tuple[str, str, str]]:
    """Return axis, name and description of each part of a case."""
    submitter = ALL_SUBMITTERS[case.submitter]
    policy, rules = policy_or_driver(case.policy)
    summary = f"{policy.summary}; Linux {rules.name}"
    return [
        ("policy", case.policy, summary),
        ("submitter", case.submitter, f"{submitter.owner}: {submitter.summary}"),
        ("event", case.event, EVENTS[case.event].summary),
        ("nic", case.nic, NICS[case.nic]),
    ]


def counts(entry: Entry) -> str:
    """Return the page count before and after an event, as far as known."""
    if entry.count is None:
        return ""
    if entry.before is None:
        return str(entry.count)
    return f"{entry.before} -> {entry.count}"


def event_lines(entries: Sequence[Entry]) -> Iterator[tuple[str, bool]]:
    """Yield the lines of the event log, heading first, and whether each is a fault."""
    rows = [("step", "actor", "action", "page", "count", "rule", "note")]
    rows += [
        (
            f"{entry.step}",
            entry.actor,
            entry.action,
            "" if entry.page is None else f"{entry.page}",
            counts(entry),
            entry.rule,
            f"{entry.fault.value.upper()}: {entry.note}" if entry.fault else entry.note,
        )
        for entry in entries
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, entry in zip(rows, (None, *entries), strict=True):
        is_fault = entry is not None and entry.fault is not None
        step, *rest = (f"{word:<{w}}" for word, w in zip(row, widths, strict=True))
        mark = ">>" if is_fault else "  "
        line = f"{mark} {step.strip():>{widths[0]}}  {'  '.join(rest)}"
        yield line.rstrip(), is_fault


def named_rules(entries: Iterable[Entry]) -> list[Rule]:
    """Return the rules that a journal names, in the order of the document."""
    named = {entry.rule for entry in entries}
    return [rule for rule in load_all_rules().values() if rule.number in named]


def rule_lines(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield number and title of each rule that a journal names."""
    for rule in named_rules(entries):
        yield f"  {rule.number:<5} {rule.title}"


def verdict(result: Result) -> Iterator[str]:
    """Yield lines with the outcome, the first and worst violation, and the costs."""
    faults = result.journal.faults
    worst = result.journal.worst
    flags = f" ({', '.join(result.flags)})" if result.flags else ""
    yield f"Outcome: {result.outcome}{flags}"
    if not faults or worst is None:
        yield f"No violation: {result.reason}"
    else:
        yield from _first_violation(result.journal.act_of(faults[0]), faults[0])
        if worst.fault is not faults[0].fault:
            yield f"Worst violation: {_describe_fault(worst)}"
    costs = [f"{name} {number}" for name, number in result.costs.items() if number]
    yield f"Costs: {', '.join(costs) or 'none'}"
    if result.longest_reference:
        yield f"Longest reference: {result.longest_reference:g} s of simulated time"


def _first_violation(act: Entry, fault: Entry) -> Iterator[str]:
    """Yield the act that broke a rule, and the event that reported it if it differs."""
    if act is fault:
        yield f"First violation: {_describe_fault(fault)}"
        return
    title = rule_title(act.rule)
    yield f"First violation: {act.rule} at step {act.step}, {act.action}. {title}"
    word = fault.fault.value if fault.fault else ""
    yield f"Reported: {word} at step {fault.step}: {fault.note}"


def _describe_fault(entry: Entry) -> str:
    word = entry.fault.value if entry.fault else ""
    title = rule_title(entry.rule)
    return f"{entry.rule} at step {entry.step}, {word}. {title}: {entry.note}"


# --- bytes ----------------------------------------------------------------------

_ROW: Final = 16


def dump_lines(submitted: bytes, on_disk: bytes) -> Iterator[tuple[str, bool]]:
    """Yield lines of a hex dump of the disk, and whether each line differs.

    A row equal to the previous one is omitted. A row that differs from the submitted
    bytes is followed by these and by marks under the different bytes.
    """
    last: tuple[bytes, bytes] | None = None
    omitted = False
    for start in range(0, len(submitted), _ROW):
        row = on_disk[start : start + _ROW], submitted[start : start + _ROW]
        if row == last:
            if not omitted:
                yield "*", False
            omitted = True
            continue
        last, omitted = row, False
        actual, expected = row
        yield f"{start:08x}  on disk    {_hex(actual)}", actual != expected
        if actual != expected:
            marks = ("^^" if a != b else "  " for a, b in zip(*row, strict=True))
            yield f"          submitted  {_hex(expected)}", True
            yield f"                     {' '.join(marks)}".rstrip(), True
    yield f"{len(submitted):08x}", False


def _hex(row: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
    return f"{row.hex(' ')}  {text}"
