"""The parts that all HTML pages share: frame, style, and the bar of events.

A page is one file: it loads no script, font, image or style sheet.
"""

from __future__ import annotations

import json
import re
from functools import cache
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Final

from initiator.lab.reports.legend import OUTCOMES
from initiator.lab.reports.tables import counts
from initiator.lab.reports.timeline import GUTTER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from initiator.lab.kernel.journal import Entry
    from initiator.lab.reports.rule_html import RuleLinks

_MILD: Final = ("leak", "underflow", "bad-page", "undecided")


@cache
def _text(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")


def style_sheet() -> str:
    """Return the style of all pages and pictures."""
    return f"\n{_text('page.css')}{_text('picture.css')}"


@cache
def picture_style() -> str:
    """Return the style of a picture in a file of its own: light, without variables."""
    first, _, _ = _text("page.css").partition("@media")
    colors = dict(re.findall(r"(--[a-z-]+): ([^;]+);", first))
    style = re.sub(
        r"var\((--[a-z-]+)\)", lambda match: colors[match[1]], _text("picture.css")
    )
    return f"{style}svg {{ background: {colors['--card']}; }}\n"


def document(title: str, body: Iterable[str], scripts: Sequence[str] = ()) -> str:
    """Return a page.

    Args:
        title: plain text.
        body: lines of HTML.
        scripts: names of files of this folder.
    """
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            f"<title>{escape(title)}</title>",
            f"<style>{style_sheet()}</style></head><body>",
            *body,
            # A page is well-formed XML, too.
            *(
                f"<script>/*<![CDATA[*/\n{_text(name)}/*]]>*/</script>"
                for name in scripts
            ),
            "</body></html>",
            "",
        )
    )


def data(name: str, value: object) -> str:
    """Return an element with data for a script."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>'


def severity(word: str) -> str:
    """Return the style of an outcome: ok, mild or grave."""
    return "ok" if word in ("ok", "safe") else "mild" if word in _MILD else "grave"


def badge(word: str, title: str = "") -> str:
    """Return an outcome as a colored word."""
    title = title or OUTCOMES.get(word, "")
    return f'<span class="badge {severity(word)}" title="{escape(title)}">{word}</span>'


def save_button(picture: str, name: str) -> str:
    """Return a button that saves a picture of the page as a file."""
    return (
        f'<button type="button" data-save="{picture}" data-name="{escape(name)}">'
        "Save SVG</button>"
    )


def event_bar(
    says: Sequence[str], faults: Sequence[int], start: int = 0
) -> Iterator[str]:
    """Yield the bar at the bottom edge, which describes the selected event.

    Args:
        says: HTML for each event.
        faults: which of them are violations; the first one is selected at first.
        start: which is selected at first if there is no violation.
    """
    steps = {
        "say": says,
        "faults": faults,
        "start": faults[0] if faults else start,
        "gutter": GUTTER,
        "style": picture_style(),
    }
    yield '<div class="bar" role="toolbar" aria-label="events">'
    for symbol, name, word in (
        ("◀", "ArrowLeft", "previous event, left arrow"),
        ("▶", "ArrowRight", "next event, right arrow"),
    ):
        yield (
            f'<button type="button" data-key="{name}" title="{word}" '
            f'aria-label="{word}">{symbol}</button>'
        )
    if faults:
        yield (
            '<button type="button" data-key="v" title="next violation, v" '
            'aria-label="next violation, v">!</button>'
        )
    yield '<span class="at"></span><span class="say" aria-live="polite"></span></div>'
    yield data("steps", steps)


def say(entry: Entry, links: RuleLinks) -> str:
    """Return the description of an event for the bar."""
    page = "" if entry.page is None else f", page {entry.page}"
    number = counts(entry).replace("->", "→")
    parts = [
        f"{escape(entry.actor)} <code>{escape(entry.action)}</code>{page}",
        f"count {number}" if number else "",
        links.describe(entry.rule),
    ]
    text = " · ".join(filter(None, parts))
    note = links.link(entry.note)
    if entry.fault is not None:
        note = f"<strong>{entry.fault.value}</strong>: {note}"
    return f"{text}<br/>{note}" if note else text
