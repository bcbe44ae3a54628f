"""A case as a picture: pages, bios, skbs and clones over the steps of its journal.

The picture is one SVG element, to stand in an HTML page
(``initiator.lab.reports.html_page``), whose style sheet names its colours. Everything
in it has a tooltip.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from initiator.lab.kernel.journal import Fault
from initiator.lab.reports.story import GETS, PUTS, Period
from initiator.lab.reports.tables import counts
from initiator.rules import rule_title

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from initiator.lab.kernel.journal import Entry
    from initiator.lab.reports.story import Lane, Life, Story

_GUTTER: Final = 150
_MARGIN: Final = 96
_HEADING: Final = 132
_ROW: Final = 30
_BAND: Final = 20
_OBJECTS: Final = 18
_LEAST_WIDTH: Final = 760
_UNIT: Final = 24
"""Pixels that a reference more takes."""
_CHARACTER: Final = 6.6
"""Pixels that a character of a label takes, at most on average."""

_OWNERS: Final = {"slab": "slab", "AoE": "aoe", "new owner": "other"}
_PARENTS: Final = {"skb": "bio", "clone": "skb"}
_ACTORS: Final = {
    "page allocator": "allocator",
    "slab": "allocator",
    "bio": "block",
    "AoE": "aoe",
    "network": "network",
}


def tooltip(entry: Entry) -> str:
    """Tell an event in up to three lines."""
    page = "" if entry.page is None else f", page {entry.page}"
    count = f", count {counts(entry)}" if counts(entry) else ""
    lines = [f"step {entry.step}: {entry.actor} {entry.action}{page}{count}"]
    note = f"{entry.fault.value}: {entry.note}" if entry.fault else entry.note
    rule = f"{entry.rule} {rule_title(entry.rule)}" if entry.rule else ""
    return "\n".join([*lines, *filter(None, (note, rule))])


def draw(story: Story) -> str:
    """Return the SVG element."""
    return _Picture(story).draw()


class _Picture:
    def __init__(self, story: Story) -> None:
        self.story = story
        self.width = max(22.0, min(66.0, 1070 / max(story.end, 1)))
        self.right = _GUTTER + story.end * self.width
        self.edge = max(self.right + _MARGIN, _LEAST_WIDTH)
        self.parts: list[str] = []
        self.middles: dict[tuple[str, int | None], float] = {}
        self.y = float(_HEADING)

    def draw(self) -> str:
        self._rows()
        bottom = self.y
        behind, self.parts = self.parts, []
        self._steps(bottom)
        self._flags(bottom)
        width, height = self.edge, self.y + 8
        shapes = "\n".join([*self.parts, *behind])
        return (
            f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" role="img" aria-label="timeline">\n{shapes}\n</svg>'
        )

    # --- shapes -----------------------------------------------------------------

    def x(self, step: float) -> float:
        """Where a step is."""
        return _GUTTER + (step + 0.5) * self.width

    def _add(self, shape: str, title: str = "", step: int | None = None) -> None:
        told = f"<title>{escape(title)}</title>" if title else ""
        name, _, attributes = shape.partition(" ")
        place = "" if step is None else f' data-step="{step}"'
        self.parts.append(f"<{name}{place} {attributes}>{told}</{name}>")

    def _text(
        self, x: float, y: float, text: str, style: str, attributes: str = ""
    ) -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" {attributes}>'
            f"{escape(text)}</text>"
        )

    def _line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self._add(
            f'line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" '
            f'y2="{y2:.1f}"'
        )

    def _bar(
        self, period: Period, y: float, height: float, style: str, title: str
    ) -> tuple[float, float]:
        left = self.x(period.start)
        right = self.x(period.end) if period.ended else self.right
        self._add(
            f'rect class="{style}" x="{left:.1f}" y="{y:.1f}" rx="3" '
            f'width="{max(right - left, 2):.1f}" height="{height:.1f}"',
            title,
        )
        return left, right

    def _label(self, span: tuple[float, float], y: float, text: str) -> None:
        """Write into a bar what has room in it."""
        left, right = span
        if right - left > len(text) * _CHARACTER + 10:
            self._text(left + 7, y, text, "inside")

    def _mark(self, entry: Entry, y: float, *, dot: str = "dot") -> None:
        x, size = self.x(entry.step), 6.5
        if entry.fault is not None:
            shape = f'circle class="fault" cx="{x:.1f}" cy="{y:.1f}" r="8.5"'
        elif entry.action in GETS:
            shape = _triangle(x, y, size, -1, "get")
        elif entry.action in PUTS:
            shape = _triangle(x, y, size, 1, "put")
        else:
            shape = f'circle class="{dot}" cx="{x:.1f}" cy="{y:.1f}" r="5"'
        self._add(shape, tooltip(entry), entry.step)
        if entry.fault is not None:
            self._text(x, y + 4.5, "!", "bang", 'text-anchor="middle"')

    # --- the columns ------------------------------------------------------------

    def _steps(self, bottom: float) -> None:
        """Draw a column for each step: band, line, number and what was done."""
        for entry in self.story.entries:
            x = self.x(entry.step)
            style = "column broken" if entry.fault else "column"
            self._add(
                f'rect class="{style}" x="{x - self.width / 2:.1f}" '
                f'y="{_HEADING - 26}" width="{self.width:.1f}" '
                f'height="{bottom - _HEADING + 26:.1f}"',
                tooltip(entry),
                entry.step,
            )
            self._line(x, _HEADING - 6, x, bottom, "thread")
            number = "number broken" if entry.fault else "number"
            middle = 'text-anchor="middle"'
            self._text(x, _HEADING - 12, str(entry.step), number, middle)
            actor = _ACTORS.get(entry.actor, "owner")
            turn = f'transform="rotate(-45 {x - 2:.1f} {_HEADING - 30})"'
            self._text(x - 2, _HEADING - 30, entry.action, f"action {actor}", turn)

    def _flags(self, bottom: float) -> None:
        """Say under the picture which step was fatal."""
        first, worst = self.story.first, self.story.worst
        if first is None or worst is None:
            return
        flags = [("first rule that broke", first)]
        if worst is not first and worst.fault is not first.fault:
            flags.append(("worst", worst))
        told = [
            f"{word}: {entry.rule}, {entry.fault.value if entry.fault else ''} "
            f"at step {entry.step}"
            for word, entry in flags
        ]
        steps = [entry.step for _, entry in flags]
        self.y = bottom + 8
        for (step, text), to_the_left in _without_crossing(
            list(zip(steps, told, strict=True)), self._reaches
        ):
            x = self.x(step)
            self.y += 21
            self._line(x, bottom, x, self.y + 2, "fatal")
            anchor = _END if to_the_left else ""
            self._text(x - 8 if to_the_left else x + 8, self.y, text, "flag", anchor)
        self.y += 6

    def _reaches(self, step: int, text: str, other: int | None) -> bool:
        """Tell whether a text right of a step reaches another step, or the edge."""
        end = self.x(step) + 8 + len(text) * (_CHARACTER + 1)
        return end > (self.edge if other is None else self.x(other))

    # --- the rows ---------------------------------------------------------------

    def _rows(self) -> None:
        story = self.story
        if story.others:
            self._row_of("machine", story.others)
        for life in story.lives:
            self._life(life)
        writes = [entry for entry in story.entries if entry.action == "transmit"]
        if writes:
            self._disk(writes)
        self.y += 10
        for lane in story.lanes:
            self._lane(lane)

    def _name(self, y: float, name: str, more: str = "") -> None:
        right = 'text-anchor="end"'
        self._text(_GUTTER - 14, y, name, "name", right)
        if more:
            self._text(_GUTTER - 14, y + 15, more, "more", right)

    def _row_of(self, name: str, entries: Iterable[Entry]) -> None:
        middle = self.y + _ROW / 2
        self._name(middle + 4, name)
        self._line(_GUTTER, middle, self.right, middle, "rail")
        for entry in entries:
            self._mark(entry, middle)
        self.y += _ROW

    def _life(self, life: Life) -> None:
        top, height = self.y + 5, _ROW - 10
        self._name(top + height - 5, life.period.text)
        middle = top + height / 2
        self._line(_GUTTER, middle, self.right, middle, "rail")
        self._bar(life.period, top, height, f"life {life.kind}", _about(life))
        self.middles[life.kind, life.number] = middle
        parent = self.middles.get((_PARENTS.get(life.kind, ""), life.parent))
        if parent is not None:
            self._arrow(life.period.start, parent + 5, top)
        for entry in life.marks:
            sent = entry.action == "transmit"
            self._mark(entry, middle, dot="sent" if sent else "dot")
        self.y += _ROW

    def _arrow(self, step: int, start: float, end: float) -> None:
        x = self.x(step)
        self._line(x, start, x, end, "arrow")
        self._add(f'path class="tip" d="M{x - 4:.1f} {end - 6:.1f}h8l-4 6Z"')

    def _disk(self, writes: list[Entry]) -> None:
        """Say of each frame that left whether the disk got what was submitted."""
        middle = self.y + _ROW / 2
        self._name(middle + 4, "disk gets")
        self._line(_GUTTER, middle, self.right, middle, "rail")
        for entry in writes:
            wrong = entry.fault is Fault.WRONG_BYTES
            x, style = self.x(entry.step), "wrong" if wrong else "right"
            self._arrow(entry.step, self.middles["clone", entry.clone] + 6, middle - 9)
            self._add(
                f'rect class="disk {style}" x="{x - 9:.1f}" y="{middle - 9:.1f}" '
                f'width="18" height="18" rx="4"',
                tooltip(entry),
                entry.step,
            )
            sign = "✗" if wrong else "✓"
            self._text(x, middle + 4.5, sign, "sign", 'text-anchor="middle"')
        self.y += _ROW

    # --- pages ------------------------------------------------------------------

    def _lane(self, lane: Lane) -> None:
        top = self.y + 8
        bands = _BAND + (_OBJECTS if lane.objects else 0)
        chart = top + bands + 14
        numbers = [count for _, count in lane.counts]
        least, most = min([0, *numbers]), max([1, *numbers])
        height = (most - least) * _UNIT
        more = "" if lane.head is None else f"page {lane.head} counts for it"
        self._name(top + 14, f"page {lane.page}", more)
        self._free(lane, top, chart + most * _UNIT)
        for period in lane.owners:
            style = f"band o-{_OWNERS.get(period.text, 'own')}"
            title = f"page {lane.page} belongs to {period.text}"
            span = self._bar(period, top, _BAND - 3, style, title)
            self._label(span, top + 12.5, period.text)
        for period in lane.objects:
            style = f"band o-{_OWNERS.get(period.text, 'own')}"
            title = f"{period.text} has an object in page {lane.page}"
            y = top + _BAND - 1
            span = self._bar(period, y, _OBJECTS - 3, style, title)
            self._label(span, y + 11.5, f"{period.text}'s object")
        self._counts(lane, chart, least, most)
        self.y = chart + height + 20

    def _free(self, lane: Lane, top: float, zero: float) -> None:
        for period in lane.free:
            until = lane.lost_until(period)
            if until > period.start:
                lost = Period("free, and still in use", period.start, until, True)
                self._free_bar(lost, lane, top, zero, "lost")
            if until < period.end:
                start = max(until, period.start)
                rest = Period("free", start, period.end, period.ended)
                self._free_bar(rest, lane, top, zero, "unused")

    def _free_bar(
        self, period: Period, lane: Lane, top: float, zero: float, kind: str
    ) -> None:
        title = f"page {lane.page}: {period.text}, on the free list"
        height = zero + 12 - top
        left, right = self._bar(period, top - 4, height, f"free {kind}", title)
        if right - left > len(period.text) * _CHARACTER + 18:
            self._text(left + 13, zero - 8, period.text, f"said {kind}")

    def _counts(self, lane: Lane, top: float, least: int, most: int) -> None:
        def y(count: int) -> float:
            return top + (most - count) * _UNIT

        for count in range(least, most + 1):
            style = "grid zero" if count == 0 else "grid"
            self._line(_GUTTER, y(count), self.right, y(count), style)
            self._text(_GUTTER - 5, y(count) + 4, str(count), "tick", _END)
        at: dict[int, int] = {}
        path, last = "", 0
        for step, count in lane.counts:
            x = self.x(step)
            path += f"H{x:.1f}" if path else f"M{x:.1f} {y(last):.1f}"
            path += f"V{y(count):.1f}"
            at[step] = last = count
        if path:
            style = "count tail" if lane.head is not None else "count"
            self._add(f'path class="{style}" d="{path}H{self.right:.1f}"')
        last = 0
        marks = {entry.step: entry for entry in lane.marks}
        for step in sorted(at.keys() | marks.keys()):
            last = at.get(step, last)
            if step in marks:
                self._mark(marks[step], y(last))


_END: Final = 'text-anchor="end"'


def _without_crossing(
    flags: list[tuple[int, str]], reaches: Callable[[int, str, int | None], bool]
) -> list[tuple[tuple[int, str], bool]]:
    """Order flags from above, and say which stand left of their lines.

    A line goes down to its own text and must cross no other.
    """
    sides = [reaches(step, text, None) for step, text in flags]
    if len(flags) == 1:
        return [(flags[0], sides[0])]
    first, worst = flags
    if not sides[1]:
        return [(worst, False), (first, sides[0])]
    return [(first, sides[0] or reaches(*first, worst[0])), (worst, True)]


def _triangle(x: float, y: float, size: float, way: int, style: str) -> str:
    tip, base = y + way * size, y - way * size * 0.8
    return (
        f'path class="{style}" d="M{x:.1f} {tip:.1f}L{x + size:.1f} {base:.1f}'
        f'H{x - size:.1f}Z"'
    )


def _about(life: Life) -> str:
    parent = _PARENTS.get(life.kind)
    of = f" of {parent} {life.parent}" if parent and life.parent is not None else ""
    until = f"to {life.period.end}" if life.period.ended else "on, to the end"
    return f"{life.period.text}{of}, from step {life.period.start} {until}"
