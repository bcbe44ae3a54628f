"""Text about a search of the explorer, and an HTML page of its counterexample."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING

from initiator.lab.kernel.journal import Fault
from initiator.lab.reports.history import build_history
from initiator.lab.reports.html_page import event_log, rule_sections
from initiator.lab.reports.page import (
    badge,
    document,
    event_bar,
    save_button,
    say,
    severity,
)
from initiator.lab.reports.picture_key import key
from initiator.lab.reports.rule_html import RuleLinks
from initiator.lab.reports.timeline import draw

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.lab.explorer.explore import Exploration
    from initiator.lab.kernel.journal import Journal


def setting(found: Exploration) -> str:
    """Return policy, submitters, NIC and switches."""
    config = found.config
    submitters = ", ".join(config.submitters)
    return f"{config.policy}, {submitters}, {config.nic}{config.switches.options}"


def bounds(found: Exploration) -> str:
    """Return the limits of the search."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value:,}"
        for name, value in asdict(found.config.bounds).items()
        if value is not None
    )


def looked_for(found: Exploration) -> str:
    """Return the faults that were searched for, worst first."""
    return ", ".join(f.value for f in Fault if f in found.config.violations)


def conclusion(found: Exploration) -> str:
    """Return the result in one line."""
    if found.undecided:
        return f"Undecided: {_why_undecided(found)}."
    if found.fault is None:
        return f"Safe: none of these {_extent(found)}."
    name = found.fault.fault.value if found.fault.fault else ""
    return f"Not safe: {name} after {found.steps} step(s); no shorter order has one."


def effort(found: Exploration) -> str:
    """Return size and duration of the search."""
    return (
        f"{found.states:,} states, {found.edges:,} steps tried, {found.seconds:.1f} s, "
        f"{found.states_per_second:,.0f} states/s"
    )


def _extent(found: Exploration) -> str:
    if found.complete:
        return f"in any order of any length (nothing new after {found.steps} steps)"
    return f"in any order of up to {found.steps} steps"


def _why_undecided(found: Exploration) -> str:
    why = {
        "states": f"the search ended at {found.states:,} states; raise --states",
        "memory": "in some orders the modelled machine ran out of memory",
    }[found.undecided]
    return f"none of these {_extent(found)}, but {why}"


def exploration_page(found: Exploration) -> str:
    """Return the page: the counterexample, its timeline and event log, if any."""
    journal = found.journal if found.fault is not None else None
    entries = journal.entries if journal is not None else []
    links = RuleLinks({entry.rule for entry in entries})
    scripts = ["page.js"] if journal is not None else []
    body = (
        *_heading(found),
        *(_counterexample(found, journal, links) if journal is not None else ()),
        "<h2>Search</h2><dl>",
        *(
            f'<dt>{name}</dt><dd class="which">{escape(value)}</dd><dd></dd>'
            for name, value in (
                ("bounds", bounds(found)),
                ("looking for", looked_for(found)),
                ("search", effort(found)),
            )
        ),
        "</dl>",
        *rule_sections(links),
        f"<footer><code>{escape(_command(found))}</code></footer>",
        *_bar(journal, links),
    )
    return document(f"explore {setting(found)}", body, scripts)


def _heading(found: Exploration) -> Iterator[str]:
    fault = found.fault.fault if found.fault is not None else None
    word = "undecided" if found.undecided else fault.value if fault else "safe"
    yield f"<header><h1>{escape(setting(found))}</h1>"
    yield f"{badge(word, conclusion(found))}</header>"
    yield f'<div class="verdict {severity(word)}"><p>{escape(conclusion(found))}</p>'
    yield "</div>"


def _counterexample(
    found: Exploration, journal: Journal, links: RuleLinks
) -> Iterator[str]:
    steps = found.counterexample or []
    ends = [*found.starts[1:], len(journal.entries)]
    yield '<ol class="order">'
    for text, start, end in zip(steps, found.starts, ends, strict=True):
        yield (
            f'<li><button type="button" data-from="{start}" data-to="{end}">'
            f"{escape(text)}</button></li>"
        )
    picture = draw(build_history(journal.entries, journal.worst))
    yield f'</ol><div class="card">{picture}</div>'
    yield key(picture)
    yield save_button("timeline", f"{_file_name(found)}.svg")
    yield "<h2>Event log</h2>"
    yield from event_log(journal.entries, links, _titles(steps, found.starts))


def _titles(steps: Sequence[str], starts: Sequence[int]) -> dict[int, str]:
    """Return a title for each event with which a step begins."""
    titles: dict[int, str] = {}
    for number, (text, start) in enumerate(zip(steps, starts, strict=True), 1):
        # A step without events shares the title with the next one.
        before = f"{titles[start]}; " if start in titles else ""
        titles[start] = f"{before}{number}. {text}"
    return titles


def _bar(journal: Journal | None, links: RuleLinks) -> Iterator[str]:
    if journal is not None:
        yield from event_bar(
            [say(entry, links) for entry in journal.entries],
            [entry.step for entry in journal.entries if entry.fault is not None],
        )


def _file_name(found: Exploration) -> str:
    config = found.config
    return "-".join(("explore", config.policy, *config.submitters, config.nic))


def _command(found: Exploration) -> str:
    config = found.config
    submitters = " ".join(f"-s {name}" for name in config.submitters)
    return (
        f"aoe lab explore -p {config.policy} -n {config.nic} {submitters}"
        f"{config.switches.options}"
    )
