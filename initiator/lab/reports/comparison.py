"""Two cases side by side: their events aligned, as text and as an HTML page.

Events are the same if actor, action, page and page count agree.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

from initiator.lab.reports.history import build_history
from initiator.lab.reports.html_page import (
    case_table,
    file_name,
    heading,
    rule_sections,
    verdict_box,
)
from initiator.lab.reports.page import document, event_bar, save_button, say
from initiator.lab.reports.picture_key import key
from initiator.lab.reports.rule_html import RuleLinks
from initiator.lab.reports.tables import counts, event_lines
from initiator.lab.reports.timeline import draw

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.lab.cases import Result
    from initiator.lab.kernel.journal import Entry

_ROOM: Final = 464
"""Pixels for each of two timelines in a window of 1024."""


class Row(NamedTuple):
    """An event of the first case, one of the second, or one that both have."""

    one: Entry | None
    other: Entry | None

    @property
    def sign(self) -> str:
        """Which case has the event: "<", ">", or "" for both."""
        return "<" if self.other is None else ">" if self.one is None else ""

    @property
    def entries(self) -> list[Entry]:
        """The event, in each case that has it."""
        return [entry for entry in self if entry is not None]


def align(one: Sequence[Entry], other: Sequence[Entry]) -> list[Row]:
    """Return the events of both journals in order, with as many as possible paired."""
    matcher = SequenceMatcher(
        None, [_identity(e) for e in one], [_identity(e) for e in other], autojunk=False
    )
    rows: list[Row] = []
    for kind, start, end, first, last in matcher.get_opcodes():
        if kind == "equal":
            rows += map(Row, one[start:end], other[first:last])
        else:
            rows += [Row(entry, None) for entry in one[start:end]]
            rows += [Row(None, entry) for entry in other[first:last]]
    return rows


def _identity(entry: Entry) -> tuple[object, ...]:
    fault = entry.fault.value if entry.fault else ""
    return entry.actor, entry.action, entry.page, entry.before, entry.count, fault


def comparison_lines(one: Result, other: Result) -> Iterator[tuple[str, str]]:
    """Yield the lines of both event logs, heading first, each with a sign.

    The sign is "<" or ">" for an event that only the first or the second case has.
    """
    rows = align(one.journal.entries, other.journal.entries)
    lines = event_lines([row.entries[0] for row in rows])
    yield "", next(lines)[0]
    for row, (line, _) in zip(rows, lines, strict=True):
        yield row.sign, line


def comparison_page(one: Result, other: Result) -> str:
    """Return an HTML page with two cases, which were run with ``keep_entries``."""
    results = (one, other)
    rows = align(one.journal.entries, other.journal.entries)
    links = RuleLinks(
        {entry.rule for result in results for entry in result.journal.entries}
    )
    pictures = [
        draw(
            build_history(result.journal.entries, result.journal.worst),
            room=_ROOM,
            name=f"timeline-{side}",
            cursor=[n for n, row in enumerate(rows) if row[side] is not None],
        )
        for side, result in enumerate(results)
    ]
    command = f"{one.case} --against {other.case}{one.switches.options}"
    body = (
        '<div class="pair">',
        *(
            line
            for side, result in enumerate(results)
            for line in _side(side, result, pictures[side], links)
        ),
        "</div>",
        key("".join(pictures)),
        "<h2>Events side by side</h2>",
        *_table(rows, links),
        "<h2>Cases</h2>",
        '<div class="pair">',
        *(f"<div>{''.join(case_table(result))}</div>" for result in results),
        "</div>",
        *rule_sections(links),
        f"<footer><code>aoe lab explain {escape(command)}</code></footer>",
        *event_bar(
            [_say(row, links) for row in rows],
            [
                n
                for n, row in enumerate(rows)
                if any(entry.fault for entry in row.entries)
            ],
        ),
    )
    return document(f"{one.case} and {other.case}", body, ["page.js"])


def _side(side: int, result: Result, picture: str, links: RuleLinks) -> Iterator[str]:
    yield "<section>"
    yield from heading(result)
    yield from verdict_box(result, links)
    yield f'<div class="card">{picture}</div>'
    yield save_button(f"timeline-{side}", f"{file_name(result)}.svg")
    yield "</section>"


def _say(row: Row, links: RuleLinks) -> str:
    who = {"<": "first case only, step", ">": "second case only, step"}
    steps = " and ".join(str(entry.step) for entry in row.entries)
    lead = who.get(row.sign, "both cases, steps")
    return f"{lead} {steps}: {say(row.entries[0], links)}"


def _table(rows: Sequence[Row], links: RuleLinks) -> Iterator[str]:
    yield '<div class="card sides"><table><thead><tr>'
    yield '<th class="n">step</th><th>first case</th>'
    yield '<th class="n">step</th><th>second case</th></tr></thead><tbody>'
    for number, row in enumerate(rows):
        style = ' class="apart"' if row.sign else ""
        cells = "".join(_cells(entry, links) for entry in row)
        yield f'<tr id="s{number}" data-step="{number}"{style}>{cells}</tr>'
    yield "</tbody></table></div>"


def _cells(entry: Entry | None, links: RuleLinks) -> str:
    if entry is None:
        return '<td class="n"></td><td class="none"></td>'
    page = "" if entry.page is None else f" page {entry.page}"
    number = counts(entry).replace("->", "→")
    number = f", count {number}" if number else ""
    note = links.link(entry.note)
    if entry.fault is not None:
        note = f"<strong>{entry.fault.value}</strong>: {note}"
    text = (
        f"{escape(entry.actor)} <code>{escape(entry.action)}</code>{page}{number} "
        f"{links.link(entry.rule)}"
    )
    style = ' class="broken"' if entry.fault is not None else ""
    return (
        f'<td class="n">{entry.step}</td><td{style}>{text}'
        f"{f'<br/>{note}' if note else ''}</td>"
    )
