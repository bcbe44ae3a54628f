"""Cases on a real link: results equal those in memory, and the disk contents."""

from __future__ import annotations

import itertools
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from aoe.address import Address
from aoe.errors import AoEError, NotFoundError
from initiator.lab.cases import ALL_SUBMITTERS, EVENTS, Case, all_cases
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import MATRIX_POLICIES
from initiator.lab.wire import Bench, WirePeer, on_interface, run_and_read_back
from tests.programs import AOE
from tests.requirements import need_namespaces
from tests.serving import ready_line, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

REWRITTEN = "none@2.6.21/pagecache/stale_clone+rewrite_in_place/SG"


def covering() -> list[Case]:
    """Return cases that cover every pair of names of two axes (pairwise testing)."""
    chosen: list[Case] = []
    met: set[object] = set()
    for case in all_cases(submitters=list(ALL_SUBMITTERS)):
        pairs = set(itertools.combinations(enumerate(case), 2))
        if pairs - met:
            chosen.append(case)
            met |= pairs
    return chosen


CASES = covering()


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    need_namespaces()
    with Bench() as opened:
        yield opened


def test_the_cases_cover_every_name_of_each_axis() -> None:
    assert len(set(CASES)) == len(CASES) >= 40
    names = [set(axis) for axis in zip(*CASES, strict=True)]
    axes = (MATRIX_POLICIES, ALL_SUBMITTERS, EVENTS, Nic.__members__)
    assert names == [set(axis) for axis in axes]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_on_a_wire_equal_those_in_memory(bench: Bench, case: Case) -> None:
    on_wire, in_memory = bench.run(case), run_and_read_back(case)

    assert on_wire.result.outcome == in_memory.result.outcome
    assert on_wire.result.flags == in_memory.result.flags
    assert on_wire.on_disk == in_memory.on_disk
    assert bench.contents(0, 1 << 20) == in_memory.on_disk.ljust(64 * 512, b"\0")
    assert on_wire.agrees_with(in_memory)


def test_k120_bytes_that_were_not_submitted_are_on_the_disk(bench: Bench) -> None:
    case_run = bench.run(Case.parse(REWRITTEN))
    assert case_run.result.outcome == "wrong-bytes"
    assert case_run.submitted == b"\x51" * 4096
    assert bench.disk.read_bytes() == b"\x77" * 4096 + bytes(28672)


def test_k81_a_clone_of_a_failed_device_is_written(bench: Bench) -> None:
    case_run = bench.run(Case.parse("e/pagecache/devfail_clone_in_flight/SG"))
    assert case_run.result.flags == ("EIO", "ghost-write", "unexpected-rsp")
    assert bench.disk.read_bytes()[:4096] == case_run.submitted


def aoe_lab_run(wire: Wire | None, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*AOE, "lab", "run", *words]
    options = {"capture_output": True, "text": True, "check": False, "timeout": 60}
    run = subprocess.run if wire is None else wire.initiator.run
    return run(command, **options)  # type: ignore[call-overload] # as given


def test_the_command_prints_both_outcomes_and_a_hex_dump(bench: Bench) -> None:
    assert bench.link.up
    done = aoe_lab_run(None, REWRITTEN, "--wire")
    assert done.returncode == 0, done.stderr
    assert "on disk    77 77 77" in done.stdout
    assert "submitted  51 51 51" in done.stdout
    assert "^^ ^^ ^^" in done.stdout
    outcomes = [line for line in done.stdout.splitlines() if "Outcome" in line]
    assert [line.split(":")[0] for line in outcomes] == [
        "Outcome, a veth pair",
        "Outcome, memory",
    ]
    assert all("wrong-bytes (dup-write, unexpected-rsp)" in line for line in outcomes)


@pytest.fixture
def target(make_wire: object, tmp_path: Path) -> tuple[Wire, Path]:
    """Serve e7.3 from a non-zero disk with 17 sectors per frame."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"\xaa" * 65536)
    wire: Wire = make_wire(9000)  # type: ignore[operator] # conftest.MakeWire
    ready_line(start(wire.target, "serve", "e7.3", "aoe0", disk))
    return wire, disk


def test_a_case_on_an_interface_overwrites_the_targets_disk(
    target: tuple[Wire, Path],
) -> None:
    wire, disk = target
    where = ("-i", "aoe0", "--address", "e7.3")
    case = "c+/xfs_kmalloc_subpage/stale_clone+free_realloc/NOSG"

    refused = aoe_lab_run(wire, case, *where)
    assert refused.returncode == 2
    assert refused.stderr == (
        "aoe: e7.3: would be overwritten from its first sector. Add --overwrite\n"
    )
    assert disk.read_bytes() == b"\xaa" * 65536

    done = aoe_lab_run(wire, case, *where, "--overwrite", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["agrees"] is True
    assert report["run_on"] == "e7.3 on aoe0"
    assert bytes.fromhex(report["on_disk"]) == disk.read_bytes()[:1024]
    assert disk.read_bytes()[1024:] == b"\xaa" * 64512


def test_a_missing_target_is_reported(
    target: tuple[Wire, Path],
) -> None:
    wire, _ = target
    with wire.initiator.enter(), on_interface("aoe0", Address(7, 4)) as open_peer:
        link = open_peer.link
        peer = WirePeer(link, open_peer.contents, Address(7, 4), timeout=0.2)
        words = r"e7\.4: no response on aoe0 within 0\.2 s"
        with pytest.raises(NotFoundError, match=words):
            run_and_read_back(Case.parse(REWRITTEN), peer, link.mac)


def test_an_mtu_too_small_for_a_page_is_rejected(wire: Wire) -> None:
    words = "aoe0: MTU 1500 is too small for a page in a frame"
    with (
        wire.initiator.enter(),
        pytest.raises(AoEError, match=words),
        on_interface("aoe0", Address(0, 0)),
    ):
        pass
