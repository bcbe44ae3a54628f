"""What was observed on Linux 6.1 (K108), and the rules of the model (K115 to K120)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from initiator.lab.cases import EVENTS, Event, run_event
from initiator.lab.kernel.journal import Fault, Flag, Journal
from initiator.lab.kernel.kernels import RULES_2_6_21, RULES_6_1
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import MATRIX_POLICIES
from initiator.lab.kernel.submitters import SUBMITTERS
from tests.worlds import (
    counts,
    disk,
    faults,
    make_world,
    page_of,
    run,
    submit,
    world_after,
)

if TYPE_CHECKING:
    from initiator.lab.kernel.kernels import Rules

LATE_2_6_21 = replace(RULES_2_6_21, early_linearize=False)
SUBPAGE = ["xfs_kmalloc_subpage", "jbd_frozen_slab"]
SAFE = ["pagecache", *SUBPAGE, "vmalloc_page"]
every_nic = pytest.mark.parametrize("nic", Nic.__members__)


# --- K108: observed on 6.1 ------------------------------------------------------------


def test_k108_a_raw_tail_is_freed_prematurely_on_6_1() -> None:
    world = make_world("none@6.1", Nic.NOSG)
    write = submit(world, "rawalloc_highorder_tail")
    page = page_of(write)
    trajectory = [
        (e.action, e.before, e.count)
        for e in world.journal.entries
        if e.page == page.pfn and e.action.endswith("_page") and e.before is not None
    ]
    assert trajectory == [("get_page", 0, 1), ("put_page", 1, 0)]
    assert (page.free, page.owner) == (True, "owner")
    world.deliver_response()
    assert (write.ended, page.count) == (True, 0)
    world.finish()
    assert faults(world.journal) == [
        ("premature-free", page.pfn),
        ("double-free", page.pfn),
    ]


@pytest.mark.parametrize("event", ["clean", "dup_response"])
def test_k108a_a_raw_tail_is_not_freed_with_scatter_gather(event: str) -> None:
    world = world_after("none@6.1", "rawalloc_highorder_tail", event, Nic.SG)
    assert counts(world.journal, page_of(world.writes[0])) == []
    assert not faults(world.journal)


def test_k108a_a_raw_tail_is_freed_by_a_private_head() -> None:
    world = world_after("none@6.1", "rawalloc_highorder_tail", "clean", Nic.COW)
    page = page_of(world.writes[0])
    assert counts(world.journal, page) == [1, 0]
    assert ("premature-free", page.pfn) in faults(world.journal)


@pytest.mark.parametrize("event", ["clean", "dup_response"])
@pytest.mark.parametrize("nic", [Nic.NOSG, Nic.COW])
def test_k108b_page_ref_inc_raises_the_count_to_two_and_nothing_is_freed(
    event: str, nic: Nic
) -> None:
    world = world_after("a@6.1", "rawalloc_highorder_tail", event, nic)
    page = page_of(world.writes[0])
    assert counts(world.journal, page) == [1, 2, 1, 0]
    assert not faults(world.journal)


@every_nic
@pytest.mark.parametrize("submitter", [*SAFE, "kmalloc_highorder_tail"])
def test_k108c_other_pages_are_referenced_and_not_freed(
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
def test_k108c_two_private_heads_raise_the_count_to_three(submitter: str) -> None:
    world = make_world("none@6.1", Nic.COW)
    world.nic.hold_completion = True
    page = page_of(submit(world, submitter)).compound_head
    world.retransmit()
    world.nic.drain()
    assert counts(world.journal, page) == [2, 3, 2, 1]


def test_k108d_a_stack_page_is_safe_on_6_1_and_not_on_2_6_21() -> None:
    assert run("none@6.1/stack_tail/clean/NOSG").outcome == "ok"
    assert run("none@2.6.21/stack_tail/clean/NOSG").outcome == "double-free"


# --- K115 to K120: the model ----------------------------------------------------------


def test_k115_end_io_runs_once_per_bio_in_every_event() -> None:
    for name in EVENTS:
        world = world_after("none@6.1", "pagecache", name, Nic.SG)
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
    names = "BUG double-free premature-free wrong-bytes leak underflow bad-page"
    severity = names.split()
    assert [fault.value for fault in Fault] == severity
    journal = Journal(keep_entries=False)
    assert journal.outcome == "ok"
    for number, name in enumerate(reversed(severity)):
        journal.add("x", f"first {name}", page=number, fault=Fault(name))
        journal.add("x", "again", fault=Fault(name))
        assert journal.outcome == name
        assert journal.worst is not None
        assert journal.worst.action == f"first {name}"


@pytest.mark.parametrize(
    ("case", "rule", "actor", "action", "fault"),
    [
        # The network's last put frees a slab page; the allocator reports it.
        (
            *("none@2.6.21/kmalloc_highorder_tail/clean/NOSG", "K75"),
            *("network", "put_page", "bad-page"),
        ),
        # The network still holds a reference when the owner frees the block.
        (
            *("none@6.1/rawalloc_highorder_tail/late_txdone+free/COW", "K76"),
            *("network", "get_page", "bad-page"),
        ),
        (
            *("c/rawalloc_highorder_tail/clean/SG", "K101"),
            *("owner", "put_page", "premature-free"),
        ),
        # b+ has a rule of its own.
        (
            *("b+/rawalloc_highorder_tail/clean/SG", "K147"),
            *("network", "put_page", "premature-free"),
        ),
        (
            *("none@6.1/pagecache/devfail+free/NOSG", "K75"),
            *("network", "put_page", "double-free"),
        ),
        # The fault is the act.
        (
            *("none@6.1/pagecache/stale_clone+rewrite_in_place/SG", "K80"),
            *("network", "transmit", "wrong-bytes"),
        ),
        (
            *("d/xfs_kmalloc_subpage/clean/SG", "K101"),
            *("bio", "bio_add_page", "BUG"),
        ),
    ],
)
def test_the_first_violation_is_the_act_and_not_its_report(
    case: str, rule: str, actor: str, action: str, fault: str
) -> None:
    result = run(case)
    first_fault = result.journal.faults[0]
    act = result.journal.act_of(first_fault)
    assert (act.rule, act.actor, act.action) == (rule, actor, action)
    assert first_fault.fault is Fault(fault)
    assert act.step <= first_fault.step
    assert result.reason.startswith(f"{rule} {actor} {action}")


def test_k116_a_leak_is_the_act_of_the_get_that_nothing_dropped() -> None:
    world = make_world("none@6.1", Nic.COW)
    write = submit(world, "pagecache")
    world.memory.get_page(page_of(write), "packet socket", "K83")
    world.deliver_response()
    world.finish()
    act = world.journal.act_of(world.journal.faults[0])
    assert (act.actor, act.action, act.rule) == ("packet socket", "get_page", "K83")


def test_k117_annotations_are_those_of_the_rule() -> None:
    words = "WARN copied EIO ghost-write dup-write unexpected-rsp"
    assert [flag.value for flag in Flag] == words.split()
    result = run("none@6.1/pagecache/lost_rexmit_stale_clone/SG")
    assert result.flags == ("dup-write", "unexpected-rsp")
    result = run("none@6.1/pagecache/dup_response/SG")
    assert result.flags == ("unexpected-rsp",)


@pytest.mark.parametrize("rules", [RULES_2_6_21, RULES_6_1], ids=lambda r: r.name)
def test_k119_with_debug_vm_get_page_at_zero_is_a_bug(rules: Rules) -> None:
    for nic in (Nic.NOSG, Nic.COW):
        world = world_after(
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


def test_k77_2_6_21_with_late_linearizing_has_wrong_bytes() -> None:
    event = "stale_clone+rewrite_in_place"
    world = world_after("none@2.6.21", "pagecache", event, Nic.NOSG, LATE_2_6_21)
    assert world.journal.outcome == "wrong-bytes"


def test_a_case_without_a_stale_clone_sends_what_was_submitted() -> None:
    undisturbed = Event("undisturbed", "nothing happens")
    for policy in MATRIX_POLICIES:
        world = make_world(policy, Nic.SG)
        run_event(world, SUBMITTERS["pagecache"], undisturbed)
        assert disk(world) == world.writes[0].expected
