"""What is measured: cells, each with its sides, which take turns, and its goals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from scripts.bench_images import DISK
from scripts.bench_load import OWN, Shape
from scripts.bench_stats import Goal, Sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.bench_rig import Rig

OURS: Final = "pyaoe"
GIB, TIB = 1 << 30, 1 << 40
_JUMBO: Final = 9000
_HUGE: Final = 65535
_USUAL: Final = Shape("read", 64, 8)
_FLAT: Final = 0.9
_MEMORY: Final = 150 << 20


class Side(NamedTuple):
    """Who is measured.

    Args:
        name: as tables have it.
        measure: does it once.
        needs: programs that ``bench_tools.Tools`` has to have.
    """

    name: str
    measure: Callable[[Rig], Sample]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One thing to measure.

    Args:
        name: as ``--only`` takes it.
        title: what is done.
        unit: as in ``bench_stats.Result``.
        mtu: of the wire.
        sides: who is measured, in this order in each round.
        goals: what to make of it.
    """

    name: str
    title: str
    unit: str
    mtu: int = _JUMBO
    sides: tuple[Side, ...]
    goals: tuple[Goal, ...]


# --- requests, against vblade and the limit -------------------------------------------


def requests(
    name: str, title: str, mtu: int, shape: Shape, bound: float, limit: float | None
) -> Cell:
    """Make a cell of requests of one shape.

    Args:
        name: as in ``Cell``.
        title: as in ``Cell``.
        mtu: as in ``Cell``.
        shape: of the load.
        bound: the goal, in ratios to vblade.
        limit: the goal, in ratios to what answers without a disk, if there is one.
    """

    def ours(rig: Rig) -> Sample:
        with rig.ours(rig.images.filled()) as server:
            return rig.load(server, rig.generator(), shape, DISK)

    def vblade(rig: Rig) -> Sample:
        with rig.vblade(rig.images.filled()) as server:
            return rig.load(server, rig.generator(), shape, DISK)

    def echo(rig: Rig) -> Sample:
        with rig.echo() as server:
            return rig.load(server, rig.generator(), shape, DISK)

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
        requests(
            f"{op}-{depth}",
            f"4 KiB {op}, {depth} deep, MTU 9000",
            _JUMBO,
            Shape(op, depth, 8),
            2.0,
            0.6,
        )
        for depth in (64, 16)
        for op in ("read", "write")
    ]
    cells += [
        requests(
            f"small-{depth}",
            f"1 KiB read, {depth} deep, MTU 1500",
            1500,
            Shape("read", depth, 2),
            2.0,
            0.6,
        )
        for depth in (64, 16)
    ]
    title = "4 KiB read, one at a time, MTU 9000"
    cells.append(requests("single", title, _JUMBO, Shape("read", 1, 8), 2.0, None))
    cells += [
        requests(
            f"large-{op}",
            f"63.5 KiB {op}, 16 deep, MTU 65535",
            _HUGE,
            Shape(op, 16, 127),
            1.3,
            None,
        )
        for op in ("read", "write")
    ]
    return cells


# --- copies, against nbdcopy ----------------------------------------------------------


def copies(mtu: int, bound: float | None) -> Cell:
    """Make a cell that copies a disk to a file, by AoE and by NBD over TCP."""

    def ours(rig: Rig) -> Sample:
        source = rig.images.filled(rig.pace.copy_size)
        with rig.ours(source) as server:
            return rig.aoe_copy(server, source)

    def nbd(rig: Rig) -> Sample:
        source = rig.images.filled(rig.pace.copy_size)
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


# --- our initiator, against another ---------------------------------------------------


def initiators(depth: int) -> Cell:
    """Make a cell that loads vblade with ``aoe bench`` and with another program."""
    shape = Shape("read", depth, 8)

    def ours(rig: Rig) -> Sample:
        with rig.vblade(rig.images.filled()) as server:
            return rig.load(server, OWN, shape, DISK)

    def other(rig: Rig) -> Sample:
        with rig.vblade(rig.images.filled()) as server:
            return rig.load(server, rig.other_generator(), shape, DISK)

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


# --- what must not cost more ----------------------------------------------------------


def _exporting(exports: int) -> Callable[[Rig], Sample]:
    # So many in one process, of which the last is loaded.
    def measure(rig: Rig) -> Sample:
        with rig.ours_by(rig.images.config(exports)) as server:
            return rig.load(server, rig.generator(), _USUAL, DISK)

    return measure


def _sparse(size: int) -> Callable[[Rig], Sample]:
    # All of an image that is one hole is loaded.
    def measure(rig: Rig) -> Sample:
        with rig.ours(rig.images.sparse(size)) as server:
            return rig.load(server, rig.generator(), _USUAL, size)

    return measure


def _memory(measure: Callable[[Rig], Sample]) -> Callable[[Rig], Sample]:
    # What the target holds under a load.
    return lambda rig: Sample(measure(rig).details["server_resident_bytes"])


def _idle(rig: Rig) -> Sample:
    with rig.ours(rig.images.filled()) as server:
        return rig.idle(server)


def _flat_cells() -> list[Cell]:
    one, some, many = "1 export", "16 exports", "256 exports"
    small, large = "1 GiB", "1 TiB"
    return [
        Cell(
            name="exports",
            title="4 KiB read, 64 deep, exports in one process",
            unit="IOPS",
            sides=(
                Side(one, _exporting(1)),
                Side(some, _exporting(16)),
                Side(many, _exporting(256)),
            ),
            goals=tuple(Goal(of=n, to=one, bound=_FLAT) for n in (some, many)),
        ),
        Cell(
            name="sparse",
            title="4 KiB read, 64 deep, sparse image",
            unit="IOPS",
            sides=(Side(small, _sparse(GIB)), Side(large, _sparse(TIB))),
            goals=(Goal(of=large, to=small, bound=_FLAT),),
        ),
        Cell(
            name="memory",
            title="memory of the target under load",
            unit="B",
            sides=(
                Side(one, _memory(_exporting(1))),
                Side(many, _memory(_exporting(256))),
                Side(large, _memory(_sparse(TIB))),
            ),
            goals=tuple(
                Goal(of=n, bound=_MEMORY, at_most=True) for n in (one, many, large)
            ),
        ),
        Cell(
            name="idle",
            title="processor time of an idle target",
            unit="%",
            sides=(Side(OURS, _idle),),
            goals=(Goal(of=OURS, bound=0.5, at_most=True),),
        ),
    ]


CELLS: Final = (
    *_request_cells(),
    *(copies(mtu, bound) for mtu, bound in ((_HUGE, 1.5), (_JUMBO, 1.0), (1500, None))),
    *(initiators(depth) for depth in (64, 16)),
    *_flat_cells(),
)
"""All there is, in the order of the table."""
