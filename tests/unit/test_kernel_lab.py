"""scripts/kernel-lab: orders to the guest, verdicts on its log, the report; no QEMU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from aoe.errors import AccessError, UsageError
from initiator.lab.cases import EVENTS, Case, all_cases
from scripts import kernel_lab
from scripts.kernel_lab_guest import SOURCES, load_order
from scripts.kernel_lab_journal import (
    judge,
    length_of,
    missing_steps,
    modelled_kernel,
    order_of,
    parse,
    why_not,
)

if TYPE_CHECKING:
    from scripts.kernel_lab_journal import Journal
    from scripts.kernel_lab_rig import Rig

HEADLINE = "none@6.1/pagecache/devfail+free/NOSG"
RIGHT = b"\x5a" * 4096

# Recorded from Linux 6.1.192.
DEVICE_FAILED = """\
[   17.363575] lab: submit pfn=0x2e49 count=1 compound=0 slab=0
[   17.372827] lab: held count=1
[   19.066770] lab: lost
[   20.745350] I/O error, dev etherd/e0.0, sector 8 op 0x1:(WRITE) flags 0x0
[   20.745788] lab: end_io status=-5 count=1
[   20.757901] lab: frees by=owner count=1
[   20.758184] lab: page_free by=owner order=0
[   20.758520] lab: released count=0
[   20.758823] lab: private_head count=1
[   20.759039] lab: put_to_zero
[   20.759133] lab: page_free by=network order=0
[   20.759204] list_add double add: new=fffffa29000b9248, prev=ffff8e15cf638798.
[   20.759591] kernel BUG at lib/list_debug.c:33!
[   20.901122] ---[ end Kernel panic - not syncing: Fatal exception in interrupt ]---
"""
TAIL_FREED = """\
[   12.583290] lab: submit pfn=0x2c7f count=0 compound=0 slab=0
[   12.612012] lab: private_head count=1
[   12.622383] lab: put_to_zero
[   12.622584] lab: page_free by=network order=0
[   12.623517] lab: xmit count=0 right=1 fragments=0
[   12.710833] lab: end_io status=0 count=0
[   12.712312] lab: released count=0
[   12.917520] lab: settled count=0
"""
OWNER_FREES = """\
[   12.917711] lab: frees by=owner count=0
[   12.917852] lab: page_free by=owner order=1
[   12.918610] lab: drained times=1
[   12.918755] lab: done error=0
"""
CLEAN = """\
[   12.583290] lab: submit pfn=0x2c7f count=1 compound=0 slab=0
[   12.612012] lab: private_head count=2
[   12.623517] lab: xmit count=1 right=1 fragments=0
[   12.710833] lab: end_io status=0 count=1
[   12.917520] lab: settled count=1
[   12.917711] lab: frees by=owner count=1
[   12.917852] lab: page_free by=owner order=0
[   12.918107] lab: page_alloc by=others order=0
[   12.918610] lab: drained times=1
[   12.918755] lab: done error=0
"""


def journal(*texts: str) -> Journal:
    return parse("".join(texts).splitlines())


class FakeRig:
    """A guest that reports the same log for each case."""

    def __init__(self, log: str, on_disk: bytes) -> None:
        self.log = log.splitlines()
        self.on_disk = on_disk

    def run(self, _: Case) -> tuple[Journal, bytes, list[str]]:
        return parse(self.log), self.on_disk, self.log


def row(case: str, log: str, on_disk: bytes = RIGHT) -> kernel_lab.Row:
    return kernel_lab.Row(Case.parse(case), cast("Rig", FakeRig(log, on_disk)))


# --- verdicts -------------------------------------------------------------------------


def test_a_clean_write_is_ok() -> None:
    verdict = judge(journal(CLEAN), RIGHT)
    assert verdict.outcome == "ok"
    assert verdict.facts == ("count 1-2-1",)


def test_a_page_that_the_network_frees_when_it_is_free_is_a_double_free() -> None:
    verdict = judge(journal(DEVICE_FAILED), bytes(4096))
    assert verdict.outcome == "double-free"
    assert "the network freed it when it was free" in verdict.facts
    assert verdict.facts[-1] == (
        "kernel: list_add double add, kernel BUG at lib/list_debug.c:33!"
    )


def test_a_page_that_the_network_and_then_its_owner_free_is_a_double_free() -> None:
    verdict = judge(journal(TAIL_FREED, OWNER_FREES), RIGHT)
    assert verdict.outcome == "double-free"
    assert verdict.facts[0] == "count 0-1-0"


def test_a_page_that_was_freed_and_got_another_owner_is_a_premature_free() -> None:
    taken = "lab: page_alloc by=network order=0\n"
    bad = "[ 1.0] BUG: Bad page state in process init  pfn:02c7f\n"
    verdict = judge(journal(TAIL_FREED, taken, OWNER_FREES, bad), RIGHT)
    assert verdict.outcome == "premature-free"
    assert "the owner freed it while the network had it" in verdict.facts


def test_a_bad_page_is_lost() -> None:
    bad = "[ 1.0] BUG: Bad page state in process init  pfn:02c7f\n"
    verdict = judge(journal(CLEAN, bad), RIGHT)
    assert verdict.outcome == "leak"


def test_a_bad_page_that_is_not_the_tested_one_is_not_counted_as_its_leak() -> None:
    bad = "[ 1.0] BUG: Bad page state in process init  pfn:02c80\n"
    assert judge(journal(CLEAN, bad), RIGHT).outcome == "ok"


def test_a_page_that_the_allocator_gives_to_two_owners_is_a_double_free() -> None:
    log = CLEAN.replace("times=1", "times=2")
    assert judge(journal(log), RIGHT).outcome == "double-free"


@pytest.mark.parametrize("sent", ["right=0", "right=1"])
def test_bytes_that_were_not_submitted_are_wrong_on_the_disk(sent: str) -> None:
    on_disk = RIGHT[:512] + b"\xaa" * 8 + RIGHT[520:]
    verdict = judge(journal(CLEAN.replace("right=1", sent)), on_disk)
    assert verdict.outcome == "wrong-bytes"
    assert "on the disk: 8 wrong bytes from 512, aaaaaaaaaaaaaaaa..." in verdict.facts


def test_k153_a_freed_slab_object_takes_slubs_pointer_to_the_disk() -> None:
    log = (
        "lab: submit pfn=0x2cff count=1 compound=1 slab=1\n"
        "lab: held count=1\n"
        "lab: lost\n"
        "lab: end_io status=-5 count=1\n"
        "lab: frees by=owner count=1\n"
        "lab: released count=1\n"
        "lab: xmit count=1 right=0 fragments=1\n"
        "lab: settled count=1\n"
        "lab: drained times=0\n"
        "lab: done error=0\n"
    )
    pointer = bytes.fromhex("1096e9ca8a5c6941")
    on_disk = RIGHT[:512] + pointer + RIGHT[520:1024]
    found = row("none@6.1/xfs_kmalloc_subpage/devfail+free/SG", log, on_disk)
    assert (found.lab, found.sign, found.real) == ("ok", "≠", "wrong-bytes")


def test_a_disk_that_got_no_frame_is_not_wrong() -> None:
    assert judge(journal(CLEAN), bytes(4096)).outcome == "ok"


def test_a_kernel_that_stops_without_a_fault_of_the_page_is_a_bug() -> None:
    log = CLEAN[: CLEAN.index("[   12.9175")] + "[ 1.0] Oops: 0000 [#1] PREEMPT SMP\n"
    verdict = judge(journal(log), RIGHT)
    assert verdict.outcome == "BUG"
    assert "kernel: Oops" in verdict.facts


def test_a_guest_that_submits_nothing_has_not_run_the_case() -> None:
    assert (
        judge(journal("[ 1.0] lab: done error=-6\n"), bytes(4096)).outcome == "not run"
    )


# --- events ---------------------------------------------------------------------------


def test_an_event_is_missing_steps_if_the_device_did_not_fail() -> None:
    case = Case.parse(HEADLINE)
    assert missing_steps(case, journal(DEVICE_FAILED)) == []
    came_back = DEVICE_FAILED.replace("status=-5", "status=0")
    assert missing_steps(case, journal(came_back)) == ["failed device"]


def test_an_event_is_missing_steps_if_the_new_owner_got_other_memory() -> None:
    case = Case.parse("none@6.1/pagecache/late_txdone+free_realloc/SG")
    found = missing_steps(case, journal(CLEAN, "lab: reallocated same=0\n"))
    assert found == ["memory reused by its new owner"]


def test_memory_that_the_network_still_refers_to_is_not_reused() -> None:
    log = CLEAN.replace(
        "[   12.917520]",
        "lab: frees by=owner count=2\n"
        "lab: reallocated same=0\n"
        "lab: released count=1\n"
        "lab: put_to_zero\n"
        "lab: page_free by=network order=0\n"
        "[   12.917520]",
    )
    log = log[: log.index("[   12.917711]")] + "lab: done error=0\n"
    found = row("none@6.1/pagecache/late_txdone+free_realloc/COW", log)
    assert (found.real, found.sign) == ("ok", "=")


# --- orders ---------------------------------------------------------------------------


def test_the_order_names_memory_steps_nic_and_policy() -> None:
    assert order_of(Case.parse(HEADLINE)) == "page fails frees nosg"
    case = Case.parse("a@6.1/kmalloc_large_tail/stale_clone+free_realloc/SG")
    assert order_of(case) == "large_kmalloc stale frees reallocates policy_a"


def test_the_module_knows_each_word_of_each_case() -> None:
    source = (SOURCES / "kernel_lab.c").read_text()
    for policy in ("none@6.1", "a@6.1", "c@6.1"):
        for case in all_cases([policy]):
            if not why_not(case, "6.1"):
                missing = [w for w in order_of(case).split() if f'"{w}"' not in source]
                assert missing == []


def test_objects_of_slab_are_smaller_than_a_page() -> None:
    assert length_of(Case.parse("none@6.1/xfs_kmalloc_subpage/clean/SG")) == 1024
    assert length_of(Case.parse("none@6.1/kmalloc_highorder_tail/clean/SG")) == 4096


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("b/pagecache/clean/SG", "policy b is not in the module"),
        ("none@6.14/pagecache/clean/SG", "write none@6.1"),
        ("none@6.1/jbd_kmalloc/clean/SG", "not in the module"),
        ("none@6.1/pagecache/slab_shrink/SG", "no event slab_shrink"),
        ("none@6.1/pagecache/netdev_removed/SG", "no event netdev_removed"),
        ("none@6.1/pagecache/free_before_end_io/SG", "no event free_before_end_io"),
        ("none@6.1/stack_tail/devfail+free/SG", "a stack cannot be freed"),
    ],
)
def test_a_case_that_no_kernel_can_run_is_refused(case: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        kernel_lab.check_cases([Case.parse(case)], "6.1")


def test_the_default_cases_have_three_submitters_three_events_and_two_nics() -> None:
    cases = kernel_lab.check_cases([], "6.1")
    assert len(cases) == 18
    assert len({case.submitter for case in cases}) == 3
    assert len({case.event for case in cases} & EVENTS.keys()) == 3
    assert {case.nic for case in cases} == {"SG", "NOSG"}
    assert HEADLINE in map(str, cases)


@pytest.mark.parametrize(
    ("release", "kernel"),
    [("6.1.0-57-amd64", "6.1"), ("6.12.117+deb12-amd64", "6.1"), ("6.18.1", "6.17")],
)
def test_a_release_is_compared_with_the_newest_kernel_of_the_lab_up_to_it(
    release: str, kernel: str
) -> None:
    assert modelled_kernel(release) == kernel


@pytest.mark.parametrize("release", ["2.4.37", "amd64"])
def test_a_release_that_the_lab_does_not_model_is_refused(release: str) -> None:
    with pytest.raises(UsageError, match=release):
        modelled_kernel(release)


# --- guest and report -----------------------------------------------------------------


def test_modules_are_loaded_after_those_that_they_need() -> None:
    needs = {"a": "b,c-d", "b": "c_d", "c_d": "", "e": ""}
    files = {name: f"x\0depends={value}\0y".encode() for name, value in needs.items()}
    assert load_order(["a", "e"], files.__getitem__) == ["c_d", "b", "a", "e"]


def test_a_row_shows_both_outcomes_and_what_was_seen() -> None:
    found = row(HEADLINE, DEVICE_FAILED, bytes(4096))
    assert found.sign == "="
    assert found.text(0).startswith(f"{HEADLINE}  double-free     = double-free ")


def test_another_fault_is_told_from_a_difference() -> None:
    tail = "none@6.1/rawalloc_highorder_tail/clean/NOSG"
    taken = TAIL_FREED + "lab: page_alloc by=network order=0\n" + OWNER_FREES
    similar, different = row(tail, taken), row(tail, CLEAN)
    assert (similar.sign, different.sign) == ("~", "≠")
    assert kernel_lab.summary([similar, different], 9.6) == (
        "2 cases in 10 s: 0 agree (=), 1 with another fault (~), 1 differ (≠)"
    )


def test_a_case_whose_event_did_not_happen_is_not_reproduced() -> None:
    found = row(HEADLINE, CLEAN)
    assert (found.real, found.sign) == ("not reproduced", "≠")
    assert "no held frame, no failed device" in found.text(0)


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(AccessError, match="kernel-lab: not root"):
        kernel_lab.check_machine()


def test_the_guest_files_are_in_the_repository() -> None:
    assert {path.name for path in Path(SOURCES).iterdir()} == {"init", "kernel_lab.c"}
