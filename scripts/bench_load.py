"""Command lines and output formats of the load generators.

The load generator is ``aoe bench`` or the user's program with the command line and
output of ``aoeload``. With the latter the result does not depend on pyaoe's initiator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeVar

import msgspec

from aoe.ata import SECTOR
from aoe.common.process.programs import program_command
from aoe.errors import AoEError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

ADDRESS: Final = "7.3"
SHELF, SLOT = ADDRESS.split(".")
_Document = TypeVar("_Document", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Workload:
    """A load of requests at random sectors, ``depth`` of them outstanding.

    Args:
        op: the operation.
        depth: outstanding requests.
        sectors: sectors per request.
    """

    op: Literal["read", "write"]
    depth: int
    sectors: int


class LoadResult(NamedTuple):
    """The result of a load generator.

    Args:
        iops: completed requests per second.
        p50: median latency in seconds.
        p99: 99th percentile of the latency in seconds.
        retransmits: number of retransmitted frames.
    """

    iops: float
    p50: float
    p99: float
    retransmits: int


class LoadGenerator(NamedTuple):
    """A load generator.

    Args:
        command: returns its command line, for an interface, a workload, the size of the
            disk in bytes, and a number of seconds.
        parse: parses its output; raises ``AoEError``.
    """

    command: Callable[[str, Workload, int, float], Sequence[str]]
    parse: Callable[[str], LoadResult]


def _aoe_bench_command(
    interface: str, workload: Workload, size: int, seconds: float
) -> list[str]:
    args = [
        *program_command("aoe"),
        "bench",
        f"e{ADDRESS}",
        f"rand{workload.op}",
        "-i",
        interface,
    ]
    args += ["--sectors", str(workload.sectors), "--depth", str(workload.depth)]
    args += ["--seconds", str(seconds), "--size", str(size), "--json"]
    return [*args, "--destroy"] if workload.op == "write" else args


class _Latency(msgspec.Struct):
    p50: float
    p99: float


class _Kind(msgspec.Struct):
    latency_seconds: _Latency


class _OwnDocument(msgspec.Struct):
    iops: float
    retransmits: int
    kinds: dict[str, _Kind]


class _ExternalDocument(msgspec.Struct):
    iops: float
    p50: float = 0.0
    p99: float = 0.0
    retx: int = 0
    bad: int = 0
    err: int = 0


def parse_aoe_bench(text: str) -> LoadResult:
    """Parse the output of ``aoe bench --json`` with one kind of operation.

    Raises:
        AoEError: it is invalid, or no request completed.
    """
    document = _decode("aoe bench", text, _OwnDocument)
    for kind in document.kinds.values():
        latency = kind.latency_seconds
        return LoadResult(document.iops, latency.p50, latency.p99, document.retransmits)
    raise AoEError("aoe bench", "no request completed")


def _external_command(
    program: str, interface: str, workload: Workload, size: int, seconds: float
) -> list[str]:
    args = [program, "-i", interface, "-t", ADDRESS, "-q", str(workload.depth)]
    args += ["-n", str(workload.sectors), "-o", workload.op, "-p", "rand"]
    return [*args, "-S", str(size // SECTOR), "-T", str(seconds), "-V", "0"]


def parse_external(text: str) -> LoadResult:
    """Parse the output of a program like ``aoeload``; its times are microseconds.

    Raises:
        AoEError: it is invalid, no request completed, or a response was wrong.
    """
    line = _decode("load generator", text, _ExternalDocument)
    if not line.iops:
        raise AoEError("load generator", "no request completed")
    if line.bad or line.err:
        why = f"{line.bad} wrong responses, {line.err} errors"
        raise AoEError("load generator", why)
    return LoadResult(line.iops, line.p50 / 1e6, line.p99 / 1e6, line.retx)


def _decode(program: str, text: str, kind: type[_Document]) -> _Document:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise AoEError(program, f"invalid output: {text.strip()!r}") from error


AOE_BENCH: Final = LoadGenerator(_aoe_bench_command, parse_aoe_bench)


def external(program: Path) -> LoadGenerator:
    """Return a load generator with the command line of ``aoeload``."""
    return LoadGenerator(partial(_external_command, str(program)), parse_external)
