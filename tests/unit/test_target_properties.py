from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.asking import CLIENT, TARGET, make_target

if TYPE_CHECKING:
    from target.server import Target

SECTORS = 16
DIRT = 0xDB
FILL = 0x5A


class FencedDisk:
    """A small disk whose bytes are all alike, and that notes when it is overstepped."""

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

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


@st.composite
def likely_frames(draw: st.DrawFn) -> bytes:
    """Frames whose header gets them far, and whose rest is anything."""
    some = st.one_of
    head = struct.pack(
        "!HBBHBBI",
        0x88A2,
        draw(some(st.just(0x10), st.integers(0, 255))),
        draw(st.integers(0, 255)),
        draw(st.sampled_from((7, 0xFFFF))),
        draw(st.sampled_from((3, 0xFF))),
        draw(some(st.sampled_from((0, 0, 0, 1, 1, 2, 3)), st.integers(0, 255))),
        draw(st.integers(0, 2**32 - 1)),
    )
    opcodes = st.sampled_from((0x20, 0x24, 0x30, 0x34, 0xE5, 0xE7, 0xEA, 0xEC))
    registers = bytes(
        (
            draw(st.integers(0, 255)),
            draw(st.integers(0, 255)),
            draw(some(st.integers(0, 5), st.integers(0, 255))),
            draw(some(opcodes, st.integers(0, 255))),
        )
    )
    lba = draw(some(st.integers(0, SECTORS + 3), st.integers(0, 2**48 - 1)))
    rest = draw(st.binary(max_size=80)) * draw(st.sampled_from((1, 1, 20)))
    whole = TARGET + CLIENT + head + registers + lba.to_bytes(6, "little") + rest
    return whole[: draw(some(st.just(len(whole)), st.integers(0, len(whole))))]


def reply_to(target: Target, request: bytes) -> tuple[int, bytearray]:
    slot = bytearray([DIRT]) * target.frame_limit
    before = bytes(request)
    length = target.handle(memoryview(bytearray(request)), memoryview(slot), 0.0)
    assert request == before
    return length, slot


def hold_to_the_rules(request: bytes, mtu: int) -> None:
    disk = FencedDisk()
    target = make_target(disk, mtu)
    length, slot = reply_to(target, request)
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
    # No byte of what the slot held before: another kind of dirt changes nothing.
    other = bytearray(b"\x24") * target.frame_limit
    again = make_target(FencedDisk(), mtu)
    assert again.handle(memoryview(request), memoryview(other), 0.0) == length
    assert other[:length] == slot[:length]


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_whatever_are_answered_by_the_rules_or_not_at_all(
    request_: bytes,
) -> None:
    hold_to_the_rules(request_, 1500)


@settings(max_examples=1500, deadline=None)
@given(likely_frames(), st.sampled_from((548, 600, 1500, 9000)))
def test_likely_frames_are_answered_by_the_rules_or_not_at_all_p19(
    request_: bytes, mtu: int
) -> None:
    hold_to_the_rules(request_, mtu)


@settings(max_examples=150, deadline=None)
@given(st.lists(likely_frames(), max_size=20))
def test_nothing_that_came_before_shows_in_a_reply_but_the_config_string(
    requests: list[bytes],
) -> None:
    # Every byte of a reply's data area comes from the disk, the identity page, the
    # config string, or this very request.
    target = make_target(FencedDisk())
    for request in requests:
        length, slot = reply_to(target, request)
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
def test_every_request_may_come_twice_p2(commands: list[tuple[int, bytes]]) -> None:
    # A retransmitted request finds the same state and leaves the same behind.
    target = make_target(FencedDisk())
    for ccmd, string in commands:
        argument = struct.pack("!HHBBH", 0, 0, 0, ccmd, len(string)) + string
        head = struct.pack("!HBBHBBI", 0x88A2, 0x10, 0, 7, 3, 1, 1)
        request = TARGET + CLIENT + head + argument
        first = reply_to(target, request)
        state = target.export.config_string
        assert reply_to(target, request) == first
        assert target.export.config_string == state
