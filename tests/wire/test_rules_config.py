"""Rules of query config (P48-P60), byte for byte on a real wire.

P59, persistence, is tested in ``test_rules_access.py`` with the other client state.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.asking import (
    ata,
    ata_response,
    config,
    mask,
    mask_response,
    reserve,
    reserve_response,
    sector,
    sent_by,
    sent_to,
)
from tests.rules import (
    AWAKE,
    BROADCAST,
    ME,
    NO_RESPONSE,
    OTHER,
    QUIET_TIME,
    THIRD,
    OtherClients,
    patch,
    query_response,
    with_tag,
)
from tests.serving import NO_PROBE, client, serving

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire
    from tests.rules import Clients, Step

pytestmark = pytest.mark.netns

READ, TEST, PREFIX, SET, FORCE = range(5)
LONGEST = bytes(range(256)) * 4
BINARY = b"a\0b\xff\0"


def set_to(string: bytes) -> Step:
    return config(FORCE, string), query_response(FORCE, string)


OWNED = set_to(b"hello")
STILL = (config(READ), query_response(READ, b"hello"))

RULES: dict[str, list[Step]] = {
    "p49 target fields of a request are ignored": [
        OWNED,
        *(
            (
                patch(request, 24, b"\xff\xff\xff\xff\xff" + bytes((0xF0 | ccmd,))),
                response,
            )
            for ccmd, string in enumerate((b"x", b"hello", b"he", b"hello", b"hello"))
            for request in [config(ccmd, string)]
            for response in [query_response(ccmd, b"hello")]
        ),
    ],
    "p50 response has the command and the current string": [
        (config(READ), query_response(READ)),
        (config(SET, b"hello"), query_response(SET, b"hello")),
        (config(TEST, b"hello"), query_response(TEST, b"hello")),
        (config(PREFIX, b"he"), query_response(PREFIX, b"hello")),
        (config(FORCE, b"other"), query_response(FORCE, b"other")),
        (config(READ), query_response(READ, b"other")),
    ],
    "p51 read ignores string and length": [
        OWNED,
        *(
            (config(READ, string, length), query_response(READ, b"hello"))
            for string, length in (
                (b"", 5),
                (b"", 1024),
                (b"\xed" * 1024, 1024),
                (b"\xed" * 1024, 0),
                (b"xy", 0xFFFF),
            )
        ),
    ],
    "p52 empty string equals the empty string": [
        (config(TEST), query_response(TEST)),
        (config(TEST, b"\0"), NO_RESPONSE),
        AWAKE,
    ],
    "p52 test responds only to the equal string": [
        OWNED,
        (config(TEST, b"hello"), query_response(TEST, b"hello")),
        *(
            (config(TEST, string), NO_RESPONSE)
            for string in (b"hell", b"hello!", b"", b"Hello", b"hello\0", LONGEST)
        ),
        STILL,
    ],
    "p53 prefix responds only to a prefix": [
        (config(PREFIX), query_response(PREFIX)),
        (config(PREFIX, b"h"), NO_RESPONSE),
        OWNED,
        *(
            (config(PREFIX, b"hello"[:length]), query_response(PREFIX, b"hello"))
            for length in range(6)
        ),
        *(
            (config(PREFIX, string), NO_RESPONSE)
            for string in (b"hello!", b"ello", b"H", b"hello\0", LONGEST)
        ),
        STILL,
    ],
    "p54 first claim succeeds": [
        (config(SET), query_response(SET)),
        (config(SET, b"hello"), query_response(SET, b"hello")),
        (config(SET, b"hello"), query_response(SET, b"hello")),
        STILL,
    ],
    "p54 second claim fails with the current string": [
        OWNED,
        *(
            (config(SET, string), query_response(SET, b"hello", code=4))
            for string in (b"other", b"", b"hell", b"hello!", LONGEST)
        ),
        STILL,
    ],
    "p55 force": [
        OWNED,
        *(
            step
            for string in (b"other", LONGEST, b"")
            for step in (
                set_to(string),
                (config(READ), query_response(READ, string)),
            )
        ),
        (config(SET, b"free"), query_response(SET, b"free")),
    ],
    "p56 longer than 1024, or than its frame": [
        OWNED,
        *(
            (config(ccmd, string, length), query_response(ccmd, b"hello", code=2))
            for ccmd in (TEST, PREFIX, SET, FORCE)
            for string, length in (
                (b"\xee" * 1025, 1025),
                (b"\xee" * 1400, 0xFFFF),
                (b"hell", 5),
                (b"", 1),
                (b"\xee" * 1023, 1024),
            )
        ),
        STILL,
    ],
    "p57 unknown config command": [
        OWNED,
        *(
            (config(ccmd, b"x"), query_response(ccmd, b"hello", code=2))
            for ccmd in range(5, 16)
        ),
        STILL,
    ],
    "p58 string is arbitrary bytes": [
        step
        for string in (b"\0", BINARY, b"\xff" * 1024, LONGEST)
        for step in (
            set_to(string),
            (config(TEST, string), query_response(TEST, string)),
            (config(TEST, string[:-1]), NO_RESPONSE),
            (config(READ), query_response(READ, string)),
        )
    ],
    "p58 reservation does not protect the string": [
        OWNED,
        (reserve(1, OTHER), reserve_response(OTHER, rcmd=1)),
        (config(FORCE, b"mine"), query_response(FORCE, b"mine")),
        (config(SET, b"other"), query_response(SET, b"mine", code=4)),
    ],
    "p60 response has the buffer count": [(config(READ), query_response(READ))],
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(clients: Clients, rule: str) -> None:
    clients.run_steps(RULES[rule])


def test_p60_target_queues_as_many_requests_as_the_buffer_count(
    clients: Clients,
) -> None:
    for first in range(0, 2048, 16):
        lbas = range(first, first + 16)
        requests = [with_tag(ata(0x24, lba), lba) for lba in lbas]
        assert clients.me.ask_all(requests) == [
            with_tag(ata_response(0x40, lba=lba, data=sector(lba)), lba) for lba in lbas
        ]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 16))
    return path


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("options", "buffers"), [((), 64), (("-b", 2), 2)])
def test_p48_p60_ready_target_broadcasts_an_announcement(
    wire: Wire, image: Path, options: tuple[str, int], buffers: int
) -> None:
    with client(wire) as asking, serving(wire, image, NO_PROBE, *options):
        expected = sent_to(
            BROADCAST, with_tag(query_response(READ, buffers=buffers), 0)
        )
        assert asking.receive() == expected
        assert asking.ask(config(READ)) == query_response(READ, buffers=buffers)
        assert asking.receive(QUIET_TIME) == NO_RESPONSE


@pytest.mark.usefixtures("engine")
def test_p48_masked_target_announces_to_the_listed_clients(
    wire: Wire, image: Path
) -> None:
    words = (NO_PROBE, "-b", "16", "-m", f"{OTHER.hex()},{ME.hex()}")
    with (
        contextlib.closing(OtherClients(wire)) as observer,
        client(wire) as asking,
        serving(wire, image, *words),
    ):
        announcement = with_tag(query_response(READ), 0)
        assert observer.receive() == sent_to(OTHER, announcement)
        assert observer.receive() == sent_to(ME, announcement)
        assert observer.receive(QUIET_TIME) == NO_RESPONSE
        assert asking.receive() == announcement
        assert asking.ask(mask(0)) == mask_response(OTHER, ME)
        assert observer.ask(sent_by(THIRD, config(READ)), QUIET_TIME) == NO_RESPONSE
