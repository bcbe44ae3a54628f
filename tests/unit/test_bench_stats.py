"""Medians, ratios, goals and reports of scripts/bench."""

from __future__ import annotations

import json

import pytest

from aoe.errors import DecodeError
from scripts.bench_stats import (
    Figure,
    Goal,
    Report,
    Result,
    Sample,
    Series,
    decode,
    encode,
    remaining,
)

RATIO = Goal(of="pyaoe", to="vblade", bound=2.0)
LIMIT = Goal(of="pyaoe", to="echo", bound=0.6)
MEMORY = Goal(of="pyaoe", bound=150.0, at_most=True)


def series(name: str, *values: float, **details: float) -> Series:
    return Series(name, [Sample(value, details) for value in values])


def result(*sides: Series, goals: tuple[Goal, ...] = (RATIO,)) -> Result:
    return Result(
        name="read-64",
        title="4 KiB read",
        unit="IOPS",
        series=list(sides),
        goals=list(goals),
    )


def test_ratio_is_of_medians_and_its_extremes_are_of_rounds() -> None:
    cell = result(series("pyaoe", 20, 90, 40), series("vblade", 10, 20, 40))
    assert cell.figure(RATIO) == Figure(2.0, 1.0, 4.5)


def test_figure_without_a_peer_is_the_median() -> None:
    cell = result(series("pyaoe", 4.0, 1.0, 3.0, 2.0), goals=(MEMORY,))
    assert cell.figure(MEMORY) == Figure(2.5, 1.0, 4.0)


@pytest.mark.parametrize(
    ("goal", "figure", "is_met"),
    [
        (RATIO, 2.0, True),
        (RATIO, 1.99, False),
        (MEMORY, 150.0, True),
        (MEMORY, 150.1, False),
        (Goal(of="pyaoe", to="vblade"), 0.1, None),
    ],
)
def test_goal_is_met_at_its_bound(
    goal: Goal, figure: float, *, is_met: bool | None
) -> None:
    assert goal.is_met(figure) is is_met


def test_goals_with_a_missing_side_are_dropped() -> None:
    assert remaining([RATIO, LIMIT, MEMORY], ["pyaoe", "vblade"]) == [RATIO, MEMORY]
    assert remaining([RATIO, LIMIT], ["vblade", "echo"]) == []


def test_load_is_saturated_if_it_is_on_one_side() -> None:
    cell = result(
        series("pyaoe", 1, load_busy=0.5),
        series("vblade", 1, load_busy=0.98),
        series("echo", 1, load_busy=0.5),
        goals=(RATIO, LIMIT),
    )
    assert cell.is_load_saturated(RATIO)
    assert not cell.is_load_saturated(LIMIT)


def test_disturbed_if_more_than_half_of_the_rounds_are() -> None:
    quiet, disturbed = (
        Sample(1, {"cpu_pressure": 0.0}),
        Sample(1, {"cpu_pressure": 0.3}),
    )
    assert disturbed.is_disturbed
    assert not Sample(1).is_disturbed
    vblade = series("vblade", 1, 1, 1)
    assert not result(Series("pyaoe", [quiet, disturbed, quiet]), vblade).is_disturbed(
        RATIO
    )
    assert result(Series("pyaoe", [quiet, disturbed, disturbed]), vblade).is_disturbed(
        RATIO
    )


def test_encoded_report_is_decoded() -> None:
    report = Report(
        machine={"cpu": "A CPU", "cores": 2, "load_average": 0.1},
        settings={"rounds": 2},
        results=[
            result(series("pyaoe", 3, 5, p50_seconds=1e-4), series("vblade", 2, 2))
        ],
        skipped=["copy-9000, nbdcopy: apt install nbdkit"],
    )
    assert decode(encode(report)) == report


def test_encoded_report_includes_medians_and_ratios() -> None:
    cell = result(series("pyaoe", 3, 5), series("vblade", 2, 2))
    document = json.loads(encode(Report(machine={}, settings={}, results=[cell])))
    assert (document["schema_version"], document["command"]) == (1, "bench")
    (encoded,) = document["results"]
    assert [side["median"] for side in encoded["series"]] == [4.0, 2.0]
    (goal,) = encoded["goals"]
    assert (goal["value"], goal["minimum"], goal["maximum"]) == (2.0, 1.5, 2.5)
    assert goal["is_met"] is True


@pytest.mark.parametrize("content", [b"", b"[]", b'{"machine": {}}'])
def test_decode_refuses_other_documents(content: bytes) -> None:
    with pytest.raises(DecodeError, match=r"^report: "):
        decode(content)
