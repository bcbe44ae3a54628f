"""Where the fuzzer's frames come from: captures, scapy, hypothesis.

``Mutator`` spoils frames that real drivers sent, and good ones of every command: a
byte, a field or a length at a time. ``scapy_frames`` fills the fields of our layers
with anything, ``hypothesis_frames`` puts frames together that are nearly right. The
same seed makes the same frames.
"""

from __future__ import annotations

import random
import struct
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aoe.capture.annotated import read_capture
from tests.asking import (
    CLIENT,
    SECTORS,
    TARGET,
    ata,
    config,
    directives,
    frame,
    from_,
    mask,
    reserve,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hypothesis.strategies import SearchStrategy

GOLDEN: Final = Path(__file__).parent / "golden"
OTHER: Final = bytes.fromhex("525400000001")
ADDRESSES: Final = ((0, 0), (7, 3), (7, 4), (9, 1))
BROADCASTS: Final = ((0xFFFF, 0xFF), (7, 0xFF), (0xFFFF, 4))
READS: Final = (0x20, 0x24, 0x25, 0xC8, 0x40, 0x42)
WRITES: Final = (0x30, 0x34, 0x35, 0xCA, 0x3D)
OTHERS: Final = (0x45, 0xE0, 0xE1, 0xE2, 0xE3, 0xE5, 0xE6, 0xE7, 0xEA, 0xEC, 0x99)
FEATURES: Final = (0x02, 0x82, 0x03, 0x55, 0xAA, 0x00)
SMART: Final = (0xD0, 0xD8, 0xD9, 0xDA, 0xD4)
SMART_KEY: Final = 0xC24F00
EDGES: Final = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)
LBAS: Final = (
    *(0, 1, SECTORS - 2, SECTORS - 1, SECTORS, SECTORS + 1, (1 << 28) - 1, 1 << 28),
    *((0xE << 28) + 5, (1 << 32) - 1, 1 << 32, (1 << 48) - 1, (1 << 48) - SECTORS),
)
LENGTHS: Final = (
    *(0, 13, 14, 23, 24, 25, 26, 27, 28, 31, 32, 33, 35, 36, 37, 42, 59, 60, 61),
    *(547, 548, 549, 1060, 1500, 1514, 1515, 4132, 8740, 9014, 9015, 10000),
)
FIELDS: Final = (
    *((12, b"\x88"), (13, b"\xa2\xa3"), (14, b"\x10\x10\x18\x14\x11\x00\x20\xf0")),
    *((15, b"\x00\x01\xff"), (16, b"\x00\xff"), (17, b"\x00\x07\x09\xff")),
    *((18, b"\x00\x03\x04\x01\xff"), (19, b"\x00\x00\x01\x02\x03\x04\xf0\xff")),
    *((24, b"\x00\x01\x40\x41\x51\x43\xff"), (25, bytes((*FEATURES, *SMART, 1, 0x55)))),
    *((26, b"\x00\x01\x02\x03\x11\x12\xff"), (27, bytes((*READS, *WRITES, *OTHERS)))),
    *((27, b"\x06\xb0\xef\x00\x01\x02\xff"), (28, bytes(EDGES)), (29, bytes(range(8)))),
    *((30, b"\x00\x03\x04\x05\xff"), (31, bytes(EDGES)), (33, b"\x00\x01\x02\x03\xff")),
)
"""Offsets of single bytes, and what is worth putting there."""
RUN: Final = 1000
EXAMPLE: Final = 10
"""Frames of a run of hypothesis, and of one of its examples."""


def at(address: tuple[int, int], request: bytes) -> bytes:
    """Send a request to another shelf and slot."""
    return request[:16] + struct.pack("!HB", *address) + request[19:]


def golden_frames() -> list[bytes]:
    """Return the frames that a Linux driver and its target sent, replies too."""
    captures = sorted(GOLDEN.glob("*.pcap.gz"))
    return [each.data for path in captures for each in read_capture(path)]


def good_frames() -> list[bytes]:
    """Return good requests of every command and opcode, for every target."""
    here = [
        *_transfers(),
        *(ata(opcode, 5) for opcode in OTHERS),
        ata(0x45, 3, feature=0x55),
        *(ata(0xEF, count=0x46, feature=feature) for feature in FEATURES),
        *(ata(0xB0, SMART_KEY, feature=feature) for feature in SMART),
        *(config(ccmd, b"owner") for ccmd in range(6)),
        *(config(ccmd) for ccmd in (1, 2, 3, 4)),
        config(3, bytes(range(256)) * 4),
        *_lists(),
        frame(9, bytes(40)),
        frame(0xF3),
        frame(1, bytes(8), verfl=0x20),
    ]
    everywhere = [at(place, request) for place, request in product(ADDRESSES, here)]
    for place in BROADCASTS:
        everywhere += [at(place, request) for request in here[::3]]
    return everywhere + [from_(OTHER, request) for request in everywhere[::7]]


