"""The explorer: violations found, safe policies, state hashing, and the command."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from aoe.errors import UsageError
from initiator.cli.commands.lab.explore import explore as command
from initiator.lab.explorer.explore import (
    FINISH,
    VIOLATIONS,
    SearchConfig,
    explore,
    replay,
)
from initiator.lab.explorer.state import canonical_state, state_hash
from initiator.lab.explorer.steps import Bounds, Step, Stepper
from initiator.lab.kernel.journal import BugOn, Fault
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import PageAccounting

if TYPE_CHECKING:
    from click.testing import Result

    from initiator.driver.skbuff import Skb
    from initiator.lab.explorer.explore import Exploration

CONTENTS = frozenset({Fault.WRONG_BYTES})
RAW = ["rawalloc_highorder_tail"]
SUBPAGE = ["xfs_kmalloc_subpage"]
every_nic = pytest.mark.parametrize("nic", list(Nic.__members__))


def kinds(found: Exploration) -> list[str]:
    return [step.kind for step in found.path]


def fault_of(found: Exploration) -> tuple[Fault | None, str, int | None]:
    assert found.fault is not None
    return found.fault.fault, found.fault.rule, found.fault.page


def make_stepper(policy: str, nic: str, submitter: str, **bounds: int) -> Stepper:
    config = SearchConfig(
        policy, nic, (submitter,), Bounds(**bounds), VIOLATIONS | CONTENTS
    )
    return config.make_stepper()


# --- violations -----------------------------------------------------------------------


def test_k75_without_references_submitting_a_tail_page_is_a_violation() -> None:
    """2.6.21 linearizes the skb before the qdisc: 0, 1, 0 frees the page."""
    found = explore("none@2.6.21", "NOSG", RAW)
    assert not found.safe
    assert kinds(found) == ["submit"]
    assert fault_of(found) == (Fault.PREMATURE_FREE, "K75", 1)
    assert found.counterexample == ["bio 0 is submitted: rawalloc_highorder_tail"]


def test_k76_policy_a_fails_if_tx_completion_is_late() -> None:
    found = explore("a", "COW", RAW)
    assert not found.safe
    assert kinds(found) == ["submit", "dequeue", "transmit", "response", "complete"]
    assert fault_of(found) == (Fault.PREMATURE_FREE, "K76", 1)
    assert explore("a", "COW", RAW, max_steps=4).safe, "found, but not the shortest"


@pytest.mark.parametrize("nic", ["SG", "COW"])
def test_k80_policy_b_does_not_prevent_stale_data(nic: str) -> None:
    found = explore("b", nic, SUBPAGE, violations=CONTENTS, failures=0)
    assert fault_of(found)[:2] == (Fault.WRONG_BYTES, "K80")
    steps = kinds(found)
    assert steps[-1] == "transmit"
    assert "time out" in steps
    # The stale clone is sent after the bio has ended and its memory has changed.
    ended = steps.index("response")
    changed = max(steps.index(s) for s in ("rewrite", "reallocate") if s in steps)
    assert ended < changed < len(steps) - 1


def test_k81_a_device_failure_leaves_a_stale_clone_in_fewer_steps() -> None:
    found = explore("b", "SG", SUBPAGE, violations=CONTENTS)
    assert fault_of(found)[:2] == (Fault.WRONG_BYTES, "K81")
    assert "fail" in kinds(found)


def test_k142_four_steps_free_page_cache_memory_of_6_1_twice() -> None:
    found = explore("none@6.1", "NOSG", ["pagecache"])
    assert kinds(found) == ["submit", "fail", "free", "dequeue"]
    assert fault_of(found) == (Fault.DOUBLE_FREE, "K75", 0)
    assert explore("none@2.6.21", "NOSG", ["pagecache"]).complete


def test_k120_only_copies_preserve_the_contents() -> None:
    """Policy e copies slab objects and borrows all other pages."""
    assert explore("e", "SG", SUBPAGE, violations=CONTENTS).complete
    assert not explore("e", "SG", ["pagecache"], violations=CONTENTS).safe
    assert not explore("c+", "COW", SUBPAGE, violations=CONTENTS).safe


def test_k141_frozen_pages_do_not_protect_a_slab_that_is_returned_meanwhile() -> None:
    """get_page did nothing, since the page was slab; put_page hits its new owner."""
    found = explore(
        "none@6.14", "COW", SUBPAGE, failures=0, violations={Fault.PREMATURE_FREE}
    )
    assert fault_of(found) == (Fault.PREMATURE_FREE, "K76", 0)
    assert kinds(found) == [
        *("submit", "dequeue", "transmit", "response"),
        *("free", "shrink", "reallocate", "complete"),
    ]
    assert found.path[-2].what == "pagecache"
    assert found.fault is not None
    assert found.fault.note == "freed by network, still used by new owner"


def test_k100_slab_returns_no_page_that_policy_b_plus_has_references_to() -> None:
    found = explore("b+", "COW", SUBPAGE)
    assert found.complete
    stepper = make_stepper("b+", "COW", "xfs_kmalloc_subpage")
    for step in ("submit", "dequeue", "transmit", "response", "free"):
        assert Step("shrink") not in stepper.enabled_steps()
        what = "xfs_kmalloc_subpage" if step == "submit" else ""
        stepper.apply(Step(step, 0, what))
    assert Step("shrink") not in stepper.enabled_steps()
    stepper.apply(Step("complete", 0))
    assert Step("shrink") in stepper.enabled_steps()


def test_k101_policy_d_is_a_bug_at_submission_of_a_slab_page() -> None:
    found = explore("d", "SG", SUBPAGE)
    assert (kinds(found), fault_of(found)[0]) == (["submit"], Fault.BUG)


def test_k116_an_allocated_page_in_a_quiescent_world_is_a_leak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forget(_: PageAccounting, skb: Skb) -> Skb:
        return skb

    monkeypatch.setattr(PageAccounting, "frame_done", forget)
    found = explore("b+", "SG", ["pagecache"], violations={Fault.LEAK})
    assert fault_of(found)[0] is Fault.LEAK
    assert found.path[-1] == FINISH


@pytest.mark.parametrize(
    ("policy", "nic", "submitters"),
    [("none@2.6.21", "NOSG", RAW), ("a", "COW", RAW), ("b", "SG", SUBPAGE)],
)
def test_a_counterexample_is_reproduced_on_a_new_world(
    policy: str, nic: str, submitters: list[str]
) -> None:
    found = explore(policy, nic, submitters, violations=VIOLATIONS | CONTENTS)
    stepper, descriptions, _ = replay(found.config, found.path)
    assert descriptions == found.counterexample
    assert found.config.violation(stepper.journal) == found.fault
    # Without the last step there is no violation.
    before, *_ = replay(found.config, found.path[:-1])
    assert found.config.violation(before.journal) is None
    assert found.journal is not None
    assert found.journal.entries == stepper.journal.entries


# --- safe policies --------------------------------------------------------------------


@every_nic
@pytest.mark.parametrize("policy", ["c+", "e"])
def test_k101_k102_one_bio_is_safe_in_all_interleavings(policy: str, nic: str) -> None:
    found = explore(policy, nic, SUBPAGE)
    assert found.safe
    assert found.complete
    assert found.counterexample is None
    assert found.states > 200


@pytest.mark.parametrize("policy", ["c+", "e"])
def test_k101_k102_two_bios_in_one_slab_are_safe_up_to_nine_steps(policy: str) -> None:
    """Each of the two frames may time out once; other bounds have their defaults."""
    found = explore(policy, "COW", SUBPAGE, bios=2, retransmissions=1, max_steps=9)
    assert found.safe
    assert (found.steps, found.complete) == (9, False)
    assert found.states > 4_000


@pytest.mark.parametrize("policy", ["c+", "e"])
def test_k101_k102_two_bios_in_one_slab_are_safe_in_all_interleavings(
    policy: str,
) -> None:
    """The bounds are one retransmission of each frame and one device failure."""
    found = explore(
        policy, "COW", SUBPAGE, bios=2, retransmissions=1, duplicates=0, reallocations=0
    )
    assert found.safe
    assert found.complete
    assert found.steps > 20
    assert found.states > 6_000


def test_two_bios_of_policy_e_share_a_slab_page() -> None:
    stepper = make_stepper("e", "COW", "xfs_kmalloc_subpage", bios=2)
    for number in range(2):
        stepper.apply(Step("submit", number, "xfs_kmalloc_subpage"))
    first, second = (write.buffer.pieces[0][0] for write in stepper.world.writes)
    assert first is second
    assert first.slab


def test_several_pages_are_sent_in_several_frames() -> None:
    stepper = make_stepper("e", "NOSG", "pagecache", buffers=3)
    stepper.apply(Step("submit", 0, "pagecache"))
    assert len(stepper.world.nic.qdisc) == 2
    assert Step("time out", 2) in stepper.enabled_steps(), (
        "sent at one time, lost at one time"
    )
    assert Step("time out", 1) not in stepper.enabled_steps()
    assert explore("e", "NOSG", ["pagecache"], buffers=3, max_steps=6).safe


def test_a_search_ended_by_max_states_reports_the_steps_completed() -> None:
    found = explore("e", "COW", SUBPAGE, bios=2, max_states=500)
    assert (found.safe, found.undecided, found.complete) == (False, "states", False)
    whole = explore("e", "COW", SUBPAGE, bios=2, max_steps=found.steps)
    assert whole.states <= found.states


# --- the search itself ----------------------------------------------------------------


def test_independent_steps_in_either_order_lead_to_equal_states() -> None:
    steppers = [make_stepper("e", "SG", "pagecache", bios=2) for _ in range(2)]
    for stepper in steppers:
        for number in range(2):
            stepper.apply(Step("submit", number, "pagecache"))
    steppers[0].apply(Step("dequeue", 0))
    steppers[0].apply(Step("dequeue", 1))
    assert state_hash(steppers[0]) != state_hash(steppers[1])
    steppers[1].apply(Step("dequeue", 1))
    steppers[1].apply(Step("dequeue", 0))
    assert state_hash(steppers[0]) == state_hash(steppers[1])
    assert canonical_state(steppers[0]) == canonical_state(steppers[1])


def test_no_state_is_expanded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    expanded = []
    steps = Stepper.enabled_steps

    def note(self: Stepper) -> list[Step]:
        expanded.append(state_hash(self))
        return steps(self)

    monkeypatch.setattr(Stepper, "enabled_steps", note)
    found = explore("e", "COW", SUBPAGE)
    assert len(expanded) == len(set(expanded)) == found.states
    assert found.edges > 2 * found.states


def futures(stepper: Stepper) -> frozenset[tuple[str, object]]:
    """Return the results of all enabled steps: state hashes and faults."""
    here = stepper.snapshots.take()
    found: set[tuple[str, object]] = set()
    for step in stepper.enabled_steps():
        before = len(stepper.journal.faults)
        try:
            stepper.apply(step)
        except BugOn:
            found.add((step.kind, "BUG"))
        else:
            found.add((step.kind, state_hash(stepper)))
        faults = (entry.fault for entry in stepper.journal.faults[before:])
        found |= {(step.kind, fault) for fault in faults}
        stepper.snapshots.restore(here)
    return frozenset(found)


@pytest.mark.parametrize(
    ("policy", "nic", "submitter", "bios", "depth"),
    [
        ("e", "COW", "xfs_kmalloc_subpage", 1, 12),
        ("b+", "NOSG", "jbd_frozen_slab", 1, 12),
        ("none@2.6.21", "SG", "rawalloc_highorder_tail", 1, 12),
        ("e", "SG", "pagecache", 2, 6),
        ("a", "COW", "kmalloc_highorder_tail", 2, 6),
    ],
)
def test_equal_states_have_equal_futures(
    policy: str, nic: str, submitter: str, bios: int, depth: int
) -> None:
    """What ``state_hash`` leaves out does not affect later states."""
    stepper = make_stepper(policy, nic, submitter, bios=bios)
    known = {state_hash(stepper): futures(stepper)}
    level = [stepper.snapshots.take()]
    for _ in range(depth):
        following = []
        for here in level:
            stepper.snapshots.restore(here)
            for step in stepper.enabled_steps():
                stepper.snapshots.restore(here)
                try:
                    stepper.apply(step)
                except BugOn:
                    continue
                state, coming = state_hash(stepper), futures(stepper)
                if state not in known:
                    known[state] = coming
                    following.append(stepper.snapshots.take())
                assert known[state] == coming
        level = following
    assert len(known) > 100


def test_progress_is_reported() -> None:
    reported: list[tuple[int, int]] = []
    explore(
        *("e", "COW", SUBPAGE),
        bios=2,
        max_steps=6,
        progress=lambda steps, states: reported.append((steps, states)),
    )
    assert reported == sorted(reported)
    assert reported


def test_an_unknown_name_is_rejected_with_the_known_names() -> None:
    for names in (("g", "SG", RAW), ("a", "DMA", RAW), ("a", "SG", ["tape"])):
        with pytest.raises(UsageError, match=r" \(have: "):
            explore(*names)


# --- the command ----------------------------------------------------------------------


def invoke(*descriptions: str) -> Result:
    return CliRunner().invoke(command, descriptions)


def test_the_command_prints_a_counterexample_and_fails() -> None:
    result = invoke("-p", "a", "-n", "COW", "-s", *RAW)
    assert result.exit_code == 1
    assert "premature-free after 5 step(s)" in result.output
    assert "  5. TX completion of clone 0 (of bio 0): it is freed" in result.output
    assert result.output.count(">>") == 1


def test_the_command_prints_the_extent_of_safety_and_succeeds() -> None:
    result = invoke("-p", "e", "-n", "SG", "-s", "pagecache")
    assert result.exit_code == 0
    assert "of any length" in result.output
    result = invoke("-p", "e", "-n", "SG", "-s", "pagecache", "--steps", "3")
    assert "of up to 3 steps" in result.output


def test_the_command_says_undecided_if_the_search_was_cut_short() -> None:
    result = invoke("-p", "e", "-n", "SG", "-s", "pagecache", "--states", "50")
    assert result.exit_code == 6
    assert "Undecided: none of these in any order of up to" in result.output
    assert "raise --states" in result.output
    assert "Safe" not in result.output
    report = json.loads(
        invoke(
            "-p", "e", "-n", "SG", "-s", "pagecache", "--states", "50", "--json"
        ).output
    )
    assert (report["safe"], report["undecided"]) == (False, "states")


def test_a_search_in_which_memory_ran_out_is_undecided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Stepper, "_pages_needed", lambda *_: 1)
    found = explore("e", "SG", ["pagecache"], bios=2)
    assert (found.safe, found.undecided, found.complete) == (False, "memory", False)
    result = invoke("-p", "e", "-n", "SG", "-s", "pagecache", "--bios", "2")
    assert result.exit_code == 6
    assert "ran out of memory" in result.output


def test_the_command_prints_json() -> None:
    descriptions = ("-p", "b", "-n", "SG", "-s", *SUBPAGE, "--violation", "wrong-bytes")
    result = invoke(*descriptions, "--json")
    document = json.loads(result.output)
    assert result.exit_code == 1
    assert document["command"] == "lab explore"
    assert document["violations"] == ["wrong-bytes"]
    assert document["safe"] is False
    assert document["fault"]["fault"] == "wrong-bytes"
    assert document["bounds"]["retransmissions"] == 1
    assert len(document["counterexample"]) == document["steps"]
    assert document["states"] > document["steps"]
    assert document["events"][-1] == document["fault"]
    safe = json.loads(invoke("-p", "e", "-n", "SG", "-s", "pagecache", "--json").output)
    assert safe["complete"] is True
    assert safe["counterexample"] is safe["fault"] is safe["events"] is None


def test_the_command_rejects_unknown_faults() -> None:
    result = invoke("-p", "a", "-n", "SG", "-s", *RAW, "--violation", "rust")
    assert isinstance(result.exception, UsageError)
    assert "premature-free" in str(result.exception)
