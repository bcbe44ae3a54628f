"""The protocol state of one client of the NBD server, without a socket."""

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
    CLIENT_FLAGS,
    DISCONNECT,
    DONT_FRAGMENT,
    EXPORT_NAME,
    FAST_ZERO,
    FLUSH,
    FUA,
    GO,
    INFO,
    INVALID,
    LIST,
    NO_HOLE,
    READ,
    REP_INFO,
    SERVER,
    STARTTLS,
    STRUCTURED,
    TOO_BIG,
    TRIM,
    UNKNOWN,
    UNSUPPORTED,
    WRITE,
    ZEROES,
    OptionReply,
    Reply,
    info_option,
    option,
    parse_option_replies,
    parse_replies,
    request,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

SIZE = 1 << 20
MIB = 1 << 20
EXPORT = NbdExport(name="e7.3", size=SIZE)
GREETING = b"NBDMAGICIHAVEOPT\0\3"
# has flags, flush, fua, zeroes, multi-conn, fast zero
FLAGS = 0b1001_0100_1101 | 1 << 8


class Client:
    """A client of an ``NbdSession``, without sockets."""

    def __init__(self, export: NbdExport = EXPORT) -> None:
        self.session = NbdSession(export)
        self.requests: list[NbdRequest] = []

    def send(self, raw: bytes, step: int = 1 << 20) -> bytes:
        """Send ``raw`` in pieces of ``step`` bytes, and return the replies."""
        while raw and not self.session.is_closing:
            buffer = self.session.buffer()
            count = min(len(buffer), len(raw), step)
            buffer[:count] = raw[:count]
            raw = raw[count:]
            self.session.received(count)
            self.take_requests()
        return self.receive()

    def take_requests(self) -> None:
        while (request := self.session.next_request()) is not None:
            self.requests.append(request)

    def receive(self) -> bytes:
        raw = b"".join(self.session.output)
        self.session.sent(len(raw))
        assert not self.session.output
        return raw


def send_options(*options: bytes, export: NbdExport = EXPORT) -> list[OptionReply]:
    client = Client(export)
    raw = client.send(CLIENT_FLAGS + b"".join(options))
    assert raw.startswith(GREETING)
    return parse_option_replies(raw[len(GREETING) :])


def connected(*, structured: bool = True, export: NbdExport = EXPORT) -> Client:
    client = Client(export)
    client.send(
        CLIENT_FLAGS + (option(STRUCTURED) if structured else b"") + info_option(GO)
    )
    return client


# --- option haggling --------------------------------------------------------------


@pytest.mark.parametrize("name", [b"", b"e7.3"])
def test_go_returns_size_and_flags(name: bytes) -> None:
    size, last = send_options(info_option(GO, name))
    assert size == OptionReply(GO, REP_INFO, struct.pack("!HQH", 0, SIZE, FLAGS))
    assert last == OptionReply(GO, ACK, b"")


def test_each_requested_information_is_sent_once() -> None:
    replies = send_options(info_option(INFO, b"", 3, 1, 2, 3, 0, 99))
    assert [reply.data for reply in replies] == [
        struct.pack("!HQH", 0, SIZE, FLAGS),
        b"\0\1e7.3",
        b"\0\2AoE disk e7.3",
        struct.pack("!HIII", 3, 1, 4096, 32 * MIB),
        b"",
    ]


def test_list_returns_one_export() -> None:
    replies = send_options(option(LIST), option(LIST, b"x"))
    assert replies == [
        OptionReply(LIST, SERVER, b"\0\0\0\4e7.3"),
        OptionReply(LIST, ACK, b""),
        OptionReply(LIST, INVALID, b"unexpected data"),
    ]


def test_invalid_options_get_an_error_and_haggling_continues() -> None:
    replies = send_options(
        option(STARTTLS),
        option(10, b"meta contexts"),
        option(77, b"x" * 20_000),
        info_option(GO, b"e7.4"),
        option(GO, b"\xff\xff\xff\xffx"),
        option(GO),
        option(STRUCTURED, b"x"),
        info_option(GO),
    )
    assert [reply.kind for reply in replies] == [
        UNSUPPORTED,
        UNSUPPORTED,
        TOO_BIG,
        UNKNOWN,
        INVALID,
        INVALID,
        INVALID,
        REP_INFO,
        ACK,
    ]


def test_structured_replies_add_the_flag_dont_fragment() -> None:
    ack, size, _ = send_options(option(STRUCTURED), info_option(GO))
    assert ack == OptionReply(STRUCTURED, ACK, b"")
    assert size.data[-2:] == struct.pack("!H", FLAGS | 1 << 7)


