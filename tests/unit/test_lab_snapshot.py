"""Snapshots of worlds: restoring one is exact, and they forget nothing."""

from __future__ import annotations

from operator import attrgetter
from types import FunctionType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from initiator.lab.explorer.explore import VIOLATIONS, SearchConfig
from initiator.lab.explorer.state import state_hash
from initiator.lab.explorer.steps import Bounds, Step, Stepper
from initiator.lab.kernel.journal import BugOn, Fault
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import POLICIES
from initiator.lab.kernel.submitters import SUBMITTERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.lab.explorer.snapshot import Snapshots

CONTENTS = frozenset({Fault.WRONG_BYTES})


def begin(policy: str, nic: str, submitter: str, **bounds: int) -> Stepper:
    setting = SearchConfig(
        policy, nic, (submitter,), Bounds(**bounds), VIOLATIONS | CONTENTS
    )
    return setting.begin()


def wander(run: Stepper, steps: Sequence[int]) -> None:
    """Take the steps that the numbers choose, as long as the machine runs."""
    for number in steps:
        enabled = run.enabled_steps()
        if not enabled:
            return
        try:
            run.apply(enabled[number % len(enabled)])
        except BugOn:
            return


def parts(thing: object) -> Iterator[tuple[str, object]]:
    """Yield all that an object refers to, whatever it is."""
    if isinstance(thing, dict):
        for number, pair in enumerate(thing.items()):
            yield f"{number}", pair
    elif isinstance(thing, (set, frozenset)):
        yield from ((f"{n}", x) for n, x in enumerate(sorted(thing, key=str)))
    elif isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            yield "cell", cell.cell_contents
    elif hasattr(thing, "__iter__") and hasattr(thing, "__len__"):
        yield from ((f"{n}", x) for n, x in enumerate(thing))
    else:
        slots = [n for t in type(thing).__mro__ for n in getattr(t, "__slots__", ())]
        for name in (*slots, *getattr(thing, "__dict__", ())):
            yield name, getattr(thing, name, None)


def everything(run: Stepper) -> list[Any]:
    """Return all values in a world and beside it, with who refers to whom.

    Unlike a snapshot it knows no names: what somebody adds to a world is in it.
    """
    numbers: dict[int, int] = {}
    alive: list[object] = []
    found: list[Any] = []
    waiting: list[tuple[str, object]] = [
        ("world", run.world),
        ("run", (run.duplicates, run.rewritten)),
    ]
    while waiting:
        name, thing = waiting.pop()
        if isinstance(thing, (int, float, str, bytes, type(None))):
            found.append((name, thing))
        elif isinstance(thing, (bytearray, memoryview)):
            found.append((name, bytes(thing)))
        elif isinstance(thing, (list, tuple)):
            # Which of two equal lists it is does not matter while nobody changes one
            # in place, and who does so is caught: its contents are compared.
            found.append((name, len(thing)))
            waiting += parts(thing)
        elif id(thing) in numbers:
            found.append((name, "as", numbers[id(thing)]))
        else:
            numbers[id(thing)] = len(numbers)
            alive.append(thing)
            found.append((name, type(thing).__name__))
            waiting += parts(thing)
    return found


steps_chosen = st.lists(st.integers(0, 60), max_size=14)


@given(
    policy=st.sampled_from(list(POLICIES)),
    nic=st.sampled_from(list(Nic.__members__)),
    submitter=st.sampled_from(list(SUBMITTERS)),
    before=steps_chosen,
    astray=steps_chosen,
    after=steps_chosen,
)
@settings(max_examples=120, deadline=None)
def test_restoring_a_snapshot_is_exact(
    policy: str,
    nic: str,
    submitter: str,
    before: list[int],
    astray: list[int],
    after: list[int],
) -> None:
    run = begin(policy, nic, submitter, bios=2, buffers=2)
    start = run.snapshots.take()
    wander(run, before)
    middle = run.snapshots.take(start)
    was = everything(run)
    wander(run, after)
    then, then_digest = everything(run), state_hash(run)
    for lost in (astray, [*after, *astray]):
        run.snapshots.restore(middle)
        assert everything(run) == was
        wander(run, lost)
        run.snapshots.restore(start)
        run.snapshots.restore(middle)
        assert everything(run) == was
    wander(run, after)
    assert state_hash(run) == then_digest
    assert everything(run) == then


CONSTANT = {
    "AoeDev": "address ext fw_ver ident on_resize order rests takes_fua targets timing "
    "trim_blocks wants_identify",
    "AoeIf": "netdev",
    "AoeTgt": "addr ifs window",
    "Bio": "end_io fua length op sector vecs size",
    "BioIter": "_vecs",
    "Buf": "bio flush iter",
    "Buffer": "free owner pieces wasted",
    "KmemCache": "counts_objects memory order redzone size",
    "Clone": "number",
    "Driver": "_at _checks _rexmit _user_tags devices foreign later netdevs "
    "options page_hooks runts tag_base",
    "Frame": "everyday fua",
    "Journal": "_numbers costs keep_entries",
    "Memory": "arena journal pages rules",
    "ModelledNic": "_ops _wire kind mtu taps",
    "Page": "data pfn",
    "Stepper": "_payloads bounds contents snapshots submitters world",
    "Skb": "head",
    "SkbOps": "memory",
    "SlabObject": "cache offset pages size",
    "Write": "bio buffer expected number",
    "World": "accounting driver journal memory nic ops peer policy submitters",
}
"""Attributes that nothing changes once they are set, while no journal is kept."""
APART = {
    "AoeDev": "bios factive rexmitq skbpool",
    "AoeTgt": "ffree",
    "KmemCache": "slabs",
    "Driver": "log",
    "Journal": "entries faults flags",
    "Memory": "free_list",
    "ModelledNic": "qdisc ring sent tapped",
    "World": "realloc_buffers responses writes",
}
"""Attributes that are lists or dicts, never replaced: snapshots note what they hold."""


@pytest.mark.parametrize("policy", ["b+", "e"])
def test_snapshots_forget_no_attribute(policy: str) -> None:
    """A new attribute belongs into the snapshot module, or into a list here."""
    run = begin(policy, "COW", "xfs_kmalloc_subpage", bios=2, buffers=9)
    for number in range(2):
        run.apply(Step("submit", number, "xfs_kmalloc_subpage"))
    snapshot = run.snapshots.take()
    noted: dict[str, set[str]] = {}
    things: dict[str, object] = {}
    for objects in (run.snapshots.permanent, snapshot.transient):
        for read, thing in zip(objects.reads, objects.targets, strict=True):
            kind = type(thing).__name__
            things[kind] = thing
            if isinstance(read, attrgetter):
                noted.setdefault(kind, set()).update(read.__reduce__()[1])
    things["Memory"] = run.world.memory
    assert things.keys() >= CONSTANT.keys()
    for kind in noted.keys() | CONSTANT.keys():
        constant = CONSTANT.get(kind, "")
        apart = APART.get(kind, "").split()
        covered = noted.get(kind, set()) | {*constant.split(), *apart}
        assert {name for name, _ in parts(things[kind])} == covered, kind


def test_equal_contents_have_equal_numbers() -> None:
    run = begin("e", "SG", "pagecache")
    snapshots: Snapshots = run.snapshots
    first, second = run.world.memory.pages[:2]
    first.data[0] = 1
    numbers = snapshots.contents()
    assert numbers[0] != numbers[1]
    second.data[0] = 1
    assert snapshots.contents()[:2] == (numbers[0],) * 2
