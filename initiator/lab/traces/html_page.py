"""An HTML page about a trace: verdict, the pages with violations, and the rules.

The page is self-contained, like that of a case (``initiator.lab.reports.html_page``).
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from initiator.lab.reports.legend import OUTCOMES
from initiator.lab.reports.page import style_sheet
from initiator.lab.reports.rule_html import RuleLinks
from initiator.lab.traces.curve import draw
from initiator.lab.traces.parser import describe_head
from initiator.lab.traces.report import (
    UNDECIDED,
    counts,
    describe,
    first_and_worst,
    remarks,
    rule_states,
    summary,
)
from initiator.lab.traces.rules import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initiator.lab.traces.verdict import Step, Story, Verdict, Violation

_MILD: Final = ("leak", "underflow", "bad-page", "undecided")
_STYLE: Final = "h1 { overflow-wrap: anywhere; } table { min-width: 720px; }"
_KEY: Final = (
    ('<path class="get" d="M8 2L14 13H2Z"/>', "count raised"),
    ('<path class="put" d="M8 14L2 3H14Z"/>', "count lowered"),
    ('<circle class="dot" cx="8" cy="8" r="5"/>', "other event"),
    ('<circle class="fault" cx="8" cy="8" r="7"/>', "violation of a rule"),
    ('<path class="count" d="M1 12H8V4H15"/>', "page count"),
    ('<rect class="life bio" x="1" y="4" width="14" height="9"/>', "bio in flight"),
    ('<rect class="free" x="1" y="2" width="14" height="12"/>', "free"),
)


def html_page(verdict: Verdict, name: str, lines: int) -> str:
    """Return the page.

    Args:
        verdict: on the trace.
        name: name of the file.
        lines: number of lines of it.
    """
    numbers = {rule.number for rule in verdict.rules}
    links = RuleLinks(numbers)
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width"/>',
            f"<title>{escape(name)}</title>",
            f"<style>{style_sheet()}{_STYLE}</style></head><body>",
            *_top(verdict, name, lines, links),
            *(line for story in verdict.stories for line in _story(story, links)),
            *_rules(verdict, links),
            '<h2>Rules in full</h2><div class="card rules">',
            *links.articles(links.named),
            "</div>",
            f"<footer><code>aoe lab replay {escape(name)}</code></footer>",
            "</body></html>",
            "",
        )
    )


def _top(verdict: Verdict, name: str, lines: int, links: RuleLinks) -> Iterator[str]:
    word = verdict.outcome
    kind = "ok" if word == "ok" else "mild" if word in _MILD else "grave"
    title = escape(OUTCOMES.get(word, UNDECIDED))
    yield f"<header><h1>{escape(name)}</h1>"
    yield f'<span class="badge {kind}" title="{title}">{word}</span></header>'
    yield f"<p>{escape(summary(verdict, lines))}</p>"
    yield f'<div class="verdict {kind}">'
    found = first_and_worst(verdict)
    if found is None:
        yield f"<p>{'No violation' if verdict.judged else UNDECIDED}</p>"
    else:
        yield f"<p>First violation: {links.link(describe(found[0]))}</p>"
        if found[1].rule != found[0].rule:
            yield f"<p>Worst violation: {links.link(describe(found[1]))}</p>"
    yield from (f"<p>{escape(remark)}</p>" for remark in remarks(verdict))
    yield "</div>"
    if verdict.stories:
        keys = (
            f'<span><svg style="display:inline" width="16" height="16">{shape}</svg> '
            f"{meaning}</span>"
            for shape, meaning in _KEY
        )
        yield f'<div class="key">{"".join(keys)}</div>'


def _story(story: Story, links: RuleLinks) -> Iterator[str]:
    yield f"<h2>Page {story.pfn:#x}</h2>"
    yield f'<div class="card">{draw(story)}</div><div class="card"><table><thead><tr>'
    for heading in ("line", "seconds", "task", "event", "count", "note"):
        style = ' class="n"' if heading in ("line", "seconds", "count") else ""
        yield f"<th{style}>{heading}</th>"
    yield "</tr></thead><tbody>"
    start = describe_head(story.steps[0].head)[1] if story.steps else 0.0
    for step in story.steps:
        broken = [each for each in story.violations if each.line == step.line]
        yield _row(step, start, broken, links)
    yield "</tbody></table></div>"
    if story.omitted:
        yield f"<p>{story.omitted:,} more events of this page</p>"


def _row(step: Step, start: float, broken: list[Violation], links: RuleLinks) -> str:
    task, time = describe_head(step.head)
    style = ' class="broken"' if broken else ""
    notes = [escape(step.note)] if step.note else []
    for violation in broken:
        rule = BY_NAME[violation.rule]
        notes.append(
            f"<strong>{rule.fault.value}</strong>, {rule.name} "
            f"({links.link(rule.number)}): {escape(violation.note)}"
        )
    count = counts(step).replace("->", "→")
    return (
        f'<tr{style}><td class="n">{step.line}</td>'
        f'<td class="n">{time - start:.6f}</td><td>{escape(task)}</td>'
        f'<td><code>{escape(step.name)}</code></td><td class="n">{count}</td>'
        f"<td>{'<br/>'.join(notes)}</td></tr>"
    )


def _rules(verdict: Verdict, links: RuleLinks) -> Iterator[str]:
    yield '<h2>Rules</h2><div class="card"><table><thead><tr>'
    yield "<th>rule</th><th>reason</th><th>broken if</th><th>outcome</th><th></th>"
    yield "</tr></thead><tbody>"
    for rule, state in rule_states(verdict):
        style = ' class="broken"' if verdict.found[rule.name] else ""
        yield (
            f"<tr{style}><td><code>{rule.name}</code></td>"
            f"<td>{links.link(rule.number)}</td><td>{escape(rule.title)}</td>"
            f"<td>{rule.fault.value}</td><td>{escape(state)}</td></tr>"
        )
    yield "</tbody></table></div>"
