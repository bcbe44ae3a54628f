"""Generate frames for the fuzzer, from captures, scapy and hypothesis.

``Mutator`` changes bytes, fields and lengths of frames from captures and of valid
requests of every command. ``scapy_frames`` fills the fields of aoe/layers.py with
random values. ``hypothesis_frames`` composes almost valid frames. The same seed gives
the same frames.
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
    mask,
    reserve,
    sent_by,
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
"""Offsets of single bytes, with values that matter there."""
RUN: Final = 1000
"""Frames of a run of hypothesis."""
EXAMPLE: Final = 10
"""Frames of an example of hypothesis."""


def at(address: tuple[int, int], request: bytes) -> bytes:
    """Return the request with another shelf and slot."""
    return request[:16] + struct.pack("!HB", *address) + request[19:]


def golden_frames() -> list[bytes]:
    """Return all frames of the golden captures, requests and responses."""
    captures = sorted(GOLDEN.glob("*.pcap.gz"))
    return [each.data for path in captures for each in read_capture(path)]


def valid_frames() -> list[bytes]:
    """Return valid requests of every command and opcode, for every target."""
    requests = [
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
    frames = [at(address, request) for address, request in product(ADDRESSES, requests)]
    for address in BROADCASTS:
        frames += [at(address, request) for request in requests[::3]]
    return frames + [sent_by(OTHER, request) for request in frames[::7]]


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
    """An iterator over mutated frames.

    Args:
        seed: seed of the random numbers.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._golden, self._valid = golden_frames(), valid_frames()
        self._last = self._valid[0]
        # Listed several times to be likelier. Mutations of the header are rare: most
        # such frames are dropped early and exercise little of the target.
        self._mutations: list[Callable[[bytearray], None]] = [
            *[self._set_field] * 6,
            *[self._move_lba] * 3,
            *[self._overwrite_data] * 3,
            *[self._flip_bit, self._set_byte] * 2,
            *[self._set_address] * 2,
            self._truncate,
            self._extend,
            self._splice,
            self._set_length_field,
            self._change_client,
        ]

    def __next__(self) -> bytes:
        """Return the next frame."""
        draw = self._random
        dice = draw.getrandbits(4)
        if dice == 0:
            return self._last  # As a retransmission.
        frames = self._golden if dice < 5 else self._valid
        mutated = bytearray(frames[int(draw.random() * len(frames))])
        mutations = self._mutations
        for _ in range((0, 1, 1, 1, 2, 2, 3, 5)[draw.getrandbits(3)]):
            mutations[int(draw.random() * len(mutations))](mutated)
        self._last = bytes(mutated)
        return self._last

    def __iter__(self) -> Mutator:
        return self

    def _below(self, limit: int) -> int:
        return int(self._random.random() * limit)

    def _set_field(self, mutated: bytearray) -> None:
        offset, values = FIELDS[self._below(len(FIELDS))]
        if offset < len(mutated):
            mutated[offset] = values[self._below(len(values))]

    def _move_lba(self, mutated: bytearray) -> None:
        if len(mutated) >= 36:
            dice = self._below(2 * len(LBAS))
            lba = LBAS[dice] if dice < len(LBAS) else self._below(SECTORS)
            mutated[28:34] = lba.to_bytes(6, "little")

    def _overwrite_data(self, mutated: bytearray) -> None:
        if len(mutated) > 44:
            offset = 36 + self._below(len(mutated) - 44)
            mutated[offset : offset + 8] = self._random.randbytes(8)

    def _flip_bit(self, mutated: bytearray) -> None:
        if mutated:
            offset = self._below(min(len(mutated), 80))
            mutated[offset] ^= 1 << self._random.getrandbits(3)

    def _set_byte(self, mutated: bytearray) -> None:
        if mutated:
            offset = self._below(min(len(mutated), 80))
            mutated[offset] = EDGES[self._below(len(EDGES))]

    def _set_address(self, mutated: bytearray) -> None:
        if len(mutated) >= 24:
            addresses = ADDRESSES if self._random.getrandbits(2) else BROADCASTS
            address = addresses[self._below(len(addresses))]
            mutated[16:19] = struct.pack("!HB", *address)

    def _truncate(self, mutated: bytearray) -> None:
        del mutated[LENGTHS[self._below(len(LENGTHS))] :]

    def _extend(self, mutated: bytearray) -> None:
        length = LENGTHS[self._below(len(LENGTHS))]
        mutated.extend(b"\xee" * (length - len(mutated)))

    def _splice(self, mutated: bytearray) -> None:
        other = self._valid[self._below(len(self._valid))]
        offset = self._below(min(len(mutated), len(other)) or 1)
        mutated[offset:] = other[offset:]

    def _set_length_field(self, mutated: bytearray) -> None:
        # Length fields: sector count, string length, number of list entries.
        if len(mutated) > 31:
            offset = (25, 26, 27, 30, 31)[self._below(5)]
            mutated[offset] = self._below(256)

    def _change_client(self, mutated: bytearray) -> None:
        if len(mutated) >= 12:
            mutated[6:12] = OTHER if self._random.getrandbits(1) else CLIENT


def scapy_frames(seed: int) -> Iterator[bytes]:
    """Yield frames with fields filled by scapy; half of them have a valid header."""
    from scapy.layers.l2 import Ether
    from scapy.packet import Packet, fuzz

    from aoe import layers

    # scapy uses the global generator of the module random.
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
    """Call ``feed`` with ``count`` frames composed by hypothesis.

    hypothesis keeps all examples of a run in memory, so runs are limited to ``RUN``
    frames.
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
    # Strategies for the bytes after the header, by command: mostly valid values.
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
        lambda address, verfl, src, body, tail: sent_by(
            src, at(address, frame(body[0], body[1] + tail, dst=TARGET, verfl=verfl))
        ),
        st.sampled_from((*ADDRESSES, *BROADCASTS)),
        st.sampled_from((0x10, 0x10, 0x10, 0x13, 0x18, 0x20)),
        st.sampled_from((CLIENT, CLIENT, OTHER)),
        commands,
        tails,
    )
    return requests | st.binary()
