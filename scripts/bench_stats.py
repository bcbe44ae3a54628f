"""Medians, ratios, spreads and goals of the samples; the report as JSON."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from aoe.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA_VERSION: Final = 1
SATURATED: Final = 0.97
"""CPU share of its core at which a load generator counts as saturated."""
DISTURBED: Final = 0.05
"""Share of the time with tasks waiting for a core at which a sample is disturbed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Args:
        value: in the unit of its cell.
        details: other measured values; their names include the unit.
    """

    value: float
    details: dict[str, float] = field(default_factory=dict)

    @property
    def is_disturbed(self) -> bool:
        """Return True if other processes waited for the cores too."""
        return self.details.get("cpu_pressure", 0.0) >= DISTURBED


@dataclass(frozen=True, slots=True)
class Series:
    """The samples of one side of a comparison, one for each round."""

    name: str
    samples: list[Sample]

    @property
    def values(self) -> list[float]:
        """Return the values of the samples."""
        return [sample.value for sample in self.samples]

    @property
    def median(self) -> float:
        """Return the median of the values."""
        return statistics.median(self.values)

    def detail(self, name: str) -> float | None:
        """Return the median of a detail, None if no sample has it."""
        values = [s.details[name] for s in self.samples if name in s.details]
        return statistics.median(values) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What to compute for a cell: the median of a side, or its ratio to another side.

    Args:
        of: the side.
        to: the side to compare it with; empty: no ratio.
        bound: the bound of the goal; None: no goal, the figure is only shown.
        at_most: the bound is an upper bound.
    """

    of: str
    to: str = ""
    bound: float | None = None
    at_most: bool = False

    def is_met(self, figure: float) -> bool | None:
        """Return True if a figure meets the bound; None without a bound."""
        if self.bound is None:
            return None
        return figure <= self.bound if self.at_most else figure >= self.bound


class Figure(NamedTuple):
    """A median, or a ratio of medians, with the extremes of single rounds."""

    value: float
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a cell.

    Args:
        name: its name for ``--only``.
        title: a description.
        unit: unit of the values: ``IOPS``, ``B/s``, ``B`` or ``%``.
        series: the samples of each side, one for each round.
        goals: what to compute.
    """

    name: str
    title: str
    unit: str
    series: list[Series]
    goals: list[Goal]

    def side(self, name: str) -> Series:
        """Return the samples of a side."""
        return next(series for series in self.series if series.name == name)

    def figure(self, goal: Goal) -> Figure:
        """Return the figure of a goal.

        A ratio is the ratio of the medians. Its extremes are those of the ratios within
        a round, because other processes disturb both sides of a round alike.
        """
        ours = self.side(goal.of)
        if not goal.to:
            return Figure(ours.median, min(ours.values), max(ours.values))
        other = self.side(goal.to)
        rounds = [
            ratio(one, two) for one, two in zip(ours.values, other.values, strict=True)
        ]
        return Figure(ratio(ours.median, other.median), min(rounds), max(rounds))

    def is_load_saturated(self, goal: Goal) -> bool:
        """Return True if the load generator, not a target, may have been the limit."""
        return self._max_detail(goal, "load_busy") >= SATURATED

    def is_disturbed(self, goal: Goal) -> bool:
        """Return True if other processes have disturbed one of the sides."""
        return self._max_detail(goal, "cpu_pressure") >= DISTURBED

    def marks(self, goal: Goal) -> str:
        """Return the marks of a figure: ``*`` load saturated, ``~`` disturbed."""
        return "*" * self.is_load_saturated(goal) + "~" * self.is_disturbed(goal)

    def _max_detail(self, goal: Goal, detail: str) -> float:
        sides = (side for side in self.series if side.name in (goal.of, goal.to))
        return max((side.detail(detail) or 0.0 for side in sides), default=0.0)


def ratio(one: float, two: float) -> float:
    """Return ``one / two``, and 1 if both are 0.

    >>> ratio(3.0, 2.0), ratio(0.0, 0.0), ratio(1.0, 0.0)
    (1.5, 1.0, inf)
    """
    if two:
        return one / two
    return float("inf") if one else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The results of a run.

    Args:
        machine: facts about machine and programs, by name.
        settings: how it was measured, by name.
        results: cells in the order of measurement.
        skipped: for each side that could not be measured, a line with the fix.
    """

    machine: dict[str, str | int | float]
    settings: dict[str, str | int | float]
    results: list[Result] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def encode(report: Report) -> bytes:
    """Encode a report as JSON, including medians, ratios and goals."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "command": "bench",
        "machine": report.machine,
        "settings": report.settings,
        "results": [_result_fields(result) for result in report.results],
        "skipped": report.skipped,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def _result_fields(result: Result) -> dict[str, object]:
    return {
        "name": result.name,
        "title": result.title,
        "unit": result.unit,
        "series": [
            {"name": side.name, "median": side.median, "samples": side.samples}
            for side in result.series
        ],
        "goals": [_goal_fields(result, goal) for goal in result.goals],
    }


def _goal_fields(result: Result, goal: Goal) -> dict[str, object]:
    figure = result.figure(goal)
    return {
        **msgspec.to_builtins(goal),
        **figure._asdict(),
        "is_met": goal.is_met(figure.value),
        "is_load_saturated": result.is_load_saturated(goal),
        "is_disturbed": result.is_disturbed(goal),
    }


def decode(content: bytes) -> Report:
    """Decode a report; medians, ratios and goals are computed from the samples again.

    Raises:
        DecodeError: it is not a report.
    """
    try:
        return msgspec.json.decode(content, type=Report)
    except msgspec.MsgspecError as error:
        raise DecodeError("report", str(error)) from error


def remaining(goals: Sequence[Goal], sides: Sequence[str]) -> list[Goal]:
    """Return the goals whose sides are all in ``sides``."""
    return [
        goal for goal in goals if goal.of in sides and (goal.to or goal.of) in sides
    ]
