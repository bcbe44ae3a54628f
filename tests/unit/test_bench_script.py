"""What scripts/bench chooses to measure, where, and with what."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from click.testing import CliRunner

from aoe.errors import NotFoundError, UsageError
from scripts import bench
from scripts.bench_cells import CELLS, Side
from scripts.bench_images import Images
from scripts.bench_rig import Pace
from scripts.bench_run import Bench, measure_quietly
from scripts.bench_stats import Sample
from scripts.bench_tools import Cores, Tools, cpu_model, pinned

if TYPE_CHECKING:
    from pathlib import Path

    from scripts.bench_rig import Rig

PACE = Pace(rounds=1, seconds=0.1, copy_size=1 << 20, tries=1)


def goals(tools: Tools, place: Path) -> dict[str, list[str]]:
    """Return to whom we are compared in each cell that can be measured."""
    run = Bench(CELLS, tools, PACE, place)
    return {
        cell.name: [goal.to for goal in run.goals(cell) if goal.to]
        for cell in run.cells
    }


def test_with_every_program_there_is_every_cell(tmp_path: Path) -> None:
    paths = dict.fromkeys(("vblade", "nbdkit", "nbdcopy", "load", "echo"), "/x")
    there = goals(Tools(paths), tmp_path)
    assert list(there) == [cell.name for cell in CELLS]
    assert there["read-64"] == ["vblade", "echo"]
    assert there["initiator-16"] == ["load"]


def test_what_needs_a_program_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    there = goals(Tools({"vblade": "/x", "nbdkit": "/x", "echo": "/x"}), tmp_path)
    assert there["read-64"] == ["vblade"]
    assert "idle" in there
    assert not [name for name in there if name.startswith(("copy", "initiator"))]


def test_what_is_left_out_comes_with_its_cure(tmp_path: Path) -> None:
    run = Bench(CELLS, Tools({"nbdkit": "/x"}), PACE, tmp_path)
    assert "read-64, vblade: apt install vblade" in run.report.left_out
    assert "copy-9000, nbdcopy: apt install libnbd-bin" in run.report.left_out
    assert not [line for line in run.report.left_out if line.startswith("idle")]


def test_each_side_takes_its_turn_in_each_round(tmp_path: Path) -> None:
    tools = Tools({"vblade": "/x", "load": "/x", "echo": "/x"})
    run = Bench(bench.choose(["read"]), tools, PACE, tmp_path)
    assert run.steps == 2 * 3


@pytest.mark.parametrize(
    ("pressures", "tries", "taken"),
    [
        ([0.0, 0.0], 3, 1),
        ([0.3, 0.0, 0.0], 3, 2),
        ([0.3, 0.3, 0.3, 0.0], 3, 3),
        ([0.3, 0.0], 1, 1),
    ],
)
def test_what_is_disturbed_is_measured_again(
    pressures: list[float], tries: int, taken: int
) -> None:
    samples = [Sample(n, {"cpu_pressure": p}) for n, p in enumerate(pressures, 1)]
    left = iter(samples)
    side = Side("pyaoe", lambda _rig: next(left))
    assert measure_quietly(side, cast("Rig", None), tries) == samples[taken - 1]


def test_cells_are_chosen_by_how_they_begin() -> None:
    chosen = [cell.name for cell in bench.choose(["read", "copy-9"])]
    assert chosen == ["read-64", "read-16", "copy-9000"]
    assert bench.choose([]) == list(CELLS)


def test_a_cell_that_does_not_exist_is_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"no such cell. There are: read-64, "):
        bench.choose(["read", "fast"])


def test_the_cores_are_as_far_apart_as_they_can_be() -> None:
    assert Cores.choose([1, 2, 3, 6]) == Cores(1, 6)
    assert "target on core 1, load on core 6" in str(Cores(1, 6))


def test_on_one_core_nothing_is_pinned() -> None:
    cores = Cores.choose([3])
    assert "taskset" not in pinned(cores.target, ["true"])
    assert str(cores) == "target and load share one core"
    assert "taskset" in pinned(3, ["true"])


def test_a_processor_without_a_name_is_its_architecture() -> None:
    assert cpu_model("processor\t: 0\n")


def test_a_load_generator_must_be_a_program(tmp_path: Path) -> None:
    text = tmp_path / "aoeload.c"
    text.touch()
    with pytest.raises(NotFoundError, match=r"aoeload\.c: not a program"):
        Tools.find(text, None)


def test_images_are_full_or_empty(tmp_path: Path) -> None:
    images = Images(tmp_path)
    full, empty = images.filled(2 << 20), images.sparse(1 << 40)
    assert full.stat().st_size == 2 << 20
    assert bytes(4096) not in full.read_bytes()
    assert (empty.stat().st_size, empty.stat().st_blocks) == (1 << 40, 0)


def test_an_echo_alone_cannot_be_asked(tmp_path: Path) -> None:
    program = tmp_path / "echo"
    program.touch()
    done = CliRunner().invoke(bench.bench, ["--echo", str(program)])
    assert isinstance(done.exception, UsageError)
    assert "Give a --load too" in str(done.exception)


def test_a_file_that_could_not_be_written_is_noticed_first(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such directory"):
        bench.check_place(tmp_path / "nowhere" / "bench.json")
    bench.check_place(tmp_path / "bench.json")


def test_the_list_is_of_all_cells() -> None:
    done = CliRunner().invoke(bench.bench, ["--list"])
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines] == [cell.name for cell in CELLS]
