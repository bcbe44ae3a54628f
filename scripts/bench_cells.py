"""The cells of the benchmark: what each compares, and its goals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from scripts.bench_images import DISK
from scripts.bench_load import AOE_BENCH, Workload
from scripts.bench_stats import Goal, Sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.bench_rig import Rig

OURS: Final = "pyaoe"
GIB, TIB = 1 << 30, 1 << 40
_JUMBO: Final = 9000
_HUGE: Final = 65535
_DEFAULT_LOAD: Final = Workload("read", 64, 8)
_SCALING_BOUND: Final = 0.9
_MEMORY_BOUND: Final = 150 << 20


class Side(NamedTuple):
    """One side of a comparison.

    Args:
        name: its name in the table.
        measure: takes one sample.
        needs: programs that it runs, by their names in ``bench_tools.Tools``.
    """

    name: str
    measure: Callable[[Rig], Sample]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One thing to measure.

    Args:
        name: its name for ``--only``.
        title: a description for the table.
        unit: as in ``bench_stats.Result``.
        mtu: MTU of the veth pair.
        sides: what to measure, in this order in each round.
        goals: which sides to compare, and the bounds.
    """

    name: str
    title: str
    unit: str
    mtu: int = _JUMBO
    sides: tuple[Side, ...]
    goals: tuple[Goal, ...]


# --- requests, compared with vblade and an echo target --------------------------------


def request_cell(
    name: str,
    title: str,
    mtu: int,
    workload: Workload,
    bound: float,
    limit: float | None,
) -> Cell:
    """Return a cell of requests with one workload.

    Args:
        name: as in ``Cell``.
        title: as in ``Cell``.
        mtu: as in ``Cell``.
        workload: the load.
        bound: the goal for the ratio to vblade.
        limit: the goal for the ratio to the echo target; None: no goal.
    """

    def ours(rig: Rig) -> Sample:
        with rig.aoe_target(rig.images.filled()) as server:
            return rig.load(server, rig.load_generator(), workload, DISK)

    def vblade(rig: Rig) -> Sample:
        with rig.vblade(rig.images.filled()) as server:
            return rig.load(server, rig.load_generator(), workload, DISK)

    def echo(rig: Rig) -> Sample:
        with rig.echo() as server:
            return rig.load(server, rig.load_generator(), workload, DISK)

    return Cell(
        name=name,
        title=title,
        unit="IOPS",
        mtu=mtu,
        sides=(
            Side(OURS, ours),
            Side("vblade", vblade, ("vblade",)),
            Side("echo", echo, ("load", "echo")),
        ),
        goals=(
            Goal(of=OURS, to="vblade", bound=bound),
            Goal(of=OURS, to="echo", bound=limit),
        ),
    )


def _request_cells() -> list[Cell]:
    cells = [
        request_cell(
            f"{op}-{depth}",
            f"4 KiB {op}, {depth} deep, MTU 9000",
            _JUMBO,
            Workload(op, depth, 8),
            2.0,
            0.6,
        )
        for depth in (64, 16)
        for op in ("read", "write")
    ]
    cells += [
        request_cell(
            f"small-{depth}",
            f"1 KiB read, {depth} deep, MTU 1500",
            1500,
            Workload("read", depth, 2),
            2.0,
            0.6,
        )
        for depth in (64, 16)
    ]
    title = "4 KiB read, one at a time, MTU 9000"
    cells.append(
        request_cell("single", title, _JUMBO, Workload("read", 1, 8), 2.0, None)
    )
    cells += [
        request_cell(
            f"large-{op}",
            f"63.5 KiB {op}, 16 deep, MTU 65535",
            _HUGE,
            Workload(op, 16, 127),
            1.3,
            None,
        )
        for op in ("read", "write")
    ]
    return cells


# --- the engines, compared with each other --------------------------------------------


def engine_cell(op: Literal["read", "write"]) -> Cell:
    """Return a cell of requests with the scapy engine and with the other one."""

    def measure(engine: str) -> Callable[[Rig], Sample]:
        def requests(rig: Rig) -> Sample:
            with rig.aoe_target(rig.images.filled(), "--engine", engine) as server:
                return rig.load(server, rig.load_generator(), Workload(op, 16, 2), DISK)

        return requests

    return Cell(
        name=f"engine-{op}",
        title=f"1 KiB {op}, 16 deep, MTU 1500, engine scapy",
        unit="IOPS",
        mtu=1500,
        sides=tuple(Side(name, measure(name)) for name in ("scapy", "struct")),
        goals=(Goal(of="scapy"), Goal(of="scapy", to="struct")),
    )


# --- copies, compared with nbdcopy ----------------------------------------------------


