"""The lab's page allocator: counts, blocks, compound pages, freeing, bad pages."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from aoe.errors import AoEError
from initiator.lab.kernel.journal import BugOn, Fault
from initiator.lab.kernel.kernels import RULES_2_6_21, RULES_6_1, RULES_6_14, Rules
from initiator.lab.kernel.memory import PAGE_SIZE, POISON, Memory, Page
from tests.worlds import count_changes, counts, faults, make_memory

on_every_kernel = pytest.mark.parametrize(
    "rules",
    [RULES_2_6_21, RULES_6_1, RULES_6_14],
    ids=lambda rules: rules.name,
)


# --- allocation -----------------------------------------------------------------------


@on_every_kernel
@pytest.mark.parametrize("order", [0, 1, 2])
def test_k84_only_the_first_page_of_a_block_has_a_count(
    rules: Rules, order: int
) -> None:
    block = make_memory(rules).alloc_pages(order, "owner")
    assert [page.count for page in block] == [1] + [0] * (2**order - 1)
    assert [page.compound_head for page in block] == block
    assert {page.owner for page in block} == {"owner"}


def test_k88_get_and_put_on_a_compound_tail_change_the_heads_count() -> None:
    memory = make_memory(RULES_6_1)
    head, tail = memory.alloc_pages(1, "XFS", compound=True)
    memory.get_page(tail, "network", "K75")
    assert (head.count, tail.count) == (2, 0)
    memory.put_page(tail, "network", "K75")
    assert (head.count, tail.count) == (1, 0)
    assert count_changes(memory.journal, head) == [("network", 2), ("network", 1)]
    assert not faults(memory.journal)


def test_k88_the_last_put_on_a_tail_frees_the_whole_compound_page() -> None:
    memory = make_memory(RULES_6_1)
    head, tail = memory.alloc_pages(1, "XFS", compound=True)
    memory.get_page(tail, "network", "K75")
    memory.free_pages(head, "XFS")
    assert not head.free
    memory.put_page(tail, "network", "K75")
    assert head.free
    assert tail.free
    assert not faults(memory.journal)


def test_k110_a_freed_compound_page_is_split_into_order_0_pages() -> None:
    memory = make_memory(RULES_6_1, pages=2)
    memory.free_pages(memory.alloc_pages(1, "XFS", compound=True)[0], "XFS")
    pages = [memory.alloc_pages(0, "ext4")[0] for _ in range(2)]
    assert [page.compound_head for page in pages] == pages
    assert [page.count for page in pages] == [1, 1]


def test_k110_the_page_freed_last_is_allocated_first() -> None:
    memory = make_memory()
    first, second = (memory.alloc_pages(0, "a")[0] for _ in range(2))
    memory.free_pages(second, "a")
    memory.free_pages(first, "a")
    assert memory.alloc_pages(0, "b") == [first]
    assert memory.alloc_pages(0, "b") == [second]


def test_k110_the_pages_of_a_block_are_contiguous() -> None:
    memory = make_memory()
    memory.alloc_pages(0, "a")
    assert [page.pfn for page in memory.alloc_pages(2, "b")] == [4, 5, 6, 7]
    with pytest.raises(AoEError, match="order 2"):
        memory.alloc_pages(2, "c")


def test_k90_vmalloc_allocates_order_0_pages_with_count_one() -> None:
    memory = make_memory()
    pages = memory.vmalloc(2, "XFS")
    assert [(page.count, page.compound_head, page.block) for page in pages] == [
        (1, page, [page]) for page in pages
    ]


# --- freeing --------------------------------------------------------------------------


def test_k112_a_freed_page_is_poisoned_and_has_no_owner() -> None:
    memory = make_memory()
    page = memory.alloc_pages(0, "ext4")[0]
    page.data[:] = b"x" * PAGE_SIZE
    memory.free_pages(page, "ext4")
    assert bytes(page.data) == bytes([POISON]) * PAGE_SIZE
    assert (page.free, page.count, page.owner) == (True, 0, None)
    assert not faults(memory.journal)


@on_every_kernel
def test_k112_put_page_to_zero_on_an_owned_page_is_a_premature_free(
    rules: Rules,
) -> None:
    memory = make_memory(rules)
    page = memory.alloc_pages(0, "ext4")[0]
    memory.put_page(page, "network", "K75")
    assert faults(memory.journal) == [("premature-free", page.pfn)]
    assert page.free


@on_every_kernel
def test_k112_get_and_put_at_count_zero_free_an_owned_tail(
    rules: Rules,
) -> None:
    memory = make_memory(rules)
    head, tail = memory.alloc_pages(1, "owner")
    memory.get_page(tail, "network", "K75")
    memory.put_page(tail, "network", "K75")
    assert counts(memory.journal, tail) == [1, 0]
    assert faults(memory.journal) == [("premature-free", tail.pfn)]
    assert not head.free
    memory.free_pages(head, "owner")
    assert faults(memory.journal)[1:] == [("double-free", tail.pfn)]
    assert memory.free_list.count(tail) == 2


@on_every_kernel
def test_k112_put_page_below_zero_is_an_underflow_and_frees_nothing(
    rules: Rules,
) -> None:
    memory = make_memory(rules)
    _, tail = memory.alloc_pages(1, "owner")
    memory.put_page(tail, "network", "K75")
    assert tail.count == -1
    assert not tail.free
    assert faults(memory.journal) == [("underflow", tail.pfn)]


def test_k112_a_late_free_frees_the_page_of_its_new_owner() -> None:
    memory = make_memory()
    page = memory.alloc_pages(0, "ext4")[0]
    memory.put_page(page, "network", "K75")
    assert memory.alloc_pages(0, "new owner") == [page]
    memory.free_pages(page, "ext4")
    assert page.free
    assert faults(memory.journal) == [("premature-free", page.pfn)] * 2


@on_every_kernel
def test_k110_put_page_on_the_first_page_of_a_block_frees_only_that_page(
    rules: Rules,
) -> None:
    memory = make_memory(rules)
    head, tail = memory.alloc_pages(1, "owner")
    memory.get_page(head, "network", "K75")
    memory.free_pages(head, "owner")
    memory.put_page(head, "network", "K75")
    assert head.free
    assert not tail.free


# --- bad pages ------------------------------------------------------------------------


def block_with_a_referenced_tail(rules: Rules) -> tuple[Memory, Page, Page]:
    memory = make_memory(rules, pages=2)
    head, tail = memory.alloc_pages(1, "owner")
    memory.get_page(tail, "network", "K76")
    memory.free_pages(head, "owner")
    assert faults(memory.journal)[0] == ("bad-page", tail.pfn)
    return memory, head, tail


def test_k110_2_6_21_frees_a_block_with_a_referenced_tail() -> None:
    _, head, tail = block_with_a_referenced_tail(RULES_2_6_21)
    assert head.free
    assert tail.free
    assert tail.count == 0


def test_k89_later_kernels_keep_the_whole_block_out_of_circulation() -> None:
    """K144."""
    memory, head, tail = block_with_a_referenced_tail(RULES_6_1)
    assert (head.free, head.kept_out, tail.free, tail.count) == (False, True, False, 1)
    with pytest.raises(AoEError):
        memory.alloc_pages(0, "new owner")
    memory.put_page(tail, "network", "K76")
    assert (tail.free, tail.kept_out, head.kept_out) == (True, False, True)


@pytest.mark.parametrize(("rules", "freed"), [(RULES_2_6_21, True), (RULES_6_1, False)])
def test_k89_a_slab_page_at_count_zero_is_bad_and_freed_only_on_2_6_21(
    rules: Rules, *, freed: bool
) -> None:
    memory = make_memory(rules)
    page = memory.alloc_pages(0, "slab")[0]
    page.slab = True
    memory.put_page(page, "network", "K75")
    assert (page.free, page.kept_out) == (freed, not freed)
    assert faults(memory.journal)[0] == ("bad-page", page.pfn)
    assert (("premature-free", page.pfn) in faults(memory.journal)) is freed


def page_referenced_after_free(rules: Rules) -> tuple[Memory, Page]:
    memory = make_memory(rules)
    page = memory.alloc_pages(0, "ext4")[0]
    memory.free_pages(page, "ext4")
    memory.get_page(page, "network", "K76")
    return memory, page


def test_k108_a_page_is_bad_if_it_is_referenced_when_allocated() -> None:
    memory, page = page_referenced_after_free(RULES_6_1)
    assert memory.alloc_pages(0, "new owner") != [page]
    assert (page.free, page.kept_out) == (False, True)
    assert faults(memory.journal) == [("bad-page", page.pfn), ("leak", page.pfn)]


def test_k108_2_6_21_allocates_a_referenced_page() -> None:
    memory, page = page_referenced_after_free(RULES_2_6_21)
    assert memory.alloc_pages(0, "new owner") == [page]
    assert page.count == 1
    assert faults(memory.journal) == [("bad-page", page.pfn)]


def test_k108_a_page_freed_twice_is_allocated_to_two_owners() -> None:
    memory = make_memory(RULES_2_6_21)
    head, tail = memory.alloc_pages(1, "owner")
    memory.get_page(tail, "network", "K75")
    memory.put_page(tail, "network", "K75")
    memory.free_pages(head, "owner")
    given = [memory.alloc_pages(0, name)[0] for name in ("a", "b", "c")]
    assert given == [tail, head, tail]
    assert faults(memory.journal)[-1] == ("bad-page", tail.pfn)


# --- page_ref_inc and page_ref_dec ----------------------------------------------------


def test_k97_page_ref_inc_and_dec_from_zero_free_nothing() -> None:
    memory = make_memory(replace(RULES_2_6_21, debug_vm=True))
    _, tail = memory.alloc_pages(1, "owner")
    memory.page_ref_inc(tail, "AoE driver")
    memory.page_ref_dec(tail, "AoE driver")
    assert counts(memory.journal, tail) == [1, 0]
    assert not tail.free
    assert not faults(memory.journal)


def test_k97_since_3_12_the_count_of_a_tails_head_is_incremented() -> None:
    memory = make_memory(RULES_6_1)
    head, tail = memory.alloc_pages(1, "XFS", compound=True)
    memory.page_ref_inc(tail, "AoE driver")
    assert (head.count, tail.count) == (2, 0)
    memory.page_ref_dec(tail, "AoE driver")
    assert (head.count, tail.count) == (1, 0)


def test_k97_in_3_7_incrementing_a_compound_tail_is_a_bug() -> None:
    rules = replace(RULES_6_1, bug_on_tail_increment=True)
    memory = make_memory(rules)
    head, tail = memory.alloc_pages(1, "XFS", compound=True)
    memory.page_ref_inc(head, "AoE driver")
    with pytest.raises(BugOn, match="tail"):
        memory.page_ref_inc(tail, "AoE driver")
    assert faults(memory.journal) == [("BUG", tail.pfn)]


def test_k97_page_ref_dec_below_zero_is_an_underflow() -> None:
    memory = make_memory()
    _, tail = memory.alloc_pages(1, "owner")
    memory.page_ref_dec(tail, "AoE driver")
    assert faults(memory.journal) == [("underflow", tail.pfn)]


def test_k99_page_ref_dec_to_zero_leaks_a_page_without_an_owner() -> None:
    memory = make_memory()
    page = memory.alloc_pages(0, "ext4")[0]
    memory.page_ref_inc(page, "AoE driver")
    memory.free_pages(page, "ext4")
    memory.page_ref_dec(page, "AoE driver")
    assert faults(memory.journal) == [("leak", page.pfn)]
    assert not page.free


def test_k119_get_page_at_zero_is_a_bug_under_debug_vm() -> None:
    memory = make_memory(replace(RULES_6_1, debug_vm=True))
    head, tail = memory.alloc_pages(1, "owner")
    memory.get_page(head, "network", "K75")
    with pytest.raises(BugOn):
        memory.get_page(tail, "network", "K75")
    assert faults(memory.journal) == [("BUG", tail.pfn)]
    assert tail.count == 0


@pytest.mark.parametrize(
    ("action", "flags"), [("get_page", {"WARN"}), ("put_page", set())]
)
def test_k87_get_and_put_on_a_frozen_slab_page_do_nothing_and_get_warns(
    action: str, flags: set[str]
) -> None:
    memory = make_memory(RULES_6_14)
    page = memory.alloc_pages(0, "slab")[0]
    page.slab = True
    memory.freeze([page])
    getattr(memory, action)(page, "network", "K75")
    assert (page.count, page.free) == (0, False)
    assert {flag.value for flag in memory.journal.flags} == flags
    assert (memory.journal.costs.gets, memory.journal.costs.puts) == (0, 0)
    assert not faults(memory.journal)


# --- random sequences -----------------------------------------------------------------


class Block(NamedTuple):
    pages: list[Page]
    owner: str


class RandomCalls(RuleBasedStateMachine):
    """Random sequences of allocations, gets, puts and frees."""

    held = Bundle("held")
    places = st.integers(0, 3)

    kernel: Rules

    def __init__(self) -> None:
        super().__init__()
        self.memory = make_memory(self.kernel)
        self.owners = 0

    def has(self, fault: Fault) -> bool:
        return any(entry.fault is fault for entry in self.memory.journal.faults)

    @rule(target=held, order=st.integers(0, 2), compound=st.booleans())
    def alloc(self, order: int, *, compound: bool) -> Block | MultipleResults[Block]:
        self.owners += 1
        owner = f"owner {self.owners}"
        before = {page.pfn: page.owner for page in self.memory.pages}
        try:
            block = self.memory.alloc_pages(order, owner, compound=compound)
        except AoEError:
            return multiple()
        if any(before[page.pfn] is not None for page in block):
            assert self.has(Fault.DOUBLE_FREE) or self.has(Fault.PREMATURE_FREE)
        return Block(block, owner)

    @rule(block=held, at=places)
    def get(self, block: Block, at: int) -> None:
        self.memory.get_page(block.pages[at % len(block.pages)], "network", "K75")

    @rule(block=held, at=places)
    def put(self, block: Block, at: int) -> None:
        self.memory.put_page(block.pages[at % len(block.pages)], "network", "K75")

    @rule(block=consumes(held))
    def free(self, block: Block) -> None:
        self.memory.free_pages(block.pages[0], block.owner)

    @invariant()
    def counts_are_negative_only_after_an_underflow(self) -> None:
        if any(page.count < 0 for page in self.memory.pages):
            assert self.has(Fault.UNDERFLOW)

    @invariant()
    def the_free_list_has_duplicates_only_after_a_double_free(self) -> None:
        pfns = [page.pfn for page in self.memory.free_list]
        if not self.has(Fault.DOUBLE_FREE):
            assert sorted(pfns) == [p.pfn for p in self.memory.pages if p.free]

    @invariant()
    def every_page_is_free_owned_kept_out_referenced_or_leaked(self) -> None:
        for page in self.memory.pages:
            if page.free:
                assert not page.kept_out
                assert page.owner is None or self.memory.journal.faults
            elif page.owner is None and not page.kept_out and page is page.block[0]:
                assert page.count > 0 or self.memory.journal.faults


@pytest.mark.parametrize("rules", [RULES_2_6_21, RULES_6_1], ids=lambda r: r.name)
def test_k116_counts_and_free_list_are_consistent_in_any_order_of_calls(
    rules: Rules,
) -> None:
    class RandomCallsHere(RandomCalls):
        kernel = rules

    run_state_machine_as_test(
        RandomCallsHere,
        settings=settings(max_examples=60, stateful_step_count=30, deadline=None),
    )
