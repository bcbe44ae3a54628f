"""The rings without a kernel: the test plays its part, in the same memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.net.rings import ReceiveRing, RingShape, SendRing

FRAME = 476


@given(length=st.integers(60, 65_550), count=st.integers(1, 100_000))
def test_a_shape_is_one_that_the_kernel_takes(length: int, count: int) -> None:
    block, blocks, slot, slots = shape = RingShape.for_frames(length, count)
    assert block % 4096 == 0
    assert slot % 512 == 0
    assert slots == blocks * (block // slot)
    assert slot >= FRAME + length
    assert slots >= 32
    assert shape.length <= max(16 << 20, 32 * 2 * slot)
    assert slots >= count or shape.length > (16 << 20) - block
    assert shape.request() == struct.pack("=IIII", *shape)


@given(length=st.integers(60, 65_550), count=st.integers(1, 300))
def test_slots_lie_in_their_blocks_and_apart(length: int, count: int) -> None:
    shape = RingShape.for_frames(length, count)
    offsets = shape.offsets(shape.length)
    assert len(offsets) == shape.slots
    for here, there in zip(offsets, [*offsets[1:], 2 * shape.length], strict=True):
        assert here + shape.slot <= there
        assert here // shape.block == (here + shape.slot - 1) // shape.block


@pytest.mark.parametrize(
    ("mtu", "slot", "slots"),
    [(1500, 2048, 256), (9000, 9728, 260), (65535, 66048, 240)],
)
def test_the_shapes_of_everyday_mtus(mtu: int, slot: int, slots: int) -> None:
    shape = RingShape.for_frames(14 + mtu, 256)
    assert (shape.slot, shape.slots) == (slot, slots)


class Rings(ReceiveRing, SendRing):
    """Both rings, and a kernel that does what the test says."""

    def __init__(self, slots: int = 4) -> None:
        self.shape = RingShape(4096 * slots, 1, 4096, slots)
        self.memory = memoryview(bytearray(2 * self.shape.length))
        self._map_receive(self.memory, 0, self.shape)
        self._map_send(self.memory, self.shape.length, self.shape, 1514)
        self.kernel_sends = 0
        self.kernel_fills = 0
        self.looks = 0
        self.sent: list[bytes] = []
        self.takes = 0

    def _empty(self) -> None:
        self.looks += 1

    def flush(self) -> None:
        base = self.shape.length
        for _ in range(self.takes):
            at = base + self.kernel_sends % self.shape.slots * 4096
            status, length, _, start, _ = struct.unpack_from("=IIIHH", self.memory, at)
            if status != 1:
                break
            self.sent.append(bytes(self.memory[at + start : at + start + length]))
            struct.pack_into("=I", self.memory, at, 0)
            self.kernel_sends += 1
        self._settle(1514)

    def arrive(self, frame: bytes, cut: int = 0, start: int = FRAME) -> None:
        at = self.kernel_fills % self.shape.slots * 4096
        assert struct.unpack_from("=I", self.memory, at) == (0,), "the ring is full"
        stored = len(frame) - cut
        self.memory[at + start : at + start + stored] = frame[:stored]
        struct.pack_into("=IIIH", self.memory, at, 1 | 4, len(frame), stored, start)
        self.kernel_fills += 1

    def counted(self) -> tuple[int, int, int]:
        """Return the frames that were sent, unsent and truncated."""
        return self._sent, self._unsent, self._truncated

    def withdraw(self) -> None:
        self._withdraw()

    def settle(self, limit: int) -> None:
        self._settle(limit)

    def take(self) -> bytes | None:
        frame = self.receive()
        return None if frame is None else bytes(frame)

    def put(self, frame: bytes) -> bool:
        slot = self.reserve()
        if slot is None:
            return False
        slot[: len(frame)] = frame
        self.commit(len(frame))
        return True


def frame(number: int) -> bytes:
    return bytes([number]) * (60 + number)


def test_frames_come_out_in_order_round_and_round() -> None:
    rings = Rings()
    for number in range(0, 60, 3):
        for step in range(3):
            rings.arrive(frame(number + step))
        for step in range(3):
            assert rings.take() == frame(number + step)
        assert rings.take() is None


def test_a_slot_is_the_kernels_again_only_when_the_next_frame_is_asked_for() -> None:
    rings = Rings(slots=2)
    rings.arrive(frame(1))
    rings.arrive(frame(2))
    held = rings.receive()
    with pytest.raises(AssertionError, match="full"):
        rings.arrive(frame(3))
    assert held is not None
    assert bytes(held) == frame(1)
    assert rings.take() == frame(2)
    rings.arrive(frame(3))
    assert rings.take() == frame(3)


def test_a_frame_begins_where_the_kernel_says() -> None:
    rings = Rings()
    rings.arrive(frame(1), start=480)
    assert rings.take() == frame(1)


def test_frames_that_were_cut_are_counted_and_skipped() -> None:
    rings = Rings()
    rings.arrive(frame(1), cut=1)
    rings.arrive(frame(2))
    rings.arrive(frame(3), cut=60)
    assert rings.take() == frame(2)
    assert rings.take() is None
    assert rings.counted() == (0, 0, 2)


def test_frames_go_out_in_order_round_and_round() -> None:
    rings = Rings()
    rings.takes = 2
    for number in range(50):
        assert rings.put(frame(number))
    rings.takes = 99
    rings.flush()
    assert rings.sent == [frame(number) for number in range(50)]
    assert rings.counted() == (50, 0, 0)


def test_there_is_no_slot_while_all_are_under_way() -> None:
    rings = Rings()
    assert [rings.put(frame(number)) for number in range(5)] == [True] * 4 + [False]
    rings.takes = 1
    assert rings.put(frame(5))


def test_what_is_withdrawn_is_never_sent_and_its_slots_serve_again() -> None:
    rings = Rings()
    rings.takes = 1
    for number in range(3):
        rings.put(frame(number))
    rings.flush()
    rings.withdraw()
    assert rings.counted() == (1, 2, 0)
    rings.takes = 99
    for number in range(10, 20):
        assert rings.put(frame(number))
    rings.flush()
    assert rings.sent == [frame(0), *(frame(number) for number in range(10, 20))]


def test_a_frame_that_is_being_filled_moves_into_a_slot_that_was_withdrawn() -> None:
    rings = Rings()
    rings.put(frame(1))
    slot = rings.reserve()
    assert slot is not None
    slot[:62] = frame(2)
    rings.withdraw()
    rings.commit(62)
    rings.takes = 99
    rings.flush()
    assert rings.sent == [frame(2)]


def test_what_the_kernel_throws_away_as_too_long_is_not_counted_as_sent() -> None:
    rings = Rings()
    rings.put(frame(1))
    rings.put(frame(50))
    for slot in range(2):
        struct.pack_into("=I", rings.memory, rings.shape.length + slot * 4096, 0)
    rings.settle(100)
    assert rings.counted() == (1, 1, 0)
