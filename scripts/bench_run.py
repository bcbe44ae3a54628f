"""Measure the selected cells whose programs are installed."""

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
    from scripts.bench_rig import RunSettings
    from scripts.bench_stats import Goal, Sample
    from scripts.bench_tools import Tools


class Bench:
    """A run of the benchmark.

    Args:
        selected: the cells to measure.
        tools: the installed programs.
        settings: how long and how often to measure.
        directory: where to create the images.
    """

    def __init__(
        self,
        selected: Sequence[Cell],
        tools: Tools,
        settings: RunSettings,
        directory: Path,
    ) -> None:
        self._tools = tools
        self._settings = settings
        self._images = Images(directory)
        self._cores = Cores.choose(sorted(os.sched_getaffinity(0)))
        self.cells = [cell for cell in selected if self.goals(cell)]
        self.report = Report(
            machine=machine_facts(tools, directory),
            settings={
                "rounds": settings.rounds,
                "seconds": settings.seconds,
                "copy_bytes": settings.copy_size,
                "tries": settings.tries,
                "cores": str(self._cores),
            },
            skipped=list(self._skipped(selected)),
        )

    @property
    def steps(self) -> int:
        """Return the number of measurements of the whole run."""
        return self._settings.rounds * sum(len(self.sides(cell)) for cell in self.cells)

    def measure(self, cell: Cell, show: Callable[[str], None]) -> Result:
        """Measure a cell; its sides alternate.

        Args:
            cell: one of ``cells``.
            show: called with the name of each measurement before it starts.
        """
        sides = self.sides(cell)
        series = [Series(side.name, []) for side in sides]
        with Wire(cell.mtu) as wire:
            rig = Rig(wire, self._tools, self._cores, self._settings, self._images)
            for _ in range(self._settings.rounds):
                for side, taken in zip(sides, series, strict=True):
                    show(f"{cell.name}: {side.name}")
                    taken.samples.append(
                        measure_undisturbed(side, rig, self._settings.tries)
                    )
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
        """Return the sides to measure: installed, and part of a remaining goal."""
        goals = self.goals(cell)
        names = {name for goal in goals for name in (goal.of, goal.to)}
        return [
            side
            for side in cell.sides
            if side.name in names and self._tools.has(side.needs)
        ]

    def goals(self, cell: Cell) -> list[Goal]:
        """Return the goals whose sides are all installed."""
        names = [side.name for side in cell.sides if self._tools.has(side.needs)]
        return remaining(cell.goals, names)

    def _skipped(self, selected: Sequence[Cell]) -> Iterator[str]:
        # Sides that need --load or --echo have no fix and are not listed.
        for cell in selected:
            for side in cell.sides:
                if fix := self._tools.fix(side.needs):
                    yield f"{cell.name}, {side.name}: {fix}"


def measure_undisturbed(side: Side, rig: Rig, tries: int) -> Sample:
    """Measure one side, at most ``tries`` times, until a sample is undisturbed.

    The decision does not depend on the measured value, which would bias the result.
    """
    sample = side.measure(rig)
    for _ in range(tries - 1):
        if not sample.is_disturbed:
            break
        sample = side.measure(rig)
    return sample