def _transfers() -> Iterator[bytes]:
    for opcode, lba, count in product(READS, (0, 40, SECTORS - 2), (1, 2, 17)):
        yield ata(opcode, lba, count, aflags=0x40 if lba else 0)
    for opcode, lba, count in product(WRITES, (0, 40, SECTORS - 2), (1, 2, 17)):
        data = random.Random(lba).randbytes(512 * count)
        yield ata(opcode, lba, count, aflags=0x41 if lba else 1, data=data)
    for ranges in ([(8, 8)], [(0, 1), (SECTORS - 1, 1), (9, 0)], [(SECTORS, 1)]):
        entries = b"".join(struct.pack("<Q", at | n << 48) for at, n in ranges)
        yield ata(0x06, aflags=0x41, feature=1, data=entries.ljust(512, b"\0"))


def _lists() -> Iterator[bytes]:
    yield mask(0)
    yield mask(1, (1, CLIENT), (1, OTHER), (2, OTHER), (0, OTHER))
    yield mask(1, (1, CLIENT), (9, OTHER))
    yield mask(
        1, *((1, number.to_bytes(6, "big")) for number in range(200)), (1, OTHER)
    )
    yield mask(2) + directives((1, CLIENT))
    yield reserve(0)
    yield reserve(1, CLIENT, OTHER)
    yield reserve(2, OTHER)
    yield reserve(2)
    yield reserve(3, CLIENT)


