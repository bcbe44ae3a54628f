"""All orders of events: what they break, what not, and that none is tried twice."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from aoe.errors import UsageError
from initiator.cli.commands.explore import explore as command
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
anywhere = pytest.mark.parametrize("nic", list(Nic.__members__))


def kinds(found: Exploration) -> list[str]:
    return [step.kind for step in found.path]


def fault_of(found: Exploration) -> tuple[Fault | None, str, int | None]:
    assert found.fault is not None
    return found.fault.fault, found.fault.rule, found.fault.page


def begin(policy: str, nic: str, submitter: str, **bounds: int) -> Stepper:
    setting = SearchConfig(
        policy, nic, (submitter,), Bounds(**bounds), VIOLATIONS | CONTENTS
    )
    return setting.begin()


# --- what is found --------------------------------------------------------------------


def test_k75_without_counts_submitting_a_tail_page_is_enough() -> None:
    """2.6.21 linearises when the frame is queued: 0, 1, 0, and the page is gone."""
    found = explore("none@2.6.21", "NOSG", RAW)
    assert not found.safe
    assert kinds(found) == ["submit"]
    assert fault_of(found) == (Fault.PREMATURE_FREE, "K75", 1)
    assert found.counterexample == ["bio 0 is submitted: rawalloc_highorder_tail"]


def test_k76_counting_in_aoe_breaks_when_tx_completion_is_late() -> None:
    found = explore("a", "COW", RAW)
    assert not found.safe
    assert kinds(found) == ["submit", "leave", "send", "answer", "complete"]
    assert fault_of(found) == (Fault.PREMATURE_FREE, "K76", 1)
    assert explore("a", "COW", RAW, max_steps=4).safe, "found, but not the shortest"


@pytest.mark.parametrize("nic", ["SG", "COW"])
def test_k80_counting_objects_does_not_help_a_stale_clone(nic: str) -> None:
    found = explore("b", nic, SUBPAGE, violations=CONTENTS, failures=0)
    assert fault_of(found)[:2] == (Fault.WRONG_BYTES, "K80")
    steps = kinds(found)
    assert steps[-1] == "send"
    assert "time out" in steps
    # The clone that does harm leaves after the bio has ended and its memory changed.
    ended = steps.index("answer")
    changed = max(steps.index(s) for s in ("rewrite", "reallocate") if s in steps)
    assert ended < changed < len(steps) - 1


def test_k81_a_failed_device_makes_a_stale_clone_sooner() -> None:
    found = explore("b", "SG", SUBPAGE, violations=CONTENTS)
    assert fault_of(found)[:2] == (Fault.WRONG_BYTES, "K81")
    assert "fail" in kinds(found)


def test_k120_copies_alone_keep_the_bytes_right() -> None:
    """Policy e copies slab objects and lends out all other pages."""
    assert explore("e", "SG", SUBPAGE, violations=CONTENTS).complete
    assert not explore("e", "SG", ["pagecache"], violations=CONTENTS).safe
    assert not explore("c+", "COW", SUBPAGE, violations=CONTENTS).safe


def test_k101_a_slab_page_in_a_bio_is_a_bug_at_once() -> None:
    found = explore("d", "SG", SUBPAGE)
    assert (kinds(found), fault_of(found)[0]) == (["submit"], Fault.BUG)


def test_k116_what_is_left_at_the_end_is_a_leak(
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
def test_a_counterexample_does_the_same_on_a_fresh_world(
    policy: str, nic: str, submitters: list[str]
) -> None:
    found = explore(policy, nic, submitters, violations=VIOLATIONS | CONTENTS)
    run, words = replay(found.setting, found.path)
    assert words == found.counterexample
    assert found.setting.violation(run.journal) == found.fault
    # Nothing was wrong before the last step.
    before, _ = replay(found.setting, found.path[:-1])
    assert found.setting.violation(before.journal) is None
    assert found.journal is not None
    assert found.journal.entries == run.journal.entries


# --- what is not found ----------------------------------------------------------------


@anywhere
@pytest.mark.parametrize("policy", ["c+", "e"])
def test_k101_k102_one_bio_is_safe_in_any_order_of_any_length(
    policy: str, nic: str
) -> None:
    found = explore(policy, nic, SUBPAGE)
    assert found.safe
    assert found.complete
    assert found.counterexample is None
    assert found.states > 200


@pytest.mark.parametrize("policy", ["c+", "e"])
def test_k101_k102_two_bios_on_a_slab_are_safe_for_nine_steps(policy: str) -> None:
    """Each of the two frames may time out once; the rest is as ``Bounds`` has it."""
    found = explore(policy, "COW", SUBPAGE, bios=2, retransmissions=1, max_steps=9)
    assert found.safe
    assert (found.steps, found.complete) == (9, False)
    assert found.states > 4_000


@pytest.mark.parametrize("policy", ["c+", "e"])
def test_k101_k102_two_bios_on_a_slab_are_safe_to_the_end(policy: str) -> None:
    """One retransmission each and a failure: both lost, both answered, all freed."""
    found = explore(
        policy, "COW", SUBPAGE, bios=2, retransmissions=1, duplicates=0, reallocations=0
    )
    assert found.safe
    assert found.complete
    assert found.steps > 20
    assert found.states > 6_000


def test_two_bios_of_policy_e_share_a_slab_page() -> None:
    run = begin("e", "COW", "xfs_kmalloc_subpage", bios=2)
    for number in range(2):
        run.apply(Step("submit", number, "xfs_kmalloc_subpage"))
    first, second = (write.buffer.pieces[0][0] for write in run.world.writes)
    assert first is second
    assert first.slab


def test_several_pages_make_several_frames() -> None:
    run = begin("e", "NOSG", "pagecache", buffers=3)
    run.apply(Step("submit", 0, "pagecache"))
    assert len(run.world.nic.qdisc) == 2
    assert Step("time out", 2) in run.enabled_steps(), (
        "sent at one time, lost at one time"
    )
    assert Step("time out", 1) not in run.enabled_steps()
    assert explore("e", "NOSG", ["pagecache"], buffers=3, max_steps=6).safe


def test_a_search_that_stops_early_says_how_far_it_went() -> None:
    found = explore("e", "COW", SUBPAGE, bios=2, max_states=500)
    assert found.safe
    assert not found.complete
    whole = explore("e", "COW", SUBPAGE, bios=2, max_steps=found.steps)
    assert whole.states <= found.states


# --- the search itself ----------------------------------------------------------------


def test_the_order_of_independent_steps_does_not_make_another_state() -> None:
    runs = [begin("e", "SG", "pagecache", bios=2) for _ in range(2)]
    for run in runs:
        for number in range(2):
            run.apply(Step("submit", number, "pagecache"))
    runs[0].apply(Step("leave", 0))
    runs[0].apply(Step("leave", 1))
    assert state_hash(runs[0]) != state_hash(runs[1])
    runs[1].apply(Step("leave", 1))
    runs[1].apply(Step("leave", 0))
    assert state_hash(runs[0]) == state_hash(runs[1])
    assert canonical_state(runs[0]) == canonical_state(runs[1])


def test_no_state_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []
    steps = Stepper.enabled_steps

    def note(self: Stepper) -> list[Step]:
        looked_at.append(state_hash(self))
        return steps(self)

    monkeypatch.setattr(Stepper, "enabled_steps", note)
    found = explore("e", "COW", SUBPAGE)
    assert len(looked_at) == len(set(looked_at)) == found.states
    assert found.edges > 2 * found.states


def futures(run: Stepper) -> frozenset[tuple[str, object]]:
    """Return what each step that can come next would lead to."""
    here = run.snapshots.take()
    found: set[tuple[str, object]] = set()
    for step in run.enabled_steps():
        before = len(run.journal.faults)
        try:
            run.apply(step)
        except BugOn:
            found.add((step.kind, "BUG"))
        else:
            found.add((step.kind, state_hash(run)))
        faults = (entry.fault for entry in run.journal.faults[before:])
        found |= {(step.kind, fault) for fault in faults}
        run.snapshots.restore(here)
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
    """Whatever ``digest`` leaves out makes no difference to what comes."""
    run = begin(policy, nic, submitter, bios=bios)
    known = {state_hash(run): futures(run)}
    level = [run.snapshots.take()]
    for _ in range(depth):
        following = []
        for here in level:
            run.snapshots.restore(here)
            for step in run.enabled_steps():
                run.snapshots.restore(here)
                try:
                    run.apply(step)
                except BugOn:
                    continue
                state, coming = state_hash(run), futures(run)
                if state not in known:
                    known[state] = coming
                    following.append(run.snapshots.take())
                assert known[state] == coming
        level = following
    assert len(known) > 100


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    explore(
        *("e", "COW", SUBPAGE),
        bios=2,
        max_steps=6,
        progress=lambda steps, states: told.append((steps, states)),
    )
    assert told == sorted(told)
    assert told


def test_unknown_names_are_told_with_the_known_ones() -> None:
    for names in (("g", "SG", RAW), ("a", "DMA", RAW), ("a", "SG", ["tape"])):
        with pytest.raises(UsageError, match=r"unknown \(have: "):
            explore(*names)


# --- the command ----------------------------------------------------------------------


def invoke(*words: str) -> Result:
    return CliRunner().invoke(command, words)


def test_the_command_tells_a_counterexample_and_fails() -> None:
    result = invoke("-p", "a", "-n", "COW", "-s", *RAW)
    assert result.exit_code == 1
    assert "premature-free after 5 step(s)" in result.output
    assert "  5. TX completion of clone 0 (of bio 0): it is freed" in result.output
    assert result.output.count(">>") == 1


def test_the_command_says_what_is_safe_and_succeeds() -> None:
    result = invoke("-p", "e", "-n", "SG", "-s", "pagecache")
    assert result.exit_code == 0
    assert "of any length" in result.output
    result = invoke("-p", "e", "-n", "SG", "-s", "pagecache", "--steps", "3")
    assert "of up to 3 steps" in result.output
    result = invoke("-p", "e", "-n", "SG", "-s", "pagecache", "--states", "50")
    assert "more was not tried" in result.output


def test_the_command_prints_json() -> None:
    words = ("-p", "b", "-n", "SG", "-s", *SUBPAGE, "--violation", "wrong-bytes")
    result = invoke(*words, "--json")
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


def test_the_command_knows_its_faults() -> None:
    result = invoke("-p", "a", "-n", "SG", "-s", *RAW, "--violation", "rust")
    assert isinstance(result.exception, UsageError)
    assert "premature-free" in str(result.exception)
