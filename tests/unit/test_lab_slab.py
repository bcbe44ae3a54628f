"""The lab's slab allocator: page counts, reuse of objects, deferred reuse, redzones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from aoe.errors import UsageError
from initiator.cli.main import cli
from initiator.driver.bio import Bio, Op
from initiator.lab.cases import Switches
from initiator.lab.explorer.explore import explore
from initiator.lab.kernel.kernels import RULES_2_6_21, RULES_6_1, RULES_6_14, Rules
from initiator.lab.kernel.memory import PAGE_SIZE
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import POLICIES
from initiator.lab.kernel.slab import KmemCache, SlabObject, calculate_slab_order
from initiator.lab.kernel.submitters import (
    SUBMITTERS,
    SUBPAGE,
    VARIANTS,
    Buffer,
    Submitters,
)
from tests.worlds import counts, disk, faults, first, make_memory, make_world, submit

REDZONE = 16
"""Bytes that make the fourth 1 KiB object of a slab straddle a page boundary."""


def make_cache(
    rules: Rules = RULES_2_6_21,
    size: int = SUBPAGE,
    order: int = 0,
    *,
    counts_objects: bool = False,
    redzone: int = 0,
) -> KmemCache:
    return KmemCache(make_memory(rules), size, order, counts_objects, redzone)


def pages(found: SlabObject) -> list[int]:
    return [page.pfn for page, _, _ in found.pieces()]


# --- page counts of objects -----------------------------------------------------------


def test_k85_the_second_page_of_a_large_kmalloc_has_count_zero_on_2_6_21() -> None:
    found = make_cache(RULES_2_6_21, 2 * PAGE_SIZE, 1).alloc("XFS")
    (head, _, _), (tail, _, _) = found.pieces()
    assert (head.slab, tail.slab) == (True, True)
    assert (head.compound_head.count, tail.compound_head.count) == (1, 0)


def test_k85_compound_slabs_are_counted_in_their_head() -> None:
    found = make_cache(RULES_6_1, 2 * PAGE_SIZE, 1).alloc("XFS")
    (head, _, _), (tail, _, _) = found.pieces()
    assert tail.compound_head is head
    assert (head.count, tail.count) == (1, 0)


def test_k86_the_page_of_a_sub_page_object_has_count_one_on_2_6_21() -> None:
    found = make_cache(RULES_2_6_21).alloc("XFS")
    assert [page.compound_head.count for page, _, _ in found.pieces()] == [1]


@pytest.mark.parametrize(("size", "order"), [(SUBPAGE, 0), (2 * PAGE_SIZE, 1)])
def test_k87_every_frozen_slab_page_has_count_zero(size: int, order: int) -> None:
    found = make_cache(RULES_6_14, size, order).alloc("XFS")
    assert {page.compound_head.count for page, _, _ in found.pieces()} == {0}


def test_k111_a_freed_object_is_reused_at_once() -> None:
    cache = make_cache()
    one, two = cache.alloc("a"), cache.alloc("b")
    assert (one.offset, two.offset) == (0, SUBPAGE)
    cache.free(one, "a")
    assert cache.alloc("c") is one
    assert one.owner == "c"


@pytest.mark.parametrize(
    ("rules", "counts_objects"),
    [
        (RULES_2_6_21, False),
        (RULES_2_6_21, True),
        (RULES_6_1, False),
        (RULES_6_1, True),
        (RULES_6_14, False),
    ],
)
@pytest.mark.parametrize(("size", "order"), [(SUBPAGE, 0), (2 * PAGE_SIZE, 1)])
def test_k111_an_empty_slab_returns_to_the_page_allocator(
    rules: Rules, size: int, order: int, *, counts_objects: bool
) -> None:
    cache = make_cache(rules, size, order, counts_objects=counts_objects)
    one = cache.alloc("a")
    cache.shrink()
    assert not one.pieces()[0][0].free
    cache.free(one, "a")
    cache.shrink()
    assert all(page.free for page in cache.memory.pages)
    assert [page.count for page in cache.memory.pages] == [0] * 8
    assert not faults(cache.memory.journal)


def test_k111_an_object_freed_twice_is_allocated_twice() -> None:
    cache = make_cache()
    one = cache.alloc("a")
    cache.free(one, "a")
    cache.free(one, "a")
    assert faults(cache.memory.journal) == [("double-free", pages(one)[0])]
    assert cache.alloc("b") is cache.alloc("c")


def test_k141_a_put_hits_the_new_owner_of_a_returned_slab() -> None:
    cache = make_cache(RULES_6_14)
    memory = cache.memory
    one = cache.alloc("a")
    page = one.pieces()[0][0]
    memory.get_page(page, "network", "K76")
    cache.free(one, "a")
    cache.shrink()
    while memory.alloc_pages(0, "b")[0] is not page:
        pass
    assert (page.owner, page.count) == ("b", 1)
    memory.put_page(page, "network", "K76")
    assert faults(memory.journal) == [("premature-free", page.pfn)]


# --- policy b -------------------------------------------------------------------------


def test_k100_an_object_holds_a_reference_to_its_page() -> None:
    cache = make_cache(counts_objects=True)
    one, two = cache.alloc("a"), cache.alloc("b")
    page = one.pieces()[0][0]
    assert page.count == 3
    cache.free(one, "a")
    cache.free(two, "b")
    assert counts(cache.memory.journal, page) == [2, 3, 2, 1]


def test_k100_reuse_of_an_object_is_deferred_while_its_page_is_referenced() -> None:
    cache = make_cache(counts_objects=True)
    one = cache.alloc("a")
    page = one.pieces()[0][0]
    cache.memory.get_page(page, "network", "K76")
    cache.free(one, "a")
    assert one.deferred
    assert cache.alloc("b") is not one
    costs = cache.memory.journal.costs
    assert (costs.deferred, costs.held) == (1, SUBPAGE)
    cache.memory.put_page(page, "network", "K76")
    assert not page.free
    assert cache.alloc("c") is one


def test_k100_reuse_stays_deferred_while_a_reference_remains() -> None:
    cache = make_cache(counts_objects=True)
    one = cache.alloc("a")
    cache.memory.get_page(one.pieces()[0][0], "network", "K76")
    cache.free(one, "a")
    cache.reap()
    cache.shrink()
    assert one.deferred
    assert not one.pieces()[0][0].free


def test_k100_a_slab_with_a_referenced_object_is_not_empty() -> None:
    cache = make_cache(counts_objects=True)
    one = cache.alloc("a")
    cache.memory.get_page(one.pieces()[0][0], "network", "K76")
    cache.free(one, "a")
    assert not cache.has_empty_slab
    cache.memory.put_page(one.pieces()[0][0], "network", "K76")
    assert cache.has_empty_slab


def test_k100_references_of_other_objects_do_not_defer_reuse() -> None:
    cache = make_cache(counts_objects=True)
    one, _ = cache.alloc("a"), cache.alloc("b")
    cache.free(one, "a")
    assert not one.deferred
    assert cache.alloc("c") is one


@pytest.mark.parametrize("rules", [RULES_2_6_21, RULES_6_1], ids=lambda r: r.name)
def test_k100_reuse_of_a_large_object_is_deferred_while_its_tail_is_referenced(
    rules: Rules,
) -> None:
    cache = make_cache(rules, 2 * PAGE_SIZE, 1, counts_objects=True)
    one = cache.alloc("a")
    tail = one.pieces()[1][0]
    cache.memory.get_page(tail, "network", "K76")
    cache.free(one, "a")
    assert one.deferred
    cache.memory.put_page(tail, "network", "K76")
    cache.reap()
    assert not one.deferred
    assert not faults(cache.memory.journal)


def test_k100_a_slab_holds_a_reference_to_each_of_its_pages() -> None:
    cache = make_cache(RULES_2_6_21, 2 * PAGE_SIZE, 1, counts_objects=True)
    one = cache.alloc("a")
    assert [page.count for page, _, _ in one.pieces()] == [2, 2]
    cache.free(one, "a")
    assert [page.count for page, _, _ in one.pieces()] == [1, 1]
    assert not faults(cache.memory.journal)


# --- redzones -------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "order"), [(1024, 0), (1040, 1), (1365, 0)])
def test_k85_a_slab_has_two_pages_if_one_wastes_more_than_an_eighth(
    stride: int, order: int
) -> None:
    assert calculate_slab_order(stride) == order


@given(st.integers(0, 1024), st.integers(0, 1))
def test_redzones_objects_do_not_overlap_and_stay_within_a_slab(
    redzone: int, order: int
) -> None:
    cache = make_cache(order=order, redzone=redzone)
    used: set[tuple[int, int]] = set()
    for _ in range(8):
        found = cache.alloc("a")
        pfns = pages(found)
        assert pfns == list(range(pfns[0], pfns[0] + len(pfns)))
        assert {page.pfn for page in found.pages} >= {*pfns}
        assert sum(length for _, _, length in found.pieces()) == SUBPAGE
        for page, offset, length in found.pieces():
            bytes_here = {(page.pfn, offset + n) for n in range(length)}
            assert not bytes_here & used
            used |= bytes_here


def test_redzones_misalign_objects_and_the_journal_notes_it() -> None:
    cache = make_cache(order=1, redzone=REDZONE)
    found = [cache.alloc("XFS") for _ in range(4)]
    assert [each.offset for each in found] == [16, 1056, 2096, 3136]
    assert [each.is_aligned for each in found] == [False] * 4
    assert [each.straddles for each in found] == [False, False, False, True]
    notes = [e.note for e in cache.memory.journal.entries if e.action == "kmalloc"]
    assert "not at a sector boundary" in notes[0]
    assert "across a page boundary" in notes[3]
    assert "across" not in notes[2]


def test_without_redzones_objects_are_aligned() -> None:
    cache = make_cache()
    found = [cache.alloc("XFS") for _ in range(8)]
    assert all(each.is_aligned and not each.straddles for each in found)
    assert "boundary" not in first(cache.memory.journal, "kmalloc").note


def hold_three(submitters: Submitters) -> list[Buffer]:
    return [submitters.allocate(VARIANTS["jbd_kmalloc"]) for _ in range(3)]


def test_redzones_a_straddling_buffer_has_two_fragments_and_is_written_correctly() -> (
    None
):
    world = make_world("none@2.6.21", Nic.SG, redzone=REDZONE)
    others = hold_three(world.submitters)
    world.nic.hold_qdisc = True
    write = submit(world, "jbd_kmalloc")
    assert [(o, n) for _, o, n in write.buffer.pieces] == [(3136, 960), (0, 64)]
    write.buffer.pieces[0][0].data[3136:3140] = b"head"
    write.buffer.pieces[1][0].data[60:64] = b"tail"
    write.expected = write.buffer.contents()
    (clone,) = world.nic.qdisc
    assert [frag.length for frag in clone.payload_pages] == [960, 64]
    world.nic.drain()
    world.deliver_response()
    assert disk(world, 1024) == b"head" + b"\x51" * 1016 + b"tail"
    assert write.ended
    for other in others:
        other.release()
    world.finish()
    assert not faults(world.journal)


@pytest.mark.parametrize("nic", [Nic.NOSG, Nic.COW])
def test_redzones_both_pages_of_a_straddling_buffer_get_references(nic: Nic) -> None:
    world = make_world("none@2.6.21", nic, redzone=REDZONE)
    hold_three(world.submitters)
    write = submit(world, "jbd_kmalloc")
    (near, _, _), (far, _, _) = write.buffer.pieces
    assert counts(world.journal, near) == [2, 1]
    # On 2.6.21 the slab's second page has count 0: 1, 0 frees it.
    assert counts(world.journal, far) == [1, 0]
    assert ("premature-free", far.pfn) in faults(world.journal)


@pytest.mark.parametrize("nic", list(Nic))
@pytest.mark.parametrize("policy", ["a", "b", "b+", "c+", "e", "none@6.1", "none@6.14"])
def test_redzones_are_harmless_if_the_second_page_is_compound_or_frozen(
    policy: str, nic: Nic
) -> None:
    world = make_world(policy, nic, redzone=REDZONE)
    others = [world.submitters.allocate(VARIANTS["jbd_kmalloc"]) for _ in range(3)]
    write = submit(world, "jbd_kmalloc")
    assert len(write.buffer.pieces) == (1 if policy == "c+" else 2)
    world.deliver_response()
    for other in others:
        other.release()
    world.finish()
    assert not faults(world.journal)
    assert disk(world, 1024) == write.expected


def test_redzones_half_of_a_straddling_buffer_is_rejected_without_a_get() -> None:
    world = make_world("a", Nic.NOSG, redzone=REDZONE)
    hold_three(world.submitters)
    buffer = world.submitters.allocate(VARIANTS["jbd_kmalloc"])
    ended: list[Bio] = []
    bio = Bio(Op.WRITE, 0, ended.append)
    page, offset, length = buffer.pieces[0]
    bio.add_page(page, length, offset)
    world.driver.submit(world.device, bio, 0.0)
    assert ended == [bio]
    assert isinstance(bio.error, UsageError)
    assert "sectors" in str(bio.error)
    assert counts(world.journal, page) == []


def test_k102_both_halves_of_a_straddling_buffer_are_copied_separately() -> None:
    world = make_world("e", Nic.SG, redzone=REDZONE)
    for _ in range(3):
        world.submitters.allocate(VARIANTS["jbd_kmalloc"])
    submit(world, "jbd_kmalloc")
    assert world.journal.costs.copied == 1024
    copies = [e.page for e in world.journal.entries if e.action == "copy"]
    assert len(set(copies)) == 2
    assert disk(world, 1024) == b"\x51" * 1024


def test_k92_xfs_of_6_1_allocates_a_page_instead_of_a_straddling_object() -> None:
    world = make_world("none@6.1", Nic.NOSG, redzone=REDZONE)
    hold_three(world.submitters)
    write = submit(world, "xfs_kmalloc_subpage")
    ((page, offset, length),) = write.buffer.pieces
    assert (page.slab, offset, length, page.count) == (False, 0, 1024, 1)
    assert write.buffer.wasted == PAGE_SIZE - 1024


def test_k138_xfs_of_2_6_21_doubles_the_size_until_its_buffer_is_aligned() -> None:
    submitters = Submitters(make_memory(RULES_2_6_21), POLICIES["none"], REDZONE)
    buffer = submitters.allocate(SUBMITTERS["xfs_kmalloc_subpage"])
    sizes = [
        e.note.split()[0]
        for e in submitters.memory.journal.entries
        if e.action == "kmalloc"
    ]
    assert sizes == ["1024", "2048", "4096"]
    ((page, offset, length),) = buffer.pieces
    assert (page.slab, page.count, offset, length) == (True, 1, 0, SUBPAGE)
    assert buffer.wasted == PAGE_SIZE - SUBPAGE
    buffer.release()
    submitters.reclaim()
    assert all(page.free for page in submitters.memory.pages)


@pytest.mark.parametrize("submitter", SUBMITTERS)
@pytest.mark.parametrize("rules", [RULES_2_6_21, RULES_6_1], ids=lambda r: r.name)
def test_k138_with_redzones_only_jbd_on_plain_kmalloc_straddles_pages(
    rules: Rules, submitter: str
) -> None:
    submitters = Submitters(make_memory(rules, 32), POLICIES["none"], REDZONE)
    for _ in range(4):
        buffer = submitters.allocate(SUBMITTERS[submitter])
        assert len(buffer.pieces) == 1
    straddling = [submitters.allocate(VARIANTS["jbd_kmalloc"]) for _ in range(4)]
    assert {len(buffer.pieces) for buffer in straddling} == {1, 2}


def test_the_option_redzone_shows_a_buffer_that_straddles_two_pages() -> None:
    def explained(case: str, *options: str) -> str:
        done = CliRunner().invoke(cli, ["lab", "explain", case, *options])
        assert done.exit_code == 0
        return done.stdout

    case = "none@2.6.21/jbd_kmalloc/clean/NOSG"
    assert "Outcome: ok" in explained(case)
    text = explained(case, "--redzone", "16")
    assert text.startswith(f"{case} --redzone 16\n")
    assert "960 bytes from 3136" in text
    assert "Outcome: BUG" in text
    assert "Outcome: ok" in explained(
        case.replace("none@2.6.21", "a"), "--redzone", "16"
    )
    xfs = case.replace("jbd_kmalloc", "xfs_kmalloc_subpage")
    assert "Outcome: ok" in explained(xfs, "--redzone", "16")


def test_the_explorer_finds_the_fault_of_a_straddling_buffer() -> None:
    switches = Switches(redzone=REDZONE)
    found = explore("none@2.6.21", "NOSG", ["jbd_kmalloc"], switches=switches)
    assert [step.kind for step in found.path] == ["submit"]
    assert explore("none@2.6.21", "NOSG", ["jbd_kmalloc"]).complete
    assert explore("b", "NOSG", ["jbd_kmalloc"], switches=switches, failures=0).complete


# --- submitters -----------------------------------------------------------------------


def test_k140_a_large_kmalloc_is_compound_on_6_1_and_slab_on_2_6_21() -> None:
    for rules, is_slab in ((RULES_2_6_21, True), (RULES_6_1, False)):
        submitters = Submitters(make_memory(rules), POLICIES["none"])
        buffer = submitters.allocate(SUBMITTERS["kmalloc_large_tail"])
        ((page, offset, length),) = buffer.pieces
        assert (page.pfn, offset, length, page.slab) == (1, 0, PAGE_SIZE, is_slab)
        assert (page.compound_head is page) == is_slab
        assert len(page.block) == 4


@pytest.mark.parametrize(
    ("submitter", "then", "now"),
    [
        ("pagecache", 1, 1),
        ("xfs_kmalloc_subpage", 1, 1),
        ("jbd_frozen_slab", 1, 1),
        ("kmalloc_highorder_tail", 0, 1),
        ("kmalloc_large_tail", 0, 1),
        ("rawalloc_highorder_tail", 0, 0),
        ("stack_tail", 0, 1),
        ("vmalloc_page", 1, 1),
    ],
)
def test_k84_to_k92_page_count_of_each_submitter(
    submitter: str, then: int, now: int
) -> None:
    for rules, count in ((RULES_2_6_21, then), (RULES_6_1, now)):
        submitters = Submitters(make_memory(rules), POLICIES["none"])
        buffer = submitters.allocate(SUBMITTERS[submitter])
        assert {page.compound_head.count for page, _, _ in buffer.pieces} == {count}


@pytest.mark.parametrize("submitter", SUBMITTERS)
@pytest.mark.parametrize("rules", [RULES_2_6_21, RULES_6_1, RULES_6_14])
def test_k116_a_freed_buffer_leaves_no_allocated_page(
    rules: Rules, submitter: str
) -> None:
    memory = make_memory(rules)
    submitters = Submitters(memory, POLICIES["none"])
    buffer = submitters.allocate(SUBMITTERS[submitter])
    buffer.release()
    buffer.release()
    submitters.reclaim()
    assert all(page.free for page in memory.pages)
    assert not faults(memory.journal)


@pytest.mark.parametrize("submitter", SUBMITTERS)
def test_k101_with_c_plus_every_buffer_is_a_page_with_count_one_and_not_slab(
    submitter: str,
) -> None:
    submitters = Submitters(make_memory(RULES_2_6_21), POLICIES["c+"])
    ((page, _, _),) = submitters.allocate(SUBMITTERS[submitter]).pieces
    assert (page.count, page.slab, page.compound_head) == (1, False, page)


def test_k87_the_rules_of_6_14_differ_from_6_1_only_in_frozen_slabs() -> None:
    assert replace(RULES_6_14, frozen_slabs=False, name="6.1") == RULES_6_1
