"""Packet rings in plain memory, with a fake kernel as the other side."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.net.rings import RingGeometry, Rings

FRAME_OFFSET = 476
CAPACITY = 1514


@given(length=st.integers(60, 65_550), count=st.integers(1, 100_000))
def test_geometries_satisfy_the_kernels_constraints(length: int, count: int) -> None:
    block, blocks, slot, slots = geometry = RingGeometry.for_frames(length, count)
    assert block % 4096 == 0
    assert slot % 512 == 0
    assert slots == blocks * (block // slot)
    assert slot >= FRAME_OFFSET + length
    assert slots >= 32
    assert geometry.size <= max(16 << 20, 32 * 2 * slot)
    assert slots >= count or geometry.size > (16 << 20) - block
    assert geometry.request() == struct.pack("=IIII", *geometry)


@given(length=st.integers(60, 65_550), count=st.integers(1, 300))
def test_slots_are_disjoint_and_do_not_cross_blocks(length: int, count: int) -> None:
    geometry = RingGeometry.for_frames(length, count)
    offsets = geometry.slot_offsets(geometry.size)
    assert len(offsets) == geometry.slot_count
    for offset, following in zip(
        offsets, [*offsets[1:], 2 * geometry.size], strict=True
    ):
        assert offset + geometry.slot_size <= following
        assert (
            offset // geometry.block_size
            == (offset + geometry.slot_size - 1) // geometry.block_size
        )


@pytest.mark.parametrize(
    ("mtu", "slot", "slots"),
    [(1500, 2048, 256), (9000, 9728, 260), (65535, 66048, 240)],
)
def test_geometries_of_common_mtus(mtu: int, slot: int, slots: int) -> None:
    geometry = RingGeometry.for_frames(14 + mtu, 256)
    assert (geometry.slot_size, geometry.slot_count) == (slot, slots)


class RingPair:
    """Both rings, used as by a link, and a fake kernel controlled by the test."""

    def __init__(self, slots: int = 4) -> None:
        self.geometry = RingGeometry(4096 * slots, 1, 4096, slots)
        self.memory = memoryview(bytearray(2 * self.geometry.size))
        rings = Rings(self.memory, self.geometry, CAPACITY)
        self.rx, self.tx = rings.rx, rings.tx
        self.kernel_consumer = 0
        self.kernel_producer = 0
        self.sent: list[bytes] = []
        self.send_limit = 0
        """Maximum number of frames that the kernel sends per flush."""

    def flush(self) -> None:
        base = self.geometry.size
        for _ in range(self.send_limit):
            at = base + self.kernel_consumer % self.geometry.slot_count * 4096
            status, length, _, start, _ = struct.unpack_from("=IIIHH", self.memory, at)
            if status != 1:
                break
            self.sent.append(bytes(self.memory[at + start : at + start + length]))
            struct.pack_into("=I", self.memory, at, 0)
            self.kernel_consumer += 1
        self.tx.reclaim(CAPACITY)

    def deliver(
        self, frame: bytes, missing: int = 0, start: int = FRAME_OFFSET
    ) -> None:
        at = self.kernel_producer % self.geometry.slot_count * 4096
        assert struct.unpack_from("=I", self.memory, at) == (0,), "the ring is full"
        stored = len(frame) - missing
        self.memory[at + start : at + start + stored] = frame[:stored]
        struct.pack_into("=IIIH", self.memory, at, 1 | 4, len(frame), stored, start)
        self.kernel_producer += 1

    def counters(self) -> tuple[int, int, int]:
        """Return the numbers of frames sent, unsent and truncated."""
        return self.tx.sent, self.tx.unsent, self.rx.truncated

    def receive(self) -> bytes | None:
        frame = self.rx.consume()
        return None if frame is None else bytes(frame)

    def send(self, frame: bytes) -> bool:
        slot = self.tx.reserve()
        if slot is None:
            self.flush()
            slot = self.tx.reserve()
        if slot is None:
            return False
        slot[: len(frame)] = frame
        self.tx.commit(len(frame))
        return True


def frame(number: int) -> bytes:
    return bytes([number]) * (60 + number)


def test_frames_are_received_in_order_across_wrap_around() -> None:
    rings = RingPair()
    for number in range(0, 60, 3):
        for step in range(3):
            rings.deliver(frame(number + step))
        for step in range(3):
            assert rings.receive() == frame(number + step)
        assert rings.receive() is None


def test_a_slot_is_released_by_the_next_consume() -> None:
    rings = RingPair(slots=2)
    rings.deliver(frame(1))
    rings.deliver(frame(2))
    held = rings.rx.consume()
    with pytest.raises(AssertionError, match="full"):
        rings.deliver(frame(3))
    assert held is not None
    assert bytes(held) == frame(1)
    assert rings.receive() == frame(2)
    rings.deliver(frame(3))
    assert rings.receive() == frame(3)


def test_tp_mac_gives_the_start_of_a_frame() -> None:
    rings = RingPair()
    rings.deliver(frame(1), start=480)
    assert rings.receive() == frame(1)


def test_truncated_frames_are_counted_and_skipped() -> None:
    rings = RingPair()
    rings.deliver(frame(1), missing=1)
    rings.deliver(frame(2))
    rings.deliver(frame(3), missing=60)
    assert rings.receive() == frame(2)
    assert rings.receive() is None
    assert rings.counters() == (0, 0, 2)


def test_frames_are_sent_in_order_across_wrap_around() -> None:
    rings = RingPair()
    rings.send_limit = 2
    for number in range(50):
        assert rings.send(frame(number))
    rings.send_limit = 99
    rings.flush()
    assert rings.sent == [frame(number) for number in range(50)]
    assert rings.counters() == (50, 0, 0)


def test_reserve_fails_while_the_kernel_owns_all_slots() -> None:
    rings = RingPair()
    assert [rings.send(frame(number)) for number in range(5)] == [True] * 4 + [False]
    rings.send_limit = 1
    assert rings.send(frame(5))


def test_withdrawn_frames_are_not_sent_and_their_slots_are_reused() -> None:
    rings = RingPair()
    rings.send_limit = 1
    for number in range(3):
        rings.send(frame(number))
    rings.flush()
    rings.tx.withdraw()
    assert rings.counters() == (1, 2, 0)
    rings.send_limit = 99
    for number in range(10, 20):
        assert rings.send(frame(number))
    rings.flush()
    assert rings.sent == [frame(0), *(frame(number) for number in range(10, 20))]


def test_a_reserved_frame_moves_into_the_first_withdrawn_slot() -> None:
    rings = RingPair()
    rings.send(frame(1))
    slot = rings.tx.reserve()
    assert slot is not None
    slot[:62] = frame(2)
    rings.tx.withdraw()
    rings.tx.commit(62)
    rings.send_limit = 99
    rings.flush()
    assert rings.sent == [frame(2)]


def test_frames_discarded_as_too_long_count_as_unsent() -> None:
    rings = RingPair()
    rings.send(frame(1))
    rings.send(frame(50))
    for slot in range(2):
        struct.pack_into("=I", rings.memory, rings.geometry.size + slot * 4096, 0)
    rings.tx.reclaim(100)
    assert rings.counters() == (1, 1, 0)


def test_has_frame_does_not_release_the_held_slot() -> None:
    rings = RingPair(slots=2)
    assert not rings.rx.has_frame()
    rings.deliver(frame(1))
    assert rings.rx.has_frame()
    held = rings.rx.consume()
    assert held is not None
    assert not rings.rx.has_frame()
    rings.deliver(frame(2))
    assert rings.rx.has_frame()
    assert bytes(held) == frame(1)
    assert rings.receive() == frame(2)


def test_batches_and_single_frames_alternate() -> None:
    rings = RingPair()
    memory, rx, tx = rings.memory, rings.rx, rings.tx
    rings.send_limit = 99
    for number in range(0, 40, 5):
        rings.deliver(frame(number))
        assert rings.receive() == frame(number)
        assert rings.send(frame(number))
        rings.flush()
        tx.reserve()
        source, target = rx.begin_batch(), tx.begin_batch()
        for step in range(3):
            rings.deliver(frame(number + step))
            start = rx.slots.offsets[source + step]
            space = tx.slots.offsets[target + step]
            end = FRAME_OFFSET + 60
            memory[space + 8 : space + end] = memory[start + 8 : start + end]
            struct.pack_into("=II", memory, space, 1, 60)
            memory[start : start + 4] = bytes(4)
        rx.end_batch(3)
        tx.end_batch(3, 180)
        assert (tx.pending, tx.pending_bytes) == (3, 180)
        rings.flush()
        assert rings.sent[-3:] == [frame(number + step)[:60] for step in range(3)]
    assert rings.counters() == (32, 0, 0)


def test_data_views_are_limited_in_length_and_number() -> None:
    slots = RingPair().tx.slots
    assert slots.data_views(CAPACITY - 36 + 1) is None
    views = [slots.data_views(length) for length in range(1, 33)]
    assert None not in views
    assert slots.data_views(33) is None
    assert slots.data_views(32) is views[-1]