@pytest.mark.parametrize(
    ("export", "flags"),
    [
        (NbdExport(name="e7.3", size=SIZE, read_only=True), 0b1_0000_0111),
        (NbdExport(name="e7.3", size=SIZE, can_trim=True), FLAGS | 1 << 5),
        (NbdExport(name="e7.3", size=SIZE, can_flush=False), FLAGS & ~0b1100),
    ],
)
def test_flags_match_the_features_of_the_disk(export: NbdExport, flags: int) -> None:
    size, _ = send_options(info_option(GO), export=export)
    assert size.data == struct.pack("!HQH", 0, SIZE, flags)


def test_abort_is_acknowledged_and_ends_the_session() -> None:
    client = Client()
    raw = client.send(CLIENT_FLAGS + option(ABORT))
    assert parse_option_replies(raw[len(GREETING) :]) == [OptionReply(ABORT, ACK, b"")]
    assert client.session.is_finished


@pytest.mark.parametrize(
    ("client_flags", "zeroes"), [(b"\0\0\0\1", 124), (CLIENT_FLAGS, 0)]
)
def test_export_name_option_starts_the_transmission_phase(
    client_flags: bytes, zeroes: int
) -> None:
    client = Client()
    raw = client.send(client_flags + option(EXPORT_NAME, b"e7.3") + request(FLUSH))
    assert raw[len(GREETING) :] == struct.pack("!QH", SIZE, FLAGS) + bytes(zeroes)
    assert [each.command for each in client.requests] == [FLUSH]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\0\0\1\0",
        CLIENT_FLAGS + b"OPTION?!" + bytes(8),
        CLIENT_FLAGS + option(EXPORT_NAME, b"e7.4"),
        CLIENT_FLAGS + b"IHAVEOPT" + struct.pack("!II", EXPORT_NAME, 1 << 31),
        CLIENT_FLAGS + info_option(GO) + bytes(28),
    ],
)
def test_protocol_error_ends_the_session(data: bytes) -> None:
    client = Client()
    client.send(data)
    assert client.session.is_finished
    assert client.requests == []


@given(st.lists(st.binary(max_size=200), max_size=20), st.integers(1, 64))
def test_arbitrary_bytes_raise_no_exception(pieces: list[bytes], step: int) -> None:
    starts = (b"", CLIENT_FLAGS, option(LIST)[:12], request(WRITE, 0, 1 << 20)[:20])
    for start in starts:
        client = connected()
        client.send(start + b"".join(pieces), step)
        client = Client()
        client.send(start + b"".join(pieces), step)


# --- requests ---------------------------------------------------------------------


@given(st.integers(1, 40))
def test_requests_are_parsed_from_pieces_of_any_size(step: int) -> None:
    client = Client()
    data = bytes(range(256)) * 3
    raw = (
        CLIENT_FLAGS
        + info_option(GO)
        + request(WRITE, 5, data=data, flags=FUA, cookie=9)
    )
    client.send(raw + request(READ, 7, 100) + request(DISCONNECT) + b"more", step)
    write, read = client.requests
    assert (write.command, write.cookie, write.offset, write.fua) == (WRITE, 9, 5, True)
    assert write.data == data
    assert (read.command, read.offset, read.length, read.fua) == (READ, 7, 100, False)
    assert client.session.is_closing
    assert not client.session.is_finished
    client.session.reply(write, None)
    client.session.reply(read, None, bytearray(100))
    client.receive()
    assert client.session.is_finished


