"""What the kernel module reports about a case, judged by the rules of the lab.

A journal is the guest's kernel log. Lines with ``lab:`` are steps and changes of the
page under test; the kernel's own complaints are among them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final

from aoe.errors import UsageError
from initiator.lab.cases import EVENTS
from initiator.lab.kernel.journal import Fault
from initiator.lab.kernel.kernels import KERNELS
from initiator.lab.kernel.policy import policy_on_kernel
from initiator.lab.kernel.submitters import SUBMITTERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from initiator.lab.cases import Case

POLICIES: Final = {"none": "", "a": "policy_a", "c": "policy_c"}
"""Policies, and the words that the module knows for them.

The driver of a kernel of today has none. The module counts in the place of an older
driver (a) or of a file system (c)."""
SUBMITTED: Final = 0x5A
"""The byte that fills the submitted memory."""
SUBPAGE: Final = 1024
PAGE: Final = 4096
_STEP: Final = re.compile(r"\blab: (\w+)((?: \w+=\S+)*)\s*$")
_COMPLAINTS: Final = (
    re.compile(r"BUG: Bad page state in process \S+\s+pfn:([0-9a-f]+)"),
    re.compile(r"list_(?:add|del) (?:double add|corruption)[^:(]*"),
    re.compile(r"kernel BUG at \S+"),
    re.compile(r"general protection fault|Unable to handle kernel|Oops"),
    re.compile(r"refcount_t: [^;.]*"),
)
_OWNERS: Final = {"owner", "new_owner"}
_WORDS: Final = (
    "stale",
    "late",
    "duplicate",
    "fails",
    "frees",
    "reallocates",
    "rewrites",
)
"""Fields of an event that the module knows."""


def order_of(case: Case) -> str:
    """Return the order for the kernel module: kind of memory, steps, NIC."""
    event = EVENTS[case.event]
    words = [SUBMITTERS[case.submitter].kind.replace(" ", "_")]
    words += [word for word in _WORDS if getattr(event, word)]
    words += [] if case.nic == "SG" else [case.nic.lower()]
    return " ".join([*words, POLICIES[case.policy.partition("@")[0]]]).strip()


def modelled_kernel(release: str) -> str:
    """Return the lab's kernel for a release: 6.1 for 6.1.0-57-amd64 and for 6.12.

    Raises:
        UsageError: the release is not a version, or older than those of the lab.
    """
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        raise UsageError(release, "not a kernel version", "Example: 6.1.0-57-amd64")
    version = [int(number) for number in found.groups()]
    known = [
        name for name in KERNELS if [int(part) for part in name.split(".")] <= version
    ]
    if not known:
        raise UsageError(
            release, f"older than the kernels of the lab ({', '.join(KERNELS)})"
        )
    return known[-1]


def why_not(case: Case, kernel: str) -> str:
    """Return why a case cannot be run in a real kernel, or an empty string.

    Args:
        case: the case.
        kernel: the lab's name for the kernel.
    """
    policy, rules = policy_on_kernel(case.policy)
    event = EVENTS[case.event]
    if policy.name not in POLICIES:
        return (
            f"policy {policy.name} is not in the module (have: {', '.join(POLICIES)})"
        )
    if rules.name != kernel:
        return f"the kernel is {kernel}: write {policy.name}@{kernel}"
    if case.submitter not in SUBMITTERS:
        return f"not in the module (have: {', '.join(SUBMITTERS)})"
    steps = {each.name for each in fields(event)} - {"name", "summary", *_WORDS}
    if any(getattr(event, step) for step in steps) or event.reallocates == "page":
        return f"the module has no event {event.name}"
    if case.submitter == "stack_tail" and event.frees:
        return "a stack cannot be freed while a thread runs on it"
    return ""


@dataclass(frozen=True, slots=True)
class Step:
    """A line of the module, such as ``lab: xmit count=0 right=1``."""

    name: str
    values: dict[str, str]

    def number(self, key: str) -> int:
        """Return a value as a number."""
        return int(self.values[key], 0)


@dataclass(slots=True)
class Journal:
    """What a guest reported about a case.

    Args:
        steps: lines of the module, and complaints of the kernel as steps named
            ``kernel``.
        is_complete: the module has reported the end of the case.
    """

    steps: list[Step] = field(default_factory=list)
    is_complete: bool = False

    def of(self, name: str) -> list[Step]:
        """Return the steps of a name."""
        return [step for step in self.steps if step.name == name]

    @property
    def counts(self) -> str:
        """The counts of the page until another process gets it, as ``0-1-0``.

        Values that repeat are left out.
        """
        found = []
        for step in self.steps:
            if step.name == "page_alloc" and step.values["by"] not in _OWNERS:
                break
            if "count" in step.values:
                found.append(step.values["count"])
        kept = [n for n, last in zip(found, [None, *found], strict=False) if n != last]
        return "-".join(kept)

    @property
    def complaint(self) -> str:
        """The first complaint of the kernel, and the BUG that it ended in."""
        texts = [step.values["text"] for step in self.of("kernel")]
        fatal = [text for text in texts if text.startswith("kernel BUG")]
        return ", ".join(dict.fromkeys([*texts[:1], *fatal[:1]]))


def parse(lines: Iterable[str]) -> Journal:
    """Parse a guest's kernel log."""
    journal = Journal()
    for line in lines:
        if found := _STEP.search(line):
            values = dict(pair.split("=", 1) for pair in found[2].split())
            journal.steps.append(Step(found[1], values))
            journal.is_complete |= found[1] == "done"
        else:
            for pattern in _COMPLAINTS:
                if complaint := pattern.search(line):
                    text = complaint[0].strip()
                    pfn = complaint[1] if complaint.groups() else ""
                    journal.steps.append(Step("kernel", {"text": text, "pfn": pfn}))
    return journal


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a real kernel has done.

    Args:
        outcome: the worst fault, ``ok``, or ``not run``.
        facts: what was seen, in short sentences.
    """

    outcome: str
    facts: tuple[str, ...]


class _Page:
    """The state of the page under test, from the steps of a journal."""

    def __init__(self) -> None:
        self.holder = "owner"
        self.faults: list[Fault] = []
        self.facts: list[str] = []

    def _fault(self, fault: Fault, fact: str) -> None:
        self.faults.append(fault)
        self.facts.append(fact)

    def freed(self, by: str) -> None:
        if self.holder == "nobody":
            self._fault(Fault.DOUBLE_FREE, f"{_name(by)} freed it when it was free")
        elif self.holder == "kept out":
            self.facts.append(f"{_name(by)} freed it after the kernel kept it out")
        elif self.holder not in (by, "references"):
            fact = f"{_name(by)} freed it while {_name(self.holder)} had it"
            self._fault(Fault.PREMATURE_FREE, fact)
        self.holder = "nobody"

    def released(self, by: str) -> None:
        if self.holder == by:
            self.holder = "references"

    def allocated(self, by: str) -> None:
        if self.holder in _OWNERS:
            fact = f"{_name(by)} got it while {_name(self.holder)} had it"
            self._fault(Fault.PREMATURE_FREE, fact)
        self.holder = by

    def is_given_twice(self) -> None:
        self._fault(Fault.DOUBLE_FREE, "the page allocator gave it to two owners")

    def is_bad(self) -> None:
        self._fault(Fault.LEAK, "the kernel keeps it out of circulation")
        self.holder = "kept out"


def _name(who: str) -> str:
    return {"nobody": "nobody", "others": "another process"}.get(
        who, f"the {who.replace('_', ' ')}"
    )


def judge(journal: Journal, on_disk: bytes) -> Verdict:
    """Judge what a kernel has done.

    Args:
        journal: what the guest reported.
        on_disk: the sectors of the bio afterwards; zeros if nothing was written.
    """
    submitted = journal.of("submit")
    if not submitted:
        return Verdict("not run", ("the guest did not submit the write",))
    page = _Page()
    pfn = submitted[0].number("pfn")
    for step in journal.steps:
        if step.name == "frees":
            page.released(step.values["by"])
        elif step.name == "page_free":
            page.freed(step.values["by"])
        elif step.name == "page_alloc":
            page.allocated(step.values["by"])
        elif step.name == "reallocated" and step.values["same"] == "1":
            page.holder = "new_owner"
        elif step.name == "kernel" and step.values["pfn"]:
            if int(step.values["pfn"], 16) == pfn:
                page.is_bad()
        elif step.name == "drained" and step.number("times") > 1:
            page.is_given_twice()
    return _verdict(journal, page, on_disk)


def _verdict(journal: Journal, page: _Page, on_disk: bytes) -> Verdict:
    faults, facts = page.faults, page.facts
    wrong = [step for step in journal.of("xmit") if step.values["right"] == "0"]
    if wrong or on_disk.strip(bytes([SUBMITTED])).strip(b"\0"):
        faults.append(Fault.WRONG_BYTES)
        facts.append(f"on the disk: {_difference(on_disk)}")
    if not journal.is_complete:
        facts.append("the kernel stopped")
        if not faults:
            faults.append(Fault.BUG)
    if journal.complaint:
        facts.append(f"kernel: {journal.complaint}")
    facts.insert(0, f"count {journal.counts}")
    severity = list(Fault)
    worst = min(faults, key=severity.index).value if faults else "ok"
    return Verdict(worst, tuple(facts))


def _difference(on_disk: bytes) -> str:
    wrong = [at for at, byte in enumerate(on_disk) if byte != SUBMITTED]
    if not wrong:
        return "the submitted bytes, after others"
    first = on_disk[wrong[0] : wrong[0] + 8]
    return f"{len(wrong)} wrong bytes from {wrong[0]}, {first.hex()}..."


def length_of(case: Case) -> int:
    """Return the bytes that the module submits in a case."""
    is_object = SUBMITTERS[case.submitter].kind in ("slab", "jbd slab")
    return SUBPAGE if is_object else PAGE


def missing_steps(case: Case, journal: Journal) -> Sequence[str]:
    """Return what the event of a case requires and the journal does not have."""
    event = EVENTS[case.event]
    names = [step.name for step in journal.steps]
    missing = []
    if "end_io" not in names:
        return ["bi_end_io"]
    ends = names.index("end_io")
    if event.stale or event.fails:
        held = names.index("held") if "held" in names else ends
        if held >= ends:
            missing.append("held frame")
    if event.fails and journal.of("end_io")[0].number("status") == 0:
        missing.append("failed device")
    if event.reallocates and _could_reuse_and_did_not(journal):
        missing.append("memory reused by its new owner")
    return missing


def _could_reuse_and_did_not(journal: Journal) -> bool:
    """Return True if memory was free, and its new owner got other memory.

    A page that the network refers to is not free after its owner has released it.
    """
    names = [step.name for step in journal.steps]
    if "reallocated" not in names:
        return True
    at = names.index("reallocated")
    is_slab = journal.of("submit")[0].values["slab"] == "1"
    is_free = is_slab or "page_free" in names[:at]
    return is_free and journal.steps[at].values["same"] == "0"
