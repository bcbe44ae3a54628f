"""The cases: policy x submitter x event x NIC, each run in its own world.

An event is a script of steps. The outcome of a case is the worst fault in the journal
of its world (K117).
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.errors import UsageError
from initiator.lab.drivers.models import DriverModel, find_driver
from initiator.lab.kernel.journal import BugOn, Entry, Flag, Journal
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import MATRIX_POLICIES, policy_on_kernel
from initiator.lab.kernel.submitters import SUBMITTERS, VARIANTS
from initiator.lab.tcp_world import TcpWorld
from initiator.lab.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.lab.kernel.kernels import Rules
    from initiator.lab.kernel.policy import Policy
    from initiator.lab.kernel.submitters import Submitter
    from initiator.lab.machine import Machine
    from initiator.lab.peer import Peer

ALL_SUBMITTERS: Final = SUBMITTERS | VARIANTS


@dataclass(frozen=True, slots=True)
class Event:
    """A script of what the network, the device and the owner do.

    Args:
        name: name in reports and commands.
        summary: description in one line.
        stale: the first clone waits in the qdisc and is sent after bi_end_io.
        late: TX completion comes after bi_end_io.
        duplicate: the response arrives twice.
        fails: the device fails while the clone waits in the qdisc.
        frees: the owner frees the memory in bi_end_io.
        frees_early: the owner frees it before, when the frame was sent.
        shrinks: slab then returns its empty slabs to the page allocator.
        reallocates: a new owner then allocates memory and fills it: of the "same" kind,
            or a "page" from the page allocator.
        removed: in the end a config query waits for the AoE driver's tx thread while
            the interface is removed.
        rewrites: after bi_end_io the owner, who keeps the memory, writes new content
            into it.
    """

    name: str
    summary: str
    stale: bool = False
    late: bool = False
    duplicate: bool = False
    fails: bool = False
    frees: bool = False
    frees_early: bool = False
    shrinks: bool = False
    reallocates: str = ""
    rewrites: bool = False
    removed: bool = False


EVENTS: Final = {
    event.name: event
    for event in (
        Event("clean", "transmitted, completed, response received"),
        Event("late_txdone", "response before TX completion", late=True),
        Event(
            "lost_rexmit_stale_clone",
            "first clone waits in the qdisc, response to its retransmission",
            stale=True,
        ),
        Event("dup_response", "the response arrives twice", duplicate=True),
        Event(
            "devfail_clone_in_flight",
            "device fails while a clone waits in the qdisc",
            fails=True,
        ),
        Event(
            "late_txdone+free",
            "response before TX completion, memory freed",
            late=True,
            frees=True,
        ),
        Event(
            "stale_clone+free",
            "stale clone transmitted after the memory was freed",
            stale=True,
            frees=True,
        ),
        Event(
            "devfail+free",
            "clone transmitted after device failure, memory freed",
            fails=True,
            frees=True,
        ),
        Event(
            "late_txdone+free_realloc",
            "response before TX completion, memory reused",
            late=True,
            frees=True,
            reallocates="same",
        ),
        Event(
            "stale_clone+free_realloc",
            "stale clone transmitted after the memory was reused",
            stale=True,
            frees=True,
            reallocates="same",
        ),
        Event(
            "devfail+free_realloc",
            "clone transmitted after device failure and reuse",
            fails=True,
            frees=True,
            reallocates="same",
        ),
        Event(
            "slab_shrink",
            "response before TX completion, slab returned, page reused",
            late=True,
            frees=True,
            shrinks=True,
            reallocates="page",
        ),
        Event(
            "free_before_end_io",
            "the owner frees the memory before bi_end_io",
            frees_early=True,
        ),
        Event(
            "netdev_removed",
            "a config query waits for the tx thread, the interface is removed",
            removed=True,
        ),
        Event(
            "stale_clone+rewrite_in_place",
            "stale clone transmitted after its owner wrote new content",
            stale=True,
            rewrites=True,
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
        """Parse ``a/rawalloc_highorder_tail/late_txdone/COW``.

        The policy may be followed by ``@`` and a kernel version.

        Raises:
            UsageError: the text is not four known names.
        """
        parts = text.split("/")
        axes = [list(axis) for axis in (ALL_SUBMITTERS, EVENTS, Nic.__members__)]
        if len(parts) != 1 + len(axes):
            raise UsageError(text, "not a case", "Write policy/submitter/event/nic")
        policy_or_driver(parts[0])
        for part, axis in zip(parts[1:], axes, strict=True):
            if part not in axis:
                raise UsageError(part, f"unknown (have: {', '.join(axis)})")
        return cls(*parts)

    def on_kernel(self, version: str) -> Case:
        """Return the case on another kernel.

        Raises:
            UsageError: no such kernel.
        """
        name = self.policy.partition("@")[0]
        policy_or_driver(f"{name}@{version}")
        return self._replace(policy=f"{name}@{version}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """What deviates from the defaults of the kernel in all cases of a run.

    Args:
        redzone: bytes in front of each object of plain kmalloc below 4 KiB: slab
            debugging. The slab is filled so far that the submitted object straddles
            pages, if one does (K138).
        debug_vm: the kernel has CONFIG_DEBUG_VM (K119).
        header: "early" or "late": when a clone gets its private head, if not as by
            default in this kernel (K152).
        victim: "page" or "same": which memory the new owner allocates, if not as in
            the event: a page from the page allocator, or memory of the same kind.
    """

    redzone: int = 0
    debug_vm: bool = False
    header: str = ""
    victim: str = ""

    @property
    def options(self) -> str:
        """The options of ``aoe lab`` for these switches, each with a leading space."""
        return "".join(
            (
                f" --redzone {self.redzone}" if self.redzone else "",
                " --debug-vm" if self.debug_vm else "",
                f" --header {self.header}" if self.header else "",
                f" --victim {self.victim}" if self.victim else "",
            )
        )

    def applied_to(self, rules: Rules) -> Rules:
        """Return the rules of a kernel with these switches."""
        return replace(
            rules,
            debug_vm=self.debug_vm or rules.debug_vm,
            early_head=self.header == "early" if self.header else rules.early_head,
        )


DEFAULT: Final = Switches()


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a case.

    Args:
        case: the case.
        switches: deviations from the defaults of the kernel.
        outcome: the worst fault, or ``ok`` (K117).
        flags: annotations, sorted.
        reason: the rule that decided the outcome, and a description.
        costs: see ``initiator.lab.kernel.journal.Costs``.
        longest_reference: how long a reference was held at most, in simulated seconds.
        journal: the event log.
    """

    case: Case
    switches: Switches
    outcome: str
    flags: tuple[str, ...]
    reason: str
    costs: dict[str, int]
    longest_reference: float
    journal: Journal


