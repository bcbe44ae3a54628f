"""The 1,890 cases: policy x submitter x event x card, each on a world of its own.

The names are those of the axes; an event is a script. Nothing is looked up: a case's
outcome is the worst fault that its world recorded.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.errors import UsageError
from initiator.lab.kernel.journal import BugOn, Entry, Journal
from initiator.lab.kernel.memory import RULES_2_6_21
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import POLICIES
from initiator.lab.kernel.submitters import SUBMITTERS, VARIANTS
from initiator.lab.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.lab.kernel.memory import Rules
    from initiator.lab.kernel.submitters import Submitter
    from initiator.lab.peer import Peer

ALL_SUBMITTERS: Final = SUBMITTERS | VARIANTS


@dataclass(frozen=True, slots=True)
class Event:
    """What the network, the device and the owner do, in order.

    Args:
        name: as reports and commands call it.
        summary: one line for people.
        stale: the first clone stays queued and leaves after bi_end_io.
        late: TX completion comes after bi_end_io.
        duplicate: the answer comes twice.
        fails: the device is taken down while the clone is queued.
        reuse: what happens to the memory after bi_end_io: "" nothing, "free" its owner
            gives it up and somebody else fills it, "rewrite" its owner does.
    """

    name: str
    summary: str
    stale: bool = False
    late: bool = False
    duplicate: bool = False
    fails: bool = False
    reuse: str = ""


EVENTS: Final = {
    event.name: event
    for event in (
        Event("clean", "sent, completed, answered"),
        Event("late_txdone", "answered before TX completion", late=True),
        Event(
            "lost_rexmit_stale_clone",
            "first clone stuck in the queue, its retransmission answered",
            stale=True,
        ),
        Event("dup_response", "the answer comes twice", duplicate=True),
        Event(
            "devfail_clone_in_flight",
            "device failed while a clone is queued",
            fails=True,
        ),
        Event(
            "late_txdone+free_realloc",
            "answered before TX completion, memory reused",
            late=True,
            reuse="free",
        ),
        Event(
            "stale_clone+free_realloc",
            "stale clone leaves after the memory was reused",
            stale=True,
            reuse="free",
        ),
        Event(
            "devfail+free_realloc",
            "clone leaves after device failure and reuse",
            fails=True,
            reuse="free",
        ),
        Event(
            "stale_clone+rewrite_in_place",
            "stale clone leaves after its owner wrote new content",
            stale=True,
            reuse="rewrite",
        ),
    )
}


class Case(NamedTuple):
    """One cell of the matrix, written ``policy/submitter/event/nic``."""

    policy: str
    submitter: str
    event: str
    nic: str

    def __str__(self) -> str:
        return "/".join(self)

    @classmethod
    def parse(cls, text: str) -> Case:
        """Read ``a/rawalloc_highorder_tail/late_txdone/COW``.

        Raises:
            UsageError: not four names of the axes.
        """
        parts = text.split("/")
        axes = [
            list(axis) for axis in (POLICIES, ALL_SUBMITTERS, EVENTS, Nic.__members__)
        ]
        if len(parts) != len(axes):
            raise UsageError(text, "not a case", "Write it policy/submitter/event/nic")
        for part, axis in zip(parts, axes, strict=True):
            if part not in axis:
                raise UsageError(part, f"unknown (have: {', '.join(axis)})")
        return cls(*parts)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case.

    Args:
        case: which.
        outcome: the word, worst first (K117).
        flags: annotations, sorted.
        reason: the rule that decided it, and why.
        costs: see ``initiator.lab.kernel.journal.Costs``.
        if_late: the outcome if frames were linearised late, where 2.6.21 is only
            remembered to do it early and it makes a difference (K121).
        if_kept: the outcome if bad pages were kept out of circulation, likewise.
        journal: everything that happened.
    """

    case: Case
    outcome: str
    flags: tuple[str, ...]
    reason: str
    costs: dict[str, int]
    if_linearized_late: str
    if_bad_page_kept_out: str
    journal: Journal


