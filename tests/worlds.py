"""Helpers for tests of the lab: run worlds, read counts and faults from journals."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from initiator.lab.cases import ALL_SUBMITTERS, EVENTS, Case, run_case, run_event
from initiator.lab.kernel.journal import Journal
from initiator.lab.kernel.kernels import RULES_2_6_21
from initiator.lab.kernel.memory import PAGE_SIZE, Memory
from initiator.lab.kernel.policy import policy_on_kernel
from initiator.lab.kernel.submitters import SUBMITTERS
from initiator.lab.world import World

if TYPE_CHECKING:
    from collections.abc import Iterable

    from initiator.lab.cases import Result
    from initiator.lab.kernel.journal import Entry
    from initiator.lab.kernel.kernels import Rules
    from initiator.lab.kernel.memory import Page
    from initiator.lab.kernel.nic import Nic
    from initiator.lab.kernel.policy import Policy
    from initiator.lab.machine import Write

_COUNTING = {"get_page", "put_page", "page_ref_inc", "page_ref_dec", "free_pages"}


def make_memory(rules: Rules = RULES_2_6_21, pages: int = 8) -> Memory:
    return Memory(pages, rules, Journal())


def make_world(
    policy: str | Policy, nic: Nic, rules: Rules | None = None, redzone: int = 0
) -> World:
    if isinstance(policy, str):
        policy, own = policy_on_kernel(policy)
        rules = rules or own
    return World(policy, nic, rules=rules, redzone=redzone)


def submit(world: World, submitter: str) -> Write:
    return world.submit(ALL_SUBMITTERS[submitter])


def run(case: str) -> Result:
    """Run ``policy/submitter/event/nic`` and record all entries."""
    return run_case(Case.parse(case), keep_entries=True)


def world_after(
    policy: str | Policy,
    submitter: str,
    event: str,
    nic: Nic,
    rules: Rules | None = None,
) -> World:
    """Run an event and return its world."""
    world = make_world(policy, nic, rules)
    run_event(world, SUBMITTERS[submitter], EVENTS[event])
    return world


def outcomes(
    policies: Iterable[str],
    submitters: Iterable[str],
    events: Iterable[str],
    nics: Iterable[str],
) -> dict[Case, str]:
    """Run the cases and return their outcomes."""
    axes = itertools.product(policies, submitters, events, nics)
    cases = itertools.starmap(Case, axes)
    return {case: run_case(case).outcome for case in cases}


def page_of(write: Write) -> Page:
    """Return the first page of the buffer."""
    return write.buffer.pieces[0][0]


def count_changes(journal: Journal, page: Page) -> list[tuple[str, int | None]]:
    """Return the actor and the new count of each change of a page's count."""
    return [
        (entry.actor, entry.count)
        for entry in journal.entries
        if entry.page == page.pfn
        and entry.action in _COUNTING
        and entry.before is not None
    ]


def counts(journal: Journal, page: Page) -> list[int | None]:
    """Return the successive counts of a page."""
    return [count for _, count in count_changes(journal, page)]


def faults(journal: Journal) -> list[tuple[str, int | None]]:
    """Return the faults in order, with their pages."""
    return [(entry.fault.value, entry.page) for entry in journal.faults if entry.fault]


def first(journal: Journal, action: str) -> Entry:
    """Return the first entry with this action."""
    return next(entry for entry in journal.entries if entry.action == action)


def disk(world: World, length: int = PAGE_SIZE) -> bytes:
    """Return the first bytes of the target's disk."""
    return world.peer.contents(0, length)
