from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.disks.memory import MemoryDisk
from target.disks.overlay.disk import OverlayDisk
from target.disks.overlay.format import (
    HEADER_SLOT,
    BaseIdentity,
    OverlayHeader,
    find_header,
)
from tests.volatile_disk import SECTOR, VolatileDisk

if TYPE_CHECKING:
    from collections.abc import Callable

SECTORS = 41
"""Not a multiple of the cluster size: the last cluster is partial."""
SIZE = SECTORS * SECTOR
GOLDEN = b"".join(bytes([number]) * SECTOR for number in range(1, SECTORS + 1))
IDENTITY = BaseIdentity(path="/golden.img", offset=0, size=SIZE, mtime_ns=1)
HEADER = OverlayHeader(base=IDENTITY, cluster=4 * SECTOR)

ranges = st.integers(0, SECTORS - 1).flatmap(
    lambda first: st.tuples(st.just(first), st.integers(1, min(9, SECTORS - first)))
)
steps = st.tuples(
    st.sampled_from(["write", "write", "discard", "flush", "reopen", "killed"]), ranges
)


def volatile_disk() -> VolatileDisk:
    store = VolatileDisk(HEADER.file_size)
    at, raw = HEADER.pack()
    store.write_from(at, memoryview(raw))
    store.flush()
    return store


def overlay(
    store: VolatileDisk,
    boot: str = "first",
    *,
    sync: bool = False,
    clock: Callable[[], float] = float,
) -> OverlayDisk:
    base = MemoryDisk(GOLDEN, read_only=True)
    header = find_header(bytes(store.cached))
    return OverlayDisk(base, store, header, boot=boot, sync=sync, clock=clock)


def content(disk: OverlayDisk) -> bytes:
    buffer = memoryview(bytearray(SIZE))
    disk.read_into(0, buffer)
    return bytes(buffer)


def fill(number: int, count: int) -> memoryview:
    return memoryview(bytes([100 + number % 100]) * count * SECTOR)


@given(plan=st.lists(steps, max_size=25))
@settings(deadline=None)
def test_overlay_behaves_like_a_plain_disk(
    plan: list[tuple[str, tuple[int, int]]],
) -> None:
    store, model = volatile_disk(), bytearray(GOLDEN)
    disk = overlay(store)
    for number, (action, (first, count)) in enumerate(plan):
        place = slice(first * SECTOR, (first + count) * SECTOR)
        if action == "write":
            data = fill(number, count)
            disk.write_from(place.start, data)
            model[place] = data
        elif action == "discard":
            disk.discard(place.start, count * SECTOR)
            model[place] = bytes(count * SECTOR)
        elif action == "flush":
            disk.flush()
        else:
            # A killed process does not flush; the page cache survives.
            if action == "reopen":
                disk.close()
            disk = overlay(store)
        assert content(disk) == model


@given(
    plan=st.lists(steps, min_size=1, max_size=25),
    seed=st.integers(0, 1 << 16),
    sync=st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_power_failure_loses_only_unflushed_writes(
    plan: list[tuple[str, tuple[int, int]]], seed: int, *, sync: bool
) -> None:
    store, rng = volatile_disk(), random.Random(seed)
    disk = overlay(store, sync=sync)
    # The possible contents of each sector after a power failure: anything that was
    # written since the last flush, or before.
    allowed = [{GOLDEN[n * SECTOR : (n + 1) * SECTOR]} for n in range(SECTORS)]
    latest = [next(iter(values)) for values in allowed]
    for number, (action, (first, count)) in enumerate(plan):
        if action in ("write", "discard"):
            data = fill(number, count) if action == "write" else bytes(count * SECTOR)
            if action == "write":
                disk.write_from(first * SECTOR, memoryview(data))
            else:
                disk.discard(first * SECTOR, count * SECTOR)
            for sector in range(first, first + count):
                latest[sector] = bytes(data[:SECTOR])
                allowed[sector].add(latest[sector])
        elif action == "killed":
            disk = overlay(store, sync=sync)
        else:
            if action == "reopen":
                disk.close()
                disk = overlay(store, sync=sync)
            disk.flush()
            allowed = [{value} for value in latest]
    store.lose_power(rng)
    for boot in ("second", "second", "third"):
        if boot == "third":
            store.lose_power(rng)
        after = content(overlay(store, boot))
        for sector in range(SECTORS):
            assert after[sector * SECTOR : (sector + 1) * SECTOR] in allowed[sector]


def test_sync_write_to_a_new_cluster_is_stable() -> None:
    store = volatile_disk()
    overlay(store, sync=True).write_from(SECTOR, fill(0, 2))
    store.lose_power(random.Random(1))
    assert content(overlay(store, "second"))[SECTOR : 3 * SECTOR] == fill(0, 2)


def test_writes_are_flushed_after_five_seconds() -> None:
    store, now = volatile_disk(), 0.0
    disk = overlay(store, clock=lambda: now)
    disk.write_from(0, fill(1, 1))
    now = 6.0
    disk.write_from(8 * SECTOR, fill(2, 1))
    disk.write_from(16 * SECTOR, fill(3, 1))
    store.lose_power(random.Random(1))
    after = content(overlay(store, "second"))
    assert after[:SECTOR] == fill(1, 1)
    assert after[8 * SECTOR : 9 * SECTOR] == fill(2, 1)


def test_flush_fails_until_reopened() -> None:
    store = volatile_disk()
    disk = overlay(store)
    disk.write_from(0, fill(1, 1))
    disk.flush()
    disk.write_from(8 * SECTOR, fill(2, 1))
    store.refuses_to_flush = True
    with pytest.raises(OSError, match="input/output error"):
        disk.flush()
    store.refuses_to_flush = False
    with pytest.raises(OSError, match="an earlier flush failed"):
        disk.flush()
    disk.close()
    # The kernel may have dropped the data that it could not write; the overlay must
    # not list it as stable.
    after = bytearray(GOLDEN)
    after[:SECTOR] = fill(1, 1)
    assert content(overlay(store)) == after


@pytest.mark.parametrize("torn", [0, HEADER_SLOT])
def test_torn_header_leaves_the_other_one(torn: int) -> None:
    store = volatile_disk()
    disk = overlay(store)
    disk.write_from(0, fill(1, 1))
    disk.close()
    store.write_from(torn + 600, memoryview(b"\0" * 7000))
    store.write_from(torn + 30, memoryview(b"garbage"))
    store.flush()
    assert content(overlay(store, "second"))[:SECTOR] == fill(1, 1)


def test_only_written_clusters_are_allocated() -> None:
    disk = overlay(volatile_disk())
    assert disk.allocated_count() == 0
    disk.write_from(5 * SECTOR, fill(1, 1))
    disk.discard(40 * SECTOR, SECTOR)
    assert list(disk.allocated()) == [1, 10]
    assert disk.allocated_count() == 2