class Mutator:
    """Spoils good frames, one after the other.

    Args:
        seed: the same frames for the same seed.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._golden, self._good = golden_frames(), good_frames()
        self._last = self._good[0]
        # The likelier stand here more often: what spoils a header early on would spare
        # the rest of the target most of the time.
        self._ways: list[Callable[[bytearray], None]] = [
            *[self._set_field] * 6,
            *[self._move_lba] * 3,
            *[self._stamp] * 3,
            *[self._flip_bit, self._set_byte] * 2,
            *[self._readdress] * 2,
            self._cut,
            self._stretch,
            self._splice,
            self._lie,
            self._change_client,
        ]

    def __next__(self) -> bytes:
        """Make the next frame."""
        draw = self._random
        dice = draw.getrandbits(4)
        if dice == 0:
            return self._last  # As it is when a reply was lost.
        frames = self._golden if dice < 5 else self._good
        spoilt = bytearray(frames[int(draw.random() * len(frames))])
        ways = self._ways
        for _ in range((0, 1, 1, 1, 2, 2, 3, 5)[draw.getrandbits(3)]):
            ways[int(draw.random() * len(ways))](spoilt)
        self._last = bytes(spoilt)
        return self._last

    def __iter__(self) -> Mutator:
        return self

    def _below(self, limit: int) -> int:
        return int(self._random.random() * limit)

    def _set_field(self, spoilt: bytearray) -> None:
        offset, values = FIELDS[self._below(len(FIELDS))]
        if offset < len(spoilt):
            spoilt[offset] = values[self._below(len(values))]

    def _move_lba(self, spoilt: bytearray) -> None:
        if len(spoilt) >= 36:
            dice = self._below(2 * len(LBAS))
            lba = LBAS[dice] if dice < len(LBAS) else self._below(SECTORS)
            spoilt[28:34] = lba.to_bytes(6, "little")

    def _stamp(self, spoilt: bytearray) -> None:
        if len(spoilt) > 44:
            place = 36 + self._below(len(spoilt) - 44)
            spoilt[place : place + 8] = self._random.randbytes(8)

    def _flip_bit(self, spoilt: bytearray) -> None:
        if spoilt:
            place = self._below(min(len(spoilt), 80))
            spoilt[place] ^= 1 << self._random.getrandbits(3)

    def _set_byte(self, spoilt: bytearray) -> None:
        if spoilt:
            place = self._below(min(len(spoilt), 80))
            spoilt[place] = EDGES[self._below(len(EDGES))]

    def _readdress(self, spoilt: bytearray) -> None:
        if len(spoilt) >= 24:
            places = ADDRESSES if self._random.getrandbits(2) else BROADCASTS
            place = places[self._below(len(places))]
            spoilt[16:19] = struct.pack("!HB", *place)

    def _cut(self, spoilt: bytearray) -> None:
        del spoilt[LENGTHS[self._below(len(LENGTHS))] :]

    def _stretch(self, spoilt: bytearray) -> None:
        length = LENGTHS[self._below(len(LENGTHS))]
        spoilt.extend(b"\xee" * (length - len(spoilt)))

    def _splice(self, spoilt: bytearray) -> None:
        other = self._good[self._below(len(self._good))]
        place = self._below(min(len(spoilt), len(other)) or 1)
        spoilt[place:] = other[place:]

    def _lie(self, spoilt: bytearray) -> None:
        # What a frame says of its own length: sectors, bytes of a string, entries.
        if len(spoilt) > 31:
            place = (25, 26, 27, 30, 31)[self._below(5)]
            spoilt[place] = self._below(256)

    def _change_client(self, spoilt: bytearray) -> None:
        if len(spoilt) >= 12:
            spoilt[6:12] = OTHER if self._random.getrandbits(1) else CLIENT


def scapy_frames(seed: int) -> Iterator[bytes]:
    """Yield frames whose fields scapy fills; half of them have a true header."""
    from scapy.layers.l2 import Ether
    from scapy.packet import Packet, fuzz

    from aoe import layers

    # Scapy draws from the module's own generator.
    random.seed(seed)
    draw = random.Random(seed)
    lists = (
        layers.AoEMask(directives=[fuzz(layers.AoEDirective()) for _ in range(5)]),
        layers.AoEReserve(macs=["52:54:00:c1:1e:47", "52:54:00:00:00:01"]),
    )
    bodies: list[Packet] = [
        layers.AoEATA(),
        *(layers.AoEATA(cmd_status=opcode, count=1) for opcode in (0x24, 0xEC, 0x34)),
        layers.AoEATA(aflags=0x41, cmd_status=0x34, count=1, data=bytes(512), lba=7),
        layers.AoEConfig(),
        layers.AoEMask(),
        layers.AoEReserve(),
        *lists,
    ]
    headers = [
        *(layers.AoE(version=1, flags=0, shelf=s, slot=n) for s, n in ADDRESSES),
        *(layers.AoE(shelf=s, slot=n) for s, n in (*ADDRESSES, *BROADCASTS)),
    ]
    outer = Ether(dst="52:54:00:7a:26:e7", src="52:54:00:c1:1e:47")
    stacks = [
        outer / fuzz(header.copy() / body.copy())
        for header, body in product(headers, bodies)
    ]
    while True:
        yield bytes(draw.choice(stacks))


def hypothesis_frames(count: int, seed: int, feed: Callable[[bytes], None]) -> None:
    """Hand ``feed`` so many frames that hypothesis puts together.

    It never forgets what it has tried until a run ends, so that there are many.
    """
    for number in range(-(-count // RUN)):
        examples = min(RUN, count - number * RUN) // EXAMPLE
        _run_hypothesis(examples, seed + number, feed)


def _run_hypothesis(examples: int, seed: int, feed: Callable[[bytes], None]) -> None:
    import hypothesis
    from hypothesis import strategies as st

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.lists(_requests(), min_size=EXAMPLE, max_size=EXAMPLE))
    def run(frames: list[bytes]) -> None:
        for each in frames:
            feed(each)

    run()


def _arguments() -> dict[int, SearchStrategy[bytes]]:
    # What follows the header, by command: mostly what is worth asking.
    from hypothesis import strategies as st

    byte = st.integers(0, 255)
    return {
        0: st.builds(
            struct.pack,
            st.just("<BBBBIHH"),
            st.sampled_from((0x40, 0x41, 0x00, 0x01)) | byte,
            st.sampled_from((*FEATURES, *SMART, 1)) | byte,
            st.sampled_from((1, 2, 17, 0)) | byte,
            st.sampled_from((*READS, *WRITES, *OTHERS, 0x06, 0xB0, 0xEF)) | byte,
            st.integers(0, SECTORS + 2) | st.integers(0, (1 << 32) - 1),
            st.sampled_from((0, 0, 0xFFFF)),
            st.just(0),
        ),
        1: st.builds(
            struct.pack,
            st.just("!HHBBH"),
            *(st.just(0),) * 3,
            st.integers(0, 6) | byte,
            st.sampled_from((0, 5, 1024, 1025)) | st.integers(0, 65535),
        ),
        2: st.builds(bytes, st.tuples(st.just(0), st.integers(0, 2), byte, byte)),
        3: st.builds(bytes, st.tuples(st.integers(0, 3), st.integers(0, 9))),
        9: st.binary(max_size=20),
    }


@cache
def _requests() -> SearchStrategy[bytes]:
    from hypothesis import strategies as st

    arguments = _arguments()
    commands = st.sampled_from((0, 0, 0, 0, 1, 2, 3, 9)).flatmap(
        lambda command: st.tuples(st.just(command), arguments[command])
    )
    tails = st.sampled_from((b"", bytes(512), bytes(8704), b"owner")) | st.binary()
    requests = st.builds(
        lambda place, verfl, src, body, tail: from_(
            src, at(place, frame(body[0], body[1] + tail, dst=TARGET, verfl=verfl))
        ),
        st.sampled_from((*ADDRESSES, *BROADCASTS)),
        st.sampled_from((0x10, 0x10, 0x10, 0x13, 0x18, 0x20)),
        st.sampled_from((CLIENT, CLIENT, OTHER)),
        commands,
        tails,
    )
    return requests | st.binary()