def policy_or_driver(text: str) -> tuple[Policy | DriverModel, Rules]:
    """Parse the first part of a case: a policy of the AoE driver, or another driver.

    Return it with the kernel that it runs on.

    Raises:
        UsageError: no such policy, driver or kernel.
    """
    driver = find_driver(text)
    return policy_on_kernel(text) if driver is None else (driver, driver.rules)


def on_kernels(policies: Sequence[str], kernels: Sequence[str]) -> tuple[str, ...]:
    """Return names of policies, by default all, on kernels, by default their own."""
    if not kernels:
        return tuple(policies)
    names = dict.fromkeys(
        name.partition("@")[0] for name in policies or MATRIX_POLICIES
    )
    return tuple(f"{name}@{kernel}" for kernel in kernels for name in names)


def all_cases(
    policies: Sequence[str] = (),
    submitters: Sequence[str] = (),
    events: Sequence[str] = (),
    nics: Sequence[str] = (),
) -> Iterator[Case]:
    """Yield all cases, or those of the given policies, submitters, events and NICs."""
    for names in itertools.product(
        policies or MATRIX_POLICIES,
        submitters or SUBMITTERS,
        events or EVENTS,
        nics or Nic.__members__,
    ):
        yield Case(*names)


def run_event(world: Machine, submitter: Submitter, event: Event) -> None:
    """Submit one write and run the event's script; stop at a BUG.

    Args:
        world: a new world.
        submitter: the submitter of the write.
        event: the script.
    """
    try:
        _script(world, submitter, event)
        world.finish()
    except BugOn:
        return


