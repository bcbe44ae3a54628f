"""The event log of a modelled machine: entries, faults, flags and costs.

Every get, put, allocation, copy and transmission is one entry and cites its rule. The
outcome of a case is the worst fault among the entries (K117).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, TypedDict, Unpack


class Fault(Enum):
    """Faults of pages and their contents, worst first (K117)."""

    BUG = "BUG"
    DOUBLE_FREE = "double-free"
    PREMATURE_FREE = "premature-free"
    WRONG_BYTES = "wrong-bytes"
    LEAK = "leak"
    UNDERFLOW = "underflow"
    BAD_PAGE = "bad-page"


SEVERITY: Final = tuple(Fault)
_GETS: Final = frozenset({"get_page", "page_ref_inc"})
_PUTS: Final = frozenset({"put_page", "page_ref_dec"})
_COUNTING: Final = _GETS | _PUTS | {"free_pages"}
_REPORTS: Final = frozenset(
    {"bad_page", "free_page", "keep out", "kmem_freepages", "leak"}
)
"""Actions that find what an earlier act has done to a page count."""


class Flag(Enum):
    """Annotations of an outcome (K117)."""

    WARN = "WARN"
    COPIED = "copied"
    EIO = "EIO"
    GHOST_WRITE = "ghost-write"
    DUP_WRITE = "dup-write"
    UNEXPECTED_RSP = "unexpected-rsp"


class Links(TypedDict, total=False):
    """Optional fields of ``Entry``, used by the reports."""

    owner: str
    span: int
    compound: bool
    bio: int | None
    skb: int | None
    clone: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One event.

    Args:
        step: sequence number, from 0.
        actor: page allocator, slab, bio, network, packet socket, AoE driver, or the
            owner of the memory (``Submitter.owner``).
        action: the kernel function or event, for example ``get_page``.
        page: page frame number, or None.
        count: page count after the event, or None.
        before: page count before the event, or None.
        rule: the K rule that the event follows or breaks, or "".
        note: further details as text.
        fault: the fault that this event is, or None.
        owner: new owner of the page or of a slab object in it; "" if the actor
            releases it; None if the owner does not change.
        span: number of pages, from ``page`` on, whose owner changes.
        compound: the pages are one compound page and share the head's count (K88).
        bio, skb, clone: sequence numbers, from 0, or None.
        time: simulated time, in seconds.
    """

    step: int
    actor: str
    action: str
    page: int | None = None
    before: int | None = None
    count: int | None = None
    rule: str = ""
    note: str = ""
    fault: Fault | None = None
    owner: str | None = None
    span: int = 1
    compound: bool = False
    bio: int | None = None
    skb: int | None = None
    clone: int | None = None
    time: float = 0.0


class BugOn(Exception):  # noqa: N818 - the kernel's name
    """``BUG_ON`` was hit; the modelled machine stops."""


@dataclass(slots=True)
class Costs:
    """The costs of a policy.

    Args:
        gets: references taken to pages.
        puts: references dropped.
        copied: bytes of payload copied.
        wasted: bytes allocated beyond what the buffer needs.
        held: bytes that other references keep allocated after the owner freed them.
        deferred: slab objects whose reuse was deferred (K100).
    """

    gets: int = 0
    puts: int = 0
    copied: int = 0
    wasted: int = 0
    held: int = 0
    deferred: int = 0


class Journal:
    """The event log of one world.

    Args:
        keep_entries: record all entries. Otherwise record only faults, flags and
            costs, which is what the explorer needs.

    Attributes:
        now: simulated time, in seconds.
    """

    __slots__ = (
        "_numbers",
        "costs",
        "entries",
        "faults",
        "flags",
        "keep_entries",
        "now",
        "step",
    )

    def __init__(self, *, keep_entries: bool = True) -> None:
        self.keep_entries = keep_entries
        self.entries: list[Entry] = []
        self.faults: list[Entry] = []
        self.flags: set[Flag] = set()
        self.costs = Costs()
        self.step = 0
        self.now = 0.0
        self._numbers: dict[type, dict[object, int]] = {}

    def reset(self) -> None:
        """Discard the entries and restart at step 0, after the machine is set up."""
        self.entries.clear()
        self._numbers.clear()
        self.step = 0

    def number(self, item: object) -> int | None:
        """Return the sequence number of a bio or an skb, from 0 per type.

        Return None if entries are not recorded.
        """
        if not self.keep_entries:
            return None
        known = self._numbers.setdefault(type(item), {})
        return known.setdefault(item, len(known))

    def add(
        self,
        actor: str,
        action: str,
        *,
        page: int | None = None,
        before: int | None = None,
        count: int | None = None,
        rule: str = "",
        note: str = "",
        fault: Fault | None = None,
        **links: Unpack[Links],
    ) -> None:
        """Record an event; a fault is recorded even without ``keep_entries``."""
        if self.keep_entries or fault is not None:
            entry = Entry(
                self.step,
                actor,
                action,
                page,
                before,
                count,
                rule,
                note,
                fault,
                time=self.now,
                **links,
            )
            if self.keep_entries:
                self.entries.append(entry)
            if fault is not None:
                self.faults.append(entry)
        self.step += 1

    def bug(
        self, actor: str, action: str, page: int | None, rule: str, note: str
    ) -> None:
        """Record a BUG and raise ``BugOn``.

        Raises:
            BugOn: always; the machine stops.
        """
        self.add(actor, action, page=page, rule=rule, note=note, fault=Fault.BUG)
        raise BugOn(note)

    @property
    def worst(self) -> Entry | None:
        """The first of the worst faults, or None."""
        return min(
            self.faults,
            key=lambda entry: SEVERITY.index(entry.fault or Fault.BAD_PAGE),
            default=None,
        )

    @property
    def outcome(self) -> str:
        """The name of the worst fault, or ``ok`` (K117)."""
        worst = self.worst
        return worst.fault.value if worst and worst.fault else "ok"

    def longest_reference(self) -> float:
        """Return how long a reference was held at most, in simulated seconds.

        Those of slab to its own objects do not count. Needs ``keep_entries``.
        """
        held: dict[int | None, list[Entry]] = {}
        longest = 0.0
        for entry in self.entries:
            gets = held.setdefault(entry.page, [])
            if entry.action in _GETS and entry.actor != "slab":
                gets.append(entry)
            elif entry.action in _PUTS and entry.actor != "slab" and gets:
                get = _dropped_by(entry, gets)
                gets.remove(get)
                longest = max(longest, entry.time - get.time)
        return longest

    def act_of(self, fault: Entry) -> Entry:
        """Return the event that broke the rule which ``fault`` reports.

        Most faults are that event themselves. But what an allocator finds was done
        before: by the get_page that nothing has dropped if the page has a count, and
        otherwise by the last put_page or free_pages. Needs ``keep_entries``.
        """
        if fault.action not in _REPORTS:
            return fault
        before = [e for e in self.entries[: fault.step] if e.action in _COUNTING]
        mine = [entry for entry in before if entry.page == fault.page]
        left: list[Entry] = []
        for entry in mine:
            if entry.action in _GETS:
                left.append(entry)
            elif entry.action in _PUTS and left:
                left.remove(_dropped_by(entry, left))
        if fault.count and left:
            return left[-1]
        return (mine or before or [fault])[-1]


def _dropped_by(put: Entry, gets: list[Entry]) -> Entry:
    """Return the reference that ``put`` drops: the first of its actor, if any.

    The network drops what the AoE driver has taken for fragments (K143).
    """
    return next((get for get in gets if get.actor == put.actor), gets[0])
