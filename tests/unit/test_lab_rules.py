"""The kernel rules K70 to K144, tested on whole worlds."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aoe.header import Header
from initiator.lab.cases import EVENTS
from initiator.lab.kernel.journal import BugOn, Flag
from initiator.lab.kernel.kernels import RULES_2_6_21
from initiator.lab.kernel.memory import PAGE_SIZE, POISON
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import MATRIX_POLICIES, policy_on_kernel
from initiator.lab.kernel.submitters import SUBMITTERS
from initiator.lab.machine import REWRITTEN
from tests.worlds import (
    count_changes,
    counts,
    disk,
    faults,
    first,
    make_world,
    outcomes,
    page_of,
    run,
    submit,
    world_after,
)

if TYPE_CHECKING:
    from initiator.lab.world import World

COUNT_ZERO = ["kmalloc_highorder_tail", "rawalloc_highorder_tail", "stack_tail"]
SUBPAGE = ["xfs_kmalloc_subpage", "jbd_frozen_slab"]
SAFE = ["pagecache", *SUBPAGE, "vmalloc_page"]
every_nic = pytest.mark.parametrize("nic", Nic.__members__)


# --- K70 to K79: from bio to NIC ------------------------------------------------------


@every_nic
def test_k70_k71_k72_a_page_in_the_qdisc_has_no_extra_reference(nic: str) -> None:
    world = make_world("none@6.1", Nic[nic])
    world.nic.hold_qdisc = True
    page = page_of(submit(world, "pagecache"))
    assert (page.count, counts(world.journal, page)) == (1, [])
    assert first(world.journal, "bio_add_page").count == 1
    assert first(world.journal, "skb_fill_page_desc").rule == "K72"


@pytest.mark.parametrize("submitter", SUBMITTERS)
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("policy", ["none@2.6.21", "none@6.1"])
def test_k74_no_page_count_changes_on_a_nic_with_scatter_gather(
    policy: str, submitter: str, event: str
) -> None:
    world = world_after(policy, submitter, event, Nic.SG)
    page = page_of(world.writes[0]).block[0]
    assert "network" not in {actor for actor, _ in count_changes(world.journal, page)}
    assert world.journal.outcome in ("ok", "wrong-bytes")


@pytest.mark.parametrize("submitter", COUNT_ZERO)
def test_k75_linearizing_frees_a_count_zero_page_of_2_6_21(submitter: str) -> None:
    world = make_world("none@2.6.21", Nic.NOSG)
    write = submit(world, submitter)
    page = page_of(write)
    # 0, 1, 0: the page is free before bi_end_io.
    assert counts(world.journal, page) == [1, 0]
    assert page.free
    assert not write.ended
    assert ("premature-free", page.pfn) in faults(world.journal)
    world.deliver_response()
    with suppress(BugOn):
        world.finish()
    end = "BUG" if submitter == "kmalloc_highorder_tail" else "double-free"
    assert faults(world.journal)[-1] == (end, page.pfn)


@pytest.mark.parametrize("submitter", SAFE)
@pytest.mark.parametrize("policy", ["none@2.6.21", "none@6.1"])
def test_k75_linearizing_does_not_free_a_page_with_a_count(
    policy: str, submitter: str
) -> None:
    world = world_after(policy, submitter, "clean", Nic.NOSG)
    page = page_of(world.writes[0])
    assert counts(world.journal, page)[:2] == [2, 1]
    assert world.journal.outcome == "ok"
    assert disk(world, len(world.writes[0].expected)) == world.writes[0].expected


def test_k76_the_reference_of_a_private_head_lasts_beyond_bi_end_io() -> None:
    world = make_world("none@2.6.21", Nic.COW)
    world.nic.hold_completion = True
    write = submit(world, "rawalloc_highorder_tail")
    page = page_of(write)
    world.deliver_response()
    assert (write.ended, page.count) == (True, 1)
    assert not faults(world.journal)
    world.nic.drain()
    assert faults(world.journal) == [("premature-free", page.pfn)]
    put, end = first(world.journal, "put_page"), first(world.journal, "bi_end_io")
    assert (put.rule, put.count) == ("K76", 0)
    assert put.step > end.step


def test_k77_early_linearizing_preserves_the_contents_and_late_does_not() -> None:
    case = "none@2.6.21/pagecache/stale_clone+rewrite_in_place/NOSG"
    assert run(case).outcome == "ok"
    assert run(case.replace("2.6.21", "6.1")).outcome == "wrong-bytes"


@every_nic
def test_k78_bi_end_io_does_not_wait_for_transmission(nic: str) -> None:
    journal = run(f"none@6.1/pagecache/late_txdone/{nic}").journal
    assert first(journal, "bi_end_io").step < first(journal, "kfree_skb").step


def test_k79_a_late_tx_completion_is_harmless_with_shared_data() -> None:
    case = [["none@2.6.21"], SUBMITTERS, ["late_txdone+free_realloc"], ["SG"]]
    assert set(outcomes(*case).values()) == {"ok"}


def test_k79_the_late_put_of_a_private_head_drops_the_new_owners_reference() -> None:
    world = world_after(
        "none@2.6.21", "rawalloc_highorder_tail", "late_txdone+free_realloc", Nic.COW
    )
    page = page_of(world.writes[0])
    assert page is page_of_new_owner(world)
    # The owner frees the block, the page is allocated to a new owner, and TX
    # completion puts it.
    assert faults(world.journal)[:2] == [
        ("bad-page", page.pfn),
        ("underflow", page.pfn),
    ]


def page_of_new_owner(world: World) -> object:
    return world.realloc_buffers[0].pieces[0][0]


# --- K80, K81, K120: contents ---------------------------------------------------------

BORROWING = [
    name
    for name, policy in ((name, policy_on_kernel(name)[0]) for name in MATRIX_POLICIES)
    if not policy.sendpage_ok and not policy.aoe_gets_fragments
]


@pytest.mark.parametrize("policy", BORROWING)
def test_k80_no_policy_with_borrowed_fragments_prevents_stale_data(
    policy: str,
) -> None:
    world = world_after(policy, "pagecache", "stale_clone+free_realloc", Nic.SG)
    assert faults(world.journal) == [("wrong-bytes", None)]
    assert first(world.journal, "transmit").fault is None
    assert {*world.journal.flags} >= {Flag.DUP_WRITE, Flag.UNEXPECTED_RSP}
    # The new owner's bytes are on the disk, in the sectors of the bio.
    assert disk(world) == b"\xee" * PAGE_SIZE


def test_k80_k53_a_stale_clone_has_the_new_tag() -> None:
    world = make_world("none@6.1", Nic.SG)
    world.nic.hold_qdisc = True
    submit(world, "pagecache")
    world.nic.hold_qdisc = False
    world.retransmit()
    world.deliver_response()
    (stale,) = world.nic.qdisc
    frame = world.device.targets[0].ffree[-1]
    assert Header.unpack_from(bytes(stale)).tag == frame.tag


def test_k80_a_stale_clone_writes_the_owners_new_contents() -> None:
    world = world_after("none@6.1", "pagecache", "stale_clone+rewrite_in_place", Nic.SG)
    assert disk(world) == bytes([REWRITTEN]) * PAGE_SIZE


@every_nic
def test_k81_a_clone_of_a_failed_device_is_written_after_the_error(nic: str) -> None:
    world = world_after("none@6.1", "pagecache", "devfail_clone_in_flight", Nic[nic])
    (write,) = world.writes
    assert write.bio.error is not None
    assert {*world.journal.flags} >= {Flag.EIO, Flag.GHOST_WRITE}
    assert first(world.journal, "transmit").rule == "K81"
    assert world.journal.outcome == "ok"
    assert disk(world) == write.expected


def test_k81_a_clone_of_a_failed_device_writes_reused_memory() -> None:
    world = world_after("none@6.1", "pagecache", "devfail+free_realloc", Nic.SG)
    assert faults(world.journal) == [("wrong-bytes", None)]
    assert disk(world) == b"\xee" * PAGE_SIZE


@pytest.mark.parametrize(
    ("policy", "expected"), [("none@6.1", ["double-free"]), ("none@2.6.21", [])]
)
def test_k142_a_clone_that_leaves_while_its_page_is_unused(
    policy: str, expected: list[str]
) -> None:
    """Linearized late, it performs 0, 1, 0 on a page of the free list."""
    world = make_world(policy, Nic.NOSG)
    world.nic.hold_qdisc = True
    write = submit(world, "pagecache")
    page = page_of(write)
    world.fail_device()
    world.free_buffer(write)
    assert (write.ended, page.free) == (True, True)
    world.nic.drain()
    assert [kind for kind, pfn in faults(world.journal) if pfn == page.pfn] == expected


@pytest.mark.parametrize("event", ["devfail+free", "stale_clone+free"])
@pytest.mark.parametrize(
    ("kernel", "nic", "outcome"),
    [
        ("none@6.1", "NOSG", "double-free"),
        ("none@6.1", "COW", "double-free"),
        ("none@6.1", "SG", "wrong-bytes"),
        ("none@2.6.21", "NOSG", "ok"),
        ("none@2.6.21", "COW", "ok"),
    ],
)
def test_k142_page_cache_memory_that_is_freed_while_a_clone_waits(
    kernel: str, nic: str, outcome: str, event: str
) -> None:
    world = world_after(kernel, "pagecache", event, Nic[nic])
    assert world.journal.outcome == outcome
    if nic == "SG":
        # The frame leaves with what the free page contains.
        assert disk(world) == bytes([POISON]) * PAGE_SIZE


@pytest.mark.parametrize("policy", MATRIX_POLICIES)
def test_k120_counts_protect_memory_but_not_contents(policy: str) -> None:
    _, kernel = policy_on_kernel(policy)
    rules = replace(kernel, early_linearize=False, early_head=False)
    for nic in Nic:
        event = "stale_clone+rewrite_in_place"
        world = world_after(policy, "pagecache", event, nic, rules)
        assert faults(world.journal) == [("wrong-bytes", None)]


@every_nic
def test_k120_a_copy_protects_the_contents(nic: str) -> None:
    result = run(f"e/xfs_kmalloc_subpage/stale_clone+rewrite_in_place/{nic}")
    assert (result.outcome, "copied" in result.flags) == ("ok", True)


# --- K86 to K91: kinds of pages -------------------------------------------------------


@pytest.mark.parametrize("submitter", SUBPAGE)
@every_nic
def test_k86_a_sub_page_object_is_harmless_on_2_6_21(submitter: str, nic: str) -> None:
    world = world_after("none@2.6.21", submitter, "clean", Nic[nic])
    expected = [] if nic == "SG" else [2, 1]
    page = page_of(world.writes[0])
    assert counts(world.journal, page)[: len(expected)] == expected
    assert world.journal.outcome == "ok"


def test_k86_a_large_kmalloc_fails_on_2_6_21() -> None:
    assert run("none@2.6.21/kmalloc_highorder_tail/clean/NOSG").outcome != "ok"
    assert run("none@6.1/kmalloc_highorder_tail/clean/NOSG").outcome == "ok"


@pytest.mark.parametrize("submitter", [*SUBPAGE, "kmalloc_highorder_tail"])
@pytest.mark.parametrize("nic", ["NOSG", "COW"])
def test_k87_frozen_slab_pages_warn_and_no_count_changes(
    submitter: str, nic: str
) -> None:
    world = world_after("none@6.14", submitter, "clean", Nic[nic])
    page = page_of(world.writes[0]).block[0]
    changes = [
        e for e in world.journal.entries if e.page == page.pfn and e.rule == "K87"
    ]
    assert {(e.before, e.count) for e in changes} == {(0, 0)}
    assert [e.action for e in changes] == ["get_page", "put_page"]
    assert (world.journal.outcome, Flag.WARN in world.journal.flags) == ("ok", True)


def test_k87_pages_that_are_not_slab_are_not_protected() -> None:
    result = run("none@6.14/rawalloc_highorder_tail/clean/NOSG")
    assert (result.outcome, result.flags) == ("double-free", ())


def test_k89_k137_2_6_21_frees_a_bad_slab_page_and_stops_when_its_slab_is_freed() -> (
    None
):
    world = world_after("none@2.6.21", "kmalloc_highorder_tail", "clean", Nic.NOSG)
    page = page_of(world.writes[0])
    assert faults(world.journal) == [
        ("bad-page", page.pfn),
        ("premature-free", page.pfn),
        ("BUG", page.pfn),
    ]
    stop = world.journal.faults[-1]
    assert (stop.action, stop.rule) == ("kmem_freepages", "K137")


def test_k137_each_lost_reference_of_a_large_kmalloc_ends_in_a_bug_on_2_6_21() -> None:
    lost = {
        "none@2.6.21": {"NOSG", "COW"},
        "c": {"SG", "NOSG", "COW"},
        "a": {"COW"},
    }
    for policy, nics in lost.items():
        found = outcomes(
            [policy], ["kmalloc_highorder_tail"], ["late_txdone"], Nic.__members__
        )
        assert {case.nic for case, outcome in found.items() if outcome == "BUG"} == nics


def test_k89_k144_later_kernels_lose_a_bad_slab_page() -> None:
    rules = replace(RULES_2_6_21, bad_page_freed=False)
    world = make_world("none@2.6.21", Nic.NOSG, rules)
    page = page_of(submit(world, "kmalloc_highorder_tail"))
    assert faults(world.journal) == [("bad-page", page.pfn), ("leak", page.pfn)]
    assert (page.kept_out, page.free) == (True, False)


def test_k144_a_page_that_6_1_finds_bad_is_lost_until_the_next_boot() -> None:
    case = "{}/rawalloc_highorder_tail/late_txdone+free_realloc/COW"
    lost = run(case.format("none@6.1"))
    assert lost.outcome == "leak"
    (entry,) = [e for e in lost.journal.faults if e.rule == "K144"]
    # The owner frees the block, whose second page the network still refers to.
    assert (entry.page, entry.note) == (0, "2 page(s) lost until the next boot")
    assert "leak" not in [f for f, _ in faults(run(case.format("none@2.6.21")).journal)]


@every_nic
def test_k90_vmalloc_pages_have_no_count_faults(nic: str) -> None:
    held = [
        event.name for event in EVENTS.values() if event.reallocates or not event.frees
    ]
    found = outcomes(["none@2.6.21", "none@6.1"], ["vmalloc_page"], held, [nic])
    assert set(found.values()) <= {"ok", "wrong-bytes"}


def test_k91_jbd_with_whole_pages_submits_no_slab_page() -> None:
    for policy in ("none@2.6.21", "d"):
        assert run(f"{policy}/jbd_get_free_page/clean/NOSG").outcome == "ok"
