"""What happened in a modelled machine, in order, and which rule broke first.

Every get, put, allocation, copy and transmission of the lab is one entry. Outcomes are
never looked up: they are the worst of the faults that entries report.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, TypedDict, Unpack


class Fault(Enum):
    """What can go wrong with a page, worst first (K117)."""

    BUG = "BUG"
    DOUBLE_FREE = "double-free"
    PREMATURE_FREE = "premature-free"
    WRONG_BYTES = "wrong-bytes"
    LEAK = "leak"
    UNDERFLOW = "underflow"
    BAD_PAGE = "bad-page"


SEVERITY: Final = tuple(Fault)


class Flag(Enum):
    """Annotations beside an outcome (K117)."""

    WARN = "WARN"
    COPIED = "copied"
    EIO = "EIO"
    GHOST_WRITE = "ghost-write"
    DUP_WRITE = "dup-write"
    UNEXPECTED_RSP = "unexpected-rsp"


class Links(TypedDict, total=False):
    """What else an event is about, for those who draw it; see ``Entry``."""

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
        step: its number, from 0 on.
        actor: who did it: page allocator, slab, network, AoE, a filesystem.
        action: what, for example ``get_page``.
        page: frame number of the page, or None.
        count: the page's count afterwards, or None.
        before: the page's count before, or None.
        rule: the rule of kernel-path.md that it follows or breaks, or "".
        note: anything else, in words.
        fault: what is wrong with it, or None.
        owner: who has the page, or the slab object in it, from now on; "" when the
            actor gives it up; None where that stays as it is.
        span: pages from ``page`` on that the change of owner is about.
        compound: they are one compound page, whose head's count stands for all (K88).
        bio, skb, clone: numbers of those that it is about, from 0 on, or None.
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


class BugOn(Exception):  # noqa: N818 - the kernel's name
    """``BUG_ON`` was hit: the machine stops here."""


@dataclass(slots=True)
class Costs:
    """What a policy costs.

    Args:
        gets: references taken to pages.
        puts: references dropped.
        copied: bytes copied that need not have been.
        wasted: bytes allocated beyond what the buffer needs.
        held: bytes of memory held back from its owner beyond ``bi_end_io``.
        put_off: objects whose reuse was put off.
    """

    gets: int = 0
    puts: int = 0
    copied: int = 0
    wasted: int = 0
    held: int = 0
    quarantined: int = 0


class Journal:
    """The event log of one world.

    Args:
        keep: record the entries; without, only faults, flags and costs are kept, which
            is enough to explore many worlds.
    """

    __slots__ = (
        "_numbers",
        "costs",
        "entries",
        "faults",
        "flags",
        "keep_entries",
        "step",
    )

    def __init__(self, *, keep_entries: bool = True) -> None:
        self.keep_entries = keep_entries
        self.entries: list[Entry] = []
        self.faults: list[Entry] = []
        self.flags: set[Flag] = set()
        self.costs = Costs()
        self.step = 0
        self._numbers: dict[type, dict[object, int]] = {}

    def reset(self) -> None:
        """Begin at step 0 again: what happened so far is not part of the story."""
        self.entries.clear()
        self._numbers.clear()
        self.step = 0

    def number(self, thing: object) -> int | None:
        """Number a bio or an skb, from 0 on, as it first appears among its kind.

        None where no entries are kept.
        """
        if not self.keep_entries:
            return None
        known = self._numbers.setdefault(type(thing), {})
        return known.setdefault(thing, len(known))

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
        """Record an event; one with a fault is kept in any case."""
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
        """Record a BUG and stop the machine.

        Raises:
            BugOn: always.
        """
        self.add(actor, action, page=page, rule=rule, note=note, fault=Fault.BUG)
        raise BugOn(note)

    @property
    def worst(self) -> Entry | None:
        """The first of the worst faults, None if there was none."""
        return min(
            self.faults,
            key=lambda entry: SEVERITY.index(entry.fault or Fault.BAD_PAGE),
            default=None,
        )

    @property
    def outcome(self) -> str:
        """The word for what came of it (K117)."""
        worst = self.worst
        return worst.fault.value if worst and worst.fault else "ok"
