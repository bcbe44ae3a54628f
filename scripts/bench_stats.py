"""What measurements amount to: medians, their spread, ratios, and goals."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from aoe.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA_VERSION: Final = 1
FULL: Final = 0.97
"""Share of its core from which on a load generator counts as having none left."""
DISTURBED: Final = 0.05
"""Share of the time, waited for a core, from which on somebody else was there."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    Args:
        value: in the unit of its cell.
        details: what else was seen meanwhile, named with its unit.
    """

    value: float
    details: dict[str, float] = field(default_factory=dict)

    @property
    def is_disturbed(self) -> bool:
        """Somebody else wanted the cores meanwhile."""
        return self.details.get("cpu_pressure", 0.0) >= DISTURBED


@dataclass(frozen=True, slots=True)
class Series:
    """The measurements of one side of a comparison, in the order of the rounds."""

    name: str
    samples: list[Sample]

    @property
    def values(self) -> list[float]:
        """What was measured."""
        return [sample.value for sample in self.samples]

    @property
    def median(self) -> float:
        """The median of what was measured."""
        return statistics.median(self.values)

    def detail(self, name: str) -> float | None:
        """Return the median of a detail, None if no sample has it."""
        seen = [s.details[name] for s in self.samples if name in s.details]
        return statistics.median(seen) if seen else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a cell is about: a side's figure, alone or as a ratio to another's.

    Args:
        of: the side.
        to: the other; empty for the figure alone.
        bound: what is good enough; None if nothing was promised.
        at_most: the bound is an upper one.
    """

    of: str
    to: str = ""
    bound: float | None = None
    at_most: bool = False

    def is_met(self, figure: float) -> bool | None:
        """Tell whether a figure is good enough; None if nothing was promised."""
        if self.bound is None:
            return None
        return figure <= self.bound if self.at_most else figure >= self.bound


class Figure(NamedTuple):
    """A median, or a ratio of two, and the least and the most in any round."""

    value: float
    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a cell.

    Args:
        name: as ``--only`` takes it.
        title: what was done.
        unit: of the values: ``IOPS``, ``B/s``, ``B`` or ``%``.
        series: the sides, each with as many samples as there were rounds.
        goals: what to make of them.
    """

    name: str
    title: str
    unit: str
    series: list[Series]
    goals: list[Goal]

    def side(self, name: str) -> Series:
        """Return one side's measurements."""
        return next(series for series in self.series if series.name == name)

    def figure(self, goal: Goal) -> Figure:
        """Return what a goal is about.

        A ratio is that of the medians. Its extremes are those of the ratios within a
        round, since what disturbs the machine disturbs both sides of a round alike.
        """
        ours = self.side(goal.of)
        if not goal.to:
            return Figure(ours.median, min(ours.values), max(ours.values))
        other = self.side(goal.to)
        rounds = [
            ratio(one, two) for one, two in zip(ours.values, other.values, strict=True)
        ]
        return Figure(ratio(ours.median, other.median), min(rounds), max(rounds))

    def is_load_full(self, goal: Goal) -> bool:
        """Tell whether the load generator, not a target, may have set the pace."""
        return self._most(goal, "load_busy") >= FULL

    def is_disturbed(self, goal: Goal) -> bool:
        """Tell whether somebody else wanted the cores meanwhile."""
        return self._most(goal, "cpu_pressure") >= DISTURBED

    def marks(self, goal: Goal) -> str:
        """Return what stands behind a figure that is not to be taken at its word."""
        return "*" * self.is_load_full(goal) + "~" * self.is_disturbed(goal)

    def _most(self, goal: Goal, detail: str) -> float:
        sides = (side for side in self.series if side.name in (goal.of, goal.to))
        return max((side.detail(detail) or 0.0 for side in sides), default=0.0)


def ratio(one: float, two: float) -> float:
    """Divide; what came to nothing on both sides is equal.

    >>> ratio(3.0, 2.0), ratio(0.0, 0.0), ratio(1.0, 0.0)
    (1.5, 1.0, inf)
    """
    if two:
        return one / two
    return float("inf") if one else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole run.

    Args:
        machine: facts of the machine and of the programs, by name.
        settings: how it was measured, by name.
        results: cells in the order in which they were measured.
        left_out: what could not be measured, and the fix, a line each.
    """

    machine: dict[str, str | int | float]
    settings: dict[str, str | int | float]
    results: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def encode(report: Report) -> bytes:
    """Write a report as JSON, with what follows from its samples."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "command": "bench",
        "machine": report.machine,
        "settings": report.settings,
        "results": [_result_fields(result) for result in report.results],
        "left_out": report.left_out,
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
        "is_load_full": result.is_load_full(goal),
        "is_disturbed": result.is_disturbed(goal),
    }


def decode(content: bytes) -> Report:
    """Read what ``encode`` wrote; what follows from the samples is computed again.

    Raises:
        DecodeError: it is something else.
    """
    try:
        return msgspec.json.decode(content, type=Report)
    except msgspec.MsgspecError as error:
        raise DecodeError("report", str(error)) from error


def remaining(goals: Sequence[Goal], sides: Sequence[str]) -> list[Goal]:
    """Return the goals of which all sides are there."""
    return [
        goal for goal in goals if goal.of in sides and (goal.to or goal.of) in sides
    ]
