"""The costs of page-count policies."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from click.testing import CliRunner

from aoe.errors import UsageError
from initiator.cli.main import cli
from initiator.lab.cases import EVENTS
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import MATRIX_POLICIES
from initiator.lab.kernel.submitters import SUBMITTERS
from initiator.lab.workload import workload_costs
from tests.worlds import faults, run, world_after

every_nic = pytest.mark.parametrize("nic", Nic.__members__)


@pytest.mark.parametrize(
    ("case", "costs"),
    [
        # No references, except those of linearizing: get, copy and put.
        ("none@2.6.21/pagecache/clean/SG", {}),
        ("none@2.6.21/pagecache/clean/NOSG", {"gets": 1, "puts": 1, "copied": 4096}),
        ("none@6.1/xfs_kmalloc_subpage/clean/COW", {"gets": 1, "puts": 1}),
        # Two clones of the same frame.
        (
            "none@6.1/pagecache/lost_rexmit_stale_clone/NOSG",
            {"gets": 2, "puts": 2, "copied": 8192},
        ),
        # Freed while a private head refers to it: 4 KiB held until TX completion.
        (
            "none@6.1/pagecache/late_txdone+free_realloc/COW",
            {"gets": 1, "puts": 1, "held": 4096},
        ),
        # One for the bio, one for each clone.
        ("a/pagecache/clean/SG", {"gets": 1, "puts": 1}),
        (
            "a/rawalloc_highorder_tail/dup_response/NOSG",
            {"gets": 2, "puts": 2, "copied": 4096},
        ),
        ("a/pagecache/lost_rexmit_stale_clone/COW", {"gets": 3, "puts": 3}),
        # The object's reference; for two pages two, and the slab's to the second.
        ("b/pagecache/clean/SG", {}),
        ("b/xfs_kmalloc_subpage/clean/SG", {"gets": 1, "puts": 1}),
        ("b/kmalloc_highorder_tail/clean/SG", {"gets": 3, "puts": 3}),
        # The object's, the clone's and that of the new owner's object.
        (
            "b/xfs_kmalloc_subpage/late_txdone+free_realloc/COW",
            {"gets": 3, "puts": 3, "held": 1024, "deferred": 1},
        ),
        # In addition the AoE driver's to the fragment, one for two clones.
        ("b+/pagecache/clean/SG", {"gets": 1, "puts": 1}),
        ("b+/pagecache/lost_rexmit_stale_clone/SG", {"gets": 1, "puts": 1}),
        ("b+/xfs_kmalloc_subpage/clean/COW", {"gets": 3, "puts": 3}),
        # The file system's.
        ("c/xfs_kmalloc_subpage/clean/SG", {"gets": 1, "puts": 1}),
        ("c/pagecache/clean/COW", {"gets": 2, "puts": 2}),
        # A whole page wastes 3 KiB.
        ("c+/xfs_kmalloc_subpage/clean/SG", {"gets": 1, "puts": 1, "wasted": 3072}),
        ("c+/rawalloc_highorder_tail/clean/SG", {"gets": 1, "puts": 1}),
        ("none@6.1/jbd_get_free_page/clean/SG", {"wasted": 3072}),
        # BUG before any get_page.
        ("d/xfs_kmalloc_subpage/clean/NOSG", {}),
        ("d/pagecache/clean/SG", {}),
        # A reference owned by the fragment, or a page for a copy, one for two clones.
        ("e/pagecache/clean/SG", {"gets": 1, "puts": 1}),
        ("e/pagecache/clean/COW", {"gets": 2, "puts": 2}),
        (
            "e/xfs_kmalloc_subpage/lost_rexmit_stale_clone/SG",
            {"gets": 1, "puts": 1, "copied": 1024, "wasted": 3072},
        ),
        (
            "e/rawalloc_highorder_tail/clean/NOSG",
            {"gets": 2, "puts": 2, "copied": 8192},
        ),
        # get_page and put_page on frozen pages are not counted.
        ("none@6.14/xfs_kmalloc_subpage/clean/NOSG", {"copied": 1024}),
        ("none@6.14/pagecache/clean/NOSG", {"gets": 1, "puts": 1, "copied": 4096}),
    ],
)
def test_costs_match_values_computed_by_hand(case: str, costs: dict[str, int]) -> None:
    found = run(case).costs
    assert {name: value for name, value in found.items() if value} == costs


@pytest.mark.parametrize("policy", [name for name in MATRIX_POLICIES if name != "d"])
@every_nic
def test_costs_gets_and_puts_balance_without_faults(policy: str, nic: str) -> None:
    for event in EVENTS:
        for submitter in SUBMITTERS:
            world = world_after(policy, submitter, event, Nic[nic])
            if {word for word, _ in faults(world.journal)} <= {"wrong-bytes"}:
                costs = asdict(world.journal.costs)
                assert costs["gets"] == costs["puts"], (submitter, event)


# --- a workload -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "writes", "kmallocs"),
    [
        # Linearizing alone: a get and a put for each write.
        ("none@2.6.21", 2 * 7, 0),
        ("a", 4 * 7, 0),
        ("c", 4 * 7, 0),
        # Slab takes a reference to each object, whatever it is used for.
        ("b", 4 * 7, 2 * 50),
        ("b+", 6 * 7, 2 * 50),
        # Frozen pages are not counted.
        ("none@6.14", 0, 0),
    ],
)
def test_k100_all_kmallocs_pay_for_references_of_slab(
    policy: str, writes: int, kmallocs: int
) -> None:
    found = workload_costs(policy, "xfs_kmalloc_subpage", "NOSG", 7, 50)
    assert found.writes is not None
    assert found.writes.gets + found.writes.puts == writes
    assert found.kmallocs.gets + found.kmallocs.puts == kmallocs
    assert found.writes.copied == 7 * 1024


def test_the_command_costs_lists_the_policies() -> None:
    done = CliRunner().invoke(cli, ["lab", "costs", "--writes", "2", "--kmallocs", "3"])
    assert done.exit_code == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["b", "8", "6", "2,048", "·"] in rows
    assert ["c+", "8", "·", "2,048", "6,144"] in rows
    assert ["d", "BUG", "·"] in rows
    assert {row[0] for row in rows if row} >= set(MATRIX_POLICIES)
    wrong = CliRunner().invoke(cli, ["lab", "costs", "-s", "tape"])
    assert isinstance(wrong.exception, UsageError)


# --- how long references are held ---------------------------------------------------


@pytest.mark.parametrize(
    ("case", "seconds"),
    [
        # Get, copy, put: no time passes.
        ("none@2.6.21/xfs_kmalloc_subpage/lost_rexmit_stale_clone/NOSG", 0),
        ("none@2.6.21/xfs_kmalloc_subpage/clean/SG", 0),
        # From submission to the response.
        ("a/pagecache/clean/SG", 0.001),
        ("c/pagecache/clean/SG", 0.001),
        ("b+/pagecache/clean/SG", 0.001),
        # Until TX completion, after the response.
        ("none@2.6.21/xfs_kmalloc_subpage/late_txdone/COW", 0.001),
        # A clone with a private head waits for the RTO of its retransmission.
        ("none@2.6.21/xfs_kmalloc_subpage/lost_rexmit_stale_clone/COW", 20),
        ("b/xfs_kmalloc_subpage/lost_rexmit_stale_clone/COW", 20),
        # The references of slab to its own objects do not count.
        ("b/xfs_kmalloc_subpage/lost_rexmit_stale_clone/SG", 0),
        # From before the loss to the response.
        ("a/pagecache/lost_rexmit_stale_clone/SG", 20.001),
    ],
)
def test_k47_the_longest_reference_lasts_as_long_as_a_clone_or_bio(
    case: str, seconds: float
) -> None:
    result = run(case)
    assert result.longest_reference == pytest.approx(seconds, abs=0.0015)
    assert (result.longest_reference == 0) == (seconds == 0)
