"""The contents of a disk after a power failure that follows a response."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.disks.memory import MemoryDisk
from target.disks.overlay.disk import OverlayDisk
from target.disks.overlay.format import BaseIdentity, OverlayHeader, find_header
from target.protocol.exports import Export
from tests.asking import ask, make_target, serve
from tests.durable_contents import (
    CACHE_OFF,
    CACHE_ON,
    FLUSHING_OPCODES,
    FUA,
    SET_FEATURES,
    WRITE,
    Requests,
    durable_contents,
    missing,
)
from tests.volatile_disk import SECTOR, VolatileDisk, WriteThroughDisk

if TYPE_CHECKING:
    from collections.abc import Callable

    from target.disks import Disk

pytestmark = pytest.mark.usefixtures("engine")

SECTORS = 41
"""Not a multiple of the cluster size: the last cluster is partial."""
SIZE = SECTORS * SECTOR
GOLDEN = random.Random(1).randbytes(SIZE)
HEADER = OverlayHeader(
    base=BaseIdentity(path="/golden.img", offset=0, size=SIZE, mtime_ns=1),
    cluster=4 * SECTOR,
)

steps = st.tuples(
    st.sampled_from(["write"] * 4 + ["fua", "trim", "flush", "on", "off"]),
    st.integers(0, SECTORS - 2),
    st.integers(1, 2),
    st.sampled_from(FLUSHING_OPCODES),
)


def conversation(plan: list[tuple[str, int, int, int]]) -> list[bytes]:
    requests = Requests()
    for what, lba, count, opcode in plan:
        if what in ("write", "fua"):
            requests.write(lba, count, WRITE if what == "write" else FUA)
        elif what == "trim":
            requests.trim(lba, count)
        elif what == "flush":
            requests.put(opcode)
        else:
            feature = CACHE_ON if what == "on" else CACHE_OFF
            requests.put(SET_FEATURES, feature=feature)
    return requests.frames


def volatile_disk(size: int, *, is_sync: bool) -> VolatileDisk:
    return (WriteThroughDisk if is_sync else VolatileDisk)(size)


def plain(*, is_sync: bool) -> tuple[VolatileDisk, Disk]:
    """Make a disk that behaves like ``FileDisk``, with or without O_DSYNC."""
    store = volatile_disk(SIZE, is_sync=is_sync)
    return store, store


def overlay(*, is_sync: bool) -> tuple[VolatileDisk, Disk]:
    """Make an overlay over a golden image, in a file on such a disk."""
    store = volatile_disk(HEADER.file_size, is_sync=is_sync)
    at, raw = HEADER.pack()
    store.write_from(at, memoryview(raw))
    store.flush()
    return store, opened(store, "first", is_sync=is_sync)


def opened(store: VolatileDisk, boot: str, *, is_sync: bool = False) -> OverlayDisk:
    base = MemoryDisk(GOLDEN, read_only=True)
    header = find_header(bytes(store.cached))
    return OverlayDisk(base, store, header, boot=boot, sync=is_sync, clock=float)


def after_power_failure(store: VolatileDisk, rng: random.Random) -> bytes:
    survivor = deepcopy(store)
    survivor.lose_power(rng)
    if survivor.size == SIZE:
        return bytes(survivor.stable)
    buffer = memoryview(bytearray(SIZE))
    opened(survivor, "second").read_into(0, buffer)
    return bytes(buffer)


class LoseEverything(random.Random):
    """Random numbers with which all unflushed data is lost."""

    def random(self) -> float:
        return 1.0


@pytest.mark.parametrize("make", [plain, overlay])
@given(
    plan=st.lists(steps, min_size=1, max_size=25),
    seed=st.integers(0, 1 << 16),
    is_sync=st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_p46_guaranteed_contents_survive_a_power_failure(
    make: Callable[..., tuple[VolatileDisk, Disk]],
    plan: list[tuple[str, int, int, int]],
    seed: int,
    *,
    is_sync: bool,
) -> None:
    store, disk = make(is_sync=is_sync)
    target = serve(Export(make_target().export.address, disk, sync=is_sync))
    requests = conversation(plan)
    for request, contents in zip(
        requests, durable_contents(requests, is_sync=is_sync), strict=True
    ):
        response = ask(target, request)
        assert (response[14], response[27]) == (0x18, 0x40)
        for rng in (LoseEverything(), random.Random(seed)):
            assert missing(contents, after_power_failure(store, rng)) == []


def test_unflushed_write_can_be_lost() -> None:
    # Otherwise the test above would pass for any target.
    store, disk = plain(is_sync=False)
    target = make_target(disk)
    requests = Requests()
    requests.write(5)
    ask(target, requests.frames[0])
    assert after_power_failure(store, LoseEverything()) == bytes(SIZE)
