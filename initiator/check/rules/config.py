"""Query config: its numbers, and the string that claims a target (P49 to P60)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.config import (
    CONFIG,
    CONFIG_STRING,
    STRING_LIMIT,
    Config,
    ConfigCommand,
)
from aoe.header import HEADER_LENGTH, Command, ErrorCode
from initiator.check.expect import (
    ANYTHING,
    SILENCE,
    Satisfies,
    config_is,
    refuses,
)
from initiator.check.model import Needs, Skip, Table

if TYPE_CHECKING:
    from initiator.check.model import Steps
    from initiator.check.subject import Subject

table: Final = Table()

READ, TEST, PREFIX, SET, FORCE = ConfigCommand
CLAIM: Final = Needs.CONFIG
UNKNOWN: Final = (5, 9, 15)
PRESENT: Final = ErrorCode.CONFIG_PRESENT
OWNER, RIVAL = b"one owner", b"another one"
ANY_BYTES: Final = bytes(range(256))


@table.must("P50")
def read(t: Subject) -> Steps:
    """Read returns version 1, the numbers, and the whole string."""
    yield t.config(), config_is(t.string, READ)


@table.must("P60")
def buffers(t: Subject) -> Steps:
    """The buffer count is at least 2, or Linux does not use the target."""

    def is_sufficient(response: bytes) -> bool:
        return bool(response) and Config.unpack_from(response).buffer_count > 1

    yield t.config(), Satisfies("a buffer count of 2 or more", is_sufficient)


@table.must("P49")
def numbers_ignored(t: Subject) -> Steps:
    """Buffer count, firmware and sector count of a request are ignored."""
    response = yield t.config(), config_is(t.string, READ)
    numbers = response[HEADER_LENGTH:CONFIG_STRING]
    body = CONFIG.pack(0x1234, 0x5678, 0x9A, 0xF0 | READ, 0)
    same = Satisfies("unchanged numbers", lambda r: r[24:32] == numbers)
    yield t.frame(Command.CONFIG, body), same


@table.must("P51")
def read_ignores_string(t: Subject) -> Steps:
    """Read ignores string and length of the request."""
    filler = b"\xed" * STRING_LIMIT
    is_read = config_is(t.string, READ)
    room = t.frame_limit - CONFIG_STRING
    yield t.config(READ, filler[:room]), is_read
    for declared in (1, 28, STRING_LIMIT, 0xFFFF):
        yield t.config(READ, declared=declared), is_read


@table.must("P50 P52")
def test(t: Subject) -> Steps:
    """Test is answered if the strings are equal, otherwise ignored."""
    yield t.config(TEST, t.string), config_is(t.string, TEST)
    yield t.config(TEST, t.string + b"x"), SILENCE
    if t.string:
        yield t.config(TEST, t.string[:-1]), SILENCE
        yield t.config(TEST), SILENCE


@table.must("P50 P53")
def prefix(t: Subject) -> Steps:
    """Prefix is answered if the string begins with it, otherwise ignored."""
    for length in {0, len(t.string) // 2, len(t.string)}:
        yield t.config(PREFIX, t.string[:length]), config_is(t.string, PREFIX)
    yield t.config(PREFIX, t.string + b"x"), SILENCE


@table.must("P57")
def unknown(t: Subject) -> Steps:
    """An unknown ccmd gives AoE error 2."""
    for ccmd in UNKNOWN:
        yield t.config(ccmd), refuses(ErrorCode.BAD_ARGUMENT)


def force_string(t: Subject, string: bytes) -> Steps:
    """Force a string and read it back."""
    yield t.config(FORCE, string), config_is(string, FORCE)
    yield t.config(), config_is(string, READ)


@table.must("P55", CLAIM)
def force(t: Subject) -> Steps:
    """Force replaces the string, and the response has the new one."""
    yield from force_string(t, OWNER)
    yield from force_string(t, RIVAL)
    yield from force_string(t, b"")


@table.must("P58", CLAIM)
def any_bytes(t: Subject) -> Steps:
    """The string may contain any bytes, up to 1024."""
    yield from force_string(t, ANY_BYTES)
    longest = (ANY_BYTES * 4)[: t.frame_limit - CONFIG_STRING]
    yield from force_string(t, longest)


@table.must("P54", CLAIM)
def set_first(t: Subject) -> Steps:
    """Set stores the string if there is none; repeated, it succeeds again."""
    yield from force_string(t, b"")
    yield t.config(SET, OWNER), config_is(OWNER, SET)
    yield t.config(SET, OWNER), config_is(OWNER, SET)
    yield t.config(), config_is(OWNER, READ)


@table.must("P54", CLAIM)
def set_second(t: Subject) -> Steps:
    """Set of another or an empty string gives AoE error 4, no change."""
    yield from force_string(t, OWNER)
    for string in (RIVAL, OWNER[:-1], b""):
        yield t.config(SET, string), refuses(PRESENT)
        yield t.config(), config_is(OWNER, READ)


@table.advice("P54", CLAIM)
def set_error_has_owner(t: Subject) -> Steps:
    """The error response to set has the current string."""
    yield from force_string(t, OWNER)
    yield t.config(SET, RIVAL), config_is(OWNER, SET, PRESENT)


@table.must("P52 P53", CLAIM)
def test_and_prefix(t: Subject) -> Steps:
    """Test and prefix compare length and bytes."""
    yield from force_string(t, OWNER)
    yield t.config(TEST, OWNER), config_is(OWNER, TEST)
    yield t.config(PREFIX, OWNER[:3]), config_is(OWNER, PREFIX)
    yield t.config(PREFIX, OWNER), config_is(OWNER, PREFIX)
    yield t.config(PREFIX), config_is(OWNER, PREFIX)
    for ccmd, string in ((TEST, OWNER[:3]), (TEST, RIVAL), (PREFIX, RIVAL)):
        yield t.config(ccmd, string), SILENCE
    yield t.config(TEST, OWNER + b"\0"), SILENCE


@table.must("P20", CLAIM)
def string_tail(t: Subject) -> Steps:
    """Bytes after the string are not part of it."""
    yield t.config(FORCE, OWNER, tail=b"\xed" * 60), config_is(OWNER, FORCE)
    yield t.config(), config_is(OWNER, READ)


OVERLONG: Final = (40, STRING_LIMIT, STRING_LIMIT + 1, 0xFFFF)
"""String lengths that exceed a frame of 60 bytes with room for a string of 28."""


@table.must("P56", CLAIM)
def overlong(t: Subject) -> Steps:
    """A string longer than its frame or than 1024 is not stored."""
    yield from force_string(t, OWNER)
    for length in OVERLONG:
        yield t.config(FORCE, RIVAL, declared=length), ANYTHING
        yield t.config(), config_is(OWNER, READ)


@table.advice("P56", CLAIM)
def overlong_error(t: Subject) -> Steps:
    """A string longer than its frame or than 1024 gives AoE error 2."""
    for length in OVERLONG:
        request = t.config(FORCE, RIVAL, declared=length)
        yield request, refuses(ErrorCode.BAD_ARGUMENT)


@table.must("P56", CLAIM)
def over_1024_bytes(t: Subject) -> Steps:
    """A complete string of more than 1024 bytes is not stored."""
    if t.frame_limit < CONFIG_STRING + STRING_LIMIT + 1:
        raise Skip("the MTU is too small for such a string")
    yield from force_string(t, OWNER)
    yield t.config(FORCE, bytes(STRING_LIMIT + 1)), ANYTHING
    yield t.config(), config_is(OWNER, READ)
