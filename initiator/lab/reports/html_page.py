"""An HTML page about a case: timeline, event log, description and rules.

The timeline stands first. Arrow keys select an event, which the bar at the bottom edge
describes. The page links to the rules that it cites and has their full text.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from initiator.lab.reports.history import build_history
from initiator.lab.reports.legend import FLAGS
from initiator.lab.reports.page import (
    badge,
    document,
    event_bar,
    picture_style,
    save_button,
    say,
    severity,
)
from initiator.lab.reports.picture_key import key
from initiator.lab.reports.rule_html import RuleLinks
from initiator.lab.reports.tables import counts, describe_case, verdict
from initiator.lab.reports.timeline import draw, tooltip

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from initiator.lab.cases import Result
    from initiator.lab.kernel.journal import Entry


def html_page(result: Result) -> str:
    """Return the page.

    Args:
        result: of a case that was run with ``keep_entries``.
    """
    entries = result.journal.entries
    history = build_history(entries, result.journal.worst)
    links = RuleLinks({entry.rule for entry in entries})
    command = f"{result.case}{result.switches.options}"
    picture = draw(history)
    body = (
        *heading(result),
        *verdict_box(result, links),
        f'<div class="card">{picture}</div>',
        key(picture),
        save_button("timeline", f"{file_name(result)}.svg"),
        "<h2>Event log</h2>",
        *event_log(entries, links),
        "<h2>Case</h2>",
        *case_table(result),
        *rule_sections(links),
        f"<footer><code>aoe lab explain {escape(command)}</code></footer>",
        *event_bar(
            [say(entry, links) for entry in entries],
            [entry.step for entry in entries if entry.fault is not None],
        ),
    )
    return document(str(result.case), body, ["page.js"])


def picture_file(result: Result) -> str:
    """Return the timeline as an SVG file."""
    history = build_history(result.journal.entries, result.journal.worst)
    element = draw(history).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    start, _, shapes = element.partition("\n")
    title = f"<title>{escape(str(result.case))}</title>"
    return f"{start}\n{title}<style>{picture_style()}</style>\n{shapes}\n"


def file_name(result: Result) -> str:
    """Return the case as a file name without extension."""
    return "-".join(result.case)


def heading(result: Result) -> Iterator[str]:
    """Yield the name of a case, its outcome and flags."""
    name = '<span class="sep">/</span><wbr/>'.join(escape(part) for part in result.case)
    flags = "".join(
        f'<span class="flag-word" title="{escape(FLAGS[flag])}">{escape(flag)}</span>'
        for flag in result.flags
    )
    yield f"<header><h1>{name}</h1>{badge(result.outcome)}{flags}</header>"


def verdict_box(result: Result, links: RuleLinks) -> Iterator[str]:
    """Yield the violations and costs of a case."""
    yield f'<div class="verdict {severity(result.outcome)}">'
    # The heading has the first line, the outcome.
    yield from (f"<p>{links.link(line)}</p>" for line in [*verdict(result)][1:])
    yield "</div>"


def case_table(result: Result) -> Iterator[str]:
    """Yield the meanings of the four parts of a case."""
    yield "<dl>"
    for axis, which, meaning in describe_case(result.case):
        yield f'<dt>{axis}</dt><dd class="which">{escape(which)}</dd>'
        yield f"<dd>{escape(meaning)}</dd>"
    yield "</dl>"


def event_log(
    entries: Iterable[Entry], links: RuleLinks, titles: dict[int, str] | None = None
) -> Iterator[str]:
    """Yield the event log as a table.

    Args:
        entries: of the journal.
        links: to the rules.
        titles: lines to insert in front of steps.
    """
    yield '<div class="card log"><table><thead><tr><th class="n">step</th>'
    yield '<th>actor</th><th>action</th><th class="n">page</th>'
    yield '<th class="n">count</th><th>rule</th><th>note</th></tr></thead><tbody>'
    is_first = True
    for entry in entries:
        title = (titles or {}).get(entry.step)
        if title is not None:
            yield f'<tr class="act"><th colspan="7">{escape(title)}</th></tr>'
        yield _row(entry, links, is_first=is_first and entry.fault is not None)
        is_first = is_first and entry.fault is None
    yield "</tbody></table></div>"


def _row(entry: Entry, links: RuleLinks, *, is_first: bool) -> str:
    note = links.link(entry.note)
    if entry.fault is not None:
        lead = ", first violation" if is_first else ""
        note = f"<strong>{entry.fault.value}{lead}</strong>: {note}"
    style = ' class="broken"' if entry.fault is not None else ""
    page = "" if entry.page is None else str(entry.page)
    return (
        f'<tr id="s{entry.step}" data-step="{entry.step}"{style} '
        f'title="{escape(tooltip(entry))}"><td class="n">{entry.step}</td>'
        f"<td>{escape(entry.actor)}</td><td><code>{escape(entry.action)}</code></td>"
        f'<td class="n" data-name="page">{page}</td>'
        f'<td class="n" data-name="count">'
        f"{escape(counts(entry).replace('->', '→'))}</td>"
        f"<td>{links.link(entry.rule)}</td><td>{note}</td></tr>"
    )


def rule_sections(links: RuleLinks) -> Iterator[str]:
    """Yield the full text of the rules of a page."""
    for title, numbers in (
        ("Rules", links.named),
        ("Further rules cited by these", links.further),
    ):
        if numbers:
            yield f'<h2>{title}</h2><div class="card rules">'
            yield from links.articles(numbers)
            yield "</div>"
