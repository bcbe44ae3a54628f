"""The talk of an NBD server with one client, without a socket."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.errors import (
    AccessError,
    AoEError,
    BusyError,
    DeviceError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from initiator.export.nbd.handshake import NbdExport
from initiator.export.nbd.session import NbdRequest, NbdSession
from tests.nbd_clients import (
    ABORT,
    ACK,
    DISCONNECT,
    DONT_FRAGMENT,
    EXPORT_NAME,
    FAST_ZERO,
    FLUSH,
    FUA,
    GO,
    HELLO,
    INFO,
    INVALID,
    LIST,
    NO_HOLE,
    READ,
    SERVER,
    STARTTLS,
    STRUCTURED,
    TOLD,
    TOO_BIG,
    TRIM,
    UNKNOWN,
    UNSUPPORTED,
    WRITE,
    ZEROES,
    Reply,
    Told,
    chunks,
    option,
    options_told,
    request,
    wish,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

SIZE = 1 << 20
MIB = 1 << 20
EXPORT = NbdExport(name="e7.3", size=SIZE)
GREETING = b"NBDMAGICIHAVEOPT\0\3"
# has flags, flush, fua, zeroes, multi-conn, fast zero
FLAGS = 0b1001_0100_1101 | 1 << 8


class Talk:
    """A session and what a client has heard of it."""

    def __init__(self, export: NbdExport = EXPORT) -> None:
        self.session = NbdSession(export)
        self.requests: list[NbdRequest] = []

    def say(self, raw: bytes, step: int = 1 << 20) -> bytes:
        """Say it in pieces of ``step`` bytes, and return what comes back."""
        while raw and not self.session.is_closing:
            buffer = self.session.buffer()
            count = min(len(buffer), len(raw), step)
            buffer[:count] = raw[:count]
            raw = raw[count:]
            self.session.received(count)
            self.listen()
        return self.heard()

    def listen(self) -> None:
        while (request := self.session.next_request()) is not None:
            self.requests.append(request)

    def heard(self) -> bytes:
        raw = b"".join(self.session.output)
        self.session.sent(len(raw))
        assert not self.session.output
        return raw


def haggle(*options: bytes, export: NbdExport = EXPORT) -> list[Told]:
    talk = Talk(export)
    raw = talk.say(HELLO + b"".join(options))
    assert raw.startswith(GREETING)
    return options_told(raw[len(GREETING) :])


def agreed(*, structured: bool = True, export: NbdExport = EXPORT) -> Talk:
    talk = Talk(export)
    talk.say(HELLO + (option(STRUCTURED) if structured else b"") + wish(GO))
    return talk


# --- haggling ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"", b"e7.3"])
def test_go_tells_size_and_flags(name: bytes) -> None:
    size, last = haggle(wish(GO, name))
    assert size == Told(GO, TOLD, struct.pack("!HQH", 0, SIZE, FLAGS))
    assert last == Told(GO, ACK, b"")


def test_all_that_may_be_asked_of_an_export_is_told_once() -> None:
    told = haggle(wish(INFO, b"", 3, 1, 2, 3, 0, 99))
    assert [reply.data for reply in told] == [
        struct.pack("!HQH", 0, SIZE, FLAGS),
        b"\0\1e7.3",
        b"\0\2AoE disk e7.3",
        struct.pack("!HIII", 3, 1, 4096, 32 * MIB),
        b"",
    ]


def test_the_list_has_one_export() -> None:
    told = haggle(option(LIST), option(LIST, b"x"))
    assert told == [
        Told(LIST, SERVER, b"\0\0\0\4e7.3"),
        Told(LIST, ACK, b""),
        Told(LIST, INVALID, b"unexpected data"),
    ]


def test_what_is_not_known_is_refused_and_haggling_goes_on() -> None:
    told = haggle(
        option(STARTTLS),
        option(10, b"meta contexts"),
        option(77, b"x" * 20_000),
        wish(GO, b"e7.4"),
        option(GO, b"\xff\xff\xff\xffx"),
        option(GO),
        option(STRUCTURED, b"x"),
        wish(GO),
    )
    assert [reply.kind for reply in told] == [
        UNSUPPORTED,
        UNSUPPORTED,
        TOO_BIG,
        UNKNOWN,
        INVALID,
        INVALID,
        INVALID,
        TOLD,
        ACK,
    ]


def test_structured_replies_bring_dont_fragment() -> None:
    ack, size, _ = haggle(option(STRUCTURED), wish(GO))
    assert ack == Told(STRUCTURED, ACK, b"")
    assert size.data[-2:] == struct.pack("!H", FLAGS | 1 << 7)


@pytest.mark.parametrize(
    ("export", "flags"),
    [
        (NbdExport(name="e7.3", size=SIZE, read_only=True), 0b1_0000_0111),
        (NbdExport(name="e7.3", size=SIZE, can_trim=True), FLAGS | 1 << 5),
        (NbdExport(name="e7.3", size=SIZE, can_flush=False), FLAGS & ~0b1100),
    ],
)
def test_flags_say_what_the_disk_can(export: NbdExport, flags: int) -> None:
    size, _ = haggle(wish(GO), export=export)
    assert size.data == struct.pack("!HQH", 0, SIZE, flags)


def test_abort_is_acknowledged_and_ends_it() -> None:
    talk = Talk()
    raw = talk.say(HELLO + option(ABORT))
    assert options_told(raw[len(GREETING) :]) == [Told(ABORT, ACK, b"")]
    assert talk.session.is_finished


@pytest.mark.parametrize(("hello", "zeroes"), [(b"\0\0\0\1", 124), (HELLO, 0)])
def test_clients_of_old_name_the_export_and_are_there(
    hello: bytes, zeroes: int
) -> None:
    talk = Talk()
    raw = talk.say(hello + option(EXPORT_NAME, b"e7.3") + request(FLUSH))
    assert raw[len(GREETING) :] == struct.pack("!QH", SIZE, FLAGS) + bytes(zeroes)
    assert [each.command for each in talk.requests] == [FLUSH]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n",
        b"\0\0\1\0",
        HELLO + b"OPTION?!" + bytes(8),
        HELLO + option(EXPORT_NAME, b"e7.4"),
        HELLO + b"IHAVEOPT" + struct.pack("!II", EXPORT_NAME, 1 << 31),
        HELLO + wish(GO) + bytes(28),
    ],
)
def test_nonsense_is_hung_up_on(nonsense: bytes) -> None:
    talk = Talk()
    talk.say(nonsense)
    assert talk.session.is_finished
    assert talk.requests == []


@given(st.lists(st.binary(max_size=200), max_size=20), st.integers(1, 64))
def test_no_bytes_raise_anything(pieces: list[bytes], step: int) -> None:
    starts = (b"", HELLO, option(LIST)[:12], request(WRITE, 0, 1 << 20)[:20])
    for start in starts:
        talk = agreed()
        talk.say(start + b"".join(pieces), step)
        talk = Talk()
        talk.say(start + b"".join(pieces), step)


# --- requests ---------------------------------------------------------------------


@given(st.integers(1, 40))
def test_requests_come_in_whatever_the_pieces(step: int) -> None:
    talk = Talk()
    data = bytes(range(256)) * 3
    raw = HELLO + wish(GO) + request(WRITE, 5, data=data, flags=FUA, cookie=9)
    talk.say(raw + request(READ, 7, 100) + request(DISCONNECT) + b"more", step)
    wrote, read = talk.requests
    assert (wrote.command, wrote.cookie, wrote.offset, wrote.fua) == (WRITE, 9, 5, True)
    assert wrote.data == data
    assert (read.command, read.offset, read.length, read.fua) == (READ, 7, 100, False)
    assert talk.session.is_closing
    assert not talk.session.is_finished
    talk.session.reply(wrote, None)
    talk.session.reply(read, None, bytearray(100))
    talk.heard()
    assert talk.session.is_finished


def test_a_large_payload_is_received_where_it_stays() -> None:
    talk = agreed(export=NbdExport(name="e7.3", size=64 * MIB))
    data = bytes(range(256)) * (32 * MIB // 256)
    talk.say(request(WRITE, 0, data=data))
    assert talk.requests[0].data == data


def test_answers_in_any_order_simple_ones() -> None:
    talk = agreed(structured=False)
    talk.say(request(READ, 0, 4, cookie=1) + request(WRITE, 0, data=b"ab", cookie=2))
    read, wrote = talk.requests
    talk.session.reply(wrote, None)
    talk.session.reply(read, None, bytearray(b"data"))
    assert talk.heard() == struct.pack(
        "!IIQIIQ4s", 0x67446698, 0, 2, 0x67446698, 0, 1, b"data"
    )


def test_a_structured_read_is_one_chunk_with_its_place() -> None:
    talk = agreed()
    talk.say(request(READ, 0x1234, 4, flags=DONT_FRAGMENT) + request(READ, 9, 0))
    some, none = talk.requests
    talk.session.reply(some, None, bytearray(b"data"))
    talk.session.reply(none, None, bytearray())
    assert chunks(talk.heard()) == [
        Reply(1, 1, 0, struct.pack("!Q", 0x1234) + b"data"),
        Reply(0, 1, 0, b""),
    ]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (DeviceError("e7.3", "unreadable"), errno.EIO),
        (NotFoundError("e7.3", "no answer"), errno.EIO),
        (AoEError("e7.3", "lost"), errno.EIO),
        (AccessError("e7.3", "read-only"), errno.EPERM),
        (BusyError("e7.3", "reserved"), errno.EPERM),
        (UsageError("e7.3", "beyond the end"), errno.EINVAL),
        (UnsupportedError("e7.3", "no such command"), errno.EOPNOTSUPP),
    ],
)
def test_errors_have_their_numbers_and_words(error: AoEError, number: int) -> None:
    for structured in (True, False):
        talk = agreed(structured=structured)
        talk.say(request(READ, 0, 512))
        talk.session.reply(talk.requests[0], error, bytearray(512))
        text = str(error).encode() if structured else b""
        kind = 0x8001 if structured else -1
        assert chunks(talk.heard()) == [Reply(kind, 1, number, text)]


READ_ONLY = NbdExport(name="e7.3", size=SIZE, read_only=True)
NO_FLUSH = NbdExport(name="e7.3", size=SIZE, can_flush=False)
THIN = NbdExport(name="e7.3", size=SIZE, can_trim=True, discard_zeroes_data=True)


@pytest.mark.parametrize(
    ("raw", "export", "number"),
    [
        (request(WRITE, SIZE - 1, data=b"ab"), EXPORT, errno.ENOSPC),
        (request(ZEROES, SIZE, 1), EXPORT, errno.ENOSPC),
        (request(READ, SIZE - 1, 2), EXPORT, errno.EINVAL),
        (request(READ, (1 << 64) - 1, 2), EXPORT, errno.EINVAL),
        (request(WRITE, 0, data=b"ab"), READ_ONLY, errno.EPERM),
        (request(ZEROES, 0, 1), READ_ONLY, errno.EPERM),
        (request(ZEROES, 0, 1, flags=FAST_ZERO), EXPORT, errno.EOPNOTSUPP),
        (request(ZEROES, 0, 1, flags=FAST_ZERO | NO_HOLE), THIN, errno.EOPNOTSUPP),
        (request(TRIM, 0, 512), EXPORT, errno.EINVAL),
        (request(FLUSH), NO_FLUSH, errno.EINVAL),
        (request(WRITE, 0, data=b"a", flags=FUA), NO_FLUSH, errno.EINVAL),
        (request(READ, 0, 1, flags=NO_HOLE), EXPORT, errno.EINVAL),
        (request(READ, 0, 1, flags=1 << 15), EXPORT, errno.EINVAL),
        (request(5, 0, 512), EXPORT, errno.EINVAL),
        (request(7, 0, 512), EXPORT, errno.EINVAL),
        (request(999, 0, 512), EXPORT, errno.EINVAL),
    ],
)
def test_what_cannot_be_is_refused_and_the_next_is_done(
    raw: bytes, export: NbdExport, number: int
) -> None:
    talk = agreed(export=export)
    [reply] = chunks(talk.say(raw + request(READ, 0, 1, cookie=2)))
    assert (reply.cookie, reply.error) == (1, number)
    assert reply.data
    assert [each.cookie for each in talk.requests] == [2]


def test_zeroes_are_fast_where_trimming_makes_them() -> None:
    talk = agreed(export=THIN)
    assert talk.say(request(ZEROES, 0, 1, flags=FAST_ZERO)) == b""
    assert [each.allows_holes for each in talk.requests] == [True]


def test_too_much_at_once_is_refused_and_its_data_skipped() -> None:
    talk = agreed(export=NbdExport(name="e7.3", size=1 << 40))
    raw = request(WRITE, 0, data=bytes(32 * MIB + 1)) + request(READ, 0, 32 * MIB + 1)
    replies = chunks(talk.say(raw + request(ZEROES, 0, (1 << 32) - 1)))
    assert [reply.error for reply in replies] == [errno.EINVAL] * 2
    assert [each.command for each in talk.requests] == [ZEROES]


def test_who_is_going_down_says_so() -> None:
    talk = agreed()
    talk.say(request(READ, 0, 1))
    talk.session.is_shutting_down = True
    [reply] = chunks(talk.say(request(READ, 0, 1, cookie=2)))
    assert (reply.cookie, reply.error) == (2, errno.ESHUTDOWN)


# --- bounds -----------------------------------------------------------------------


def feed(session: NbdSession, raw: Iterable[int]) -> None:
    buffer = session.buffer()
    data = bytes(raw)
    buffer[: len(data)] = data
    session.received(len(data))


def test_no_more_than_128_requests_are_outstanding() -> None:
    talk = agreed()
    feed(talk.session, b"".join(request(READ, 0, 1, cookie=n) for n in range(200)))
    talk.listen()
    assert len(talk.requests) == 128
    assert talk.session.is_full
    talk.session.reply(talk.requests[0], None, bytearray(1))
    talk.listen()
    assert len(talk.requests) == 128
    talk.heard()
    talk.listen()
    assert len(talk.requests) == 129


def test_answers_that_are_not_taken_count() -> None:
    talk = agreed()
    feed(talk.session, b"".join(request(READ, SIZE, 1, cookie=n) for n in range(200)))
    talk.listen()
    assert talk.session.is_full
    assert len(chunks(talk.heard())) == 128
    talk.listen()
    assert len(chunks(talk.heard())) == 72


def test_no_more_than_64_mib_are_outstanding() -> None:
    talk = agreed(export=NbdExport(name="e7.3", size=1 << 40))
    feed(talk.session, b"".join(request(READ, 0, 32 * MIB) for n in range(4)))
    talk.listen()
    assert len(talk.requests) == 2
    for each in talk.requests:
        talk.session.reply(each, None, bytearray(32 * MIB))
    talk.listen()
    assert len(talk.requests) == 2
    talk.session.sent(20 + 8 + 32 * MIB)
    talk.listen()
    assert len(talk.requests) == 3
