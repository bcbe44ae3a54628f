"""Random walks through worlds: faults that must not occur, and invariants."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from initiator.lab.explorer.explore import FINISH, VIOLATIONS, SearchConfig
from initiator.lab.explorer.steps import Bounds
from initiator.lab.kernel.journal import BugOn, Fault
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import MATRIX_POLICIES
from initiator.lab.kernel.submitters import SUBMITTERS

if TYPE_CHECKING:
    from collections.abc import Collection

    from initiator.lab.explorer.steps import Step, Stepper

BOUNDS = Bounds(bios=3, buffers=2, retransmissions=2, duplicates=2, reallocations=3)
"""Bounds too large for the explorer to try all interleavings."""
ALL = list(SUBMITTERS)
FILE_SYSTEMS = ["pagecache", "xfs_kmalloc_subpage", "jbd_frozen_slab", "vmalloc_page"]
WRONG_FREES = {Fault.PREMATURE_FREE, Fault.DOUBLE_FREE}


class RandomWalk(RuleBasedStateMachine):
    """A random walk through a world.

    Attributes:
        policy: the page-count policy.
        submitters: the submitters to draw from.
        forbidden: faults that must not occur.
    """

    policy = "none@2.6.21"
    submitters: Collection[str] = ALL
    forbidden: Collection[Fault] = ()

    def __init__(self) -> None:
        super().__init__()
        self.stepper: Stepper | None = None
        self.stopped = False

    @precondition(lambda self: self.stepper is None)
    @rule(
        nic=st.sampled_from(list(Nic.__members__)),
        data=st.data(),
    )
    def begin(self, nic: str, data: st.DataObject) -> None:
        kinds = st.lists(
            st.sampled_from(sorted(self.submitters)), min_size=1, max_size=3
        )
        config = SearchConfig(
            self.policy, nic, tuple(data.draw(kinds)), BOUNDS, VIOLATIONS
        )
        self.stepper = config.make_stepper(keep_entries=True)

    @precondition(lambda self: self.stepper is not None)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        steps = [] if self.stopped else self.active.enabled_steps()
        if steps:
            self.apply(data.draw(st.sampled_from(steps)))

    def apply(self, step: Step) -> None:
        assert self.active.describe(step)
        try:
            self.active.apply(step)
        except BugOn:
            self.stopped = True

    @property
    def active(self) -> Stepper:
        assert self.stepper is not None
        return self.stepper

    def teardown(self) -> None:
        """Run to quiescence and finish, to find leaks."""
        if self.stepper is None:
            return
        while not self.stopped and not self.stepper.is_quiescent:
            self.apply(self.stepper.enabled_steps()[0])
        if not self.stopped:
            self.apply(FINISH)
        self.check()

    @precondition(lambda self: self.stepper is not None)
    @invariant()
    def check(self) -> None:
        self.no_forbidden_fault_occurred()
        self.each_bio_ends_at_most_once()
        self.counts_are_not_negative()
        self.the_free_list_holds_the_free_pages()

    def faults(self) -> set[Fault | None]:
        return {entry.fault for entry in self.active.journal.faults}

    def no_forbidden_fault_occurred(self) -> None:
        assert not self.faults() & set(self.forbidden)

    def each_bio_ends_at_most_once(self) -> None:
        """Compare bi_end_io entries of the journal with the ended writes (K115)."""
        entries = self.active.journal.entries
        ends = Counter(e.bio for e in entries if e.action == "bi_end_io")
        assert all(count == 1 for count in ends.values())
        assert ends.keys() == {w.number for w in self.active.world.writes if w.ended}

    def counts_are_not_negative(self) -> None:
        if Fault.UNDERFLOW not in self.faults():
            assert all(page.count >= 0 for page in self.active.world.memory.pages)

    def the_free_list_holds_the_free_pages(self) -> None:
        memory = self.active.world.memory
        if Fault.DOUBLE_FREE not in self.faults():
            assert len(set(memory.free_list)) == len(memory.free_list)
            assert all(page.free for page in memory.free_list)
            listed = set(memory.free_list)
            assert all(page in listed for page in memory.pages if page.free)


def walk(
    policy: str,
    submitters: Collection[str] = ALL,
    forbidden: Collection[Fault] = (),
    examples: int = 20,
) -> None:
    machine = type(
        "RandomWalkHere",
        (RandomWalk,),
        {"policy": policy, "submitters": submitters, "forbidden": forbidden},
    )
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            report_multiple_bugs=False,
            # In states with few enabled steps most rules are filtered out.
            # On a busy machine all is slow.
            suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
        ),
    )


@pytest.mark.parametrize("policy", MATRIX_POLICIES)
def test_k115_k116_counts_and_free_list_are_consistent_in_random_walks(
    policy: str,
) -> None:
    walk(policy)


def test_k101_whole_pages_are_never_freed_prematurely_or_twice() -> None:
    walk("c+", FILE_SYSTEMS, WRONG_FREES, examples=60)


def test_k102_policy_e_has_no_violation_for_any_memory() -> None:
    walk("e", ALL, VIOLATIONS, examples=60)


def test_k75_without_references_the_random_walk_finds_a_premature_free() -> None:
    with pytest.raises(AssertionError, match="PREMATURE_FREE"):
        walk("none@2.6.21", ["rawalloc_highorder_tail"], WRONG_FREES)