def copy_cell(mtu: int, bound: float | None) -> Cell:
    """Return a cell that copies a disk to a file, over AoE and over NBD on TCP."""

    def ours(rig: Rig) -> Sample:
        source = rig.images.filled(rig.settings.copy_size)
        with rig.aoe_target(source) as server:
            return rig.aoe_copy(server, source)

    def nbd(rig: Rig) -> Sample:
        source = rig.images.filled(rig.settings.copy_size)
        with rig.nbdkit(source) as server:
            return rig.nbdcopy(server, source)

    return Cell(
        name=f"copy-{mtu}",
        title=f"copy a disk to a file, MTU {mtu}",
        unit="B/s",
        mtu=mtu,
        sides=(Side(OURS, ours), Side("nbdcopy", nbd, ("nbdkit", "nbdcopy"))),
        goals=(Goal(of=OURS, to="nbdcopy", bound=bound),),
    )


# --- the initiator, compared with another ---------------------------------------------


def initiator_cell(depth: int) -> Cell:
    """Return a cell that loads vblade with ``aoe bench`` and with the ``--load``."""
    workload = Workload("read", depth, 8)

    def ours(rig: Rig) -> Sample:
        with rig.vblade(rig.images.filled()) as server:
            return rig.load(server, AOE_BENCH, workload, DISK)

    def other(rig: Rig) -> Sample:
        with rig.vblade(rig.images.filled()) as server:
            return rig.load(server, rig.external_generator(), workload, DISK)

    return Cell(
        name=f"initiator-{depth}",
        title=f"aoe bench on vblade, 4 KiB read, {depth} deep",
        unit="IOPS",
        sides=(
            Side("aoe bench", ours, ("vblade",)),
            Side("load", other, ("vblade", "load")),
        ),
        goals=(Goal(of="aoe bench", to="load", bound=0.95),),
    )


# --- scaling, memory, idle ------------------------------------------------------------


def _exports(exports: int) -> Callable[[Rig], Sample]:
    # One process has this many exports; the last one is loaded.
    def measure(rig: Rig) -> Sample:
        with rig.aoe_target_config(rig.images.config(exports)) as server:
            return rig.load(server, rig.load_generator(), _DEFAULT_LOAD, DISK)

    return measure


def _sparse(size: int) -> Callable[[Rig], Sample]:
    # Random reads over all of a sparse image.
    def measure(rig: Rig) -> Sample:
        with rig.aoe_target(rig.images.sparse(size)) as server:
            return rig.load(server, rig.load_generator(), _DEFAULT_LOAD, size)

    return measure


def _memory(measure: Callable[[Rig], Sample]) -> Callable[[Rig], Sample]:
    # Resident memory of the target under load.
    return lambda rig: Sample(measure(rig).details["server_resident_bytes"])


def _idle(rig: Rig) -> Sample:
    with rig.aoe_target(rig.images.filled()) as server:
        return rig.idle(server)


def _scaling_cells() -> list[Cell]:
    one, some, many = "1 export", "16 exports", "256 exports"
    small, large = "1 GiB", "1 TiB"
    return [
        Cell(
            name="exports",
            title="4 KiB read, 64 deep, exports in one process",
            unit="IOPS",
            sides=(
                Side(one, _exports(1)),
                Side(some, _exports(16)),
                Side(many, _exports(256)),
            ),
            goals=tuple(Goal(of=n, to=one, bound=_SCALING_BOUND) for n in (some, many)),
        ),
        Cell(
            name="sparse",
            title="4 KiB read, 64 deep, sparse image",
            unit="IOPS",
            sides=(Side(small, _sparse(GIB)), Side(large, _sparse(TIB))),
            goals=(Goal(of=large, to=small, bound=_SCALING_BOUND),),
        ),
        Cell(
            name="memory",
            title="memory of the target under load",
            unit="B",
            sides=(
                Side(one, _memory(_exports(1))),
                Side(many, _memory(_exports(256))),
                Side(large, _memory(_sparse(TIB))),
            ),
            goals=tuple(
                Goal(of=n, bound=_MEMORY_BOUND, at_most=True)
                for n in (one, many, large)
            ),
        ),
        Cell(
            name="idle",
            title="CPU time of an idle target",
            unit="%",
            sides=(Side(OURS, _idle),),
            goals=(Goal(of=OURS, bound=0.5, at_most=True),),
        ),
    ]


CELLS: Final = (
    *_request_cells(),
    *(
        copy_cell(mtu, bound)
        for mtu, bound in ((_HUGE, 1.5), (_JUMBO, 1.0), (1500, None))
    ),
    *(initiator_cell(depth) for depth in (64, 16)),
    *_scaling_cells(),
    engine_cell("read"),
    engine_cell("write"),
)
"""All cells, in the order of the table."""
