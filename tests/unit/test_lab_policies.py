"""Page-count policies: outcomes, and no accounting outside the lab."""

from __future__ import annotations

import itertools
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

import initiator
from aoe.ata import SECTOR
from initiator.driver.bio import BioVec, Op, bio_for
from initiator.driver.driver import Driver
from initiator.driver.skbuff import Skb
from initiator.io.link_device import LinkDevice
from initiator.lab.cases import EVENTS
from initiator.lab.kernel.journal import BugOn, Flag, Journal
from initiator.lab.kernel.kernels import RULES_6_1
from initiator.lab.kernel.memory import PAGE_SIZE, Memory
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import MATRIX_POLICIES, sendpage_ok
from initiator.lab.kernel.skbuff import SkbOps
from initiator.lab.kernel.slab import KmemCache
from initiator.lab.kernel.submitters import SUBMITTERS
from tests.worlds import (
    count_changes,
    counts,
    disk,
    faults,
    first,
    make_world,
    outcomes,
    page_of,
    run,
    submit,
    world_after,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from aoe.net.link import Link
    from tests.unit.conftest import Connect, FakeTarget

COUNT_ZERO = ["kmalloc_highorder_tail", "rawalloc_highorder_tail", "stack_tail"]
SUBPAGE = ["xfs_kmalloc_subpage", "jbd_frozen_slab"]
FREEING = {"double-free", "premature-free", "underflow", "bad-page", "BUG", "leak"}
ACCOUNTING = {"memory.py", "slab.py", "policy.py", "journal.py"}
every_nic = pytest.mark.parametrize("nic", Nic.__members__)


# --- outcomes ---------------------------------------------------------------------


def test_k97_k99_policy_a_increments_at_arrival_and_decrements_before_end_io() -> None:
    """K95: the third option."""
    world = make_world("a", Nic.NOSG)
    write = submit(world, "rawalloc_highorder_tail")
    page = page_of(write)
    assert page.count == 1
    world.deliver_response()
    assert count_changes(world.journal, page) == [
        ("AoE driver", 1),
        ("network", 2),
        ("network", 1),
        ("AoE driver", 0),
    ]
    journal = world.journal
    arrives = first(journal, "page_ref_inc").step
    assert arrives < first(journal, "skb_fill_page_desc").step
    assert first(journal, "page_ref_dec").step < first(journal, "bi_end_io").step
    world.finish()
    assert not faults(journal)


def test_k97_a_compound_tail_is_a_bug_on_3_7_and_counted_in_its_head_on_3_12() -> None:
    assert run("a@3.7/kmalloc_highorder_tail/clean/SG").outcome == "BUG"
    world = world_after("a@3.12", "kmalloc_highorder_tail", "clean", Nic.NOSG)
    head = page_of(world.writes[0]).block[0]
    assert counts(world.journal, head)[:4] == [2, 3, 2, 1]
    assert world.journal.outcome == "ok"


def test_k98_6_1_undisturbed_fails_only_for_tails_of_raw_blocks() -> None:
    found = outcomes(["none@6.1"], SUBMITTERS, ["clean", "dup_response"], ["NOSG"])
    bad = {case.submitter for case, outcome in found.items() if outcome != "ok"}
    assert bad == {"rawalloc_highorder_tail"}
    assert run("none@6.1/rawalloc_highorder_tail/clean/SG").outcome == "ok"


def test_k99_an_owner_that_frees_the_page_before_end_io_leaks_it() -> None:
    world = make_world("a", Nic.SG)
    write = submit(world, "pagecache")
    page = page_of(write)
    world.free_buffer(write)
    world.deliver_response()
    assert counts(world.journal, page) == [2, 1, 0]
    assert (page.free, page.owner) == (False, None)
    assert faults(world.journal) == [("leak", page.pfn)]


def test_k99_an_owner_that_frees_the_page_after_end_io_does_not_leak_it() -> None:
    late = [event.name for event in EVENTS.values() if not event.frees_early]
    found = outcomes(["a"], ["pagecache"], late, Nic.__members__)
    assert "leak" not in found.values()


@every_nic
def test_k99_the_event_free_before_end_io_leaks_with_policy_a(nic: str) -> None:
    result = run(f"a/pagecache/free_before_end_io/{nic}")
    assert result.outcome == "leak"
    assert result.reason.startswith("K99 AoE driver page_ref_dec page 0")
    for policy in MATRIX_POLICIES:
        if policy != "a":
            assert run(f"{policy}/pagecache/free_before_end_io/{nic}").outcome == "ok"


@pytest.mark.parametrize("submitter", [*SUBPAGE, "kmalloc_highorder_tail"])
def test_k141_the_event_slab_shrink_breaks_frozen_pages(submitter: str) -> None:
    found = outcomes(["none@6.14", "b"], [submitter], ["slab_shrink"], ["COW"])
    assert list(found.values()) == ["premature-free", "ok"]


def test_k100_with_policy_b_slab_does_not_give_a_referenced_page_back() -> None:
    case = "{}/kmalloc_highorder_tail/slab_shrink/COW"
    kept = run(case.format("b")).journal
    freed = first(kept, "kmem_cache_shrink").step
    put = [e for e in kept.entries if e.actor == "network" and e.action == "put_page"]
    assert freed < put[0].step
    pages = [e.step for e in kept.entries if e.action == "free_page" and e.page == 1]
    assert put[0].step < pages[0]
    assert run(case.format("none@2.6.21")).outcome == "premature-free"


def test_k76_policy_a_does_not_protect_pages_after_bi_end_io() -> None:
    found = outcomes(["a"], COUNT_ZERO, ["late_txdone"], Nic.__members__)
    bad = {case.nic for case, outcome in found.items() if outcome != "ok"}
    assert bad == {"COW"}


def test_k100_policy_b_protects_slab_pages_from_k75_and_k76() -> None:
    slab = [*SUBPAGE, "kmalloc_highorder_tail"]
    found = outcomes(["b", "b+"], slab, EVENTS, Nic.__members__)
    assert not FREEING & set(found.values())


def test_k100_policy_b_defers_reuse_while_a_private_head_holds_references() -> None:
    case = "{}/xfs_kmalloc_subpage/stale_clone+free_realloc/COW"
    assert run(case.format("b")).outcome == "ok"
    assert run(case.format("none@2.6.21")).outcome == "wrong-bytes"


def test_k100_policy_b_does_not_protect_borrowed_fragments_from_k80() -> None:
    case = "b/xfs_kmalloc_subpage/stale_clone+free_realloc/SG"
    assert run(case).outcome == "wrong-bytes"


@pytest.mark.parametrize("nic", ["SG", "COW"])
@pytest.mark.parametrize("submitter", ["pagecache", *SUBPAGE, "kmalloc_highorder_tail"])
def test_k147_k143_with_b_plus_memory_is_not_reused_before_the_last_clone_is_freed(
    submitter: str, nic: str
) -> None:
    world = make_world("b+", Nic[nic])
    world.nic.hold_qdisc = True
    write = submit(world, submitter)
    page = page_of(write)
    world.nic.hold_qdisc = False
    world.free_in_end_io = True
    world.retransmit()
    world.deliver_response()
    # The frame has ended, and one clone of it waits in the qdisc.
    assert (write.ended, write.buffer.is_held, len(world.nic.qdisc)) == (True, False, 1)
    world.reallocate(SUBMITTERS[submitter])
    mine = {(p.pfn, offset) for p, offset, _ in write.buffer.pieces}
    others = {(p.pfn, offset) for p, offset, _ in world.realloc_buffers[0].pieces}
    assert not mine & others
    world.finish()
    assert not faults(world.journal)
    puts = [e for e in world.journal.entries if e.action == "put_page"]
    dropped = [e for e in puts if e.rule == "K147"]
    assert [(e.actor, e.page) for e in dropped] == [("network", page.pfn)]
    assert disk(world, len(write.expected)) == write.expected


@pytest.mark.parametrize("submitter", ["rawalloc_highorder_tail", "stack_tail"])
def test_k100_policy_b_does_not_protect_pages_that_are_not_slab(submitter: str) -> None:
    assert run(f"b/{submitter}/clean/NOSG").outcome == "double-free"


@every_nic
@pytest.mark.parametrize("submitter", COUNT_ZERO)
def test_k101_policy_c_frees_a_count_zero_page_by_its_own_put_in_end_io(
    submitter: str, nic: str
) -> None:
    world = make_world("c", Nic[nic])
    write = submit(world, submitter)
    page = page_of(write)
    assert not faults(world.journal)
    world.deliver_response()
    assert write.ended
    assert count_changes(world.journal, page)[0] == (write.buffer.owner, 1)
    assert count_changes(world.journal, page)[-1] == (write.buffer.owner, 0)
    assert ("premature-free", page.pfn) in faults(world.journal)
    assert first(world.journal, "bi_end_io").actor == write.buffer.owner


def test_each_party_has_one_name_in_the_journal() -> None:
    parties = {"page allocator", "slab", "bio", "network", "AoE driver", "new owner"}
    events = ["lost_rexmit_stale_clone", "dup_response", "devfail+free_realloc"]
    for policy, (name, submitter), event in itertools.product(
        MATRIX_POLICIES, SUBMITTERS.items(), events
    ):
        journal = world_after(policy, name, event, Nic.COW).journal
        actors = {entry.actor for entry in journal.entries}
        assert actors <= {*parties, submitter.owner}
        owners = {entry.owner for entry in journal.entries if entry.owner}
        assert owners <= {"slab", "AoE driver", "new owner", submitter.owner}


def test_k101_policy_c_plus_is_safe_with_whole_pages() -> None:
    found = outcomes(["c+"], SUBMITTERS, EVENTS, Nic.__members__)
    assert not FREEING & set(found.values())


@every_nic
def test_k101_policy_c_plus_d_stops_at_slab_pages_and_accepts_the_fixes(
    nic: str,
) -> None:
    for submitter in (*SUBPAGE, "kmalloc_highorder_tail", "jbd_kmalloc"):
        world = make_world("c+d", Nic[nic])
        with pytest.raises(BugOn):
            submit(world, submitter)
        # Nothing was referenced or freed.
        assert world.journal.costs.gets == 0
    for submitter in ("xfs_get_free_page", "jbd_get_free_page", "pagecache"):
        assert run(f"c+d/{submitter}/clean/{nic}").outcome == "ok"
    assert run(f"c+d/rawalloc_highorder_tail/clean/{nic}").outcome == "double-free"


@every_nic
def test_k101_policy_d_is_a_bug_for_slab_pages_only(nic: str) -> None:
    found = outcomes(["d"], SUBMITTERS, ["clean"], [nic])
    died = {case.submitter for case, outcome in found.items() if outcome == "BUG"}
    assert died == {*SUBPAGE, "kmalloc_highorder_tail", "kmalloc_large_tail"}


def test_k101_policy_d_misses_count_zero_pages_that_are_not_slab() -> None:
    assert run("d/rawalloc_highorder_tail/clean/NOSG").outcome == "double-free"


@pytest.mark.parametrize(
    ("submitter", "passes"),
    [
        ("pagecache", True),
        ("vmalloc_page", True),
        ("stack_tail", True),
        ("kmalloc_large_tail", True),
        ("xfs_kmalloc_subpage", False),
        ("jbd_frozen_slab", False),
        ("kmalloc_highorder_tail", False),
        ("rawalloc_highorder_tail", False),
    ],
)
@every_nic
def test_k102_a_page_that_fails_sendpage_ok_is_copied(
    submitter: str, nic: str, *, passes: bool
) -> None:
    world = make_world("e", Nic[nic])
    write = submit(world, submitter)
    assert sendpage_ok(page_of(write)) is passes
    assert (Flag.COPIED in world.journal.flags) is not passes
    world.deliver_response()
    world.finish()
    assert not faults(world.journal)
    assert disk(world, len(write.expected)) == write.expected


def test_k102_policy_e_frees_no_page_early_and_sends_no_reused_memory() -> None:
    events = [event for event in EVENTS if "rewrite" not in event]
    found = outcomes(["e"], SUBMITTERS, events, Nic.__members__)
    assert set(found.values()) == {"ok"}


def test_k102_sendpage_ok_of_a_compound_tail_depends_on_its_head() -> None:
    memory = Memory(4, RULES_6_1, Journal())
    _, tail = memory.alloc_pages(1, "user", compound=True)
    assert sendpage_ok(tail)
    assert not sendpage_ok(memory.alloc_pages(1, "bcache")[1])


@pytest.mark.parametrize("policy", ["none@6.1", "none@6.14"])
def test_k103_aoe_bypasses_the_checks_of_splice(policy: str) -> None:
    world = make_world(policy, Nic.NOSG)
    write = submit(world, "rawalloc_highorder_tail")
    page = page_of(write)
    # skb_splice_from_iter would warn and return -EIO. AoE fills fragments itself.
    assert not world.journal.flags
    assert counts(world.journal, page) == [1, 0]
    assert ("premature-free", page.pfn) in faults(world.journal)


def test_k104_a_missing_reference_is_a_bad_page_in_skb_release_data() -> None:
    memory = Memory(4, RULES_6_1, Journal())
    tail = KmemCache(memory, 2 * PAGE_SIZE, 1).alloc("ZFS").pieces()[1][0]
    skb = Skb()
    skb.frags, skb.owns_frags = [BioVec(tail, 0, 512)], True
    SkbOps(memory).release_data(skb)
    head = tail.compound_head.pfn
    assert faults(memory.journal) == [("bad-page", head), ("leak", head)]
    assert memory.journal.faults[0].note.startswith("network freed a slab page")
    assert not tail.compound_head.free


# --- outside the lab ------------------------------------------------------------------


class Ring:
    """A send ring that records the frames."""

    name = "eth0"
    mac = b"\2\0\0\0\0\1"
    mtu = 9000

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self._memory = memoryview(bytearray(10_000))

    def reserve(self) -> memoryview:
        return self._memory

    def commit(self, length: int) -> None:
        self.sent.append(bytes(self._memory[:length]))


@contextmanager
def files_that_run() -> Iterator[set[str]]:
    """Yield the set of the initiator's source files that run meanwhile."""
    home = Path(initiator.__file__).parent
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(None)
        names = {Path(f).name for f in files if Path(f).is_relative_to(home)}
        files.clear()
        files.update(names)


def read_and_write(target: FakeTarget) -> None:
    """Discover a device, write with one lost frame, and read the data back."""
    ring, driver = Ring(), Driver()
    netdev = LinkDevice(cast("Link", ring))
    driver.add_netdev(netdev)
    now = 0.0

    def deliver_responses() -> None:
        while ring.sent:
            frame = target.answer(ring.sent.pop(0))
            driver.receive(memoryview(frame), netdev, now)

    driver.discover()
    deliver_responses()
    (device,) = driver.devices.values()
    ended: list[object] = []
    data = bytes(range(256)) * 256
    driver.submit(device, bio_for(Op.WRITE, 0, data, ended.append), now)
    ring.sent.pop(0)
    deliver_responses()
    now = driver.next_timeout() or now
    driver.handle_timer(now)
    deliver_responses()
    buffer = bytearray(len(data))
    driver.submit(device, bio_for(Op.READ, 0, buffer, ended.append), now)
    deliver_responses()
    assert len(ended) == 2
    assert buffer == data
    assert target.disk[: len(data)] == data
    assert len(data) > 100 * SECTOR


def test_reads_and_writes_outside_the_lab_run_no_page_accounting(
    connect: Connect,
) -> None:
    target = connect(is_up=False).target
    with files_that_run() as files:
        read_and_write(target)
    assert files >= {"driver.py", "aoedev.py", "bio.py", "link_device.py"}
    assert not files & ACCOUNTING


def test_a_lab_world_runs_the_page_accounting() -> None:
    with files_that_run() as files:
        run("b/xfs_kmalloc_subpage/clean/COW")
    assert files >= ACCOUNTING


def test_the_disk_modules_do_not_import_the_page_accounting() -> None:
    script = (
        "import sys, initiator.disk.disk, initiator.disk.copy\n"
        "print(*(name for name in sys.modules if name.startswith('initiator.')))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "initiator.driver.driver" in loaded
    assert not {f"initiator.lab.kernel.{name[:-3]}" for name in ACCOUNTING} & {*loaded}
