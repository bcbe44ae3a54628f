"""A timeline of a case as SVG: pages, bios, skbs and clones over the steps.

The SVG element is embedded in HTML pages, whose style sheet defines the colors, or is
a file of its own. The pages come first: their counts are what a case is about. Shapes
have tooltips.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from initiator.lab.kernel.journal import Fault
from initiator.lab.reports.history import GETS, PUTS, Interval
from initiator.lab.reports.tables import counts
from initiator.rules import rule_title

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from initiator.lab.kernel.journal import Entry
    from initiator.lab.reports.history import History, Lifetime, PageHistory

GUTTER: Final = 112
"""Pixels for the names of the rows."""
_MARGIN: Final = 48
"""Pixels for what a slanted label at the right edge needs, about."""
_NUMBERS: Final = 30
"""Pixels between the slanted labels and the first row."""
_LEAST_WIDTH: Final = 440
_LEAST_STEP: Final = 17.0
_MOST_STEP: Final = 56.0
_ROW: Final = 30
_BAND: Final = 20
_OBJECTS: Final = 18
_UNIT: Final = 22
"""Pixels per reference on the count axis."""
_CHARACTER: Final = 6.6
"""Average width of a character in a label, in pixels."""

_OWNERS: Final = {"slab": "slab", "AoE driver": "aoe", "new owner": "other"}
_PARENTS: Final = {"skb": "bio", "clone": "skb"}
_ACTORS: Final = {
    "page allocator": "allocator",
    "slab": "allocator",
    "bio": "block",
    "AoE driver": "aoe",
    "network": "network",
}


def tooltip(entry: Entry) -> str:
    """Return the description of an event in up to three lines."""
    page = "" if entry.page is None else f", page {entry.page}"
    count = f", count {counts(entry)}" if counts(entry) else ""
    lines = [f"step {entry.step}: {entry.actor} {entry.action}{page}{count}"]
    note = f"{entry.fault.value}: {entry.note}" if entry.fault else entry.note
    rule = f"{entry.rule} {rule_title(entry.rule)}" if entry.rule else ""
    return "\n".join([*lines, *filter(None, (note, rule))])


def draw(
    history: History,
    *,
    room: int = 958,
    name: str = "timeline",
    cursor: Sequence[int] | None = None,
) -> str:
    """Return the SVG element.

    Args:
        history: of the case.
        room: the width to fill if all steps fit into it; by default that of a window
            of 1024 pixels.
        name: id of the element.
        cursor: for each step the number by which scripts find its shapes; by default
            that of the step.
    """
    return _Picture(history, room, cursor).draw(name)


class _Picture:
    def __init__(
        self, history: History, room: int, cursor: Sequence[int] | None
    ) -> None:
        self.history = history
        self.cursor = range(history.end) if cursor is None else cursor
        within = (room - GUTTER - _MARGIN) / max(history.end, 1)
        self.width = max(_LEAST_STEP, min(_MOST_STEP, within))
        self.right = GUTTER + history.end * self.width
        ends = [self.x(e.step) + _slanted(e.action) for e in history.entries]
        self.edge = max([self.right + 12, _LEAST_WIDTH, *ends])
        self.names: list[str] = []
        self.parts: list[str] = []
        self.middles: dict[tuple[str, int | None], float] = {}
        labels = [_slanted(entry.action) for entry in history.entries]
        self.heading = max(labels, default=0.0) + _NUMBERS
        self.y = self.heading

    def draw(self, name: str) -> str:
        self._rows()
        bottom = self.y
        behind, self.parts = self.parts, []
        self._steps(bottom)
        self._flags(bottom)
        width, height = self.edge, self.y + 8
        behind_names = (
            f'<rect class="behind" x="-20" y="{self.heading:.0f}" '
            f'width="{GUTTER + 18}" height="{bottom - self.heading:.0f}"/>'
        )
        names = ('<g class="names">', behind_names, *self.names, "</g>")
        shapes = "\n".join([*self.parts, *behind, *names])
        return (
            f'<svg id="{name}" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" role="img" '
            f'aria-label="timeline">\n{shapes}\n</svg>'
        )

    # --- shapes -----------------------------------------------------------------

    def x(self, step: float) -> float:
        """Return the x coordinate of a step."""
        return GUTTER + (step + 0.5) * self.width

    def _add(self, shape: str, title: str = "", step: int | None = None) -> None:
        tip = f"<title>{escape(title)}</title>" if title else ""
        name, _, attributes = shape.partition(" ")
        link = "" if step is None else f' data-step="{self.cursor[step]}"'
        self.parts.append(f"<{name}{link} {attributes}>{tip}</{name}>")

    def _text(
        self, x: float, y: float, text: str, style: str, attributes: str = ""
    ) -> None:
        self.parts.append(_text(x, y, text, style, attributes))

    def _line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self._add(
            f'line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" '
            f'y2="{y2:.1f}"'
        )

    def _bar(
        self, interval: Interval, y: float, height: float, style: str, title: str
    ) -> tuple[float, float]:
        left = self.x(interval.start)
        right = self.x(interval.end) if interval.ended else self.right
        self._add(
            f'rect class="{style}" x="{left:.1f}" y="{y:.1f}" rx="3" '
            f'width="{max(right - left, 2):.1f}" height="{height:.1f}"',
            title,
        )
        return left, right

    def _label(self, span: tuple[float, float], y: float, text: str) -> None:
        """Draw a label in a bar if it fits."""
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
        """Draw a column for each step: band, line, number and action."""
        for entry in self.history.entries:
            x = self.x(entry.step)
            style = "column broken" if entry.fault else "column"
            self._add(
                f'rect class="{style}" x="{x - self.width / 2:.1f}" '
                f'y="{self.heading - 26:.1f}" width="{self.width:.1f}" '
                f'height="{bottom - self.heading + 26:.1f}"',
                tooltip(entry),
                entry.step,
            )
            self._line(x, self.heading - 6, x, bottom, "thread")
            number = "number broken" if entry.fault else "number"
            middle = 'text-anchor="middle"'
            self._text(x, self.heading - 12, str(entry.step), number, middle)
            actor = _ACTORS.get(entry.actor, "owner")
            slant = f'transform="rotate(-45 {x - 2:.1f} {self.heading - 30:.1f})"'
            self._text(x - 2, self.heading - 30, entry.action, f"action {actor}", slant)

    def _flags(self, bottom: float) -> None:
        """Draw flags for the first and the worst violation below the timeline."""
        first, worst = self.history.first, self.history.worst
        if first is None or worst is None:
            return
        flags = [("first", first)]
        if worst is not first and worst.fault is not first.fault:
            flags.append(("worst", worst))
        texts = [
            f"{word}: {entry.rule}, {entry.fault.value if entry.fault else ''}"
            for word, entry in flags
        ]
        steps = [entry.step for _, entry in flags]
        self.y = bottom + 8
        for (step, text), to_the_left in _without_crossing(
            list(zip(steps, texts, strict=True)), self._reaches
        ):
            x, length = self.x(step), _length(text)
            self.y += 21
            self._line(x, bottom, x, self.y + 2, "fatal")
            start = x - 8 - length if to_the_left else x + 8
            start = max(4, min(start, self.edge - length - 4))
            self._text(start, self.y, text, "flag")
        self.y += 6

    def _reaches(self, step: int, text: str, other: int | None) -> bool:
        """Return True if a text right of a step reaches another step or the edge."""
        end = self.x(step) + 8 + _length(text)
        return end > (self.edge if other is None else self.x(other))

    # --- the rows ---------------------------------------------------------------

    def _rows(self) -> None:
        history = self.history
        for first, last in _alike(history.pages):
            self._page(first, last.pfn)
        self.y += 8
        if history.others:
            self._row_of("machine", history.others)
        for lifetime in history.lifetimes:
            self._lifetime(lifetime)
        writes = [entry for entry in history.entries if entry.action == "transmit"]
        if writes:
            self._disk(writes)

    def _name(self, y: float, name: str, more: str = "") -> None:
        self.names.append(_text(GUTTER - 18, y, name, "name", _END))
        if more:
            self.names.append(_text(GUTTER - 18, y + 15, more, "more", _END))

    def _row_of(self, name: str, entries: Iterable[Entry]) -> None:
        middle = self.y + _ROW / 2
        self._name(middle + 4, name)
        self._line(GUTTER, middle, self.right, middle, "rail")
        for entry in entries:
            self._mark(entry, middle)
        self.y += _ROW

    def _lifetime(self, lifetime: Lifetime) -> None:
        top, height = self.y + 5, _ROW - 10
        self._name(top + height - 5, lifetime.interval.text)
        middle = top + height / 2
        self._line(GUTTER, middle, self.right, middle, "rail")
        self._bar(
            lifetime.interval, top, height, f"life {lifetime.kind}", _about(lifetime)
        )
        self.middles[lifetime.kind, lifetime.number] = middle
        parent = self.middles.get((_PARENTS.get(lifetime.kind, ""), lifetime.parent))
        if parent is not None:
            self._arrow(lifetime.interval.start, parent + 5, top)
        for entry in lifetime.marks:
            sent = entry.action == "transmit"
            self._mark(entry, middle, dot="sent" if sent else "dot")
        self.y += _ROW

    def _arrow(self, step: int, start: float, end: float) -> None:
        x = self.x(step)
        self._line(x, start, x, end, "arrow")
        self._add(f'path class="tip" d="M{x - 4:.1f} {end - 6:.1f}h8l-4 6Z"')

    def _disk(self, writes: list[Entry]) -> None:
        """Draw for each transmitted frame if its bytes are those submitted."""
        middle = self.y + _ROW / 2
        self._name(middle + 4, "on the wire")
        self._line(GUTTER, middle, self.right, middle, "rail")
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

    def _page(self, page: PageHistory, last: int) -> None:
        """Draw a page; it stands for those up to ``last``, which have its history."""
        top = self.y + 8
        bands = _BAND + (_OBJECTS if page.objects else 0)
        chart = top + bands + 14
        numbers = [count for _, count in page.counts]
        least, most = min([0, *numbers]), max([1, *numbers])
        height = (most - least) * _UNIT
        more = "" if page.head is None else f"count of {page.head}"
        both = f"pages {page.pfn}-{last}"
        self._name(top + 12, f"page {page.pfn}" if last == page.pfn else both, more)
        self._free(page, top, chart + most * _UNIT)
        for interval in page.owners:
            style = f"band o-{_OWNERS.get(interval.text, 'own')}"
            title = f"page {page.pfn}, owner {interval.text}"
            span = self._bar(interval, top, _BAND - 3, style, title)
            self._label(span, top + 12.5, interval.text)
        for interval in page.objects:
            style = f"band o-{_OWNERS.get(interval.text, 'own')}"
            title = f"{interval.text} has an object in page {page.pfn}"
            y = top + _BAND - 1
            span = self._bar(interval, y, _OBJECTS - 3, style, title)
            self._label(span, y + 11.5, f"{interval.text}'s object")
        self._counts(page, chart, least, most)
        self.y = chart + height + 14

    def _free(self, page: PageHistory, top: float, zero: float) -> None:
        for interval in page.free:
            until = page.in_use_until(interval)
            if until > interval.start:
                lost = Interval("free and still in use", interval.start, until, True)
                self._free_bar(lost, page, top, zero, "lost")
            if until < interval.end:
                start = max(until, interval.start)
                rest = Interval("free", start, interval.end, interval.ended)
                self._free_bar(rest, page, top, zero, "unused")

    def _free_bar(
        self, interval: Interval, page: PageHistory, top: float, zero: float, kind: str
    ) -> None:
        title = f"page {page.pfn}: {interval.text}, on the free list"
        height = zero + 12 - top
        left, right = self._bar(interval, top - 4, height, f"free {kind}", title)
        if right - left > len(interval.text) * _CHARACTER + 18:
            self._text(left + 13, zero - 8, interval.text, f"said {kind}")

    def _counts(self, page: PageHistory, top: float, least: int, most: int) -> None:
        def y(count: int) -> float:
            return top + (most - count) * _UNIT

        for count in range(least, most + 1):
            style = "grid zero" if count == 0 else "grid"
            self._line(GUTTER, y(count), self.right, y(count), style)
            tick = _text(GUTTER - 5, y(count) + 4, str(count), "tick", _END)
            self.names.append(tick)
        at: dict[int, int] = {}
        path, last = "", 0
        for step, count in page.counts:
            x = self.x(step)
            path += f"H{x:.1f}" if path else f"M{x:.1f} {y(last):.1f}"
            path += f"V{y(count):.1f}"
            at[step] = last = count
        if path:
            style = "count tail" if page.head is not None else "count"
            self._add(f'path class="{style}" d="{path}H{self.right:.1f}"')
        last = 0
        marks = {entry.step: entry for entry in page.marks}
        for step in sorted(at.keys() | marks.keys()):
            last = at.get(step, last)
            if step in marks:
                self._mark(marks[step], y(last))


_END: Final = 'text-anchor="end"'


def _alike(pages: Iterable[PageHistory]) -> Iterator[tuple[PageHistory, PageHistory]]:
    """Yield the first and last page of each group of neighbours with one history.

    The head of a compound page is shown by itself, as are pages with events.
    """
    run: list[PageHistory] = []
    for page in pages:
        if run and (run[-1].pfn + 1, _history(run[-1])) != (page.pfn, _history(page)):
            yield run[0], run[-1]
            run = []
        run.append(page)
    if run:
        yield run[0], run[-1]


def _history(page: PageHistory) -> tuple[object, ...]:
    return page.head, page.owners, page.objects, page.free, page.counts, page.marks


def _slanted(text: str) -> float:
    """Return the width of a slanted label at most, in pixels."""
    return len(text) * _CHARACTER * 0.71 + 8


def _length(text: str) -> float:
    """Return the length of the text of a flag at most, in pixels."""
    return len(text) * (_CHARACTER + 2)


def _without_crossing(
    flags: list[tuple[int, str]], reaches: Callable[[int, str, int | None], bool]
) -> list[tuple[tuple[int, str], bool]]:
    """Order flags from top to bottom, and return which are left of their lines.

    The line down to a text must not cross another text.
    """
    sides = [reaches(step, text, None) for step, text in flags]
    if len(flags) == 1:
        return [(flags[0], sides[0])]
    first, worst = flags
    if not sides[1]:
        return [(worst, False), (first, sides[0])]
    return [(first, sides[0] or reaches(*first, worst[0])), (worst, True)]


def _text(x: float, y: float, text: str, style: str, attributes: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" {attributes}>'
        f"{escape(text)}</text>"
    )


def _triangle(x: float, y: float, size: float, direction: int, style: str) -> str:
    tip, base = y + direction * size, y - direction * size * 0.8
    return (
        f'path class="{style}" d="M{x:.1f} {tip:.1f}L{x + size:.1f} {base:.1f}'
        f'H{x - size:.1f}Z"'
    )


def _about(lifetime: Lifetime) -> str:
    parent = _PARENTS.get(lifetime.kind)
    of = (
        f" of {parent} {lifetime.parent}"
        if parent and lifetime.parent is not None
        else ""
    )
    until = f"to {lifetime.interval.end}" if lifetime.interval.ended else "to the end"
    return f"{lifetime.interval.text}{of}, from step {lifetime.interval.start} {until}"
