"""The matrix as an HTML page: a heat map whose cells open their cases.

Every cell has the steps of its case. Few journals and fewer events are distinct, so the
page has each of them once, and its script shows them.
"""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Final

from initiator.lab.cases import Case
from initiator.lab.reports.html_page import rule_sections
from initiator.lab.reports.legend import FLAGS, NICS, OUTCOMES
from initiator.lab.reports.page import data, document
from initiator.lab.reports.picture_key import key
from initiator.lab.reports.rule_html import RuleLinks
from initiator.lab.reports.tables import describe_case, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from initiator.lab.cases import Result

_LETTERS: Final = {
    "BUG": "B",
    "double-free": "D",
    "premature-free": "P",
    "wrong-bytes": "W",
    "leak": "L",
    "underflow": "U",
    "bad-page": "S",
    "ok": "·",
}
"""The outcomes in cells: without colors, too, they can be told apart."""


def heat_map(results: Sequence[Result]) -> str:
    """Return the page.

    Args:
        results: of cases that were run with ``keep_entries``.
    """
    found = {result.case: result for result in results}
    links = RuleLinks({e.rule for result in results for e in result.journal.entries})
    counts = Counter(result.outcome for result in results)
    policies = _names(found, "policy")
    body = (
        f"<header><h1>{len(results):,} cases</h1>",
        *_key(counts),
        "</header>",
        *_overview(found, policies),
        *(line for policy in policies for line in _policy(found, policy)),
        *_meanings(found),
        *rule_sections(links),
        *_DIALOG,
        data("cases", _cases(results, links)),
    )
    return document("aoe lab matrix", body, ["heat_map.js"])


_DIALOG: Final = (
    '<dialog aria-label="case"><header><h1></h1><span class="badge"></span>',
    '<span class="more"></span>',
    '<button type="button" class="close" aria-label="close">✕</button></header>',
    '<div class="verdict"></div><div class="card curve"></div>',
    key('class="count" class="dot" class="fault" class="column broken"'),
    '<div class="steps log" tabindex="-1"><table><tbody></tbody></table></div>',
    '<p class="command"><code></code></p></dialog>',
)


def _names(cases: Iterable[Case], axis: str) -> list[str]:
    return list(dict.fromkeys(getattr(case, axis) for case in cases))


def _key(counts: Counter[str]) -> Iterator[str]:
    yield '<div class="key map">'
    for word, letter in _LETTERS.items():
        if counts[word]:
            yield (
                f'<span title="{escape(OUTCOMES[word])}"><i class="cell {word}">'
                f"{letter}</i> {word} {counts[word]:,}</span>"
            )
    yield "</div>"


def _overview(found: dict[Case, Result], policies: Sequence[str]) -> Iterator[str]:
    """Yield a bar for each policy: its outcomes, worst first."""
    yield '<nav class="card map overview" aria-label="policies">'
    for policy in policies:
        counts = Counter(r.outcome for c, r in found.items() if c.policy == policy)
        yield f'<a href="#policy-{policy}"><b>{escape(policy)}</b><span>'
        for word in OUTCOMES:
            if counts[word]:
                yield (
                    f'<i class="cell {word}" style="flex-grow:{counts[word]}" '
                    f'title="{counts[word]} {word}"></i>'
                )
        yield "</span></a>"
    yield "</nav>"


def _policy(found: dict[Case, Result], policy: str) -> Iterator[str]:
    mine = {case: result for case, result in found.items() if case.policy == policy}
    summary = describe_case(next(iter(mine)))[0][2]
    yield f'<section id="policy-{policy}"><h2>{escape(policy)}'
    yield f"<small>{escape(summary)}</small></h2>"
    yield '<div class="nics">'
    for nic in _names(mine, "nic"):
        caption = f'<caption title="{escape(NICS[nic])}">{nic}</caption>'
        yield f'<table class="map">{caption}<thead><tr><td></td>'
        submitters = _names(mine, "submitter")
        for submitter in submitters:
            yield f"<th><span>{escape(submitter)}</span></th>"
        yield "</tr></thead><tbody>"
        for event in _names(mine, "event"):
            yield f"<tr><th>{_breakable(event)}</th>"
            for submitter in submitters:
                yield _cell(mine[Case(policy, submitter, event, nic)])
            yield "</tr>"
        yield "</tbody></table>"
    yield "</div></section>"


def _breakable(name: str) -> str:
    """Return a name that may be broken after its separators."""
    return escape(name).replace("+", "+<wbr/>").replace("_", "_<wbr/>")


def _cell(result: Result) -> str:
    word, case = result.outcome, escape(str(result.case))
    return (
        f'<td><a class="cell {word}" href="#{case}" title="{case}: {word}">'
        f"{_LETTERS[word]}</a></td>"
    )


def _meanings(found: dict[Case, Result]) -> Iterator[str]:
    """Yield what the names of the axes mean."""
    meanings = dict.fromkeys(
        meaning for case in found for meaning in describe_case(case)[1:]
    )
    yield "<h2>Names</h2><dl>"
    for axis, name, text in sorted(meanings, key=lambda each: each[0]):
        yield f'<dt>{axis}</dt><dd class="which">{escape(name)}</dd>'
        yield f"<dd>{escape(text)}</dd>"
    yield "</dl>"


def _cases(results: Sequence[Result], links: RuleLinks) -> dict[str, object]:
    """Return the data of the script: distinct events and journals, and the cases."""
    events: dict[tuple[object, ...], int] = {}
    journals: dict[tuple[int, ...], int] = {}
    texts: dict[str, int] = {}
    cases: dict[str, list[object]] = {}
    for result in results:
        numbers = []
        for entry in result.journal.entries:
            event = (
                entry.actor,
                entry.action,
                entry.page,
                entry.before,
                entry.count,
                links.link(entry.rule),
                links.link(entry.note),
                entry.fault.value if entry.fault else "",
            )
            numbers.append(events.setdefault(event, len(events)))
        lines = [links.link(line) for line in [*verdict(result)][1:]]
        text = "".join(f"<p>{line}</p>" for line in lines)
        cases[str(result.case)] = [
            result.outcome,
            ", ".join(result.flags),
            texts.setdefault(text, len(texts)),
            journals.setdefault(tuple(numbers), len(journals)),
        ]
    switches = results[0].switches.options if results else ""
    return {
        "events": list(events),
        "journals": list(journals),
        "texts": list(texts),
        "cases": cases,
        "options": switches,
        "meanings": {**OUTCOMES, **FLAGS, **NICS},
    }
