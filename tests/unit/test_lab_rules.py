"""What the rules of kernel-path.md say comes of it, played on whole worlds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aoe.header import Header
from initiator.lab.cases import EVENTS, Event
from initiator.lab.cases import play as play_event
from initiator.lab.kernel.journal import Fault, Flag, Journal
from initiator.lab.kernel.memory import PAGE_SIZE, RULES_2_6_21, RULES_6_1
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import POLICIES
from initiator.lab.kernel.submitters import SUBMITTERS
from initiator.lab.world import REWRITTEN
from tests.worlds import (
    counts,
    disk,
    faults,
    first,
    make_world,
    moves,
    outcomes,
    page_of,
    play,
    played,
    submit,
)

if TYPE_CHECKING:
    from initiator.lab.kernel.memory import Rules
    from initiator.lab.world import World

LATE_2_6_21 = replace(RULES_2_6_21, early_linearize=False)
COUNT_ZERO = ["kmalloc_highorder_tail", "rawalloc_highorder_tail", "stack_tail"]
SUBPAGE = ["xfs_kmalloc_subpage", "jbd_frozen_slab"]
SAFE = ["pagecache", *SUBPAGE, "vmalloc_page"]
every_card = pytest.mark.parametrize("nic", Nic.__members__)


# --- B1: step by step -----------------------------------------------------------------


@every_card
def test_k70_k71_k72_nobody_refers_to_a_page_that_waits_in_the_queue(nic: str) -> None:
    world = make_world("none@6.1", Nic[nic])
    world.nic.hold_qdisc = True
    page = page_of(submit(world, "pagecache"))
    assert (page.count, counts(world.journal, page)) == (1, [])
    assert first(world.journal, "bio_add_page").count == 1
    assert first(world.journal, "skb_fill_page_desc").rule == "K72"


@pytest.mark.parametrize("submitter", SUBMITTERS)
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("policy", ["none@2.6.21", "none@6.1"])
def test_k74_no_page_is_touched_on_a_card_with_scatter_gather(
    policy: str, submitter: str, event: str
) -> None:
    world = played(policy, submitter, event, Nic.SG)
    page = page_of(world.writes[0]).block[0]
    assert "network" not in {actor for actor, _ in moves(world.journal, page)}
    assert world.journal.outcome in ("ok", "wrong-bytes")


@pytest.mark.parametrize("submitter", COUNT_ZERO)
def test_k75_the_2007_crash(submitter: str) -> None:
    world = make_world("none@2.6.21", Nic.NOSG)
    write = submit(world, submitter)
    page = page_of(write)
    # 0, 1, 0: and it is free while its owner waits for bi_end_io.
    assert counts(world.journal, page) == [1, 0]
    assert page.free
    assert not write.ended
    assert ("premature-free", page.pfn) in faults(world.journal)
    world.deliver_response()
    world.finish()
    assert faults(world.journal)[-1] == ("double-free", page.pfn)


@pytest.mark.parametrize("submitter", SAFE)
@pytest.mark.parametrize("policy", ["none@2.6.21", "none@6.1"])
def test_k75_a_counted_page_goes_up_and_down_and_stays(
    policy: str, submitter: str
) -> None:
    world = played(policy, submitter, "clean", Nic.NOSG)
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


def test_k77_early_linearising_saves_the_content_and_late_does_not() -> None:
    case = "none@2.6.21/pagecache/stale_clone+rewrite_in_place/NOSG"
    assert play(case).outcome == "ok"
    assert play(case.replace("2.6.21", "6.1")).outcome == "wrong-bytes"


@every_card
def test_k78_bi_end_io_does_not_wait_for_transmission(nic: str) -> None:
    journal = play(f"none@6.1/pagecache/late_txdone/{nic}").journal
    assert first(journal, "bi_end_io").step < first(journal, "kfree_skb").step


def test_k79_a_late_completion_is_harmless_with_shared_data() -> None:
    case = [["none@2.6.21"], SUBMITTERS, ["late_txdone+free_realloc"], ["SG"]]
    assert set(outcomes(*case).values()) == {"ok"}


def test_k79_the_late_put_of_a_private_head_hits_whoever_has_the_page() -> None:
    world = played(
        "none@2.6.21", "rawalloc_highorder_tail", "late_txdone+free_realloc", Nic.COW
    )
    page = page_of(world.writes[0])
    assert page is page_of_victim(world)
    # Freed with its block in spite of the card's reference, taken by somebody else,
    # and then put by the card.
    assert faults(world.journal)[:2] == [
        ("bad-page", page.pfn),
        ("underflow", page.pfn),
    ]


def page_of_victim(world: World) -> object:
    return world.realloc_buffers[0].pieces[0][0]


# --- K80, K81, K120: contents ---------------------------------------------------------

BORROWING = [name for name, policy in POLICIES.items() if not policy.sendpage_ok]


@pytest.mark.parametrize("policy", BORROWING)
def test_k80_no_count_of_the_thread_saves_what_a_stale_clone_sends(
    policy: str,
) -> None:
    world = played(policy, "pagecache", "stale_clone+free_realloc", Nic.SG)
    assert faults(world.journal) == [("wrong-bytes", None)]
    assert first(world.journal, "serialise").fault is None
    assert {*world.journal.flags} >= {Flag.DUP_WRITE, Flag.UNEXPECTED_RSP}
    # Somebody else's bytes are on the disk, at the sectors that the bio wrote.
    assert disk(world) == b"\xee" * PAGE_SIZE


def test_k80_k53_the_stale_clone_leaves_under_the_new_tag() -> None:
    world = make_world("none@6.1", Nic.SG)
    world.nic.hold_qdisc = True
    submit(world, "pagecache")
    world.nic.hold_qdisc = False
    world.retransmit()
    world.deliver_response()
    (stale,) = world.nic.qdisc
    frame = world.device.targets[0].ffree[-1]
    assert Header.unpack_from(bytes(stale)).tag == frame.tag


def test_k80_what_the_owner_wrote_since_is_on_the_disk() -> None:
    world = played("none@6.1", "pagecache", "stale_clone+rewrite_in_place", Nic.SG)
    assert disk(world) == bytes([REWRITTEN]) * PAGE_SIZE


@every_card
def test_k81_a_failed_device_writes_after_the_error(nic: str) -> None:
    world = played("none@6.1", "pagecache", "devfail_clone_in_flight", Nic[nic])
    (write,) = world.writes
    assert write.bio.error is not None
    assert {*world.journal.flags} >= {Flag.EIO, Flag.GHOST_WRITE}
    assert first(world.journal, "serialise").rule == "K81"
    assert world.journal.outcome == "ok"
    assert disk(world) == write.expected


def test_k81_and_what_it_writes_is_as_in_k80() -> None:
    world = played("none@6.1", "pagecache", "devfail+free_realloc", Nic.SG)
    assert faults(world.journal) == [("wrong-bytes", None)]
    assert disk(world) == b"\xee" * PAGE_SIZE


@pytest.mark.parametrize("policy", POLICIES)
def test_k120_counts_protect_the_memory_but_not_the_content(policy: str) -> None:
    rules = replace(POLICIES[policy].rules, early_linearize=False)
    for nic in Nic:
        event = "stale_clone+rewrite_in_place"
        world = played(policy, "pagecache", event, nic, rules)
        assert faults(world.journal) == [("wrong-bytes", None)]


@every_card
def test_k120_a_copy_protects_the_content(nic: str) -> None:
    result = play(f"e/xfs_kmalloc_subpage/stale_clone+rewrite_in_place/{nic}")
    assert (result.outcome, "copied" in result.flags) == ("ok", True)


# --- B2: which pages ------------------------------------------------------------------


@pytest.mark.parametrize("submitter", SUBPAGE)
@every_card
def test_k86_a_sub_page_object_was_harmless_in_2007(submitter: str, nic: str) -> None:
    world = played("none@2.6.21", submitter, "clean", Nic[nic])
    expected = [] if nic == "SG" else [2, 1]
    page = page_of(world.writes[0])
    assert counts(world.journal, page)[: len(expected)] == expected
    assert world.journal.outcome == "ok"


def test_k86_a_large_kmalloc_was_not() -> None:
    assert play("none@2.6.21/kmalloc_highorder_tail/clean/NOSG").outcome != "ok"
    assert play("none@6.1/kmalloc_highorder_tail/clean/NOSG").outcome == "ok"


@pytest.mark.parametrize("submitter", [*SUBPAGE, "kmalloc_highorder_tail"])
@pytest.mark.parametrize("nic", ["NOSG", "COW"])
def test_k87_frozen_slab_pages_warn_and_nothing_moves(submitter: str, nic: str) -> None:
    world = played("f", submitter, "clean", Nic[nic])
    page = page_of(world.writes[0]).block[0]
    moved = [e for e in world.journal.entries if e.page == page.pfn and e.rule == "K87"]
    assert {(e.before, e.count) for e in moved} == {(0, 0)}
    assert [e.action for e in moved] == ["get_page", "put_page"]
    assert (world.journal.outcome, Flag.WARN in world.journal.flags) == ("ok", True)


def test_k87_the_safety_net_is_for_slab_pages_only() -> None:
    result = play("f/rawalloc_highorder_tail/clean/NOSG")
    assert (result.outcome, result.flags) == ("double-free", ())


def test_k89_2_6_21_frees_a_bad_slab_page_all_the_same() -> None:
    world = played("none@2.6.21", "kmalloc_highorder_tail", "clean", Nic.NOSG)
    page = page_of(world.writes[0])
    assert faults(world.journal) == [
        ("bad-page", page.pfn),
        ("premature-free", page.pfn),
        ("double-free", page.pfn),
    ]


def test_k89_later_kernels_do_not() -> None:
    rules = replace(RULES_2_6_21, bad_page_freed=False)
    world = make_world("none@2.6.21", Nic.NOSG, rules)
    page = page_of(submit(world, "kmalloc_highorder_tail"))
    assert faults(world.journal) == [("bad-page", page.pfn)]
    assert (page.kept_out, page.free) == (True, False)


@every_card
def test_k90_vmalloc_pages_are_safe_as_far_as_counts_go(nic: str) -> None:
    found = outcomes(["none@2.6.21", "none@6.1"], ["vmalloc_page"], EVENTS, [nic])
    assert set(found.values()) <= {"ok", "wrong-bytes"}


def test_k91_jbd_on_a_page_of_its_own_is_no_slab_page() -> None:
    for policy in ("none@2.6.21", "d"):
        assert play(f"{policy}/jbd_get_free_page/clean/NOSG").outcome == "ok"


# --- B5: observed ---------------------------------------------------------------------


def test_k108_the_2007_bug_on_6_1() -> None:
    world = make_world("none@6.1", Nic.NOSG)
    write = submit(world, "rawalloc_highorder_tail")
    page = page_of(write)
    trajectory = [
        (e.action, e.before, e.count)
        for e in world.journal.entries
        if e.page == page.pfn and e.action.endswith("_page") and e.before is not None
    ]
    assert trajectory == [("get_page", 0, 1), ("put_page", 1, 0)]
    assert (page.free, page.owner) == (True, "driver")
    world.deliver_response()
    assert (write.ended, page.count) == (True, 0)
    world.finish()
    assert faults(world.journal) == [
        ("premature-free", page.pfn),
        ("double-free", page.pfn),
    ]


@pytest.mark.parametrize("event", ["clean", "dup_response"])
def test_k108a_not_with_scatter_gather(event: str) -> None:
    world = played("none@6.1", "rawalloc_highorder_tail", event, Nic.SG)
    assert counts(world.journal, page_of(world.writes[0])) == []
    assert not faults(world.journal)


def test_k108a_a_private_head_is_as_bad_as_no_scatter_gather() -> None:
    world = played("none@6.1", "rawalloc_highorder_tail", "clean", Nic.COW)
    page = page_of(world.writes[0])
    assert counts(world.journal, page) == [1, 0]
    assert ("premature-free", page.pfn) in faults(world.journal)


A_ON_6_1 = replace(POLICIES["a"], rules=RULES_6_1)


@pytest.mark.parametrize("event", ["clean", "dup_response"])
@pytest.mark.parametrize("nic", [Nic.NOSG, Nic.COW])
def test_k108b_plain_counting_brings_it_to_two_and_frees_nothing(
    event: str, nic: Nic
) -> None:
    world = played(A_ON_6_1, "rawalloc_highorder_tail", event, nic)
    page = page_of(world.writes[0])
    assert counts(world.journal, page) == [1, 2, 1, 0]
    assert not faults(world.journal)


@every_card
@pytest.mark.parametrize("submitter", [*SAFE, "kmalloc_highorder_tail"])
def test_k108c_other_pages_go_up_and_down_and_nothing_is_freed(
    submitter: str, nic: str
) -> None:
    world = make_world("none@6.1", Nic[nic])
    write = submit(world, submitter)
    page = page_of(write)
    if submitter == "kmalloc_highorder_tail":
        assert page.compound_head is not page
        assert counts(world.journal, page) == []
    assert counts(world.journal, page.compound_head) == ([] if nic == "SG" else [2, 1])
    world.deliver_response()
    world.finish()
    assert not faults(world.journal)


@pytest.mark.parametrize("submitter", [*SAFE, "kmalloc_highorder_tail"])
def test_k108c_two_private_heads_bring_it_to_three(submitter: str) -> None:
    world = make_world("none@6.1", Nic.COW)
    world.nic.hold_completion = True
    page = page_of(submit(world, submitter)).compound_head
    world.retransmit()
    world.nic.drain()
    assert counts(world.journal, page) == [2, 3, 2, 1]


def test_k108d_a_stack_is_safe_on_6_1_and_was_not_in_2007() -> None:
    assert play("none@6.1/stack_tail/clean/NOSG").outcome == "ok"
    assert play("none@2.6.21/stack_tail/clean/NOSG").outcome == "double-free"


# --- C: the model ---------------------------------------------------------------------


def test_k115_end_io_runs_once_per_bio_whatever_happens() -> None:
    for name in EVENTS:
        world = played("none@6.1", "pagecache", name, Nic.SG)
        ends = [e for e in world.journal.entries if e.action == "bi_end_io"]
        assert len(ends) == 1


def test_k116_a_page_that_is_neither_free_nor_owned_is_a_leak() -> None:
    world = make_world("none@6.1", Nic.SG)
    write = submit(world, "pagecache")
    page = page_of(write)
    world.memory.get_page(page, "network", "K75")
    world.deliver_response()
    world.finish()
    assert faults(world.journal) == [("leak", page.pfn)]


def test_k116_a_bio_that_never_ends_is_a_bug() -> None:
    world = make_world("none@6.1", Nic.SG)
    submit(world, "pagecache")
    world.responses.clear()
    world.finish()
    assert faults(world.journal)[0] == ("BUG", None)


def test_k117_the_outcome_is_the_first_of_the_worst_faults() -> None:
    words = "BUG double-free premature-free wrong-bytes leak underflow bad-page"
    severity = words.split()
    assert [fault.value for fault in Fault] == severity
    journal = Journal(keep_entries=False)
    assert journal.outcome == "ok"
    for number, word in enumerate(reversed(severity)):
        journal.add("x", f"first {word}", page=number, fault=Fault(word))
        journal.add("x", "again", fault=Fault(word))
        assert journal.outcome == word
        assert journal.worst is not None
        assert journal.worst.action == f"first {word}"


def test_k117_the_annotations() -> None:
    words = "WARN copied EIO ghost-write dup-write unexpected-rsp"
    assert [flag.value for flag in Flag] == words.split()
    result = play("none@6.1/pagecache/lost_rexmit_stale_clone/SG")
    assert result.flags == ("dup-write", "unexpected-rsp")
    result = play("none@6.1/pagecache/dup_response/SG")
    assert result.flags == ("unexpected-rsp",)


@pytest.mark.parametrize("rules", [RULES_2_6_21, RULES_6_1], ids=lambda r: r.name)
def test_k119_with_debug_vm_the_get_is_the_bug(rules: Rules) -> None:
    for nic in (Nic.NOSG, Nic.COW):
        world = played(
            "none@6.1",
            "rawalloc_highorder_tail",
            "clean",
            nic,
            replace(rules, debug_vm=True),
        )
        page = page_of(world.writes[0]) if world.writes else None
        assert page is not None
        assert faults(world.journal) == [("BUG", page.pfn)]
        assert not page.free
        assert world.journal.faults[0].rule == "K119"


def test_k121_cells_that_rest_on_memory_are_told_both_ways() -> None:
    content = play("none@2.6.21/pagecache/stale_clone+rewrite_in_place/NOSG")
    assert (content.outcome, content.if_linearized_late) == ("ok", "wrong-bytes")
    freed = play("none@2.6.21/kmalloc_highorder_tail/clean/NOSG")
    assert (freed.outcome, freed.if_bad_page_kept_out) == ("double-free", "bad-page")
    assert play("none@6.1/pagecache/clean/NOSG").if_linearized_late == ""


def test_k121_late_is_what_a_world_with_late_rules_comes_to() -> None:
    event = "stale_clone+rewrite_in_place"
    world = played("none@2.6.21", "pagecache", event, Nic.NOSG, LATE_2_6_21)
    assert world.journal.outcome == "wrong-bytes"


def test_a_case_without_a_stale_clone_sends_what_was_submitted() -> None:
    calm = Event("calm", "nothing happens")
    for policy in POLICIES:
        world = make_world(policy, Nic.SG)
        play_event(world, SUBMITTERS["pagecache"], calm)
        assert disk(world) == world.writes[0].expected
