"""Rules of mask list and reservation (P61-P79), byte for byte on a real wire."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.asking import (
    ata,
    ata_response,
    config,
    directives,
    frame,
    mask,
    mask_response,
    reserve,
    reserve_response,
    response_frame,
    sector,
    sent_by,
    sent_to,
)
from tests.engines import serve_command
from tests.requirements import program
from tests.rules import (
    BROADCAST,
    ME,
    NO_RESPONSE,
    OTHER,
    THIRD,
    error_response,
    query_response,
    with_tag,
)
from tests.serving import TIMEOUT, client, finish, ready_line, run, serving

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire
    from tests.rules import Clients, Step

pytestmark = pytest.mark.netns

READ, EDIT, SET, FORCE = 0, 1, 1, 2
NONE, ADD, DELETE = 0, 1, 2


@pytest.fixture
def spare(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 16))
    return path


SHORT_MASK = mask(EDIT, (ADD, OTHER), count=2)
UNKNOWN_MASK = mask(2, (ADD, OTHER))
WRONG = ((ADD, ME), (9, OTHER), (ADD, THIRD))
ONLY_OTHER = (mask(EDIT, (ADD, OTHER)), mask_response(OTHER, mcmd=EDIT))
FOR_OTHER = (reserve(SET, OTHER), reserve_response(OTHER, rcmd=SET))
SERVED = (ata(0x24, 5), ata_response(0x40, lba=5, data=sector(5)))


def reserved_error(request: bytes) -> Step:
    return request, response_frame(0, request[24:36], verfl=0x1C, error=6)


RULES: dict[str, list[Step]] = {
    "p61 empty list serves all clients": [
        SERVED,
        (sent_by(OTHER, SERVED[0]), sent_to(OTHER, SERVED[1])),
    ],
    "p61 unlisted clients get no response": [
        ONLY_OTHER,
        *(
            (request, NO_RESPONSE)
            for request in (ata(0x24), ata(0xEC), config(0), reserve(READ), frame(9))
        ),
        (sent_by(OTHER, SERVED[0]), sent_to(OTHER, SERVED[1])),
    ],
    "p62 read ignores directives": [
        (mask(EDIT, (ADD, ME), (ADD, OTHER)), mask_response(ME, OTHER, mcmd=EDIT)),
        (mask(READ, (ADD, THIRD), (9, THIRD)), mask_response(ME, OTHER)),
        (mask(READ, count=200), mask_response(ME, OTHER)),
    ],
    "p63 directives are applied in order, without duplicates": [
        (
            mask(EDIT, (ADD, THIRD), (NONE, OTHER), (ADD, ME), (DELETE, THIRD)),
            mask_response(ME, mcmd=EDIT),
        ),
        (mask(EDIT, (ADD, ME), (DELETE, OTHER)), mask_response(ME, mcmd=EDIT)),
    ],
    "p64 p65 p66 bad directive": [
        (
            mask(EDIT, *WRONG),
            response_frame(2, bytes((0, EDIT, 2, 1)) + directives(*WRONG)),
        ),
        (mask(READ), mask_response(ME)),
    ],
    "p67 edit returns the whole list": [(mask(EDIT), mask_response(mcmd=EDIT))],
    "p68 unknown mask command": [(UNKNOWN_MASK, error_response(UNKNOWN_MASK, 2))],
    "p69 fewer directives than the count": [
        (SHORT_MASK, error_response(SHORT_MASK, 2)),
        (mask(READ), mask_response()),
    ],
    "p70 client removes itself": [
        ONLY_OTHER,
        (mask(READ), NO_RESPONSE),
        (
            sent_by(OTHER, mask(EDIT, (DELETE, OTHER))),
            sent_to(OTHER, mask_response(mcmd=EDIT)),
        ),
        (mask(READ), mask_response()),
    ],
    "p71 p73 any client can read": [
        (reserve(READ), reserve_response()),
        FOR_OTHER,
        (reserve(READ), reserve_response(OTHER)),
    ],
    "p72 set by a holder and by another client": [
        (reserve(SET, ME), reserve_response(ME, rcmd=SET)),
        FOR_OTHER,
        (reserve(SET, ME), reserve_response(OTHER, rcmd=SET, code=6)),
        (reserve(SET), reserve_response(OTHER, rcmd=SET, code=6)),
        (sent_by(OTHER, reserve(SET)), sent_to(OTHER, reserve_response(rcmd=SET))),
    ],
    "p73 force": [
        FOR_OTHER,
        (reserve(FORCE, ME), reserve_response(ME, rcmd=FORCE)),
        SERVED,
    ],
    "p74 ata commands of other clients are refused": [
        FOR_OTHER,
        reserved_error(ata(0x24, 5)),
        reserved_error(ata(0x34, 5, aflags=0x41, data=bytes(512))),
        reserved_error(ata(0xE5, count=0)),
        reserved_error(ata(0xE7, count=0)),
        reserved_error(ata(0x99)),
        (sent_by(OTHER, SERVED[0]), sent_to(OTHER, SERVED[1])),
    ],
    "p74 other commands are served to all": [
        FOR_OTHER,
        (mask(READ), mask_response()),
        (config(9), query_response(9, code=2)),
        (reserve(READ), reserve_response(OTHER)),
    ],
    "p75 unknown reserve command, and too few addresses": [
        FOR_OTHER,
        (reserve(3, ME), reserve_response(OTHER, rcmd=3, code=2)),
        (reserve(FORCE, ME, count=2), reserve_response(OTHER, rcmd=FORCE, code=2)),
        (reserve(READ), reserve_response(OTHER)),
    ],
    "p76 order is kept": [
        (reserve(SET, THIRD, ME, OTHER), reserve_response(THIRD, ME, OTHER, rcmd=SET)),
        SERVED,
    ],
    "p77 several addresses of a client": [
        (reserve(SET, ME, OTHER), reserve_response(ME, OTHER, rcmd=SET)),
        SERVED,
        (sent_by(OTHER, SERVED[0]), sent_to(OTHER, SERVED[1])),
    ],
    "p79 padding is ignored": [
        (reserve(SET, OTHER) + b"\xee" * 28, reserve_response(OTHER, rcmd=SET)),
    ],
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(clients: Clients, rule: str) -> None:
    clients.run_steps(RULES[rule])


@pytest.mark.usefixtures("engine")
def test_p59_p78_client_state_survives_sigkill(wire: Wire, spare: Path) -> None:
    owner, unclaimed = (
        query_response(READ, string, buffers=64) for string in (b"owner", b"")
    )
    process = run(wire.target, serve_command("e7.3", wire.interface, spare))
    ready_line(process)
    with client(wire) as asking:
        assert asking.ask(config(3, b"owner")) == query_response(
            3, b"owner", buffers=64
        )
        both = mask_response(ME, OTHER, mcmd=EDIT)
        assert asking.ask(mask(EDIT, (ADD, ME), (ADD, OTHER))) == both
        assert asking.ask(reserve(SET, OTHER)) == reserve_response(OTHER, rcmd=SET)
        finish(process, signal.SIGKILL)
        with serving(wire, spare):
            assert asking.receive() == with_tag(owner, 0)
            assert asking.ask(config(READ)) == owner
            assert asking.ask(mask(READ)) == mask_response(ME, OTHER)
            assert asking.ask(reserve(READ)) == reserve_response(OTHER)
            request, response = reserved_error(ata(0x24))
            assert asking.ask(request) == response
        with serving(wire, spare, "--no-state"):
            assert asking.receive() == sent_to(BROADCAST, with_tag(unclaimed, 0))
            assert asking.ask(reserve(READ)) == reserve_response()


@pytest.mark.usefixtures("engine")
def test_client_state_is_fsynced_before_the_response(
    wire: Wire, spare: Path, tmp_path: Path
) -> None:
    log = tmp_path / "calls"
    strace = [
        program("strace"),
        "-D",
        "-y",
        "-o",
        str(log),
        "-etrace=rename,fsync,sendto",
    ]
    options = ("--state-dir", tmp_path)
    served = serve_command("e7.3", wire.interface, spare, *options)
    process = run(wire.target, [*strace, *served])
    ready_line(process)
    with client(wire) as asking:
        assert asking.ask(reserve(SET, ME)) == reserve_response(ME, rcmd=SET)
    finish(process, signal.SIGTERM)
    end = time.monotonic() + TIMEOUT
    while "exited with 0" not in (text := log.read_text()):
        assert time.monotonic() < end
    names = [line.partition("(")[0] for line in text.splitlines()]
    begin = names.index("fsync")
    assert names[begin : begin + 4] == ["fsync", "rename", "fsync", "sendto"]
    assert (tmp_path / "e7.3.aoe.json").exists()