def test_payload_of_the_maximum_size() -> None:
    client = connected(export=NbdExport(name="e7.3", size=64 * MIB))
    data = bytes(range(256)) * (32 * MIB // 256)
    client.send(request(WRITE, 0, data=data))
    assert client.requests[0].data == data


def test_simple_replies_in_any_order() -> None:
    client = connected(structured=False)
    client.send(request(READ, 0, 4, cookie=1) + request(WRITE, 0, data=b"ab", cookie=2))
    read, write = client.requests
    client.session.reply(write, None)
    client.session.reply(read, None, bytearray(b"data"))
    assert client.receive() == struct.pack(
        "!IIQIIQ4s", 0x67446698, 0, 2, 0x67446698, 0, 1, b"data"
    )


def test_structured_read_reply_is_one_chunk_with_its_offset() -> None:
    client = connected()
    client.send(request(READ, 0x1234, 4, flags=DONT_FRAGMENT) + request(READ, 9, 0))
    some, none = client.requests
    client.session.reply(some, None, bytearray(b"data"))
    client.session.reply(none, None, bytearray())
    assert parse_replies(client.receive()) == [
        Reply(1, 1, 0, struct.pack("!Q", 0x1234) + b"data"),
        Reply(0, 1, 0, b""),
    ]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (DeviceError("e7.3", "unreadable"), errno.EIO),
        (NotFoundError("e7.3", "no response"), errno.EIO),
        (AoEError("e7.3", "lost"), errno.EIO),
        (AccessError("e7.3", "read-only"), errno.EPERM),
        (BusyError("e7.3", "reserved"), errno.EPERM),
        (UsageError("e7.3", "beyond the end"), errno.EINVAL),
        (UnsupportedError("e7.3", "no such command"), errno.EOPNOTSUPP),
    ],
)
def test_errors_are_sent_as_number_and_message(error: AoEError, number: int) -> None:
    for structured in (True, False):
        client = connected(structured=structured)
        client.send(request(READ, 0, 512))
        client.session.reply(client.requests[0], error, bytearray(512))
        text = str(error).encode() if structured else b""
        kind = 0x8001 if structured else -1
        assert parse_replies(client.receive()) == [Reply(kind, 1, number, text)]


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
def test_invalid_request_gets_an_error_and_the_next_is_served(
    raw: bytes, export: NbdExport, number: int
) -> None:
    client = connected(export=export)
    [reply] = parse_replies(client.send(raw + request(READ, 0, 1, cookie=2)))
    assert (reply.cookie, reply.error) == (1, number)
    assert reply.data
    assert [each.cookie for each in client.requests] == [2]


def test_fast_zero_is_allowed_if_trimmed_sectors_read_as_zeroes() -> None:
    client = connected(export=THIN)
    assert client.send(request(ZEROES, 0, 1, flags=FAST_ZERO)) == b""
    assert [each.allows_holes for each in client.requests] == [True]


def test_oversized_request_gets_an_error_and_its_data_is_discarded() -> None:
    client = connected(export=NbdExport(name="e7.3", size=1 << 40))
    raw = request(WRITE, 0, data=bytes(32 * MIB + 1)) + request(READ, 0, 32 * MIB + 1)
    replies = parse_replies(client.send(raw + request(ZEROES, 0, (1 << 32) - 1)))
    assert [reply.error for reply in replies] == [errno.EINVAL] * 2
    assert [each.command for each in client.requests] == [ZEROES]


def test_requests_during_shutdown_get_eshutdown() -> None:
    client = connected()
    client.send(request(READ, 0, 1))
    client.session.is_shutting_down = True
    [reply] = parse_replies(client.send(request(READ, 0, 1, cookie=2)))
    assert (reply.cookie, reply.error) == (2, errno.ESHUTDOWN)


# --- flow control -----------------------------------------------------------------


def feed(session: NbdSession, raw: Iterable[int]) -> None:
    buffer = session.buffer()
    data = bytes(raw)
    buffer[: len(data)] = data
    session.received(len(data))


def test_at_most_128_requests_are_outstanding() -> None:
    client = connected()
    feed(client.session, b"".join(request(READ, 0, 1, cookie=n) for n in range(200)))
    client.take_requests()
    assert len(client.requests) == 128
    assert client.session.is_full
    client.session.reply(client.requests[0], None, bytearray(1))
    client.take_requests()
    assert len(client.requests) == 128
    client.receive()
    client.take_requests()
    assert len(client.requests) == 129


def test_unsent_replies_count_towards_the_limit() -> None:
    client = connected()
    feed(client.session, b"".join(request(READ, SIZE, 1, cookie=n) for n in range(200)))
    client.take_requests()
    assert client.session.is_full
    assert len(parse_replies(client.receive())) == 128
    client.take_requests()
    assert len(parse_replies(client.receive())) == 72


def test_at_most_64_mib_are_outstanding() -> None:
    client = connected(export=NbdExport(name="e7.3", size=1 << 40))
    feed(client.session, b"".join(request(READ, 0, 32 * MIB) for n in range(4)))
    client.take_requests()
    assert len(client.requests) == 2
    for each in client.requests:
        client.session.reply(each, None, bytearray(32 * MIB))
    client.take_requests()
    assert len(client.requests) == 2
    client.session.sent(20 + 8 + 32 * MIB)
    client.take_requests()
    assert len(client.requests) == 3
