"""Selection of cells, sides, cores and programs by scripts/bench."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from click.testing import CliRunner

from aoe.errors import NotFoundError, UsageError
from scripts import bench
from scripts.bench_cells import CELLS, Side
from scripts.bench_images import Images
from scripts.bench_rig import RunSettings
from scripts.bench_run import Bench, measure_undisturbed
from scripts.bench_stats import Sample
from scripts.bench_tools import Cores, Tools, cpu_model, pinned

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.bench_rig import Rig

SETTINGS = RunSettings(rounds=1, seconds=0.1, copy_size=1 << 20, tries=1)


def peers(tools: Tools, directory: Path) -> dict[str, list[str]]:
    """Return the peers of each cell that can be measured."""
    run = Bench(CELLS, tools, SETTINGS, directory)
    return {
        cell.name: [goal.to for goal in run.goals(cell) if goal.to]
        for cell in run.cells
    }


def test_with_all_programs_all_cells_are_measured(tmp_path: Path) -> None:
    paths = dict.fromkeys(("vblade", "nbdkit", "nbdcopy", "load", "echo"), "/x")
    found = peers(Tools(paths), tmp_path)
    assert list(found) == [cell.name for cell in CELLS]
    assert found["read-64"] == ["vblade", "echo"]
    assert found["initiator-16"] == ["load"]


def test_cells_of_missing_programs_are_skipped(tmp_path: Path) -> None:
    found = peers(Tools({"vblade": "/x", "nbdkit": "/x", "echo": "/x"}), tmp_path)
    assert found["read-64"] == ["vblade"]
    assert "idle" in found
    assert not [name for name in found if name.startswith(("copy", "initiator"))]


def test_skipped_sides_are_reported_with_a_fix(tmp_path: Path) -> None:
    run = Bench(CELLS, Tools({"nbdkit": "/x"}), SETTINGS, tmp_path)
    assert "read-64, vblade: apt install vblade" in run.report.skipped
    assert "copy-9000, nbdcopy: apt install libnbd-bin" in run.report.skipped
    assert not [line for line in run.report.skipped if line.startswith("idle")]


def test_number_of_steps_counts_each_side_of_each_round(tmp_path: Path) -> None:
    tools = Tools({"vblade": "/x", "load": "/x", "echo": "/x"})
    run = Bench(bench.select_cells(["read"]), tools, SETTINGS, tmp_path)
    assert run.steps == 2 * 3


@pytest.mark.parametrize(
    ("pressures", "tries", "expected"),
    [
        ([0.0, 0.0], 3, 1),
        ([0.3, 0.0, 0.0], 3, 2),
        ([0.3, 0.3, 0.3, 0.0], 3, 3),
        ([0.3, 0.0], 1, 1),
    ],
)
def test_disturbed_measurement_is_repeated(
    pressures: list[float], tries: int, expected: int
) -> None:
    samples = [Sample(n, {"cpu_pressure": p}) for n, p in enumerate(pressures, 1)]
    remaining = iter(samples)
    side = Side("pyaoe", lambda _rig: next(remaining))
    assert measure_undisturbed(side, cast("Rig", None), tries) == samples[expected - 1]


def test_cells_are_selected_by_prefix() -> None:
    selected = [cell.name for cell in bench.select_cells(["read", "copy-9"])]
    assert selected == ["read-64", "read-16", "copy-9000"]
    assert bench.select_cells([]) == list(CELLS)


def test_unknown_cell_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"no such cell. Cells: read-64, "):
        bench.select_cells(["read", "fast"])


def test_first_and_last_core_are_used() -> None:
    assert Cores.choose([1, 2, 3, 6]) == Cores(1, 6)
    assert "target on core 1, load on core 6" in str(Cores(1, 6))


def test_single_core_is_not_pinned() -> None:
    cores = Cores.choose([3])
    assert "taskset" not in pinned(cores.target, ["true"])
    assert str(cores) == "target and load share one core"
    assert "taskset" in pinned(3, ["true"])


def test_cpu_model_falls_back_to_the_architecture() -> None:
    assert cpu_model("processor\t: 0\n")


def test_load_generator_must_be_executable(tmp_path: Path) -> None:
    text = tmp_path / "aoeload.c"
    text.touch()
    with pytest.raises(NotFoundError, match=r"aoeload\.c: not an executable file"):
        Tools.find(text, None)


def test_filled_and_sparse_images(tmp_path: Path) -> None:
    images = Images(tmp_path)
    filled, sparse = images.filled(2 << 20), images.sparse(1 << 40)
    assert filled.stat().st_size == 2 << 20
    assert bytes(4096) not in filled.read_bytes()
    assert (sparse.stat().st_size, sparse.stat().st_blocks) == (1 << 40, 0)


def test_echo_without_load_is_a_usage_error(tmp_path: Path) -> None:
    program = tmp_path / "echo"
    program.touch()
    done = CliRunner().invoke(bench.bench, ["--echo", str(program)])
    assert isinstance(done.exception, UsageError)
    assert "Give --load as well" in str(done.exception)


def test_output_directory_is_checked_before_measuring(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such directory"):
        bench.check_writable(tmp_path / "nowhere" / "bench.json")
    bench.check_writable(tmp_path / "bench.json")


def test_list_shows_all_cells() -> None:
    done = CliRunner().invoke(bench.bench, ["--list"])
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines] == [cell.name for cell in CELLS]
