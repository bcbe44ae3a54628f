"""The table and the chart of scripts/bench."""

from __future__ import annotations

from xml.parsers import expat

import pytest

from scripts import bench_chart, bench_table
from scripts.bench_stats import Goal, Report, Result, Sample, Series

FACTS: dict[str, str | int | float] = {
    "pyaoe": "1.0",
    "vblade": "25",
    "python": "CPython 3.11",
    "kernel": "Linux 6.1",
    "cpu": "A CPU",
    "cores": 2,
    "filesystem": "tmpfs",
}
SETTINGS: dict[str, str | int | float] = {
    "rounds": 2,
    "seconds": 1.0,
    "cores": "target on core 0, load on core 1",
}


def series(name: str, *values: float, **details: float) -> Series:
    return Series(name, [Sample(value, details) for value in values])


@pytest.fixture
def report() -> Report:
    """Return results of three cells: faster than the peer, slower, without a peer."""
    return Report(
        machine=FACTS,
        settings=SETTINGS,
        results=[
            Result(
                name="read",
                title="4 KiB read & more",
                unit="IOPS",
                series=[
                    series(
                        "pyaoe",
                        200e3,
                        260e3,
                        server_cpu_seconds_per_request=4e-6,
                        load_busy=1.0,
                    ),
                    series("vblade", 100e3, 100e3),
                    series("echo", 400e3, 500e3),
                ],
                goals=[
                    Goal(of="pyaoe", to="vblade", bound=2.0),
                    Goal(of="pyaoe", to="echo", bound=0.6),
                ],
            ),
            Result(
                name="copy",
                title="copy",
                unit="B/s",
                series=[series("pyaoe", 1e9, 1e9), series("nbdcopy", 2e9, 2e9)],
                goals=[Goal(of="pyaoe", to="nbdcopy")],
            ),
            Result(
                name="memory",
                title="memory",
                unit="B",
                series=[series("pyaoe", 160 << 20)],
                goals=[Goal(of="pyaoe", bound=150 << 20, at_most=True)],
            ),
        ],
        skipped=["idle: apt install something"],
    )


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (227621.0, "IOPS", "228 k"),
        (14465.0, "IOPS", "14.5 k"),
        (950.0, "IOPS", "950"),
        (1.45e9, "B/s", "1.45 GB/s"),
        (34.2e6, "B/s", "34.2 MB/s"),
        (80 << 20, "B", "80.0 MiB"),
        (0.123, "%", "0.12 %"),
    ],
)
def test_values_have_three_digits_and_a_unit(
    value: float, unit: str, text: str
) -> None:
    assert bench_table.show(value, unit) == text


def test_spread_is_scaled_like_the_median() -> None:
    cell = Result(
        name="read",
        title="read",
        unit="IOPS",
        series=[series("pyaoe", 234e3, 590e3, 1.14e6)],
        goals=[],
    )
    _, ours = bench_table.cell_lines(cell)
    assert ours.split() == ["pyaoe", "590", "k", "234..1140"]


def test_ratio_is_on_the_line_of_the_peer(report: Report) -> None:
    title, ours, vblade, echo = bench_table.cell_lines(report.results[0])
    assert title == "4 KiB read & more"
    assert ours.split() == ["pyaoe", "230", "k", "200..260", "4.00"]
    assert vblade.split() == [
        *("vblade", "100", "k", "100..100", "2.30*", "2.00..2.60", ">=", "2.0", "met"),
    ]
    assert echo.split()[4:] == ["0.51*", "0.50..0.52", ">=", "0.6", "MISSED"]


def test_ratio_without_a_bound_has_no_verdict(report: Report) -> None:
    *_, nbdcopy = bench_table.cell_lines(report.results[1])
    assert nbdcopy.split()[4:] == ["0.50", "0.50..0.50"]


def test_bound_of_a_median_has_its_unit(report: Report) -> None:
    _, ours = bench_table.cell_lines(report.results[2])
    assert ours.split(maxsplit=4)[1:] == [
        *("160.0", "MiB", "160.0..160.0", "<= 150.0 MiB MISSED")
    ]


def test_columns_are_aligned_with_their_headings(report: Report) -> None:
    *_, vblade, _echo = bench_table.cell_lines(report.results[0])
    names = bench_table.column_headings()
    assert names.index("ratio") == vblade.index("2.30")
    assert names.index("goal") == vblade.index(">=")


def test_notes_explain_the_marks_and_list_skipped_sides(report: Report) -> None:
    notes = "\n".join(bench_table.notes(report))
    assert "\n*: the load generator used all of its core" in notes
    assert "\n~" not in notes
    assert notes.endswith("skipped: idle: apt install something")


def test_header_has_versions_and_machine(report: Report) -> None:
    header = bench_table.header(report)
    for fact in ("pyaoe 1.0", "vblade 25", "load aoe bench", "A CPU", "tmpfs"):
        assert fact in header
    assert "nbdkit" not in header


def test_chart_bars_are_proportional_to_the_ratios(report: Report) -> None:
    root = bench_chart.draw(report)
    first, second = (float(bar.attrib["width"]) for bar in root.iter("rect"))
    assert first / second == pytest.approx(2.30 / 0.50, rel=0.01)


def test_chart_line_is_at_ratio_1(report: Report) -> None:
    root = bench_chart.draw(report)
    bar = next(root.iter("rect"))
    line = next(line for line in root.iter("line") if line.attrib["class"] == "one")
    left, width = float(bar.attrib["x"]), float(bar.attrib["width"])
    assert float(line.attrib["x1"]) == pytest.approx(left + width / 2.30, abs=0.2)
    assert line.attrib["x1"] == line.attrib["x2"]


def test_chart_text_fits_into_the_image(report: Report) -> None:
    root = bench_chart.draw(report)
    height = float(root.attrib["height"])
    for text in root.iter("text"):
        # An upper bound of the average width of a character at 13 pixels.
        width = len(text.text or "") * 7
        assert float(text.attrib["y"]) < height
        assert float(text.attrib["x"]) + width < bench_chart.WIDTH


def test_chart_has_a_description_for_screen_readers(report: Report) -> None:
    root = bench_chart.draw(report)
    assert root.attrib["role"] == "img"
    ids = root.attrib["aria-labelledby"].split()
    ratios = ("4 KiB read & more: 2.30 times vblade", "copy: 0.50 times nbdcopy")
    assert [root.findtext("title"), root.findtext("desc")] == [
        "Speed of pyaoe relative to vblade and nbdcopy",
        f"Bar chart. {'; '.join(ratios)}.",
    ]
    assert ids == [root[0].attrib["id"], root[1].attrib["id"]]


def test_chart_marks_and_explains_limited_ratios(report: Report) -> None:
    texts = [text.text or "" for text in bench_chart.draw(report).iter("text")]
    assert "2.30* x vblade" in texts
    assert "0.50 x nbdcopy" in texts
    assert texts[-1] == "* limited by the load generator"


def test_chart_supports_dark_pages(report: Report) -> None:
    assert "prefers-color-scheme: dark" in bench_chart.write(report)


@pytest.mark.parametrize("peers", [True, False])
def test_chart_is_well_formed_xml(report: Report, *, peers: bool) -> None:
    if not peers:
        del report.results[:2]
    expat.ParserCreate().Parse(bench_chart.write(report), True)
