"""``aoe bench``: measure throughput and latency of a disk."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypedDict, Unpack

import click

from aoe.ata import SECTOR
from aoe.common.commandline import ADDRESS, SECONDS, SIZE, json_option, print_json
from aoe.common.sizes import format_count, short_size
from aoe.errors import UsageError
from initiator.cli.commands.claims import force_option, writing_to
from initiator.cli.common import Connection, connection_options, progress
from initiator.cli.complete import complete_address
from initiator.driver.bio import Op

if TYPE_CHECKING:
    from aoe.address import Address
    from initiator.disk.bench import Pattern, Result

_SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


class _LoadOptions(TypedDict):
    """The command-line options from which a ``Load`` is made."""

    sectors: int
    depth: int
    seconds: float
    offset: int
    read_percent: int


@click.command()
@click.argument("address", type=ADDRESS, shell_complete=complete_address)
@click.argument(
    "pattern",
    type=click.Choice(["read", "write", "randread", "randwrite", "mix"]),
    default="randread",
)
@click.option(
    "--sectors",
    type=click.IntRange(1, 65536),
    default=8,
    show_default=True,
    help="Size of an operation in sectors of 512 bytes.",
)
@click.option(
    "--depth",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="Queue depth: operations in flight.",
)
@click.option(
    "--seconds",
    type=SECONDS,
    default=10.0,
    show_default=True,
    help="Duration in seconds.",
)
@click.option(
    "-o",
    "--offset",
    type=SIZE,
    default="0",
    help="Start of the tested range, in bytes.",
)
@click.option(
    "--size",
    type=SIZE,
    help="Size of the tested range in bytes; default: up to the end of the disk.",
)
@click.option(
    "--read-percent",
    type=click.IntRange(0, 100),
    default=70,
    show_default=True,
    help="Percentage of reads, for the pattern mix.",
)
@click.option("--destroy", is_flag=True, help="Allow overwriting data on the disk.")
@force_option
@connection_options(3.0, uses_driver=True)
@json_option
def bench(
    *,
    address: Address,
    connection: Connection,
    pattern: Pattern,
    size: int | None,
    destroy: bool,
    force: bool,
    as_json: bool,
    **load_options: Unpack[_LoadOptions],
) -> None:
    """Measure throughput and latency of a disk.

    \b
    Try:  aoe bench e0.0 -i eth0
          aoe bench e0.0 read -i eth0 --sectors 256 --depth 8
          aoe bench e0.0 mix -i eth0 --size 100M --destroy

    The default pattern is randread. The patterns write, randwrite and mix DESTROY the
    data in the tested range, and need --destroy. Latency is the time from submitting an
    operation to its completion, including the time that it is queued.
    """
    from initiator.disk.bench import Load, run_bench
    from initiator.disk.disk import Disk

    load = Load(
        pattern=pattern,
        length=load_options["sectors"] * SECTOR,
        offset=load_options["offset"],
        depth=load_options["depth"],
        seconds=load_options["seconds"],
        read_share=load_options["read_percent"] / 100,
    )
    if load.writes and not destroy:
        why = f"{pattern} overwrites data on the disk"
        raise UsageError(str(address), why, "To allow that, add --destroy")
    with connection.host(address) as host:
        disk = Disk(host, address, connection.timeout)
        rest = max(0, disk.size - load.offset)
        load = replace(load, size=rest if size is None else size)
        with (
            writing_to(disk, force=force or not load.writes),
            progress(f"{pattern} {address}", None) as advance,
        ):
            result = run_bench(disk, load, advance)
    if as_json:
        print_json("bench", address=str(address), **_fields(result))
    else:
        _print(address, result)


def _kinds(result: Result) -> list[Op]:
    return [op for op in (Op.READ, Op.WRITE) if result.operations(op)]


def _fields(result: Result) -> dict[str, object]:
    load = result.load
    return {
        "pattern": load.pattern,
        "operation_bytes": load.length,
        "depth": load.depth,
        "offset_bytes": load.offset,
        "size_bytes": load.size,
        "seconds": round(result.seconds, 6),
        "operations": result.operations(),
        "iops": round(result.rate(), 3),
        "bytes_per_second": round(result.rate() * load.length, 3),
        "retransmits": result.retransmits,
        "kinds": {op.name.lower(): _kind_fields(result, op) for op in _kinds(result)},
    }


def _kind_fields(result: Result, op: Op) -> dict[str, object]:
    return {
        "operations": result.operations(op),
        "iops": round(result.rate(op), 3),
        "bytes_per_second": round(result.rate(op) * result.load.length, 3),
        "latency_seconds": {k: round(v, 6) for k, v in _latency(result, op).items()},
    }


def _latency(result: Result, op: Op) -> dict[str, float]:
    from initiator.disk.bench import percentile

    ordered = sorted(result.latencies[op])
    shares = {name: percentile(ordered, share) for name, share in _SHARES.items()}
    mean = sum(ordered) / len(ordered)
    return {"min": ordered[0], "mean": mean, **shares, "max": ordered[-1]}


def _print(address: Address, result: Result) -> None:
    load = result.load
    click.echo(
        f"{address}: {load.pattern}, {short_size(load.length)} each, {load.depth} in "
        f"flight, {result.seconds:.2f} s, {format_count(result.retransmits, 'frame')} "
        "retransmitted"
    )
    names = ("min", "mean", *_SHARES, "max")
    heads = " ".join(f"{name:>8}" for name in names)
    click.echo(f"{'':<6}{'IOPS':>9} {'MB/s':>8}  {heads}  ms")
    for op in _kinds(result):
        latency = _latency(result, op)
        rate = result.rate(op)
        values = " ".join(f"{latency[name] * 1000:>8.3f}" for name in names)
        megabytes = rate * load.length / 1e6
        name = op.name.lower()
        click.echo(f"{name:<6}{rate:>9.0f} {megabytes:>8.1f}  {values}")
