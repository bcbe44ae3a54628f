"""How scripts/bench calls load generators, and what it reads of their answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aoe.errors import AoEError
from scripts.bench_load import OWN, Outcome, Shape, external, parse_external, parse_own

READ = Shape("read", 64, 8)
WRITE = Shape("write", 1, 127)
EXTERNAL = external(Path("/opt/aoeload"))


def said_by_ours(**changes: object) -> str:
    taken = {"min": 0.1, "p50": 0.2, "p99": 0.4, "max": 0.5}
    kinds = {"read": {"operations": 10, "latency_seconds": taken}}
    document = {"schema_version": 1, "iops": 5.5, "retransmits": 3, "kinds": kinds}
    return json.dumps({**document, **changes})


def test_our_own_is_told_the_load() -> None:
    words = " ".join(OWN.words("aoe0", READ, 1 << 20, 0.5))
    assert words.split("/")[-1] == (
        "aoe bench e7.3 randread -i aoe0 --sectors 8 --depth 64 --seconds 0.5 "
        "--size 1048576 --json"
    )


def test_our_own_is_allowed_to_write_only_if_it_shall() -> None:
    assert "--destroy" not in OWN.words("aoe0", READ, 1 << 20, 1.0)
    assert "--destroy" in OWN.words("aoe0", WRITE, 1 << 20, 1.0)


def test_the_users_is_told_the_load() -> None:
    assert " ".join(EXTERNAL.words("aoe0", WRITE, 1 << 20, 0.5)) == (
        "/opt/aoeload -i aoe0 -t 7.3 -q 1 -n 127 -o write -p rand -S 2048 -T 0.5 -V 0"
    )


def test_our_own_is_understood() -> None:
    assert parse_own(said_by_ours()) == Outcome(5.5, 0.2, 0.4, 3)


def test_the_users_counts_in_microseconds() -> None:
    line = '{"op":"read","iops":9.5,"MBs":1,"p50":200,"p99":4e5,"retx":1,"bad":0}\n'
    assert parse_external(line) == Outcome(9.5, 2e-4, 0.4, 1)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"iops":9,"bad":2,"err":1}', "2 answers were wrong, 1 were errors"),
        ('{"iops":0}', "nothing was answered"),
        ("no target", "not what it should print: 'no target'"),
        ("{}", "not what it should print"),
    ],
)
def test_a_load_that_did_not_go_well_counts_for_nothing(line: str, why: str) -> None:
    with pytest.raises(AoEError, match=f"^load generator: {why}"):
        parse_external(line)


@pytest.mark.parametrize("text", ["", said_by_ours(kinds={}), '{"iops": 3}'])
def test_nor_does_one_of_our_own(text: str) -> None:
    with pytest.raises(AoEError, match=r"^aoe bench: "):
        parse_own(text)
