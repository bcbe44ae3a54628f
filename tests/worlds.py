"""What the tests of the lab ask of its worlds: how counts moved, and what broke."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from initiator.lab.cases import EVENTS, Case, run_case
from initiator.lab.cases import play as play_event
from initiator.lab.kernel.journal import Journal
from initiator.lab.kernel.memory import PAGE_SIZE, RULES_2_6_21, Memory
from initiator.lab.kernel.policy import POLICIES
from initiator.lab.kernel.submitters import SUBMITTERS
from initiator.lab.world import World

if TYPE_CHECKING:
    from collections.abc import Iterable

    from initiator.lab.cases import Result
    from initiator.lab.kernel.journal import Entry
    from initiator.lab.kernel.memory import Page, Rules
    from initiator.lab.kernel.nic import Nic
    from initiator.lab.kernel.policy import Policy
    from initiator.lab.world import Write

_MOVES = {"get_page", "put_page", "page_ref_inc", "page_ref_dec", "free_pages"}


def make_memory(rules: Rules = RULES_2_6_21, pages: int = 8) -> Memory:
    return Memory(pages, rules, Journal())


def make_world(
    policy: str | Policy, nic: Nic, rules: Rules | None = None, redzone: int = 0
) -> World:
    if isinstance(policy, str):
        policy = POLICIES[policy]
    return World(policy, nic, rules=rules, redzone=redzone)


def submit(world: World, submitter: str) -> Write:
    return world.submit(SUBMITTERS[submitter])


def play(case: str) -> Result:
    """Play ``policy/submitter/event/nic`` and keep all of its journal."""
    return run_case(Case.parse(case), keep_entries=True)


def played(
    policy: str | Policy,
    submitter: str,
    event: str,
    nic: Nic,
    rules: Rules | None = None,
) -> World:
    """Play an event to its end and return the world."""
    world = make_world(policy, nic, rules)
    play_event(world, SUBMITTERS[submitter], EVENTS[event])
    return world


def outcomes(
    policies: Iterable[str],
    submitters: Iterable[str],
    events: Iterable[str],
    nics: Iterable[str],
) -> dict[Case, str]:
    """Play the cases and return the outcome of each."""
    axes = itertools.product(policies, submitters, events, nics)
    cases = itertools.starmap(Case, axes)
    return {case: run_case(case, compare=False).outcome for case in cases}


def page_of(write: Write) -> Page:
    """Return the page under test: the first of the buffer."""
    return write.buffer.pieces[0][0]


def moves(journal: Journal, page: Page) -> list[tuple[str, int | None]]:
    """Return who moved a page's count, and to what."""
    return [
        (entry.actor, entry.count)
        for entry in journal.entries
        if entry.page == page.pfn
        and entry.action in _MOVES
        and entry.before is not None
    ]


def counts(journal: Journal, page: Page) -> list[int | None]:
    """Return what a page's count became, move by move."""
    return [count for _, count in moves(journal, page)]


def faults(journal: Journal) -> list[tuple[str, int | None]]:
    """Return what broke, in order, and on which page."""
    return [(entry.fault.value, entry.page) for entry in journal.faults if entry.fault]


def first(journal: Journal, action: str) -> Entry:
    """Return the first event of a kind."""
    return next(entry for entry in journal.entries if entry.action == action)


def disk(world: World, length: int = PAGE_SIZE) -> bytes:
    """Return what the target has stored from its first sector on."""
    return world.peer.contents(0, length)