def all_cases(
    policies: Sequence[str] = (),
    submitters: Sequence[str] = (),
    events: Sequence[str] = (),
    nics: Sequence[str] = (),
) -> Iterator[Case]:
    """Yield the cases, all or those of the named policies, submitters and so on."""
    for names in itertools.product(
        policies or POLICIES,
        submitters or SUBMITTERS,
        events or EVENTS,
        nics or Nic.__members__,
    ):
        yield Case(*names)


def play(world: World, submitter: Submitter, event: Event) -> None:
    """Let the event happen to one write; a BUG ends it early."""
    try:
        _script(world, submitter, event)
        world.finish()
    except BugOn:
        return


def _script(world: World, submitter: Submitter, event: Event) -> None:
    nic = world.nic
    nic.hold_qdisc = event.stale or event.fails
    nic.hold_completion = event.late
    world.free_in_end_io = event.reuse == "free"
    write = world.submit(submitter)
    if event.fails:
        world.fail_device()
    else:
        if event.stale:
            nic.hold_qdisc = False
            world.retransmit()
        if event.duplicate:
            world.deliver_response(duplicate=True)
        world.deliver_response()
    if event.reuse == "free":
        world.reallocate(submitter)
    elif event.reuse == "rewrite":
        world.rewrite(write)


def run_case(case: Case, *, keep_entries: bool = False, compare: bool = True) -> Result:
    """Play a case on a world of its own, with an in-memory target.

    Args:
        case: which.
        keep_entries: record all entries of the journal, not only faults.
        compare: where the policy runs on 2.6.21, play it again under the two settings
            of which that kernel's own is only remembered (K121).
    """
    world = simulate_case(case, keep_entries=keep_entries)
    rules = world.memory.rules
    if_linearized_late = if_bad_page_kept_out = ""
    if compare and POLICIES[case.policy].rules == RULES_2_6_21:
        if_linearized_late = _differing(
            case, replace(rules, early_linearize=False), world
        )
        if_bad_page_kept_out = _differing(
            case, replace(rules, bad_page_freed=False), world
        )
    return result_of(case, world, if_linearized_late, if_bad_page_kept_out)


def simulate_case(
    case: Case,
    *,
    keep_entries: bool = False,
    rules: Rules | None = None,
    peer: Peer | None = None,
    nic_mac: bytes | None = None,
) -> World:
    """Play a case and return its world; arguments as for ``World``."""
    world = World(
        POLICIES[case.policy],
        Nic[case.nic],
        rules=rules,
        keep_entries=keep_entries,
        peer=peer,
        nic_mac=nic_mac,
    )
    play(world, ALL_SUBMITTERS[case.submitter], EVENTS[case.event])
    return world


def _differing(case: Case, rules: Rules, usual: World) -> str:
    outcome = simulate_case(case, rules=rules).journal.outcome
    return outcome if outcome != usual.journal.outcome else ""


def result_of(
    case: Case,
    world: World,
    if_linearized_late: str = "",
    if_bad_page_kept_out: str = "",
) -> Result:
    """Sum up a world that a case was played on."""
    journal = world.journal
    return Result(
        case,
        journal.outcome,
        tuple(sorted(flag.value for flag in journal.flags)),
        _reason(journal, case),
        asdict(journal.costs),
        if_linearized_late,
        if_bad_page_kept_out,
        journal,
    )


def _reason(journal: Journal, case: Case) -> str:
    """Name the rule that broke first and, if another fault is worse, that one too."""
    worst = journal.worst
    if worst is None:
        return _why_ok(case)
    first = journal.faults[0]
    words = _tell(first)
    return words if first.fault is worst.fault else f"{words}; then {_tell(worst)}"


def _tell(entry: Entry) -> str:
    where = "" if entry.page is None else f" page {entry.page}"
    return f"{entry.rule} {entry.actor} {entry.action}{where}: {entry.note}"


def _why_ok(case: Case) -> str:
    return {
        Nic.SG: "K74 clones share data, no page is touched",
        Nic.NOSG: "K75 every get has its put, and no count fell to zero early",
        Nic.COW: "K76 every get has its put, and no count fell to zero early",
    }[Nic[case.nic]]
