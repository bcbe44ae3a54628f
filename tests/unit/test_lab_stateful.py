"""Worlds under any order of steps: what may not happen, what the books must say."""

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
from initiator.lab.kernel.policy import POLICIES
from initiator.lab.kernel.submitters import SUBMITTERS

if TYPE_CHECKING:
    from collections.abc import Collection

    from initiator.lab.explorer.steps import Step, Stepper

BOUNDS = Bounds(bios=3, buffers=2, retransmissions=2, duplicates=2, reallocations=3)
"""More than the explorer can try all orders of."""
ANYTHING = list(SUBMITTERS)
OF_FILESYSTEMS = ["pagecache", "xfs_kmalloc_subpage", "jbd_frozen_slab", "vmalloc_page"]
FREED_BADLY = {Fault.PREMATURE_FREE, Fault.DOUBLE_FREE}


class AnyStep(RuleBasedStateMachine):
    """A world, and whatever can happen next in it.

    Attributes:
        policy: who counts what.
        submitters: the kinds of memory to draw from.
        forbidden: faults that must never be recorded.
    """

    policy = "none@2.6.21"
    submitters: Collection[str] = ANYTHING
    forbidden: Collection[Fault] = ()

    def __init__(self) -> None:
        super().__init__()
        self.run: Stepper | None = None
        self.is_over = False

    @precondition(lambda self: self.run is None)
    @rule(
        nic=st.sampled_from(list(Nic.__members__)),
        data=st.data(),
    )
    def begin(self, nic: str, data: st.DataObject) -> None:
        kinds = st.lists(
            st.sampled_from(sorted(self.submitters)), min_size=1, max_size=3
        )
        setting = SearchConfig(
            self.policy, nic, tuple(data.draw(kinds)), BOUNDS, VIOLATIONS
        )
        self.run = setting.begin(keep_entries=True)

    @precondition(lambda self: self.run is not None)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        steps = [] if self.is_over else self.running.enabled_steps()
        if steps:
            self.take(data.draw(st.sampled_from(steps)))

    def take(self, step: Step) -> None:
        assert self.running.describe(step)
        try:
            self.running.apply(step)
        except BugOn:
            self.is_over = True

    @property
    def running(self) -> Stepper:
        assert self.run is not None
        return self.run

    def teardown(self) -> None:
        """Let everything come to its end: what is left over shows then."""
        if self.run is None:
            return
        while not self.is_over and not self.run.is_quiescent:
            self.take(self.run.enabled_steps()[0])
        if not self.is_over:
            self.take(FINISH)
        self.check()

    @precondition(lambda self: self.run is not None)
    @invariant()
    def check(self) -> None:
        self.nothing_forbidden_happened()
        self.each_bio_ends_at_most_once()
        self.counts_are_sound()
        self.the_free_list_is_free()

    def faults(self) -> set[Fault | None]:
        return {entry.fault for entry in self.running.journal.faults}

    def nothing_forbidden_happened(self) -> None:
        assert not self.faults() & set(self.forbidden)

    def each_bio_ends_at_most_once(self) -> None:
        """K115, as the journal and the write tell it."""
        entries = self.running.journal.entries
        ends = Counter(e.bio for e in entries if e.action == "bi_end_io")
        assert all(count == 1 for count in ends.values())
        assert ends.keys() == {w.number for w in self.running.world.writes if w.ended}

    def counts_are_sound(self) -> None:
        if Fault.UNDERFLOW not in self.faults():
            assert all(page.count >= 0 for page in self.running.world.memory.pages)

    def the_free_list_is_free(self) -> None:
        memory = self.running.world.memory
        if Fault.DOUBLE_FREE not in self.faults():
            assert len(set(memory.free_list)) == len(memory.free_list)
            assert all(page.free for page in memory.free_list)
            listed = set(memory.free_list)
            assert all(page in listed for page in memory.pages if page.free)


def walk(
    policy: str,
    submitters: Collection[str] = ANYTHING,
    forbidden: Collection[Fault] = (),
    examples: int = 20,
) -> None:
    machine = type(
        "AnyStepHere",
        (AnyStep,),
        {"policy": policy, "submitters": submitters, "forbidden": forbidden},
    )
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            report_multiple_bugs=False,
            # Where little is possible, most of what is drawn is not.
            suppress_health_check=[HealthCheck.filter_too_much],
        ),
    )


@pytest.mark.parametrize("policy", list(POLICIES))
def test_k115_k116_the_books_are_right_whatever_happens(policy: str) -> None:
    walk(policy)


def test_k101_on_whole_pages_nothing_is_freed_badly() -> None:
    walk("c+", OF_FILESYSTEMS, FREED_BADLY, examples=60)


def test_k102_copies_keep_all_kinds_of_memory_from_being_freed_badly() -> None:
    walk("e", ANYTHING, VIOLATIONS, examples=60)


def test_k75_and_without_counts_the_same_walk_finds_a_page_freed_badly() -> None:
    with pytest.raises(AssertionError, match="PREMATURE_FREE"):
        walk("none@2.6.21", ["rawalloc_highorder_tail"], FREED_BADLY)
