"""A run as text: a head, a row for each goal, and notes beneath."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scripts.bench_stats import Goal, Report, Result, Series

_PREFIXES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_DECIMALS: Final = {"B": 1, "%": 2}


def show(value: float, unit: str) -> str:
    """Write a value with its unit.

    >>> show(227621.0, "IOPS"), show(1.45e9, "B/s"), show(80 << 20, "B")
    ('228 k', '1.45 GB/s', '80.0 MiB')
    """
    size, suffix = _scale(value, unit)
    return f"{_digits(value / size, unit)} {suffix}".rstrip()


def _scale(value: float, unit: str) -> tuple[float, str]:
    # What to divide by, and what then stands behind it.
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
    # Three that count, as 1.45, 14.5, 145.
    if unit in _DECIMALS:
        return f"{value:.{_DECIMALS[unit]}f}"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _spread(side: Series, unit: str) -> str:
    # Scaled as the median in front of it, which has the unit.
    size, _ = _scale(side.median, unit)
    least, most = min(side.values), max(side.values)
    return f"{_digits(least / size, unit)}..{_digits(most / size, unit)}"


def head(report: Report) -> str:
    """Say what was measured where and how, in a few lines."""
    facts, how = report.machine, report.settings
    peers = [
        f"{name} {facts[name]}"
        for name in ("vblade", "nbdkit", "nbdcopy")
        if name in facts
    ]
    ours = [f"pyaoe {facts['pyaoe']}", *peers, f"load {facts.get('load', 'aoe bench')}"]
    where = [facts["python"], facts["kernel"], facts["cpu"], f"cores: {facts['cores']}"]
    return (
        f"{', '.join(ours)}\n{', '.join(map(str, where))}\n"
        f"{how['cores']}; images on {facts['filesystem']}; rounds: {how['rounds']} of "
        f"{how['seconds']} s, in turns"
    )


def column_names() -> str:
    """Return the names of the columns of ``block``."""
    names = ("median", "least..most", "us each", "ratio", "least..most", "goal")
    return _line("", names)


def block(result: Result) -> Iterator[str]:
    """Yield the lines of a cell: its title, then one for each side.

    A ratio stands beside the later of its two sides, in the order of measurement.
    """
    yield result.title
    beside = {_later(result, goal): goal for goal in result.goals}
    for side in result.series:
        cpu = side.detail("server_cpu_seconds_per_request")
        columns = [
            show(side.median, result.unit),
            _spread(side, result.unit),
            "" if cpu is None else f"{cpu * 1e6:.2f}",
        ]
        if side.name in beside:
            columns += _judged(result, beside[side.name])
        yield _line(side.name, columns)


def notes(report: Report) -> Iterator[str]:
    """Yield what a reader must know to read the table, and what is not in it."""
    yield "ratio: pyaoe to the peer in its line; among our own, the line to the first."
    yield "us each: processor time of the target for a request, in microseconds."
    judged = [(result, goal) for result in report.results for goal in result.goals]
    if any(result.is_load_full(goal) for result, goal in judged):
        yield "*: the load's core was full, and may have set the pace for both sides."
    if any(result.is_disturbed(goal) for result, goal in judged):
        yield "~: something else wanted the cores. Trust no such ratio; measure again."
    yield from (f"left out: {line}" for line in report.left_out)


def _line(name: str, columns: Sequence[str]) -> str:
    widths = (10, 14, 7, 7, 12)
    padded = [f"{text:<{width}}" for text, width in zip(columns, widths, strict=False)]
    return "  ".join((f"  {name:<12}", *padded, *columns[len(widths) :])).rstrip()


def _later(result: Result, goal: Goal) -> str:
    return [side.name for side in result.series if side.name in (goal.of, goal.to)][-1]


def _judged(result: Result, goal: Goal) -> tuple[str, str, str]:
    figure = result.figure(goal)
    verdict = ""
    if goal.bound is not None:
        bound = f"{goal.bound}" if goal.to else show(goal.bound, result.unit)
        is_met = goal.is_met(figure.value)
        sign = "<=" if goal.at_most else ">="
        verdict = f"{sign} {bound} {'met' if is_met else 'MISSED'}"
    if not goal.to:
        return "", "", verdict
    least_most = f"{figure.least:.2f}..{figure.most:.2f}"
    return f"{figure.value:.2f}{result.marks(goal)}", least_most, verdict
