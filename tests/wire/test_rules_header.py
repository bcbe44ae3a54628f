"""Rules of header and errors (P1-P18), byte for byte on a real wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.asking import (
    SECTORS,
    ata,
    ata_response,
    config,
    frame,
    mask,
    mask_response,
    reserve,
    reserve_response,
    sector,
    sent_by,
    sent_to,
)
from tests.engines import serve_command
from tests.rules import (
    ABORTED,
    AWAKE,
    BROADCAST,
    ME,
    NO_RESPONSE,
    NOT_FOUND,
    ONE_OF_EACH,
    OTHER,
    QUIET_TIME,
    UNKNOWN,
    error_response,
    patch,
    query_response,
    read_back,
    with_flags,
    with_tag,
    write,
    write_response,
)
from tests.serving import client, finish, ready_line, run, serving

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire
    from tests.rules import Clients, Step

pytestmark = pytest.mark.netns

DATA = b"\xa5" * 512
LONG = bytes(range(256)) + b"\0\0"
EVERYTHING = (*ONE_OF_EACH, UNKNOWN)
HALVES = ((0xFFFF, 3), (7, 0xFF), (0xFFFF, 0xFF))
OTHER_ADDRESSES = ((8, 3), (7, 4), (0xFFFF, 4), (8, 0xFF), (0xFF07, 3), (3, 7), (0, 0))
ERROR_RESPONSES = (
    (config(9, b"x"), query_response(9, code=2)),
    (mask(2, (1, ME)), error_response(mask(2, (1, ME)), 2)),
    (reserve(3, ME), reserve_response(rcmd=3, code=2)),
    (config(3, b"owner"), query_response(3, b"owner")),
    (config(3, b"other"), query_response(3, b"owner", code=4)),
    (reserve(1, OTHER), reserve_response(OTHER, rcmd=1)),
    (reserve(1, ME), reserve_response(OTHER, rcmd=1, code=6)),
    (ata(0x24, 5), error_response(ata(0x24, 5), 6)),
    (write(5, DATA), error_response(write(5, DATA), 6, 36)),
)
"""Each error but 1, 3 and 5; the argument keeps its layout (P18)."""


def addressed(request: bytes, shelf: int, slot: int) -> bytes:
    return patch(request, 16, shelf.to_bytes(2, "big") + bytes((slot,)))


def cut(request: bytes, shortest: int) -> list[Step]:
    return [(request[:length], NO_RESPONSE) for length in range(shortest, len(request))]


RULES: dict[str, list[Step]] = {
    "p1 numbers are big-endian": [
        (addressed(config(0), 0x0700, 3), NO_RESPONSE),
        (config(4, LONG), query_response(4, LONG)),
        (
            with_tag(config(0), 0x01020304),
            with_tag(query_response(0, LONG), 0x01020304),
        ),
    ],
    "p2 duplicate requests": [
        step
        for step in (
            (write(9, DATA), write_response(9)),
            (config(3, b"owner"), query_response(3, b"owner")),
            (mask(1, (1, ME)), mask_response(ME, mcmd=1)),
            (reserve(1, ME), reserve_response(ME, rcmd=1)),
            read_back(9, DATA),
        )
        for _ in range(2)
    ],
    "p3 p4 reserved flags are ignored and not copied": [
        (with_flags(request, verfl), response)
        for request, response in EVERYTHING
        for verfl in (0x11, 0x12, 0x13)
    ],
    "p3 p4 reserved bits and bytes of the argument": [
        (write(9, DATA, aflags=0xFF), write_response(9, aflags=0x53)),
        (ata(0x24, 9, aflags=0xEC), ata_response(0x40, lba=9, data=DATA)),
        (patch(AWAKE[0], 34, b"\xee\xee"), AWAKE[1]),
        (patch(mask(1, (1, ME)), 24, b"\xee"), mask_response(ME, mcmd=1)),
        (patch(mask(1, (1, ME)), 26, b"\xee"), mask_response(ME, mcmd=1)),
        (patch(mask(1, (1, ME)), 28, b"\xee"), mask_response(ME, mcmd=1)),
    ],
    "p5 p6 other versions are refused in version 1": [
        (with_flags(request, version << 4), error_response(request, 5))
        for request, _ in EVERYTHING
        for version in range(16)
        if version != 1
    ],
    "p6 other flags do not matter": [
        (with_flags(config(0), 0x27, 9), error_response(config(0), 5)),
    ],
    "p7 responses are not answered": [
        *(
            (with_flags(request, verfl), NO_RESPONSE)
            for request, _ in EVERYTHING
            for verfl in (0x18, 0x1C, 0x1F, 0x08, 0x28)
        ),
        AWAKE,
    ],
    "p8 p9 shelf and slot can be broadcast": [
        (addressed(request, shelf, slot), response)
        for request, response in EVERYTHING
        for shelf, slot in HALVES
    ],
    "p8 another address": [
        *(
            (addressed(request, shelf, slot), NO_RESPONSE)
            for request, _ in EVERYTHING
            for shelf, slot in OTHER_ADDRESSES
        ),
        AWAKE,
    ],
    "p8 p12 destination mac is ignored": [
        (dst + request[6:], response)
        for request, response in EVERYTHING
        for dst in (BROADCAST, bytes.fromhex("01005e000001"))
    ],
    "p10 tag is copied": [
        (with_tag(request, tag), with_tag(response, tag))
        for request, response in EVERYTHING
        for tag in (0, 1, 0x80000000, 0xFFFFFFFF, 0x01020304, 0x18AE0000)
    ],
    "p12 response is from the interface to the sender": [
        (BROADCAST + sent_by(OTHER, request)[6:], sent_to(OTHER, response))
        for request, response in EVERYTHING
    ],
    "p13 error field of a request is ignored": [
        (with_flags(request, verfl, error=9), response)
        for request, response in EVERYTHING
        for verfl in (0x10, 0x14, 0x17)
    ],
    "p14 p15 plain reads and writes fail without an AoE error": [
        (ata(0x24, SECTORS), ata_response(*NOT_FOUND, count=1, lba=SECTORS)),
        (ata(0x24, 5, 3), ata_response(*ABORTED, count=3, lba=5)),
        (
            ata(0x34, 5, 2, aflags=0x41, data=DATA),
            ata_response(*ABORTED, count=2, lba=5, aflags=0x41),
        ),
        (ata(0x99, 5), ata_response(*ABORTED, count=1, lba=5)),
        read_back(5, sector(5)),
    ],
    "p14 success has neither error flag nor code": list(ONE_OF_EACH),
    "p16 p18 unknown commands are echoed": [
        (frame(command, argument), error_response(frame(command, argument), 1))
        for command in (4, 5, 0x7F, 0xF0, 0xFE, 0xFF)
        for argument in (b"", b"\x01", bytes(range(1, 201)), bytes(range(250)) * 5)
    ],
    "p17 shorter than a header": [*cut(config(0)[:24], 14), AWAKE],
    "p17 shorter than the fixed part of the command": [
        *cut(ata(0xE5, count=0), 24),
        *cut(config(0), 24),
        *cut(mask(0), 24),
        *cut(reserve(0), 24),
        AWAKE,
    ],
    "p17 only the fixed part": list(ONE_OF_EACH),
    "p18 error response has the command's layout": list(ERROR_RESPONSES),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(clients: Clients, rule: str) -> None:
    clients.run_steps(RULES[rule])


@pytest.mark.usefixtures("engine")
def test_p9_each_target_responds_to_a_broadcast(wire: Wire, tmp_path: Path) -> None:
    image = tmp_path / "other.img"
    words = (image, "--create", "1M", "-b", "16")
    other = run(wire.target, serve_command("e7.4", wire.interface, *words))
    ready_line(other)
    with (
        serving(wire, tmp_path / "disk.img", "--create", "1M", "-b", "16"),
        client(wire) as asking,
    ):
        both = {query_response(0), patch(query_response(0), 18, b"\x04")}
        for shelf, slot in ((0xFFFF, 0xFF), (7, 0xFF)):
            asking.send(BROADCAST + addressed(config(0), shelf, slot)[6:])
            assert {asking.receive(), asking.receive()} == both
            assert asking.receive(QUIET_TIME) == NO_RESPONSE
        fourth = BROADCAST + addressed(config(0), 0xFFFF, 4)[6:]
        assert asking.ask(fourth) == patch(query_response(0), 18, b"\x04")
        assert asking.receive(QUIET_TIME) == NO_RESPONSE
    finish(other, 15)
