"""The rules of who is served (P61-P79), each byte of them, on a real wire."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, TypeAlias

import pytest

from aoe.errors import AccessError
from aoe.netns import Wire
from tests.asking import (
    TARGET,
    answer,
    ata,
    config,
    directives,
    frame,
    from_,
    holders_are,
    mask,
    mask_is,
    registers,
    reserve,
    sector,
    settings,
    to,
)
from tests.serving import PATIENCE, Client, client, finish, ready_line, serving, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Step: TypeAlias = tuple[bytes, bytes]

pytestmark = pytest.mark.netns

READ, EDIT, SET, FORCE = 0, 1, 1, 2
NONE, ADD, DELETE = 0, 1, 2
ME = Wire.initiator_mac
OTHER, THIRD = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
SILENCE = b""
OPTIONS = ("-b", "16")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "disk.img"
    path.write_bytes(b"".join(sector(number) for number in range(64)))
    return path


@pytest.fixture(scope="module")
def clients(image: Path) -> Iterator[tuple[Client, Others]]:
    """Serve once for all rules; skip only where no namespaces can be made."""
    try:
        wire = Wire(1500)
    except AccessError as error:
        pytest.skip(str(error))
    served = serving(wire, image, *OPTIONS)
    with wire, served, client(wire) as me, contextlib.closing(Others(wire)) as others:
        yield me, others


@pytest.fixture
def spare(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 16))
    return path


class Others:
    """Other clients at the same end: a socket that hears replies to any address."""

    def __init__(self, wire: Wire) -> None:
        with wire.initiator.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._socket.bind((wire.interface, 0x88A2))

    def ask(self, request: bytes, timeout: float) -> bytes:
        """Send as the client that the request comes from; return what comes for it."""
        self._socket.send(Wire.target_mac + request[6:])
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                reply = self._socket.recv(2000)
                if reply[:6] == request[6:12] and reply[20:24] == request[20:24]:
                    return reply[:6] + TARGET + reply[12:]
        return b""

    def close(self) -> None:
        self._socket.close()


def ask_any(clients: tuple[Client, Others], request: bytes, timeout: float) -> bytes:
    """Ask as the client that the request names."""
    me, others = clients
    is_other = request[6:12] in (OTHER, THIRD)
    return (others.ask if is_other else me.ask)(request, timeout)


@pytest.fixture
def fresh(clients: tuple[Client, Others]) -> tuple[Client, Others]:
    """Begin with empty lists, whoever is in them."""
    request = mask(EDIT, (DELETE, ME), (DELETE, OTHER), (DELETE, THIRD))
    for asked in (from_(OTHER, request), request):
        ask_any(clients, asked, 0.1)
    assert clients[0].ask(reserve(FORCE)) == holders_are(rcmd=FORCE)
    return clients


def bad(request: bytes, code: int) -> bytes:
    return answer(request[19], request[24:], verfl=0x1C, error=code)


SHORT_MASK = mask(EDIT, (ADD, OTHER), count=2)
UNKNOWN_MASK = mask(2, (ADD, OTHER))
WRONG = ((ADD, ME), (9, OTHER), (ADD, THIRD))
ONLY_OTHER = (mask(EDIT, (ADD, OTHER)), mask_is(OTHER, mcmd=EDIT))
FOR_OTHER = (reserve(SET, OTHER), holders_are(OTHER, rcmd=SET))
SERVED = (ata(0x24, 5), registers(0x40, lba=5, data=sector(5)))


def refused(request: bytes) -> Step:
    return request, answer(0, request[24:36], verfl=0x1C, error=6)


RULES: dict[str, list[Step]] = {
    "p61 an empty list serves everybody": [
        SERVED,
        (from_(OTHER, SERVED[0]), to(OTHER, SERVED[1])),
    ],
    "p61 others get silence to every command": [
        ONLY_OTHER,
        *(
            (request, SILENCE)
            for request in (ata(0x24), ata(0xEC), config(0), reserve(READ), frame(9))
        ),
        (from_(OTHER, SERVED[0]), to(OTHER, SERVED[1])),
    ],
    "p62 read ignores directives": [
        (mask(EDIT, (ADD, ME), (ADD, OTHER)), mask_is(ME, OTHER, mcmd=EDIT)),
        (mask(READ, (ADD, THIRD), (9, THIRD)), mask_is(ME, OTHER)),
        (mask(READ, count=200), mask_is(ME, OTHER)),
    ],
    "p63 in order, no doubles, nothing missing": [
        (
            mask(EDIT, (ADD, THIRD), (NONE, OTHER), (ADD, ME), (DELETE, THIRD)),
            mask_is(ME, mcmd=EDIT),
        ),
        (mask(EDIT, (ADD, ME), (DELETE, OTHER)), mask_is(ME, mcmd=EDIT)),
    ],
    "p64 p65 p66 a bad directive": [
        (
            mask(EDIT, *WRONG),
            answer(2, bytes((0, EDIT, 2, 1)) + directives(*WRONG)),
        ),
        (mask(READ), mask_is(ME)),
    ],
    "p67 an edit tells the whole list": [(mask(EDIT), mask_is(mcmd=EDIT))],
    "p68 another mask command": [(UNKNOWN_MASK, bad(UNKNOWN_MASK, 2))],
    "p69 fewer directives than said": [
        (SHORT_MASK, bad(SHORT_MASK, 2)),
        (mask(READ), mask_is()),
    ],
    "p70 shut out by oneself": [
        ONLY_OTHER,
        (mask(READ), SILENCE),
        (
            from_(OTHER, mask(EDIT, (DELETE, OTHER))),
            to(OTHER, mask_is(mcmd=EDIT)),
        ),
        (mask(READ), mask_is()),
    ],
    "p71 p73 reading, by anybody": [
        (reserve(READ), holders_are()),
        FOR_OTHER,
        (reserve(READ), holders_are(OTHER)),
    ],
    "p72 set by a holder and by a stranger": [
        (reserve(SET, ME), holders_are(ME, rcmd=SET)),
        FOR_OTHER,
        (reserve(SET, ME), holders_are(OTHER, rcmd=SET, code=6)),
        (reserve(SET), holders_are(OTHER, rcmd=SET, code=6)),
        (from_(OTHER, reserve(SET)), to(OTHER, holders_are(rcmd=SET))),
    ],
    "p73 force": [FOR_OTHER, (reserve(FORCE, ME), holders_are(ME, rcmd=FORCE)), SERVED],
    "p74 no ata command for strangers": [
        FOR_OTHER,
        refused(ata(0x24, 5)),
        refused(ata(0x34, 5, aflags=0x41, data=bytes(512))),
        refused(ata(0xE5, count=0)),
        refused(ata(0xE7, count=0)),
        refused(ata(0x99)),
        (from_(OTHER, SERVED[0]), to(OTHER, SERVED[1])),
    ],
    "p74 the rest is for all": [
        FOR_OTHER,
        (mask(READ), mask_is()),
        (config(9), settings(9, code=2)),
        (reserve(READ), holders_are(OTHER)),
    ],
    "p75 another reserve command, and too few addresses": [
        FOR_OTHER,
        (reserve(3, ME), holders_are(OTHER, rcmd=3, code=2)),
        (reserve(FORCE, ME, count=2), holders_are(OTHER, rcmd=FORCE, code=2)),
        (reserve(READ), holders_are(OTHER)),
    ],
    "p76 order is kept": [
        (reserve(SET, THIRD, ME, OTHER), holders_are(THIRD, ME, OTHER, rcmd=SET)),
        SERVED,
    ],
    "p77 all of a client's addresses": [
        (reserve(SET, ME, OTHER), holders_are(ME, OTHER, rcmd=SET)),
        SERVED,
        (from_(OTHER, SERVED[0]), to(OTHER, SERVED[1])),
    ],
    "p79 padding is none": [
        (reserve(SET, OTHER) + b"\xee" * 28, holders_are(OTHER, rcmd=SET)),
    ],
    "p17 too short": [(mask(READ)[:27], SILENCE), (reserve(READ)[:25], SILENCE)],
}


def firmware_of_its_own(reply: bytes) -> bytes:
    if reply[19:20] == b"\x01":
        return reply[:26] + bytes(2) + reply[28:]
    return reply


@pytest.mark.parametrize("rule", RULES)
def test_rule(fresh: tuple[Client, Others], rule: str) -> None:
    for request, expected in RULES[rule]:
        patience = PATIENCE if expected else 0.15
        reply = ask_any(fresh, request, patience)
        assert firmware_of_its_own(reply) == firmware_of_its_own(expected)


def test_p59_p78_what_clients_set_outlives_a_kill(wire: Wire, spare: Path) -> None:
    process = start(wire.target, "serve", "e7.3", wire.interface, spare)
    ready_line(process)
    with client(wire) as asking:
        assert asking.ask(config(3, b"owner"))[14:16] == b"\x18\0"
        both = mask_is(ME, OTHER, mcmd=EDIT)
        assert asking.ask(mask(EDIT, (ADD, ME), (ADD, OTHER))) == both
        assert asking.ask(reserve(SET, OTHER)) == holders_are(OTHER, rcmd=SET)
        finish(process, signal.SIGKILL)
        with serving(wire, spare):
            assert asking.receive()[19:24] == b"\x01" + bytes(4)
            assert asking.ask(config(1, b"owner"))[32:37] == b"owner"
            assert asking.ask(mask(READ)) == mask_is(ME, OTHER)
            assert asking.ask(reserve(READ)) == holders_are(OTHER)
            assert asking.ask(ata(0x24))[14:16] == b"\x1c\x06"
        with serving(wire, spare, "--no-state"):
            assert asking.receive()[:6] == b"\xff" * 6
            assert asking.ask(reserve(READ)) == holders_are()


def test_p48_a_mask_of_the_command_line_is_told_to_its_own(
    wire: Wire, spare: Path
) -> None:
    with (
        client(wire) as asking,
        serving(wire, spare, "-m", f"{OTHER.hex()},{ME.hex()}"),
    ):
        announcement = asking.receive()
        assert announcement[:6] != b"\xff" * 6
        assert announcement[14:24] == bytes.fromhex("18000007030100000000")
        assert asking.receive(0.1) == b""
        assert asking.ask(mask(READ)) == mask_is(OTHER, ME)
        assert asking.link.send(Wire.target_mac + from_(THIRD, config(0))[6:])
        assert asking.receive(0.15) == SILENCE


def test_what_is_set_is_stable_before_it_is_answered(
    wire: Wire, spare: Path, tmp_path: Path
) -> None:
    if not shutil.which("strace"):
        pytest.skip("no strace; apt install strace")
    log = tmp_path / "calls"
    strace = ["strace", "-D", "-y", "-o", str(log), "-etrace=rename,fsync,sendto"]
    served = [sys.executable, "-m", "target", "serve", "e7.3", wire.interface]
    process = wire.target.popen(
        [*strace, *served, str(spare), "--state-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ready_line(process)
    with client(wire) as asking:
        assert asking.ask(reserve(SET, ME)) == holders_are(ME, rcmd=SET)
    finish(process, signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    while "exited with 0" not in (text := log.read_text()):
        assert time.monotonic() < end
    names = [line.partition("(")[0] for line in text.splitlines()]
    begin = names.index("fsync")
    assert names[begin : begin + 4] == ["fsync", "rename", "fsync", "sendto"]
    assert (tmp_path / "e7.3.aoe.json").exists()
