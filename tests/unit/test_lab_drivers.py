"""Block drivers over TCP in the lab: what they copy, and what TCP refers to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from aoe.errors import UsageError
from initiator.cli.main import cli
from initiator.lab.cases import (
    EVENTS,
    Case,
    all_cases,
    run_case,
    run_event,
    simulate_case,
)
from initiator.lab.drivers.models import DRIVERS
from initiator.lab.kernel.kernels import KERNELS
from initiator.lab.kernel.memory import PAGE_SIZE
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import Policy
from initiator.lab.kernel.submitters import SUBMITTERS
from initiator.lab.peer import MemoryPeer
from initiator.lab.wire import run_and_read_back
from initiator.lab.world import World

if TYPE_CHECKING:
    from initiator.lab.cases import Result

NICS = list(Nic.__members__)
TAIL = "rawalloc_highorder_tail"


def run(case: str) -> Result:
    return run_case(Case.parse(case), keep_entries=True)


def actions(result: Result) -> list[str]:
    return [entry.action for entry in result.journal.entries]


def outcomes(driver: str, **axes: list[str]) -> dict[Case, str]:
    return {case: run_case(case).outcome for case in all_cases([driver], **axes)}


# --- what the issue expects -----------------------------------------------------------


@pytest.mark.parametrize("driver", ["nbd@2.6.21", "nbd@6.1", "drbd-a@6.1"])
def test_k160_k166_a_driver_that_copies_is_always_ok(driver: str) -> None:
    for case in all_cases([driver]):
        result = run_case(case)
        assert result.outcome == "ok", case
        assert "copied" in result.flags
        assert (result.costs["gets"], result.costs["puts"]) == (0, 0)
        world = simulate_case(case)
        assert result.costs["copied"] == len(world.writes[0].expected), case


@pytest.mark.parametrize("nic", NICS)
def test_k164_nvme_tcp_of_5_9_frees_a_raw_tail_twice_on_every_nic(nic: str) -> None:
    result = run(f"nvme-tcp@5.9/{TAIL}/clean/{nic}")
    assert result.outcome == "double-free"
    assert result.reason.startswith("K161 network put_page")


@pytest.mark.parametrize("nic", NICS)
def test_k102_nvme_tcp_of_5_10_copies_a_raw_tail(nic: str) -> None:
    result = run(f"nvme-tcp@5.10/{TAIL}/clean/{nic}")
    assert (result.outcome, result.flags) == ("ok", ("copied",))
    assert result.costs["copied"] == PAGE_SIZE


@pytest.mark.parametrize("driver", DRIVERS)
def test_k167_no_stale_bytes_reach_the_disk(driver: str) -> None:
    for event in ("stale_clone+rewrite_in_place", "stale_clone+free_realloc"):
        for case in all_cases([driver], ["pagecache", TAIL], [event]):
            found = run_and_read_back(case)
            if "EIO" not in found.result.flags:
                assert found.on_disk == found.submitted, case
            assert found.result.outcome != "wrong-bytes", case


def test_k167_the_receiver_drops_a_stale_duplicate() -> None:
    result = run("iscsi_tcp@2.6.21/pagecache/stale_clone+rewrite_in_place/SG")
    assert result.outcome == "ok"
    sent = [e for e in result.journal.entries if e.action == "transmit"]
    assert "" not in (sent[0].note, sent[1].note)
    assert "not those submitted: a duplicate, dropped by the receiver" in sent[1].note
    aoe = run("none@2.6.21/pagecache/stale_clone+rewrite_in_place/SG")
    assert aoe.outcome == "wrong-bytes"


# --- references ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "driver",
    ["nvme-tcp@5.10", "nvme-tcp@6.5", "nvme-tcp@6.13", "drbd@6.1", "splice@6.5"],
)
def test_drivers_that_test_pages_are_ok_in_every_case(driver: str) -> None:
    assert set(outcomes(driver).values()) == {"ok"}


def test_k161_tcp_refers_to_a_page_until_the_acknowledgement() -> None:
    result = run("nvme-tcp@6.13/pagecache/clean/SG")
    counts = [
        (e.action, e.before, e.count)
        for e in result.journal.entries
        if e.action in ("get_page", "put_page", "bi_end_io")
    ]
    assert counts == [
        ("get_page", 1, 2),
        ("put_page", 2, 1),
        ("bi_end_io", None, None),
    ]
    late = actions(run("nvme-tcp@6.13/pagecache/late_txdone/SG"))
    assert late.index("bi_end_io") < late.index("put_page")


def test_k161_a_freed_page_is_kept_until_the_last_clone_is_gone() -> None:
    for event in ("late_txdone+free_realloc", "devfail+free_realloc"):
        result = run(f"nvme-tcp@6.13/pagecache/{event}/SG")
        assert result.outcome == "ok"
        assert result.costs["held"] == PAGE_SIZE


def test_k162_only_old_kernels_copy_without_scatter_gather() -> None:
    old = run(f"iscsi_tcp@2.6.21/{TAIL}/clean/NOSG")
    assert (old.outcome, old.flags) == ("ok", ("copied",))
    assert run(f"iscsi_tcp@2.6.21/{TAIL}/clean/SG").outcome == "double-free"
    new = run("nvme-tcp@5.9/pagecache/clean/NOSG")
    assert new.outcome == "ok"
    assert "copied" not in new.flags
    assert [a for a in actions(new) if a in ("sendpage", "skb_linearize")] == [
        "sendpage",
        "skb_linearize",
    ]


def test_k139_k163_iscsi_tcp_tests_slab_and_not_the_count() -> None:
    for slab in ("xfs_kmalloc_subpage", "kmalloc_highorder_tail"):
        for nic in NICS:
            result = run(f"iscsi_tcp@2.6.21/{slab}/clean/{nic}")
            assert (result.outcome, result.flags) == ("ok", ("copied",))
    assert "copied" not in run("iscsi_tcp@2.6.21/pagecache/clean/SG").flags
    # A piece longer than a page is copied: it is the tail that would be freed.
    assert run("iscsi_tcp@2.6.21/rawalloc_block/clean/SG").flags == ("copied",)


def test_k168_tcp_does_not_retransmit_what_is_still_queued() -> None:
    case = "{}/pagecache/lost_rexmit_stale_clone/SG"
    new = run(case.format("nvme-tcp@5.10"))
    assert actions(new).count("transmit") == 1
    refused = next(e for e in new.journal.entries if e.action == "tcp_retransmit_skb")
    assert refused.rule == "K168"
    old = run(case.format("iscsi_tcp@2.6.21"))
    assert actions(old).count("transmit") == 2


# --- sendpages_ok, splice -----------------------------------------------------------


def test_k165_a_bio_vec_of_two_pages_is_refused_before_sendpages_ok() -> None:
    case = "nvme-tcp@{}/rawalloc_block/clean/SG"
    first_only = run(case.format("5.10"))
    assert (first_only.outcome, first_only.flags) == ("ok", ())
    assert first_only.costs["gets"] == 1
    refused = run_and_read_back(Case.parse(case.format("6.5")))
    assert refused.result.flags == ("EIO", "WARN")
    assert refused.result.outcome == "ok"
    tested = run_and_read_back(Case.parse(case.format("6.13")))
    assert tested.result.flags == ("copied",)
    assert tested.submitted == tested.on_disk


@pytest.mark.parametrize("submitter", [TAIL, "xfs_kmalloc_subpage"])
def test_k165_splice_without_a_test_warns_and_fails(submitter: str) -> None:
    result = run(f"splice@6.5/{submitter}/clean/SG")
    assert (result.outcome, result.flags) == ("ok", ("EIO", "WARN"))
    end = next(e for e in result.journal.entries if e.action == "bi_end_io")
    assert "EIO" in end.note


def test_k166_drbd_passes_page_by_page_and_copies_in_protocol_a() -> None:
    result = run("drbd@6.1/rawalloc_block/clean/SG")
    assert (result.costs["gets"], result.costs["copied"]) == (1, PAGE_SIZE)
    early = actions(run("drbd-a@6.1/pagecache/clean/SG"))
    assert early.index("bi_end_io") < early.index("response")


# --- the command line -----------------------------------------------------------------


def test_a_driver_takes_the_place_of_the_policy() -> None:
    words = ["lab", "matrix", "-p", "nbd@6.1", "-p", "splice", "--json"]
    report = json.loads(CliRunner().invoke(cli, words).stdout)
    found = {(each["policy"], each["kernel"]) for each in report["cases"]}
    assert found == {("nbd@6.1", "6.1"), ("splice", "6.5")}
    each = len(SUBMITTERS) * len(EVENTS) * len(NICS)
    assert len(report["cases"]) == 2 * each


@pytest.mark.parametrize("name", ["nvme-tcp", "nvme-tcp@4.2", "drbd@2.6.21"])
def test_an_unknown_version_of_a_driver_is_an_error(name: str) -> None:
    with pytest.raises(UsageError, match="not modelled in that version"):
        Case.parse(f"{name}/pagecache/clean/SG")


def test_other_drivers_are_not_run_on_a_wire() -> None:
    words = ["lab", "run", "nbd@6.1/pagecache/clean/SG"]
    assert "The disk holds what was submitted" in CliRunner().invoke(cli, words).stdout
    case = Case.parse(words[-1])
    with pytest.raises(UsageError, match="in memory only"):
        simulate_case(case, peer=MemoryPeer())


# --- bi_end_io that waits for clones --------------------------------------------------

WAITING = Policy(
    name="a+wait",
    summary="as a, and bi_end_io waits for the clones",
    aoe_increments_counts=True,
    waits_for_clones=True,
)


@pytest.mark.parametrize("nic", Nic)
@pytest.mark.parametrize("kernel", ["2.6.21", "6.1", "6.14"])
def test_k169_no_case_fails_if_bi_end_io_waits_for_the_clones(
    kernel: str, nic: Nic
) -> None:
    for submitter in SUBMITTERS.values():
        for event in EVENTS.values():
            if event.frees_early:
                continue
            world = World(WAITING, nic, rules=KERNELS[kernel])
            run_event(world, submitter, event)
            assert world.journal.outcome == "ok", (submitter.name, event.name)
            assert all(write.ended for write in world.writes)


def test_k169_bi_end_io_runs_after_the_stale_clone_was_sent() -> None:
    world = World(WAITING, Nic.SG, rules=KERNELS["6.1"])
    event = EVENTS["stale_clone+rewrite_in_place"]
    run_event(world, SUBMITTERS["pagecache"], event)
    order = [
        entry.action
        for entry in world.journal.entries
        if entry.action in ("defer bi_end_io", "transmit", "bi_end_io", "rewrite")
    ]
    assert order == ["transmit", "defer bi_end_io", "transmit", "bi_end_io", "rewrite"]
