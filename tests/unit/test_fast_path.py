"""Differential tests of the fast path against ``Target.handle``."""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aoe.address import Address
from target.filters.settings import parse_filter
from target.filters.stack import Filters
from target.protocol.exports import Export
from target.protocol.target import Target
from tests.asking import ata, mask
from tests.fuzz_frames import at
from tests.links import MemoryRingLink
from tests.sides import CONTENT, Side, SlowRingLink, request_mix

if TYPE_CHECKING:
    from collections.abc import Iterator


READ, WRITE, WRITE_UNCORRECTABLE = 0x24, 0x34, 0x45


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def fast(stack: ExitStack) -> Side:
    return Side(MemoryRingLink(), stack)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    batches=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    mtu=st.sampled_from((548, 1500, 9000)),
    cut=st.integers(0, 12),
)
def test_fast_and_slow_path_give_the_same_responses_disks_and_counters(
    seed: int, batches: list[int], mtu: int, cut: int
) -> None:
    with ExitStack() as stack:
        fast = Side(MemoryRingLink(mtu), stack)
        careful = Side(SlowRingLink(mtu), stack)
        frames = request_mix(seed)
        for number, size in enumerate(batches):
            requests = list(islice(frames, size))
            if number == cut:
                # The file is truncated: reads past its end fail.
                for side in (fast, careful):
                    os.truncate(side.files[0], len(CONTENT) // 2)
            now = number * 10.0
            assert fast.serve(*requests, now=now) == careful.serve(*requests, now=now)
            assert fast.counted() == careful.counted()
        assert fast.disks() == careful.disks()


def never(*_: object) -> int:
    raise AssertionError


def test_plain_requests_take_the_fast_path(
    fast: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "handle", never)
    data = b"\xa5" * 1024
    write = ata(WRITE, 100, 2, aflags=0x41, data=data)
    responses = fast.serve(*[ata(READ, lba, 2) for lba in range(30)], write)
    assert [response[36:44] for response in responses[:30]] == [
        CONTENT[lba * 512 :][:8] for lba in range(30)
    ]
    assert responses[30][24:28] == b"A\0\0@"
    assert fast.disks()[0][100 * 512 : 102 * 512] == data


@pytest.mark.parametrize(
    "before",
    [
        mask(1, (1, bytes.fromhex("525400000001"))),
        ata(WRITE_UNCORRECTABLE, 0, 1, feature=0x55),
    ],
    ids=["mask", "uncorrectable"],
)
def test_change_of_an_export_applies_to_the_next_frame_p61(
    fast: Side, before: bytes
) -> None:
    read = ata(READ, 0, 1)
    responses = fast.serve(read, read, before, read)
    assert [len(response) for response in responses[:2]] == [548, 548]
    assert all(len(response) == 60 for response in responses[2:])


def test_removed_target_is_silent_and_added_one_responds(
    fast: Side,
) -> None:
    read = ata(READ, 0, 1)
    assert len(fast.serve(read)) == 1
    target = fast.port.targets[0]
    fast.port.remove(target.export.address)
    assert fast.serve(read, read) == []
    fast.port.add(target.export)
    assert len(fast.serve(read)) == 1


def test_frames_to_a_target_with_filters_are_filtered(stack: ExitStack) -> None:
    fast = Side(MemoryRingLink(), stack)
    disk = fast.port.targets[0].export.disk
    export = Export(Address(8, 1), disk)
    export.filters = Filters(
        [parse_filter("drop")], exists=lambda _: True, log_line=lambda _: None
    )
    fast.port.add(export)
    assert fast.serve(at((8, 1), ata(READ)), ata(READ))[0][16:19] == b"\0\x07\x03"


def test_truncated_frames_are_ignored(fast: Side) -> None:
    read = ata(READ, 0, 1)
    too_long = ata(READ, 1, 1, data=bytes(4000))
    assert len(fast.serve(read, too_long, read)) == 2
    assert fast.port.statistics().truncated == 1


def test_more_requests_than_slots_are_answered_in_order(fast: Side) -> None:
    responses = fast.serve(*[ata(READ, lba, 1) for lba in range(500)])
    assert [int.from_bytes(response[28:34], "little") for response in responses] == [
        *range(500)
    ]


def test_write_to_a_truncated_file_is_an_error_and_does_not_extend_it(
    fast: Side,
) -> None:
    data = b"\xa5" * 512
    requests = [ata(WRITE, lba, aflags=0x41, data=data) for lba in (1, 60, 99)]
    assert [frame[27] for frame in fast.serve(*requests)] == [0x40] * 3
    os.truncate(fast.files[0], 4096)
    requests.append(ata(READ, 60))
    assert [frame[27] & 1 for frame in fast.serve(*requests)] == [1] * 4
    assert os.fstat(fast.files[0]).st_size == 4096


def test_no_write_of_a_batch_in_which_the_file_is_truncated_is_acknowledged(
    fast: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    lbas: list[int] = []
    pwritev = os.pwritev

    def truncate_before_third(fd: int, data: list[memoryview], offset: int) -> int:
        lbas.append(offset // 512)
        if len(lbas) == 3:
            os.truncate(fd, 0)
        return pwritev(fd, data, offset)

    monkeypatch.setattr("os.pwritev", truncate_before_third)
    data = b"\xa5" * 512
    writes = [ata(WRITE, lba, aflags=0x41, data=data) for lba in range(10, 20)]
    read = ata(READ, 10)
    assert len(fast.serve(writes[0], read)) == 2
    assert fast.serve(*writes, read) == []
    assert lbas == [10, *range(10, 20)]
    # The retransmissions get errors.
    responses = fast.serve(*writes, read, ata(READ, 0))
    assert [frame[27] & 1 for frame in responses] == [1] * 12
