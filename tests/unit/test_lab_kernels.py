"""The kernel axis of the lab: versions apart from policies, and switches."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields

import pytest
from click.testing import CliRunner
from click.testing import Result as Outcome

from aoe.errors import UsageError
from initiator.cli.main import cli
from initiator.lab.cases import EVENTS, Case, Switches, run_case
from initiator.lab.explorer.explore import explore
from initiator.lab.kernel.journal import Fault
from initiator.lab.kernel.kernels import KERNELS, Rules
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import MATRIX_POLICIES, POLICIES, policy_on_kernel
from initiator.lab.kernel.submitters import SUBMITTERS
from initiator.rules import load_kernel_rules
from tests.worlds import counts, faults, first, outcomes, page_of, run, world_after

STALE = "none@{}/kmalloc_large_tail/stale_clone+free_realloc/{}"
FREEING = {"double-free", "premature-free", "underflow", "bad-page", "BUG", "leak"}


def aoe(*words: str) -> Outcome:
    return CliRunner().invoke(cli, ["lab", *words])


def outcome(case: str, switches: Switches) -> str:
    return run_case(Case.parse(case), switches).outcome


# --- the axis -------------------------------------------------------------------------


def test_the_issue_names_six_kernels() -> None:
    assert list(KERNELS) == ["2.6.21", "3.7", "3.12", "6.1", "6.14", "6.17"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_policy_runs_on_every_kernel(kernel: str) -> None:
    for policy in POLICIES:
        found = outcomes([f"{policy}@{kernel}"], SUBMITTERS, ["clean"], ["SG"])
        assert set(found.values()) <= {"ok", *FREEING}


def test_k96_k97_k98_the_drivers_own_policy_changed_twice() -> None:
    own = {name: rules.driver_policy for name, rules in KERNELS.items()}
    assert own == {
        **dict.fromkeys(["2.6.21", "6.1", "6.14", "6.17"], "none"),
        **dict.fromkeys(["3.7", "3.12"], "a"),
    }


def test_every_switch_of_a_kernel_cites_a_rule_with_its_source_file() -> None:
    rules = load_kernel_rules()
    # Python 3.13 removes the indentation that all lines have.
    document = inspect.cleandoc(Rules.__doc__ or "")
    texts = re.split(r"\n {4}(?=\w+: )", document)[1:]
    switches = {text.split(":")[0]: text for text in texts}
    assert switches.keys() == {field.name for field in fields(Rules)}
    for switch in switches.keys() - {"name"}:
        cited = re.findall(r"K\d+[a-d]?", switches[switch])
        assert any(
            ".c" in rules[rule].source
            or ".h" in rules[rule].source
            or "observed" in rules[rule].source
            for rule in cited
        ), switch


def test_k97_the_policy_driver_is_that_of_the_kernels_own_driver() -> None:
    case = "driver@{}/kmalloc_highorder_tail/clean/NOSG"
    found = [run(case.format(kernel)).outcome for kernel in KERNELS]
    assert found == ["BUG", "BUG", "ok", "ok", "ok", "ok"]
    assert run(case.format("2.6.21")).reason.startswith("K75 network put_page")
    assert run(case.format("3.7")).reason.startswith("K97 AoE driver page_ref_inc")
    assert "--kernel" not in aoe("explain", case.format("3.12")).stdout
    own = aoe("explain", case.format("6.1").replace("@6.1", "")).stdout
    assert "the AoE driver borrows pages without references; Linux 6.1" in own


def test_a_policy_without_a_kernel_runs_on_its_own() -> None:
    assert policy_on_kernel("a")[1].name == "2.6.21"
    assert policy_on_kernel("e")[1].name == policy_on_kernel("none")[1].name == "6.1"
    for name, kernel in (("a@2.4", "kernel"), ("f", "policy"), ("none@", "kernel")):
        with pytest.raises(UsageError, match=f"no such {kernel} "):
            policy_on_kernel(name)


def test_the_option_kernel_selects_the_kernel_of_a_case() -> None:
    case = "a/kmalloc_highorder_tail/clean/SG"
    assert "Outcome: ok" in aoe("explain", case).stdout
    assert "Outcome: BUG" in aoe("explain", case, "--kernel", "3.7").stdout
    assert aoe("explain", case, "-k", "3.7").stdout == (
        aoe("explain", case.replace("a/", "a@3.7/", 1)).stdout
    )
    wrong = aoe("explain", case, "-k", "2.4")
    assert isinstance(wrong.exception, UsageError)


def test_the_option_kernel_of_the_matrix_may_be_repeated() -> None:
    words = ("-s", "pagecache", "-e", "clean", "-n", "SG", "--json")
    report = json.loads(aoe("matrix", "-k", "6.1", "-k", "6.17", *words).stdout)
    found = [(case["policy"], case["kernel"]) for case in report["cases"]]
    assert len(found) == 2 * len(POLICIES)
    assert {kernel for _, kernel in found} == {"6.1", "6.17"}
    assert ("b@6.17", "6.17") in found
    own = json.loads(aoe("matrix", *words).stdout)["cases"]
    assert [case["policy"] for case in own] == list(MATRIX_POLICIES)
    assert own[0]["kernel"] == "2.6.21"


def test_the_explorer_runs_a_policy_on_a_kernel() -> None:
    faults = {Fault.PREMATURE_FREE}
    words = ("-p", "none", "-n", "COW", "-s", "xfs_kmalloc_subpage", "--failures", "0")
    done = aoe("explore", *words, "-k", "6.14", "--violation", "premature-free")
    assert done.exit_code == 1
    assert done.stdout.startswith("none@6.14, xfs_kmalloc_subpage, COW\n")
    found = explore(
        *("none@6.1", "COW", ["xfs_kmalloc_subpage"]), failures=0, violations=faults
    )
    assert found.complete


# --- what differs between kernels -----------------------------------------------------


@pytest.mark.parametrize("event", ["clean", "dup_response"])
@pytest.mark.parametrize("nic", ["NOSG", "COW"])
def test_k108b_policy_a_on_6_1_is_what_was_observed(event: str, nic: str) -> None:
    world = world_after("a@6.1", "rawalloc_highorder_tail", event, Nic[nic])
    assert counts(world.journal, page_of(world.writes[0])) == [1, 2, 1, 0]
    assert not faults(world.journal)


@pytest.mark.parametrize("nic", Nic.__members__)
def test_k97_k88_policy_a_on_3_7_is_a_bug_for_compound_tails(nic: str) -> None:
    for submitter in ("kmalloc_highorder_tail", "kmalloc_large_tail"):
        assert run(f"a@3.7/{submitter}/clean/{nic}").outcome == "BUG"
        assert run(f"a@3.12/{submitter}/clean/{nic}").outcome == "ok"
    assert run(f"a@3.7/rawalloc_highorder_tail/clean/{nic}").outcome == "ok"


@pytest.mark.parametrize("nic", ["SG", "NOSG", "COW"])
def test_k140_a_stale_clone_of_a_large_kmalloc_sends_the_new_owners_bytes(
    nic: str,
) -> None:
    for kernel in ("6.1", "6.14", "6.17"):
        assert outcome(STALE.format(kernel, nic), Switches()) == "wrong-bytes"


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [("6.1", "ok"), ("6.14", "ok"), ("6.17", "wrong-bytes")],
)
def test_k140_k152_an_early_private_head_holds_a_large_kmalloc_until_6_17(
    kernel: str, expected: str
) -> None:
    """From 6.17 get_page on it does nothing: the memory is reused at once."""
    result = run_case(Case.parse(STALE.format(kernel, "COW")), Switches(header="early"))
    assert result.outcome == expected
    assert ("WARN" in result.flags) == (kernel == "6.17")


def test_k152_an_early_head_protects_page_cache_memory_from_k142() -> None:
    case = "none@6.1/pagecache/devfail+free/COW"
    assert outcome(case, Switches()) == "double-free"
    assert outcome(case, Switches(header="early")) == "ok"
    old = case.replace("6.1", "2.6.21")
    assert outcome(old, Switches()) == "ok"
    assert outcome(old, Switches(header="late")) == "double-free"


def test_k140_a_frozen_large_kmalloc_is_returned_without_a_fault() -> None:
    held = [
        event for event in EVENTS if "stale" not in event and "devfail" not in event
    ]
    found = outcomes(["none@6.17"], ["kmalloc_large_tail"], held, ["SG", "NOSG"])
    assert set(found.values()) == {"ok"}
    journal = run("none@6.17/kmalloc_large_tail/clean/NOSG").journal
    get = first(journal, "get_page")
    assert (get.rule, get.before, get.count) == ("K140", 0, 0)


def test_k141_on_6_14_a_returned_slab_page_is_freed_under_its_new_owner() -> None:
    for submitter in ("xfs_kmalloc_subpage", "jbd_frozen_slab"):
        case = f"none@{{}}/{submitter}/slab_shrink/COW"
        assert run(case.format("6.14")).outcome == "premature-free"
        assert run(case.format("6.1")).outcome == "ok"


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        # The caller transmits: no frame waits.
        ("2.6.21", "ok"),
        # CVE-2023-6270.
        ("3.7", "BUG"),
        ("3.12", "BUG"),
        # Fixed in the stable kernel 6.1.192.
        ("6.1", "ok"),
        ("6.17", "ok"),
    ],
)
def test_k105_k9_a_query_that_waits_for_the_tx_thread_uses_a_removed_interface(
    kernel: str, expected: str
) -> None:
    result = run(f"none@{kernel}/pagecache/netdev_removed/SG")
    assert result.outcome == expected
    if expected == "BUG":
        assert result.reason.startswith("K105 AoE driver dev_queue_xmit")
    else:
        removed = first(result.journal, "unregister_netdevice").step
        sent = [e.step for e in result.journal.entries if e.action == "transmit"]
        assert max(sent) < removed


# --- switches -------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("nic", ["NOSG", "COW"])
def test_k119_with_debug_vm_a_get_from_zero_is_a_bug_at_the_get(
    kernel: str, nic: str
) -> None:
    case = Case.parse(f"none@{kernel}/rawalloc_highorder_tail/clean/{nic}")
    result = run_case(case, Switches(debug_vm=True), keep_entries=True)
    assert result.outcome == "BUG"
    (fault,) = result.journal.faults
    assert (fault.action, fault.rule, fault.actor) == ("get_page", "K119", "network")
    # Nothing was freed.
    assert "free_page" not in {entry.action for entry in result.journal.entries}


def test_k119_with_debug_vm_a_put_at_zero_is_a_bug() -> None:
    case = "none@6.14/xfs_kmalloc_subpage/slab_shrink/COW"
    shrunk = Switches(debug_vm=True, victim="same")
    assert outcome(case, shrunk) == "ok", "the page is slab again"
    stale = "b+/rawalloc_highorder_tail/late_txdone+free/SG"
    assert outcome(stale, Switches()) == "underflow"
    assert outcome(stale, Switches(debug_vm=True)) == "BUG"


def test_k119_the_plain_increment_of_policy_a_is_not_checked() -> None:
    case = "a/rawalloc_highorder_tail/clean/NOSG"
    assert outcome(case, Switches(debug_vm=True)) == "ok"


def test_the_victim_decides_which_memory_the_put_hits() -> None:
    case = "none@6.14/xfs_kmalloc_subpage/slab_shrink/COW"
    assert outcome(case, Switches()) == outcome(case, Switches(victim="page"))
    assert outcome(case, Switches(victim="same")) == "ok"
    found = [
        explore(
            *("none@6.14", "COW", ["xfs_kmalloc_subpage"]),
            switches=Switches(victim=victim),
            violations={Fault.PREMATURE_FREE},
            failures=0,
        ).safe
        for victim in ("page", "same")
    ]
    assert found == [False, True]


def test_switches_are_options_and_shown_with_the_case() -> None:
    case = "none@6.1/pagecache/devfail+free/COW"
    options = ("--header", "early", "--debug-vm", "--victim", "page")
    text = aoe("explain", case, *options).stdout
    shown = text.splitlines()[0]
    assert shown == f"{case} --debug-vm --header early --victim page"
    assert aoe("explain", *shown.split()).stdout == text
    report = json.loads(aoe("explain", case, *options, "--json").stdout)
    assert report["switches"] == {
        "redzone": 0,
        "debug_vm": True,
        "header": "early",
        "victim": "page",
    }
    assert report["kernel"] == "6.1"
