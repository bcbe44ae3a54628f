"""Draw the results as an SVG bar chart: the ratio of pyaoe to each peer.

It needs no library, supports light and dark pages, and has a description for screen
readers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scripts.bench_stats import Figure, Report

PEERS: Final = ("vblade", "nbdcopy")
WIDTH: Final = 760
_LEFT: Final = 270
"""X of the bars; titles are left of it."""
_SPAN: Final = 370
"""Width of the longest bar; its ratio is right of it."""
_TOP: Final = 84
_ROW: Final = 26
_THICK: Final = 14
_TITLE: Final = "Speed of pyaoe relative to vblade and nbdcopy"
_SUBTITLE: Final = (
    "ratio of medians, higher is better; thin lines: lowest to highest ratio of a round"
)
_MARKS: Final = {
    "*": "* limited by the load generator",
    "~": "~ disturbed by other processes",
}
_STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .head { font-size: 16px; font-weight: 600 }
  .quiet { font-size: 12px; fill: #59636e }
  .middle { text-anchor: middle }
  .bar { fill: #0969da }
  .less { fill: #8c959f }
  .one, .spread { stroke: #1f2328; stroke-width: 1.5 }
  .one { stroke-dasharray: 4 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .quiet { fill: #9198a1 }
    .bar { fill: #4493f8 }
    .less { fill: #6e7681 }
    .one, .spread { stroke: #f0f6fc }
  }
"""


class Bar(NamedTuple):
    """One bar: what was measured, the peer, and the result."""

    title: str
    peer: str
    figure: Figure
    marks: str


def bars(report: Report) -> list[Bar]:
    """Return the comparisons with ``PEERS``, in the order of the table."""
    return [
        Bar(result.title, goal.to, result.figure(goal), result.marks(goal))
        for result in report.results
        for goal in result.goals
        if goal.to in PEERS
    ]


def draw(report: Report) -> ET.Element:
    """Return the chart of all comparisons with ``PEERS``."""
    rows = bars(report)
    bottom = _TOP + _ROW * len(rows)
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {WIDTH} {bottom + 54}",
            "width": str(WIDTH),
            "height": str(bottom + 54),
            "role": "img",
            "aria-labelledby": "title desc",
        },
    )
    ET.SubElement(root, "title", {"id": "title"}).text = _TITLE
    ET.SubElement(root, "desc", {"id": "desc"}).text = _description(rows)
    ET.SubElement(root, "style").text = _STYLE
    _text(root, 16, 28, _TITLE, "head")
    _text(root, 16, 48, _SUBTITLE, "quiet")
    scale = _SPAN / max([1.0, *(row.figure.maximum for row in rows)])
    for number, row in enumerate(rows):
        _draw_bar(root, row, _TOP + _ROW * number, scale)
    _draw_peer_line(root, _LEFT + scale, bottom)
    _text(root, 16, bottom + 22, _versions(report), "quiet")
    _text(root, 16, bottom + 40, _legend(rows), "quiet")
    return root


def write(report: Report) -> str:
    """Return the chart as XML text."""
    root = draw(report)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _draw_bar(root: ET.Element, row: Bar, top: float, scale: float) -> None:
    value, minimum, maximum = row.figure
    middle = top + _THICK / 2
    _text(root, 16, middle + 4, row.title)
    where = {"x": f"{_LEFT}", "y": f"{top}", "height": f"{_THICK}", "rx": "2"}
    length = {"width": f"{value * scale:.1f}"}
    kind = {"class": "bar" if value >= 1 else "bar less"}
    ET.SubElement(root, "rect", {**kind, **where, **length})
    left, right = _LEFT + minimum * scale, _LEFT + maximum * scale
    _draw_line(root, "spread", (left, middle), (right, middle))
    end = max(right, _LEFT + value * scale, _LEFT + scale)
    _text(root, end + 8, middle + 4, f"{value:.2f}{row.marks} x {row.peer}")


def _draw_peer_line(root: ET.Element, x: float, bottom: float) -> None:
    # The ratio 1.
    _draw_line(root, "one", (x, _TOP - 8), (x, bottom - 4))
    _text(root, x, _TOP - 14, "peer = 1", "quiet middle")


def _draw_line(
    root: ET.Element, kind: str, start: tuple[float, float], end: tuple[float, float]
) -> None:
    ends = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    points = {name: f"{value:.1f}" for name, value in ends.items()}
    ET.SubElement(root, "line", {"class": kind, **points})


def _text(root: ET.Element, x: float, y: float, text: str, kind: str = "") -> None:
    attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}"}
    if kind:
        attributes["class"] = kind
    ET.SubElement(root, "text", attributes).text = text


def _description(rows: Sequence[Bar]) -> str:
    ratios = (f"{row.title}: {row.figure.value:.2f} times {row.peer}" for row in rows)
    return f"Bar chart. {'; '.join(ratios)}." if rows else "No comparisons."


def _legend(rows: Sequence[Bar]) -> str:
    marks = {mark for row in rows for mark in row.marks}
    return "   ".join(text for mark, text in _MARKS.items() if mark in marks)


def _versions(report: Report) -> str:
    facts = report.machine
    peers = (f"{name} {facts[name]}" for name in (*PEERS, "nbdkit") if name in facts)
    return ", ".join(
        (f"pyaoe {facts['pyaoe']}", *peers, str(facts["python"]), str(facts["kernel"]))
    )
