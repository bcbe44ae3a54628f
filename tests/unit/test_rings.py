"""The rings without a kernel: the test plays its part, in the same memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.net.rings import RingGeometry, Rings

FRAME_OFFSET = 476
CAPACITY = 1514


@given(length=st.integers(60, 65_550), count=st.integers(1, 100_000))
def test_a_geometry_is_one_that_the_kernel_accepts(length: int, count: int) -> None:
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
    for here, there in zip(offsets, [*offsets[1:], 2 * geometry.size], strict=True):
        assert here + geometry.slot_size <= there
        assert (
            here // geometry.block_size
            == (here + geometry.slot_size - 1) // geometry.block_size
        )


@pytest.mark.parametrize(
    ("mtu", "slot", "slots"),
    [(1500, 2048, 256), (9000, 9728, 260), (65535, 66048, 240)],
)
def test_the_geometries_of_common_mtus(mtu: int, slot: int, slots: int) -> None:
    geometry = RingGeometry.for_frames(14 + mtu, 256)
    assert (geometry.slot_size, geometry.slot_count) == (slot, slots)


class RingPair:
    """Both rings, used as a link does, and a kernel that does what the test says."""

    def __init__(self, slots: int = 4) -> None:
        self.geometry = RingGeometry(4096 * slots, 1, 4096, slots)
        self.memory = memoryview(bytearray(2 * self.geometry.size))
        rings = Rings(self.memory, self.geometry, CAPACITY)
        self.rx, self.tx = rings.rx, rings.tx
        self.kernel_consumer = 0
        self.kernel_producer = 0
        self.sent: list[bytes] = []
        self.takes = 0
        """Frames that the kernel takes at each flush."""

    def flush(self) -> None:
        base = self.geometry.size
        for _ in range(self.takes):
            at = base + self.kernel_consumer % self.geometry.slot_count * 4096
            status, length, _, start, _ = struct.unpack_from("=IIIHH", self.memory, at)
            if status != 1:
                break
            self.sent.append(bytes(self.memory[at + start : at + start + length]))
            struct.pack_into("=I", self.memory, at, 0)
            self.kernel_consumer += 1
        self.tx.reclaim(CAPACITY)

    def arrive(self, frame: bytes, cut: int = 0, start: int = FRAME_OFFSET) -> None:
        at = self.kernel_producer % self.geometry.slot_count * 4096
        assert struct.unpack_from("=I", self.memory, at) == (0,), "the ring is full"
        stored = len(frame) - cut
        self.memory[at + start : at + start + stored] = frame[:stored]
        struct.pack_into("=IIIH", self.memory, at, 1 | 4, len(frame), stored, start)
        self.kernel_producer += 1

    def counted(self) -> tuple[int, int, int]:
        """Return the frames that were sent, unsent and truncated."""
        return self.tx.sent, self.tx.unsent, self.rx.truncated

    def take(self) -> bytes | None:
        frame = self.rx.consume()
        return None if frame is None else bytes(frame)

    def put(self, frame: bytes) -> bool:
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


def test_frames_come_out_in_order_round_and_round() -> None:
    rings = RingPair()
    for number in range(0, 60, 3):
        for step in range(3):
            rings.arrive(frame(number + step))
        for step in range(3):
            assert rings.take() == frame(number + step)
        assert rings.take() is None


def test_a_slot_is_the_kernels_again_only_when_the_next_frame_is_asked_for() -> None:
    rings = RingPair(slots=2)
    rings.arrive(frame(1))
    rings.arrive(frame(2))
    held = rings.rx.consume()
    with pytest.raises(AssertionError, match="full"):
        rings.arrive(frame(3))
    assert held is not None
    assert bytes(held) == frame(1)
    assert rings.take() == frame(2)
    rings.arrive(frame(3))
    assert rings.take() == frame(3)


def test_a_frame_begins_where_the_kernel_says() -> None:
    rings = RingPair()
    rings.arrive(frame(1), start=480)
    assert rings.take() == frame(1)


def test_frames_that_were_cut_are_counted_and_skipped() -> None:
    rings = RingPair()
    rings.arrive(frame(1), cut=1)
    rings.arrive(frame(2))
    rings.arrive(frame(3), cut=60)
    assert rings.take() == frame(2)
    assert rings.take() is None
    assert rings.counted() == (0, 0, 2)


def test_frames_go_out_in_order_round_and_round() -> None:
    rings = RingPair()
    rings.takes = 2
    for number in range(50):
        assert rings.put(frame(number))
    rings.takes = 99
    rings.flush()
    assert rings.sent == [frame(number) for number in range(50)]
    assert rings.counted() == (50, 0, 0)


def test_there_is_no_slot_while_all_are_under_way() -> None:
    rings = RingPair()
    assert [rings.put(frame(number)) for number in range(5)] == [True] * 4 + [False]
    rings.takes = 1
    assert rings.put(frame(5))


def test_what_is_withdrawn_is_never_sent_and_its_slots_serve_again() -> None:
    rings = RingPair()
    rings.takes = 1
    for number in range(3):
        rings.put(frame(number))
    rings.flush()
    rings.tx.withdraw()
    assert rings.counted() == (1, 2, 0)
    rings.takes = 99
    for number in range(10, 20):
        assert rings.put(frame(number))
    rings.flush()
    assert rings.sent == [frame(0), *(frame(number) for number in range(10, 20))]


def test_a_frame_that_is_being_filled_moves_into_a_slot_that_was_withdrawn() -> None:
    rings = RingPair()
    rings.put(frame(1))
    slot = rings.tx.reserve()
    assert slot is not None
    slot[:62] = frame(2)
    rings.tx.withdraw()
    rings.tx.commit(62)
    rings.takes = 99
    rings.flush()
    assert rings.sent == [frame(2)]


def test_what_the_kernel_throws_away_as_too_long_is_not_counted_as_sent() -> None:
    rings = RingPair()
    rings.put(frame(1))
    rings.put(frame(50))
    for slot in range(2):
        struct.pack_into("=I", rings.memory, rings.geometry.size + slot * 4096, 0)
    rings.tx.reclaim(100)
    assert rings.counted() == (1, 1, 0)


def test_looking_for_a_frame_releases_nothing() -> None:
    rings = RingPair(slots=2)
    assert not rings.rx.has_frame()
    rings.arrive(frame(1))
    assert rings.rx.has_frame()
    held = rings.rx.consume()
    assert held is not None
    assert not rings.rx.has_frame()
    rings.arrive(frame(2))
    assert rings.rx.has_frame()
    assert bytes(held) == frame(1)
    assert rings.take() == frame(2)


def test_a_batch_continues_where_single_frames_ended_and_they_after_it() -> None:
    rings = RingPair()
    memory, rx, tx = rings.memory, rings.rx, rings.tx
    rings.takes = 99
    for number in range(0, 40, 5):
        rings.arrive(frame(number))
        assert rings.take() == frame(number)
        assert rings.put(frame(number))
        rings.flush()
        tx.reserve()
        source, target = rx.begin_batch(), tx.begin_batch()
        for step in range(3):
            rings.arrive(frame(number + step))
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
    assert rings.counted() == (32, 0, 0)


def test_views_of_sector_data_have_limits() -> None:
    slots = RingPair().tx.slots
    assert slots.data_views(CAPACITY - 36 + 1) is None
    views = [slots.data_views(length) for length in range(1, 33)]
    assert None not in views
    assert slots.data_views(33) is None
    assert slots.data_views(32) is views[-1]
