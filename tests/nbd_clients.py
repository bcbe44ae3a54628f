"""Encode the messages of an NBD client, and parse the replies of a server."""

from __future__ import annotations

import struct
from typing import NamedTuple

CLIENT_FLAGS = struct.pack("!I", 3)
"""The client's flags: fixed newstyle, no zeroes."""
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED = 1, 2, 3, 5, 6, 7, 8
READ, WRITE, DISCONNECT, FLUSH, TRIM, ZEROES = 0, 1, 2, 3, 4, 6
FUA, NO_HOLE, DONT_FRAGMENT, FAST_ZERO = 1, 2, 4, 16
ACK, SERVER, REP_INFO = 1, 2, 3
UNSUPPORTED, INVALID, UNKNOWN, TOO_BIG = (1 << 31 | n for n in (1, 3, 6, 9))


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack("!II", number, len(data)) + data


def info_option(number: int, name: bytes = b"", *information: int) -> bytes:
    """Return NBD_OPT_INFO or NBD_OPT_GO, with a list of information requests."""
    count = len(information)
    requests = struct.pack(f"!H{count}H", count, *information)
    return option(number, struct.pack("!I", len(name)) + name + requests)


def request(
    command: int,
    offset: int = 0,
    length: int = 0,
    *,
    cookie: int = 1,
    flags: int = 0,
    data: bytes = b"",
) -> bytes:
    head = struct.pack(
        "!IHHQQI", 0x25609513, flags, command, cookie, offset, length or len(data)
    )
    return head + data


class OptionReply(NamedTuple):
    """A reply to an option."""

    option: int
    kind: int
    data: bytes


def parse_option_replies(raw: bytes) -> list[OptionReply]:
    """Parse the option replies that follow the greeting."""
    replies = []
    while raw:
        magic, number, kind, length = struct.unpack_from("!QIII", raw)
        assert magic == 0x3E889045565A9
        assert len(raw) >= 20 + length
        replies.append(OptionReply(number, kind, raw[20 : 20 + length]))
        raw = raw[20 + length :]
    return replies


class Reply(NamedTuple):
    """A reply to a request; ``kind`` is the chunk type, -1 for a simple reply."""

    kind: int
    cookie: int
    error: int
    data: bytes


def parse_replies(raw: bytes) -> list[Reply]:
    """Parse replies; simple replies must not carry data."""
    replies = []
    while raw:
        (magic,) = struct.unpack_from("!I", raw)
        if magic == 0x67446698:
            _, error, cookie = struct.unpack_from("!IIQ", raw)
            replies.append(Reply(-1, cookie, error, b""))
            raw = raw[16:]
            continue
        magic, flags, kind, cookie, length = struct.unpack_from("!IHHQI", raw)
        assert (magic, flags) == (0x668E33EF, 1)
        assert len(raw) >= 20 + length
        data = raw[20 : 20 + length]
        error = 0
        if kind == 0x8001:
            error, size = struct.unpack_from("!IH", data)
            data = data[6:]
            assert len(data) == size
        replies.append(Reply(kind, cookie, error, data))
        raw = raw[20 + length :]
    return replies
