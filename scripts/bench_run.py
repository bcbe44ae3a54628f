"""A run: the cells that can be measured here, measured in turns."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aoe.net.netns import Wire
from scripts.bench_images import Images
from scripts.bench_rig import Rig
from scripts.bench_stats import Report, Result, Series, remaining
from scripts.bench_tools import Cores, machine_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from scripts.bench_cells import Cell, Side
    from scripts.bench_rig import Pace
    from scripts.bench_stats import Goal, Sample
    from scripts.bench_tools import Tools


class Bench:
    """A run: which cells can be measured, and doing so.

    Args:
        chosen: cells that are wanted.
        tools: the programs there are.
        pace: how much.
        place: a directory of ours for the images.
    """

    def __init__(
        self, chosen: Sequence[Cell], tools: Tools, pace: Pace, place: Path
    ) -> None:
        self._tools = tools
        self._pace = pace
        self._images = Images(place)
        self._cores = Cores.choose(sorted(os.sched_getaffinity(0)))
        self.cells = [cell for cell in chosen if self.goals(cell)]
        self.report = Report(
            machine=machine_facts(tools, place),
            settings={
                "rounds": pace.rounds,
                "seconds": pace.seconds,
                "copy_bytes": pace.copy_size,
                "tries": pace.tries,
                "cores": str(self._cores),
            },
            left_out=list(self._left_out(chosen)),
        )

    @property
    def steps(self) -> int:
        """Measurements of the whole run."""
        return self._pace.rounds * sum(len(self.sides(cell)) for cell in self.cells)

    def measure(self, cell: Cell, tell: Callable[[str], None]) -> Result:
        """Measure a cell, its sides in turns.

        Args:
            cell: one of ``cells``.
            tell: is told what comes next.
        """
        sides = self.sides(cell)
        series = [Series(side.name, []) for side in sides]
        with Wire(cell.mtu) as wire:
            rig = Rig(wire, self._tools, self._cores, self._pace, self._images)
            for _ in range(self._pace.rounds):
                for side, taken in zip(sides, series, strict=True):
                    tell(f"{cell.name}: {side.name}")
                    taken.samples.append(measure_quietly(side, rig, self._pace.tries))
        result = Result(
            name=cell.name,
            title=cell.title,
            unit=cell.unit,
            series=series,
            goals=self.goals(cell),
        )
        self.report.results.append(result)
        return result

    def sides(self, cell: Cell) -> list[Side]:
        """Return who is measured: whose programs are there, for a goal that is left."""
        goals = self.goals(cell)
        names = {name for goal in goals for name in (goal.of, goal.to)}
        return [
            side
            for side in cell.sides
            if side.name in names and self._tools.has(side.needs)
        ]

    def goals(self, cell: Cell) -> list[Goal]:
        """Return the goals of which the programs of all sides are there."""
        there = [side.name for side in cell.sides if self._tools.has(side.needs)]
        return remaining(cell.goals, there)

    def _left_out(self, chosen: Sequence[Cell]) -> Iterator[str]:
        # What the user has to give, and did not, was not asked for.
        for cell in chosen:
            for side in cell.sides:
                if fix := self._tools.fix(side.needs):
                    yield f"{cell.name}, {side.name}: {fix}"


def measure_quietly(side: Side, rig: Rig, tries: int) -> Sample:
    """Measure one side, again while something disturbs it, but so many times at most.

    What came out plays no part in whether to try again: that would be a choice.
    """
    sample = side.measure(rig)
    for _ in range(tries - 1):
        if not sample.is_disturbed:
            break
        sample = side.measure(rig)
    return sample
