"""The judge of traces: those in ``tests/traces``, and faults seeded in them."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import pytest

from initiator.lab.traces.events import BioEvent, PageEvent
from initiator.lab.traces.parser import TraceParser
from initiator.lab.traces.rules import BY_NAME, RULES
from initiator.rules import load_kernel_rules
from tests.kernel_traces import (
    FILES,
    FOLDER,
    alloc,
    complete,
    expected,
    free,
    judge,
    line,
    mod,
    put,
    queue,
    set_count,
    violations,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLEAN = [path for path in FILES if not expected(path)]
PFN = 0x1234


def trace_id(path: Path) -> str:
    return str(path.relative_to(FOLDER))


@pytest.mark.parametrize("path", FILES, ids=trace_id)
def test_a_shipped_trace_has_the_violations_that_it_names(path: Path) -> None:
    assert violations(judge(path.read_text().splitlines())) == expected(path)


def test_shipped_traces_break_every_rule() -> None:
    broken = {rule for path in FILES for _, rule in expected(path)}
    assert broken == {*BY_NAME}


# --- seeded faults ----------------------------------------------------------------


class Seed(NamedTuple):
    """A fault to seed: lines that are inserted before a line, from 0."""

    rule: str
    at: int
    lines: list[str]


def seeds(lines: list[str]) -> Iterator[Seed]:
    """Yield every fault that can be seeded in a clean trace, at every place."""
    pages: dict[tuple[str, int], list[int]] = {}
    counts: Counter[int] = Counter()
    shared: set[int] = set()
    for event in TraceParser("trace").events(lines):
        if isinstance(event, PageEvent):
            yield from page_seeds(event, lines[event.line - 1])
            if event.refcount is not None:
                counts[event.pfn] = event.refcount
            if event.name.startswith("page_ref"):
                (shared.add if event.shared else shared.discard)(event.pfn)
        elif isinstance(event, BioEvent):
            place = event.device, event.sector
            if event.pfn is not None:
                pages.setdefault(place, []).append(event.pfn)
                (shared.add if event.shared else shared.discard)(event.pfn)
            elif event.name != "block_bio_queue":
                for pfn in pages.pop(place, []):
                    yield from bio_seeds(event, pfn)
                    if pfn not in shared:
                        taken = [mod(pfn, counts[pfn] + 1, 1)]
                        yield Seed("outlives-io", event.line - 1, taken)


def page_seeds(event: PageEvent, as_text: str) -> Iterator[Seed]:
    at, pfn = event.line, event.pfn
    if event.refcount is not None:
        yield Seed("below-zero", at, [put(pfn, -1)])
    if event.name == "mm_page_free":
        yield Seed("freed-twice", at, [as_text])
        yield Seed("get-from-zero", at, [mod(pfn, 1, 1)])
    if event.name == "mm_page_alloc" and event.order and not event.shared:
        lines = [mod(pfn + 1, 1, 1), free(pfn, event.order)]
        yield Seed("counted-tail", at, lines)


def bio_seeds(completion: BioEvent, pfn: int) -> Iterator[Seed]:
    yield Seed("put-to-zero", completion.line - 1, [put(pfn, 0)])
    yield Seed("freed-in-io", completion.line - 1, [free(pfn)])


@pytest.mark.parametrize("path", CLEAN, ids=trace_id)
def test_each_fault_seeded_in_a_clean_trace_is_found(path: Path) -> None:
    lines = path.read_text().splitlines()
    judged = {rule.name for rule in judge(lines).judged}
    planted = [seed for seed in seeds(lines) if seed.rule in judged]
    assert planted
    for seed in planted:
        seeded = [*lines[: seed.at], *seed.lines, *lines[seed.at :]]
        # A reference that is left shows at completion, the line behind.
        at = seed.at + len(seed.lines) + (seed.rule == "outlives-io")
        assert (at, seed.rule) in violations(judge(seeded)), seed


def test_every_rule_is_seeded() -> None:
    rules = {
        seed.rule for path in CLEAN for seed in seeds(path.read_text().splitlines())
    }
    assert rules == {*BY_NAME}


# --- no fault where there is none ------------------------------------------------


def test_k148_events_of_two_cpus_in_the_wrong_order_are_no_fault() -> None:
    """Random references by two CPUs; counts are read late, and events swapped."""
    for seed in range(200):
        lines = list(two_cpus(random.Random(seed)))
        assert violations(judge(lines)) == [], seed


def two_cpus(choice: random.Random) -> Iterator[str]:
    """Yield the trace of two CPUs that reference, free and allocate a page."""
    count, late = 0, ""
    for _ in range(60):
        if count == 0:
            if late:
                yield late
                late = ""
            count = 1
            yield set_count(PFN, 1)
            yield alloc(PFN)
            continue
        is_get = choice.random() < 0.5
        count += 1 if is_get else -1
        # The other CPU may have changed the count before this one has read it.
        if count > 1 and not late and choice.random() < 0.5:
            other = choice.choice((1, -1))
            count += other
            late = mod(PFN, count, other) if other > 0 else put(PFN, count)
        yield mod(PFN, count, 1) if is_get else put(PFN, count)
        if count == 0:
            yield free(PFN)
        elif late and choice.random() < 0.5:
            yield late
            late = ""


def test_k148_a_failed_get_changes_nothing() -> None:
    fields = f"pfn={PFN:#x} flags= count=0 mapcount=0 mapping=0 mt=0 val=1 ret=0"
    lines = [
        set_count(PFN, 1),
        put(PFN, 0),
        free(PFN),
        line("page_ref_mod_unless", fields),
    ]
    assert violations(judge(lines)) == []


def test_k149_a_page_of_the_bulk_allocator_has_page_ref_set_alone() -> None:
    lines = [set_count(PFN, 1), put(PFN, 0), free(PFN)]
    assert violations(judge(lines * 3)) == []


def test_k149_double_frees_are_not_judged_if_allocations_may_be_missing() -> None:
    lines = [free(PFN), free(PFN)]
    verdict = judge(lines)
    assert violations(verdict) == []
    assert verdict.outcome == "undecided"
    assert violations(judge([set_count(PFN + 1, 1), *lines])) == [(3, "freed-twice")]


def test_k149_a_page_of_a_free_block_is_freed_twice() -> None:
    block = [set_count(PFN, 1), alloc(PFN, 2), put(PFN, 0), free(PFN, 2)]
    assert violations(judge([*block, free(PFN + 3)])) == [(5, "freed-twice")]
    # The rest of a free block stays free when a part of it is allocated.
    split = [*block, alloc(PFN, 1), free(PFN + 2)]
    assert violations(judge(split)) == [(6, "freed-twice")]
    assert violations(judge([*block, alloc(PFN, 1), free(PFN, 1)])) == []


def test_k149_a_block_is_freed_twice_if_one_of_its_pages_was() -> None:
    lines = [set_count(PFN, 1), alloc(PFN, 3), free(PFN + 5), free(PFN, 3)]
    verdict = judge(lines)
    assert violations(verdict) == [(4, "freed-twice")]
    assert [story.pfn for story in verdict.stories] == [PFN + 5]


def test_k150_a_request_completes_the_bios_that_end_with_it() -> None:
    leak = [mod(PFN, 2, 1), mod(PFN + 1, 2, 1)]
    pages = [set_count(PFN, 1), set_count(PFN + 1, 1)]
    bios = [*queue(8, PFN), *queue(16, PFN + 1)]
    both = line("block_rq_complete", "152,0 W () 8 + 16 [0]")
    first = line("block_rq_complete", "152,0 W () 8 + 8 [0]")
    other_disk = line("block_rq_complete", "152,16 W () 8 + 16 [0]")
    for ends, number in ((both, 2), (first, 1), (other_disk, 0)):
        found = violations(judge([*pages, *bios, *leak, ends]))
        assert [rule for _, rule in found] == ["outlives-io"] * number


def test_k150_a_part_of_a_bio_does_not_complete_it() -> None:
    start = [set_count(PFN, 1), *queue(8, PFN), mod(PFN, 2, 1)]
    parts = [line("block_rq_complete", f"152,0 W () {at} + 4 [0]") for at in (8, 12)]
    assert violations(judge([*start, parts[0]])) == []
    assert violations(judge([*start, *parts])) == [(6, "outlives-io")]


def test_k151_pages_of_a_split_block_have_counts_of_their_own() -> None:
    start = [set_count(PFN, 1), alloc(PFN, 1), set_count(PFN + 1, 1)]
    rest = [mod(PFN + 1, 2, 1), put(PFN + 1, 1), put(PFN + 1, 0), free(PFN + 1)]
    assert violations(judge([*start, *rest])) == []


def test_others_may_reference_a_page_with_a_mapping_at_any_time() -> None:
    mapped = "0xffff888101234560"
    lines = [set_count(PFN, 1), *queue(8, PFN), mod(PFN, 2, 1, mapping=mapped)]
    verdict = judge([*lines, complete(8)])
    assert violations(verdict) == []
    assert verdict.shared == 1


def test_a_page_in_two_bios_is_compared_when_the_second_has_ended() -> None:
    bios = [set_count(PFN, 1), *queue(8, PFN), *queue(16, PFN), mod(PFN, 2, 1)]
    assert violations(judge([*bios, complete(8)])) == []
    assert violations(judge([*bios, complete(8), put(PFN, 1), complete(16)])) == []
    found = violations(judge([*bios, complete(8), complete(16)]))
    assert found == [(8, "outlives-io")]


def test_queueing_and_completion_are_listed_however_long_it_took() -> None:
    many = [each for _ in range(30) for each in (mod(PFN, 2, 1), put(PFN, 1))]
    lines = [set_count(PFN, 1), *queue(8, PFN), *many, mod(PFN, 2, 1), complete(8)]
    (story,) = judge(lines).stories
    assert (story.steps[0].line, story.steps[0].name) == (3, "bio_page")
    assert story.steps[-1].name == "block_rq_complete"


def test_nothing_that_was_known_before_lost_events_is_used() -> None:
    start = [set_count(PFN, 1), put(PFN, 0), free(PFN)]
    for lost in (
        "CPU:1 [LOST 12 EVENTS]",
        "CPU:1 [EVENTS DROPPED]",
        "CPU:0 [17 EVENTS DROPPED]",
        "Lost 3 events",
        "perf 77 [001] 12.5: PERF_RECORD_LOST lost 3",
    ):
        assert violations(judge([*start, lost, free(PFN)])) == []
    assert violations(judge([*start, free(PFN)])) == [(4, "freed-twice")]


# --- bounded memory ----------------------------------------------------------------


def many_pages(number: int) -> Iterator[str]:
    """Yield a clean trace of that many pages, each in a bio that never ends."""
    for page in range(number):
        pfn = 0x100000 + 3 * page
        yield set_count(pfn, 1)
        yield alloc(pfn)
        yield from queue(8 * page, pfn)
        for _ in range(4):
            yield mod(pfn, 2, 1)
            yield put(pfn, 1)


def peak_memory(number: int, limit: int) -> int:
    tracemalloc.start()
    try:
        verdict = judge(many_pages(number), limit=limit)
        assert violations(verdict) == []
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_depends_on_the_limit_and_not_on_the_length_of_the_trace() -> None:
    limit = 300
    short, long = peak_memory(600, limit), peak_memory(1800, limit)
    assert long < 1.1 * short
    assert long < 4000 * limit  # 65,536 of them: 250 MiB, as the help says


def test_memory_is_bounded_if_every_page_has_faults() -> None:
    def faults(number: int) -> int:
        lines = (mod(pfn, -1, -1) for pfn in range(1, number))
        tracemalloc.start()
        try:
            verdict = judge(lines, limit=300)
            assert verdict.found["below-zero"] == verdict.pages == number - 1
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert faults(5000) < 1.1 * faults(1000)


def test_forgetting_hides_faults_and_invents_none() -> None:
    lines = [*many_pages(500), free(0x100000)]
    verdict = judge(lines, limit=50)
    assert violations(verdict) == []
    assert verdict.forgotten > 0
    assert not verdict.is_complete
    assert violations(judge(lines)) == [(len(lines), "freed-in-io")]


# --- rules --------------------------------------------------------------------------


def test_rules_cite_existing_rules_worst_outcome_first() -> None:
    assert {rule.number for rule in RULES} <= {*load_kernel_rules()}
    order = [rule.fault for rule in RULES]
    assert order == sorted(order, key=list(type(order[0])).index)


def test_the_judge_can_be_limited_to_some_rules() -> None:
    lines = (FOLDER / "faults/2007-nosg.txt").read_text().splitlines()
    verdict = judge(lines, rules=[BY_NAME["freed-twice"]])
    assert {rule for _, rule in violations(verdict)} == {"freed-twice"}
    assert verdict.is_complete
