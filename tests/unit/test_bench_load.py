"""Command lines and output parsers of the load generators of scripts/bench."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aoe.common.process.programs import program_command
from aoe.errors import AoEError
from scripts.bench_load import (
    AOE_BENCH,
    LoadResult,
    Workload,
    external,
    parse_aoe_bench,
    parse_external,
)

READ = Workload("read", 64, 8)
WRITE = Workload("write", 1, 127)
EXTERNAL = external(Path("/opt/aoeload"))


def aoe_bench_output(**changes: object) -> str:
    latency = {"min": 0.1, "p50": 0.2, "p99": 0.4, "max": 0.5}
    kinds = {"read": {"operations": 10, "latency_seconds": latency}}
    document = {"schema_version": 1, "iops": 5.5, "retransmits": 3, "kinds": kinds}
    return json.dumps({**document, **changes})


def test_command_line_of_aoe_bench() -> None:
    words = (
        "bench e7.3 randread -i aoe0 --sectors 8 --depth 64 --seconds 0.5 "
        "--size 1048576 --json"
    )
    assert AOE_BENCH.command("aoe0", READ, 1 << 20, 0.5) == [
        *program_command("aoe"),
        *words.split(),
    ]


def test_aoe_bench_gets_destroy_only_for_writes() -> None:
    assert "--destroy" not in AOE_BENCH.command("aoe0", READ, 1 << 20, 1.0)
    assert "--destroy" in AOE_BENCH.command("aoe0", WRITE, 1 << 20, 1.0)


def test_command_line_of_an_external_load_generator() -> None:
    assert " ".join(EXTERNAL.command("aoe0", WRITE, 1 << 20, 0.5)) == (
        "/opt/aoeload -i aoe0 -t 7.3 -q 1 -n 127 -o write -p rand -S 2048 -T 0.5 -V 0"
    )


def test_output_of_aoe_bench_is_parsed() -> None:
    assert parse_aoe_bench(aoe_bench_output()) == LoadResult(5.5, 0.2, 0.4, 3)


def test_external_latencies_are_microseconds() -> None:
    line = '{"op":"read","iops":9.5,"MBs":1,"p50":200,"p99":4e5,"retx":1,"bad":0}\n'
    assert parse_external(line) == LoadResult(9.5, 2e-4, 0.4, 1)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"iops":9,"bad":2,"err":1}', "2 wrong responses, 1 errors"),
        ('{"iops":0}', "no request completed"),
        ("no target", "invalid output: 'no target'"),
        ("{}", "invalid output"),
    ],
)
def test_failed_external_load_is_an_error(line: str, why: str) -> None:
    with pytest.raises(AoEError, match=f"^load generator: {why}"):
        parse_external(line)


@pytest.mark.parametrize("text", ["", aoe_bench_output(kinds={}), '{"iops": 3}'])
def test_failed_aoe_bench_is_an_error(text: str) -> None:
    with pytest.raises(AoEError, match=r"^aoe bench: "):
        parse_aoe_bench(text)
