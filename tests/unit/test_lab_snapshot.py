"""Snapshots of worlds: restoring is exact and covers all attributes."""

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
from initiator.lab.kernel.policy import MATRIX_POLICIES
from initiator.lab.kernel.submitters import SUBMITTERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.lab.explorer.snapshot import Snapshots

CONTENTS = frozenset({Fault.WRONG_BYTES})


def make_stepper(policy: str, nic: str, submitter: str, **bounds: int) -> Stepper:
    config = SearchConfig(
        policy, nic, (submitter,), Bounds(**bounds), VIOLATIONS | CONTENTS
    )
    return config.make_stepper()


def apply_chosen(stepper: Stepper, steps: Sequence[int]) -> None:
    """Apply the enabled steps chosen by the numbers, until a BUG."""
    for number in steps:
        enabled = stepper.enabled_steps()
        if not enabled:
            return
        try:
            stepper.apply(enabled[number % len(enabled)])
        except BugOn:
            return


def components(item: object) -> Iterator[tuple[str, object]]:
    """Yield name and value of everything that an object refers to."""
    if isinstance(item, dict):
        for number, pair in enumerate(item.items()):
            yield f"{number}", pair
    elif isinstance(item, (set, frozenset)):
        yield from ((f"{n}", x) for n, x in enumerate(sorted(item, key=str)))
    elif isinstance(item, FunctionType):
        for cell in item.__closure__ or ():
            yield "cell", cell.cell_contents
    elif hasattr(item, "__iter__") and hasattr(item, "__len__"):
        yield from ((f"{n}", x) for n, x in enumerate(item))
    else:
        slots = [n for t in type(item).__mro__ for n in getattr(t, "__slots__", ())]
        for name in (*slots, *getattr(item, "__dict__", ())):
            yield name, getattr(item, name, None)


def dump(stepper: Stepper) -> list[Any]:
    """Return all values reachable from a world, with the references between objects.

    Unlike a snapshot it finds attributes by introspection, so that new ones are
    included.
    """
    numbers: dict[int, int] = {}
    alive: list[object] = []
    found: list[Any] = []
    waiting: list[tuple[str, object]] = [
        ("world", stepper.world),
        ("run", (stepper.duplicates, stepper.rewritten)),
    ]
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, (int, float, str, bytes, type(None))):
            found.append((name, item))
        elif isinstance(item, (bytearray, memoryview)):
            found.append((name, bytes(item)))
        elif isinstance(item, (list, tuple)):
            # The identity of lists is not compared. A change in place shows in the
            # contents, which are.
            found.append((name, len(item)))
            waiting += components(item)
        elif id(item) in numbers:
            found.append((name, "as", numbers[id(item)]))
        else:
            numbers[id(item)] = len(numbers)
            alive.append(item)
            found.append((name, type(item).__name__))
            waiting += components(item)
    return found


steps_chosen = st.lists(st.integers(0, 60), max_size=14)


@given(
    policy=st.sampled_from(MATRIX_POLICIES),
    nic=st.sampled_from(list(Nic.__members__)),
    submitter=st.sampled_from(list(SUBMITTERS)),
    before=steps_chosen,
    other=steps_chosen,
    after=steps_chosen,
)
@settings(max_examples=120, deadline=None)
def test_restoring_a_snapshot_is_exact(
    policy: str,
    nic: str,
    submitter: str,
    before: list[int],
    other: list[int],
    after: list[int],
) -> None:
    stepper = make_stepper(policy, nic, submitter, bios=2, buffers=2)
    start = stepper.snapshots.take()
    apply_chosen(stepper, before)
    middle = stepper.snapshots.take(start)
    at_middle = dump(stepper)
    apply_chosen(stepper, after)
    expected, expected_hash = dump(stepper), state_hash(stepper)
    for detour in (other, [*after, *other]):
        stepper.snapshots.restore(middle)
        assert dump(stepper) == at_middle
        apply_chosen(stepper, detour)
        stepper.snapshots.restore(start)
        stepper.snapshots.restore(middle)
        assert dump(stepper) == at_middle
    apply_chosen(stepper, after)
    assert state_hash(stepper) == expected_hash
    assert dump(stepper) == expected


