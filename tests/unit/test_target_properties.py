from __future__ import annotations

import struct
from random import Random
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.asking import CLIENT, TARGET, make_target

if TYPE_CHECKING:
    from target.protocol.engine import Engine

SECTORS = 16
DIRT = 0xDB
FILL = 0x5A


class BoundedDisk:
    """A small disk with constant bytes that checks the bounds of each access."""

    size = SECTORS * 512
    read_only = False

    def __init__(self) -> None:
        self.overstepped = False

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length <= 0 or offset + length > self.size:
            self.overstepped = True
        if offset % 512 or length % 512:
            self.overstepped = True

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check(offset, len(buffer))
        buffer[:] = bytes([FILL]) * len(buffer)

    def write_from(self, offset: int, data: memoryview) -> None:
        self._check(offset, len(data))

    def discard(self, offset: int, length: int) -> None:
        self._check(offset, length)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def pick(choice: int, likely: tuple[int, ...]) -> int:
    # One of the likely values, or sometimes the byte itself.
    return likely[choice % len(likely)] if choice < 240 else choice


def plausible_frame(raw: bytes) -> bytes:
    """Make a frame of raw bytes with a plausible header and random contents.

    One draw for a whole frame: draws are much slower than the target.
    """
    verfl, error, shelf, slot, command, opcode, aflags, count, lba, bulk = raw[:10]
    head = struct.pack(
        "!HBBHBB",
        0x88A2,
        pick(verfl, (0x10,)),
        error,
        0xFFFF if shelf % 8 == 1 else 7,
        0xFF if slot % 8 == 1 else 3,
        pick(command, (0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 3)),
    )
    registers = bytes(
        (
            pick(aflags, (0x40, 0x41, 0x00, 0x01)),
            error,
            pick(count, (1, 2, 1, 2, 3, 0)),
            pick(opcode, (0x20, 0x24, 0x30, 0x34, 0x34, 0xE5, 0xE7, 0xEA, 0xEC)),
            pick(lba, tuple(range(SECTORS + 3))),
        )
    )
    high = raw[10:15] if lba % 4 == 3 else bytes(5)
    whole = TARGET + CLIENT + head + raw[15:19] + registers + high + bytes(2)
    whole += raw[19:] * (60, 1)[bulk % 2]
    return whole[: bulk - 200] if bulk > 224 else whole


# Uniformly distributed, unlike bytes drawn by hypothesis.
LIKELY_FRAMES = st.integers(0, 2**64).map(
    lambda n: plausible_frame(Random(n).randbytes(60))
)


def response_to(target: Engine, request: bytes) -> tuple[int, bytearray]:
    slot = bytearray([DIRT]) * target.frame_limit
    before = bytes(request)
    length = target.handle(memoryview(bytearray(request)), memoryview(slot), 0.0)
    assert request == before
    return length, slot


def check_rules(request: bytes, mtu: int) -> None:
    disk = BoundedDisk()
    target = make_target(disk, mtu)
    length, slot = response_to(target, request)
    assert not disk.overstepped
    if length == 0:
        return
    assert 60 <= length <= 14 + mtu
    assert slot[:16] == request[6:12] + TARGET + slot[12:16]
    assert slot[12:14] == b"\x88\xa2"
    assert slot[14] in (0x18, 0x1C)
    assert (slot[15] != 0) == (slot[14] == 0x1C)
    assert slot[16:19] == b"\0\x07\x03"
    assert slot[19:24] == request[19:24]
    # The response does not depend on the old contents of the slot.
    other = bytearray(b"\x24") * target.frame_limit
    again = make_target(BoundedDisk(), mtu)
    assert again.handle(memoryview(request), memoryview(other), 0.0) == length
    assert other[:length] == slot[:length]


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_response_to_random_bytes_obeys_the_rules(
    request_: bytes,
) -> None:
    check_rules(request_, 1500)


@settings(max_examples=1500, deadline=None)
@given(LIKELY_FRAMES, st.sampled_from((548, 600, 1500, 9000)))
def test_response_to_plausible_frames_obeys_the_rules_p19(
    request_: bytes, mtu: int
) -> None:
    check_rules(request_, mtu)


@settings(max_examples=150, deadline=None)
@given(st.lists(LIKELY_FRAMES, max_size=20))
def test_response_does_not_leak_old_memory(
    requests: list[bytes],
) -> None:
    # Each byte of a response's data is from the disk, the identity page, the config
    # string, or this request.
    target = make_target(BoundedDisk())
    for request in requests:
        length, slot = response_to(target, request)
        if not length or slot[14] == 0x1C or slot[19] != 0:
            continue
        data = bytes(slot[36:length])
        assert data in (
            bytes(24),
            bytes([FILL]) * len(data),
            target.export.identity_page,
        )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.binary(max_size=30)), max_size=20))
def test_duplicate_request_changes_nothing_p2(
    commands: list[tuple[int, bytes]],
) -> None:
    # A retransmitted request has the same response and leaves the same state.
    target = make_target(BoundedDisk())
    for ccmd, string in commands:
        argument = struct.pack("!HHBBH", 0, 0, 0, ccmd, len(string)) + string
        head = struct.pack("!HBBHBBI", 0x88A2, 0x10, 0, 7, 3, 1, 1)
        request = TARGET + CLIENT + head + argument
        first = response_to(target, request)
        state = target.export.config_string
        assert response_to(target, request) == first
        assert target.export.config_string == state
