from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.errors import UsageError
from initiator.disk.bench import PATTERNS, Load, percentile
from initiator.driver.bio import Op

KIB = 1024


def first_operations(load: Load, count: int) -> list[tuple[Op, int]]:
    return list(itertools.islice(load.operations(), count))


@given(
    st.sampled_from(PATTERNS),
    st.integers(1, 64),
    st.integers(0, 1000),
    st.integers(0, 5000),
)
def test_operations_stay_within_the_region(
    pattern: str, sectors: int, first: int, more: int
) -> None:
    load = Load(
        pattern=pattern,  # type: ignore[arg-type] # is one of PATTERNS
        length=sectors * 512,
        offset=first * 512,
        size=sectors * 512 + more,
    )
    load.check()
    for _, offset in first_operations(load, 50):
        assert offset % 512 == 0
        assert load.offset <= offset
        assert offset + load.length <= load.offset + load.size


def test_a_sequential_pattern_wraps() -> None:
    load = Load(pattern="write", length=KIB, offset=512, size=3 * KIB)
    assert first_operations(load, 4) == [
        (Op.WRITE, 512),
        (Op.WRITE, 512 + KIB),
        (Op.WRITE, 512 + 2 * KIB),
        (Op.WRITE, 512),
    ]


def test_a_mix_has_the_configured_share_of_reads() -> None:
    kinds = [
        op for op, _ in first_operations(Load(pattern="mix", read_share=0.7), 5000)
    ]
    assert 0.65 < kinds.count(Op.READ) / len(kinds) < 0.75
    assert {
        op for op, _ in first_operations(Load(pattern="mix", read_share=1), 99)
    } == {Op.READ}
    assert {
        op for op, _ in first_operations(Load(pattern="mix", read_share=0), 99)
    } == {Op.WRITE}


@pytest.mark.parametrize(
    ("pattern", "writes"),
    [
        ("read", False),
        ("randread", False),
        ("write", True),
        ("randwrite", True),
        ("mix", True),
    ],
)
def test_writes_is_true_if_contents_are_overwritten(
    pattern: str,
    writes: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    load = Load(pattern=pattern, read_share=0.5)  # type: ignore[arg-type] # is one of PATTERNS
    assert load.writes is writes
    assert (Op.WRITE in {op for op, _ in first_operations(load, 99)}) is writes


@pytest.mark.parametrize(
    "load", [Load(length=100), Load(offset=100), Load(length=4096, size=4095)]
)
def test_an_invalid_load_is_rejected(load: Load) -> None:
    with pytest.raises(UsageError):
        load.check()


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_covers_its_share(
    values: list[float], share: float
) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert found in ordered
    assert sum(each <= found for each in ordered) >= share * len(ordered) - 1e-9
    smaller = [each for each in ordered if each < found]
    assert len(smaller) < share * len(ordered) + 1e-9


def test_a_percentile_of_no_values_is_0() -> None:
    assert percentile([], 0.5) == 0.0