CONSTANT = {
    "AoeDev": "_options address available_since candidates conflict epochs ext "
    "followups fw_ver ident is_unavailable_reported on_resize refusals tags takes_fua "
    "targets timing to_identify trim_blocks unavailable_since up_since verified "
    "write_locks",
    "AoeIf": "announced limit netdev search",
    "AoeTgt": "addr ask_at heard held identifying ifs is_proven other_lba_since page "
    "repeats_lba source window",
    "Bio": "end_io fua length op sector vecs size",
    "BioIter": "_vecs",
    "Buf": "bio covers flush iter",
    "Buffer": "free owner pieces wasted",
    "EpochGuard": "_address _clean_tags _covered _epoch _identity",
    "KmemCache": "counts_objects memory order redzone size",
    "Clone": "number",
    "Driver": "_at _checks _rexmit _user_tags devices foreign netdevs on_warning "
    "options page_hooks run_queue runts tag_base",
    "Frame": "fua min_response",
    "Journal": "_numbers costs keep_entries",
    "Memory": "arena journal pages rules",
    "ModelledNic": "_ops _wire kind mtu taps",
    "Page": "data pfn",
    "Stepper": "_payloads _victims bounds snapshots submitters track_contents world",
    "Skb": "head",
    "SkbOps": "_fragment_rule _on_unshare _sender memory",
    "SlabObject": "cache offset pages size",
    "Write": "bio buffer expected number",
    "World": "accounting driver journal memory name nic ops peer policy submitters",
}
"""Attributes that do not change after initialization if no entries are recorded."""
CONTAINERS = {
    "AoeDev": "bios factive rexmitq skbpool",
    "AoeTgt": "ffree",
    "KmemCache": "freelist slabs",
    "Driver": "log",
    "Journal": "entries faults flags",
    "Memory": "free_list",
    "ModelledNic": "qdisc ring sent tapped tx_list",
    "World": "realloc_buffers responses writes",
}
"""Lists and dicts that are never replaced; snapshots store their contents."""


@pytest.mark.parametrize("policy", ["b+", "e"])
def test_snapshots_cover_all_attributes(policy: str) -> None:
    """Add a new attribute to the snapshot module or to one of the lists above."""
    stepper = make_stepper(policy, "COW", "xfs_kmalloc_subpage", bios=2, buffers=9)
    for number in range(2):
        stepper.apply(Step("submit", number, "xfs_kmalloc_subpage"))
    snapshot = stepper.snapshots.take()
    covered_names: dict[str, set[str]] = {}
    items: dict[str, object] = {}
    for objects in (stepper.snapshots.permanent, snapshot.transient):
        for read, item in zip(objects.reads, objects.targets, strict=True):
            kind = type(item).__name__
            items[kind] = item
            if isinstance(read, attrgetter):
                covered_names.setdefault(kind, set()).update(read.__reduce__()[1])
    items["Memory"] = stepper.world.memory
    items["KmemCache"] = stepper.world.submitters.caches["slab"]
    assert items.keys() >= CONSTANT.keys()
    for kind in covered_names.keys() | CONSTANT.keys():
        constant = CONSTANT.get(kind, "")
        apart = CONTAINERS.get(kind, "").split()
        covered = covered_names.get(kind, set()) | {*constant.split(), *apart}
        assert {name for name, _ in components(items[kind])} == covered, kind


def test_equal_contents_have_equal_numbers() -> None:
    stepper = make_stepper("e", "SG", "pagecache")
    snapshots: Snapshots = stepper.snapshots
    first, second = stepper.world.memory.pages[:2]
    first.data[0] = 1
    numbers = snapshots.contents()
    assert numbers[0] != numbers[1]
    second.data[0] = 1
    assert snapshots.contents()[:2] == (numbers[0],) * 2
