"""Format a report as text: a header, a line for each side, and notes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scripts.bench_stats import Goal, Report, Result, Series

_PREFIXES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_DECIMALS: Final = {"B": 1, "%": 2}


def show(value: float, unit: str) -> str:
    """Format a value with its unit.

    >>> show(227621.0, "IOPS"), show(1.45e9, "B/s"), show(80 << 20, "B")
    ('228 k', '1.45 GB/s', '80.0 MiB')
    """
    size, suffix = _scale(value, unit)
    return f"{_digits(value / size, unit)} {suffix}".rstrip()


def _scale(value: float, unit: str) -> tuple[float, str]:
    # Returns the divisor and the unit with its prefix.
    if unit == "B":
        return 1 << 20, "MiB"
    if unit == "%":
        return 1, "%"
    unit = "" if unit == "IOPS" else unit
    for size, prefix in _PREFIXES:
        if value >= size:
            return size, f"{prefix}{unit}"
    return 1, unit


def _digits(value: float, unit: str) -> str:
    # Three significant digits: 1.45, 14.5, 145.
    if unit in _DECIMALS:
        return f"{value:.{_DECIMALS[unit]}f}"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _spread(side: Series, unit: str) -> str:
    # Scaled like the median, which shows the unit.
    size, _ = _scale(side.median, unit)
    minimum, maximum = min(side.values), max(side.values)
    return f"{_digits(minimum / size, unit)}..{_digits(maximum / size, unit)}"


def header(report: Report) -> str:
    """Return programs, machine and settings in a few lines."""
    facts, settings = report.machine, report.settings
    peers = [
        f"{name} {facts[name]}"
        for name in ("vblade", "nbdkit", "nbdcopy")
        if name in facts
    ]
    ours = [f"pyaoe {facts['pyaoe']}", *peers, f"load {facts.get('load', 'aoe bench')}"]
    where = [facts["python"], facts["kernel"], facts["cpu"], f"cores: {facts['cores']}"]
    return (
        f"{', '.join(ours)}\n{', '.join(map(str, where))}\n"
        f"{settings['cores']}; images on {facts['filesystem']}; "
        f"{settings['rounds']} rounds of {settings['seconds']} s, alternating"
    )


def column_headings() -> str:
    """Return the headings of the columns of ``cell_lines``."""
    names = ("median", "min..max", "us/req", "ratio", "min..max", "goal")
    return _line("", names)


def cell_lines(result: Result) -> Iterator[str]:
    """Yield the lines of a cell: its title, then one for each side.

    A ratio is on the line of the later of its two sides.
    """
    yield result.title
    goals = {_later(result, goal): goal for goal in result.goals}
    for side in result.series:
        cpu = side.detail("server_cpu_seconds_per_request")
        columns = [
            show(side.median, result.unit),
            _spread(side, result.unit),
            "" if cpu is None else f"{cpu * 1e6:.2f}",
        ]
        if side.name in goals:
            columns += _goal_columns(result, goals[side.name])
        yield _line(side.name, columns)


def notes(report: Report) -> Iterator[str]:
    """Yield explanations of the columns and marks, and what was skipped."""
    yield "ratio: pyaoe to the peer of the line; without a peer, the line to the first."
    yield "us/req: CPU time of the target per request, in microseconds."
    goals = [(result, goal) for result in report.results for goal in result.goals]
    if any(result.is_load_saturated(goal) for result, goal in goals):
        yield "*: the load generator used all of its core and may be the limit."
    if any(result.is_disturbed(goal) for result, goal in goals):
        yield "~: other processes used the cores: not reliable, measure again."
    yield from (f"skipped: {line}" for line in report.skipped)


def _line(name: str, columns: Sequence[str]) -> str:
    widths = (10, 14, 7, 7, 12)
    padded = [f"{text:<{width}}" for text, width in zip(columns, widths, strict=False)]
    return "  ".join((f"  {name:<12}", *padded, *columns[len(widths) :])).rstrip()


def _later(result: Result, goal: Goal) -> str:
    return [side.name for side in result.series if side.name in (goal.of, goal.to)][-1]


def _goal_columns(result: Result, goal: Goal) -> tuple[str, str, str]:
    figure = result.figure(goal)
    verdict = ""
    if goal.bound is not None:
        bound = f"{goal.bound}" if goal.to else show(goal.bound, result.unit)
        is_met = goal.is_met(figure.value)
        sign = "<=" if goal.at_most else ">="
        verdict = f"{sign} {bound} {'met' if is_met else 'MISSED'}"
    if not goal.to:
        return "", "", verdict
    spread = f"{figure.minimum:.2f}..{figure.maximum:.2f}"
    return f"{figure.value:.2f}{result.marks(goal)}", spread, verdict