def _script(world: Machine, submitter: Submitter, event: Event) -> None:
    nic = world.nic
    nic.hold_qdisc = event.stale or event.fails
    nic.hold_completion = event.late
    world.free_in_end_io = event.frees
    write = world.submit(submitter)
    if event.frees_early:
        world.free_buffer(write)
    if event.fails:
        world.fail_device()
    else:
        if event.stale:
            nic.hold_qdisc = False
            world.retransmit()
        if event.duplicate:
            world.deliver_response(duplicate=True)
        world.deliver_response()
    if event.shrinks:
        world.shrink_slabs()
    if event.reallocates:
        is_page = event.reallocates == "page"
        world.reallocate(SUBMITTERS["pagecache"] if is_page else submitter)
    if event.rewrites:
        world.rewrite_when_ended(write)
    if event.removed:
        world.remove_netdev()


def run_case(
    case: Case, switches: Switches = DEFAULT, *, keep_entries: bool = False
) -> Result:
    """Run a case in a new world, with a target in memory.

    Args:
        case: the case.
        switches: deviations from the defaults.
        keep_entries: keep all entries in the result's journal, not only faults.
    """
    world = simulate_case(case, switches, keep_entries=True)
    result = result_of(case, world, switches)
    if not keep_entries:
        result.journal.entries.clear()
    return result


def simulate_case(
    case: Case,
    switches: Switches = DEFAULT,
    *,
    keep_entries: bool = False,
    peer: Peer | None = None,
    nic_mac: bytes | None = None,
) -> World | TcpWorld:
    """Run a case and return its world; arguments as for ``run_case`` and ``World``."""
    world = _make_world(case, switches, keep_entries, peer, nic_mac)
    submitter = ALL_SUBMITTERS[case.submitter]
    world.submitters.add_neighbours(submitter)
    event = EVENTS[case.event]
    if event.reallocates and switches.victim:
        event = replace(event, reallocates=switches.victim)
    run_event(world, submitter, event)
    return world


def _make_world(
    case: Case,
    switches: Switches,
    keep_entries: bool,  # noqa: FBT001 - internal
    peer: Peer | None,
    nic_mac: bytes | None,
) -> World | TcpWorld:
    chosen, rules = policy_or_driver(case.policy)
    if isinstance(chosen, DriverModel):
        if peer is not None:
            raise UsageError(
                chosen.name, "is simulated in memory only", "Leave out --wire and -i"
            )
        return TcpWorld(
            chosen,
            Nic[case.nic],
            rules=switches.applied_to(rules),
            keep_entries=keep_entries,
            redzone=switches.redzone,
        )
    return World(
        chosen,
        Nic[case.nic],
        rules=switches.applied_to(rules),
        keep_entries=keep_entries,
        peer=peer,
        nic_mac=nic_mac,
        redzone=switches.redzone,
    )


def result_of(case: Case, world: Machine, switches: Switches = DEFAULT) -> Result:
    """Return the result of a case from the world that it was run in.

    Args:
        case: the case.
        world: a world that has recorded all entries.
        switches: those of the run.
    """
    journal = world.journal
    return Result(
        case,
        switches,
        journal.outcome,
        tuple(sorted(flag.value for flag in journal.flags)),
        _reason(journal, case),
        asdict(journal.costs),
        round(journal.longest_reference(), 6),
        journal,
    )


def _reason(journal: Journal, case: Case) -> str:
    """Describe the first fault and, if a later one is worse, that one too."""
    worst = journal.worst
    if worst is None:
        return _why_ok(case, journal)
    first = journal.faults[0]
    description = _describe(journal.act_of(first), first)
    if first.fault is worst.fault:
        return description
    return f"{description}; then {_describe(worst, worst)}"


def _describe(act: Entry, fault: Entry) -> str:
    where = "" if act.page is None else f" page {act.page}"
    return f"{act.rule} {act.actor} {act.action}{where}: {fault.note}"


def _why_ok(case: Case, journal: Journal) -> str:
    driver = find_driver(case.policy)
    if driver is None:
        return {
            Nic.SG: "K74 clones share data, no page count changes",
            Nic.NOSG: "K75 gets and puts balance, no page was freed early",
            Nic.COW: "K76 gets and puts balance, no page was freed early",
        }[Nic[case.nic]]
    if Flag.WARN in journal.flags:
        return "K165 the network refused a page, nothing was freed"
    if Flag.COPIED in journal.flags:
        return f"{driver.rule} copied, the network refers to no page of the bio"
    return "K161 gets and puts of TCP balance, no page was freed early"
