"""The page count of a page as an SVG, event by event."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.lab.traces.verdict import Step, Story

_LEFT: Final = 46
_RIGHT: Final = 70
_TOP: Final = 128
"""Pixels for the names of the events, which are slanted."""
_HEIGHT: Final = 130
_LEVELS: Final = 5
"""Numbers on the axis, at most."""
_QUEUED: Final = ("block_bio_queue", "bio_page")
_COMPLETED: Final = ("block_bio_complete", "block_rq_complete")
_FREED: Final = ("mm_page_free", "mm_page_free_batched")


def draw(story: Story) -> str:
    """Return the SVG element."""
    return _Curve(story).draw()


class _Curve:
    def __init__(self, story: Story) -> None:
        self.steps = story.steps
        self.broken = {violation.line for violation in story.violations}
        self.width = max(24.0, min(60.0, 1000 / max(len(self.steps), 1)))
        self.right = _LEFT + len(self.steps) * self.width
        counts = [
            count
            for step in self.steps
            for count in (step.before, step.after)
            if count is not None
        ]
        self.least, self.most = min([0, *counts]), max([1, *counts])

    def draw(self) -> str:
        width, height = self.right + _RIGHT, _TOP + _HEIGHT + 46
        shapes = "\n".join(
            (
                *self._columns(),
                *self._axis(),
                *self._bars(),
                *self._path(),
                *self._marks(),
            )
        )
        return (
            f'<svg viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
            f'height="{height}" role="img" aria-label="page count">\n{shapes}\n</svg>'
        )

    def x(self, index: float) -> float:
        return _LEFT + (index + 0.5) * self.width

    def y(self, count: int) -> float:
        return _TOP + (self.most - count) / (self.most - self.least) * _HEIGHT

    def _columns(self) -> Iterator[str]:
        for index, step in enumerate(self.steps):
            x = self.x(index)
            style = "column broken" if step.line in self.broken else "column"
            yield (
                f'<rect class="{style}" data-step="{step.line}" '
                f'x="{x - self.width / 2:.1f}" y="{_TOP - 24}" '
                f'width="{self.width:.1f}" height="{_HEIGHT + 40}"/>'
            )
            number = "number broken" if step.line in self.broken else "number"
            yield (
                f'<text class="{number}" text-anchor="middle" x="{x:.1f}" '
                f'y="{_TOP - 10}">{step.line if self._fits(step) else "·"}</text>'
            )
            yield (
                f'<text class="action" x="{x:.1f}" y="{_TOP - 28}" '
                f'transform="rotate(-45 {x:.1f} {_TOP - 28})">{step.name}</text>'
            )

    def _fits(self, step: Step) -> bool:
        return len(str(step.line)) * 6.5 < self.width

    def _axis(self) -> Iterator[str]:
        every = max(1, -(-(self.most - self.least) // _LEVELS))
        shown = {*range(self.least, self.most + 1, every), 0}
        for count in sorted(shown):
            y = self.y(count)
            style = "grid zero" if count == 0 else "grid"
            yield (
                f'<line class="{style}" x1="{_LEFT}" y1="{y:.1f}" '
                f'x2="{self.right:.1f}" y2="{y:.1f}"/>'
            )
            yield (
                f'<text class="tick" text-anchor="end" x="{_LEFT - 6}" '
                f'y="{y + 4:.1f}">{count}</text>'
            )

    def _bars(self) -> Iterator[str]:
        """Draw when a bio is in flight, and when the page is free."""
        for start, end in _intervals(self.steps, _QUEUED, _COMPLETED):
            left, right = self._span(start, end)
            y = _TOP + _HEIGHT + 22
            yield (
                f'<rect class="life bio" x="{left:.1f}" y="{y}" rx="3" '
                f'width="{max(right - left, 4):.1f}" height="14">'
                "<title>bio in flight</title></rect>"
            )
            if right - left > 80:
                yield f'<text class="inside" x="{left + 6:.1f}" y="{y + 11}">bio</text>'
        for start, end in _intervals(self.steps, _FREED, ("mm_page_alloc",)):
            left, right = self._span(start, end)
            yield (
                f'<rect class="free" x="{left:.1f}" y="{_TOP}" '
                f'width="{max(right - left, 4):.1f}" height="{_HEIGHT}">'
                "<title>free</title></rect>"
            )

    def _span(self, start: int, end: int | None) -> tuple[float, float]:
        return self.x(start), self.right if end is None else self.x(end)

    def _path(self) -> Iterator[str]:
        path, last = "", None
        for index, step in enumerate(self.steps):
            if step.after is None:
                continue
            x = self.x(index)
            if not path:
                left, start = (x, step.after)
                if step.before is not None:
                    left, start = (_LEFT, step.before)
                path = f"M{left:.1f} {self.y(start):.1f}"
            path += f"H{x:.1f}V{self.y(step.after):.1f}"
            last = step.after
        if last is not None:
            yield f'<path class="count" d="{path}H{self.right:.1f}"/>'

    def _marks(self) -> Iterator[str]:
        last = 0
        for index, step in enumerate(self.steps):
            last = last if step.after is None else step.after
            x, y = self.x(index), self.y(last)
            change = (step.after or 0) - (
                step.before if step.before is not None else last
            )
            title = f"<title>line {step.line}: {escape(step.name)}</title>"
            data = f'data-step="{step.line}"'
            if step.line in self.broken:
                yield (
                    f'<circle {data} class="fault" cx="{x:.1f}" cy="{y:.1f}" r="8.5">'
                    f'{title}</circle><text class="bang" text-anchor="middle" '
                    f'x="{x:.1f}" y="{y + 4.5:.1f}">!</text>'
                )
            elif change:
                sign, style = (-1, "get") if change > 0 else (1, "put")
                yield (
                    f'<path {data} class="{style}" d="M{x:.1f} {y + sign * 7:.1f}'
                    f'L{x + 6:.1f} {y - sign * 5:.1f}H{x - 6:.1f}Z">{title}</path>'
                )
            else:
                yield (
                    f'<circle {data} class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5">'
                    f"{title}</circle>"
                )


def _intervals(
    steps: Sequence[Step], begin: Sequence[str], end: Sequence[str]
) -> Iterator[tuple[int, int | None]]:
    """Yield the intervals between events; one that does not end has the end None."""
    start: int | None = None
    for index, step in enumerate(steps):
        if step.name in begin and start is None:
            start = index
        elif step.name in end and start is not None:
            yield start, index
            start = None
    if start is not None:
        yield start, None
