"""Query config: what it tells, and the string that clients claim a target with."""

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
    """It tells version 1, its numbers, and its string in full."""
    yield t.config(), config_is(t.string, READ)


@table.must("P60")
def buffers(t: Subject) -> Steps:
    """It queues two messages at least, or Linux never uses it."""

    def enough(response: bytes) -> bool:
        return bool(response) and Config.unpack_from(response).buffer_count > 1

    yield t.config(), Satisfies("a buffer count of 2 or more", enough)


@table.must("P49")
def numbers_ignored(t: Subject) -> Steps:
    """What a request says of buffers, firmware and sectors is ignored."""
    response = yield t.config(), config_is(t.string, READ)
    mine = response[HEADER_LENGTH:CONFIG_STRING]
    body = CONFIG.pack(0x1234, 0x5678, 0x9A, 0xF0 | READ, 0)
    same = Satisfies("the same numbers as ever", lambda r: r[24:32] == mine)
    yield t.frame(Command.CONFIG, body), same


@table.must("P51")
def read_ignores_string(t: Subject) -> Steps:
    """To read, any string of any length will do."""
    filler = b"\xed" * STRING_LIMIT
    is_read = config_is(t.string, READ)
    room = t.frame_limit - CONFIG_STRING
    yield t.config(READ, filler[:room]), is_read
    for declared in (1, 28, STRING_LIMIT, 0xFFFF):
        yield t.config(READ, declared=declared), is_read


@table.must("P50 P52")
def test(t: Subject) -> Steps:
    """Test: answered if the string is the same, else silence."""
    yield t.config(TEST, t.string), config_is(t.string, TEST)
    yield t.config(TEST, t.string + b"x"), SILENCE
    if t.string:
        yield t.config(TEST, t.string[:-1]), SILENCE
        yield t.config(TEST), SILENCE


@table.must("P50 P53")
def prefix(t: Subject) -> Steps:
    """Prefix: answered if the string begins with it, else silence."""
    for length in {0, len(t.string) // 2, len(t.string)}:
        yield t.config(PREFIX, t.string[:length]), config_is(t.string, PREFIX)
    yield t.config(PREFIX, t.string + b"x"), SILENCE


@table.must("P57")
def unknown(t: Subject) -> Steps:
    """An unknown ccmd: AoE error 2."""
    for ccmd in UNKNOWN:
        yield t.config(ccmd), refuses(ErrorCode.BAD_ARGUMENT)


def becomes(t: Subject, string: bytes) -> Steps:
    """Force a string, and find it there."""
    yield t.config(FORCE, string), config_is(string, FORCE)
    yield t.config(), config_is(string, READ)


@table.must("P55", CLAIM)
def force(t: Subject) -> Steps:
    """Force: the string is replaced, and the reply has the new one."""
    yield from becomes(t, OWNER)
    yield from becomes(t, RIVAL)
    yield from becomes(t, b"")


@table.must("P58", CLAIM)
def any_bytes(t: Subject) -> Steps:
    """A string is any bytes, up to 1024."""
    yield from becomes(t, ANY_BYTES)
    longest = (ANY_BYTES * 4)[: t.frame_limit - CONFIG_STRING]
    yield from becomes(t, longest)


@table.must("P54", CLAIM)
def set_first(t: Subject) -> Steps:
    """Set: stored if there is none; again, and it is still a success."""
    yield from becomes(t, b"")
    yield t.config(SET, OWNER), config_is(OWNER, SET)
    yield t.config(SET, OWNER), config_is(OWNER, SET)
    yield t.config(), config_is(OWNER, READ)


@table.must("P54", CLAIM)
def set_second(t: Subject) -> Steps:
    """Set over another string, or with none: AoE error 4, no change."""
    yield from becomes(t, OWNER)
    for string in (RIVAL, OWNER[:-1], b""):
        yield t.config(SET, string), refuses(PRESENT)
        yield t.config(), config_is(OWNER, READ)


@table.advice("P54", CLAIM)
def set_error_has_owner(t: Subject) -> Steps:
    """Who is too late with set is told whose it is."""
    yield from becomes(t, OWNER)
    yield t.config(SET, RIVAL), config_is(OWNER, SET, PRESENT)


@table.must("P52 P53", CLAIM)
def test_and_prefix(t: Subject) -> Steps:
    """Test and prefix go by length and bytes."""
    yield from becomes(t, OWNER)
    yield t.config(TEST, OWNER), config_is(OWNER, TEST)
    yield t.config(PREFIX, OWNER[:3]), config_is(OWNER, PREFIX)
    yield t.config(PREFIX, OWNER), config_is(OWNER, PREFIX)
    yield t.config(PREFIX), config_is(OWNER, PREFIX)
    for ccmd, string in ((TEST, OWNER[:3]), (TEST, RIVAL), (PREFIX, RIVAL)):
        yield t.config(ccmd, string), SILENCE
    yield t.config(TEST, OWNER + b"\0"), SILENCE


@table.must("P20", CLAIM)
def string_tail(t: Subject) -> Steps:
    """What stands behind the string is no part of it."""
    yield t.config(FORCE, OWNER, tail=b"\xed" * 60), config_is(OWNER, FORCE)
    yield t.config(), config_is(OWNER, READ)


OVERLONG: Final = (40, STRING_LIMIT, STRING_LIMIT + 1, 0xFFFF)
"""String lengths that a frame of 60 bytes, 28 of them for the string, belies."""


@table.must("P56", CLAIM)
def overlong(t: Subject) -> Steps:
    """A string longer than its frame, or than 1024, is not stored."""
    yield from becomes(t, OWNER)
    for length in OVERLONG:
        yield t.config(FORCE, RIVAL, declared=length), ANYTHING
        yield t.config(), config_is(OWNER, READ)


@table.advice("P56", CLAIM)
def overlong_error(t: Subject) -> Steps:
    """A string longer than its frame, or than 1024: AoE error 2."""
    for length in OVERLONG:
        asked = t.config(FORCE, RIVAL, declared=length)
        yield asked, refuses(ErrorCode.BAD_ARGUMENT)


@table.must("P56", CLAIM)
def over_1024_bytes(t: Subject) -> Steps:
    """A string of more than 1024 that is all there is not stored."""
    if t.frame_limit < CONFIG_STRING + STRING_LIMIT + 1:
        raise Skip("our MTU has no room for it")
    yield from becomes(t, OWNER)
    yield t.config(FORCE, bytes(STRING_LIMIT + 1)), ANYTHING
    yield t.config(), config_is(OWNER, READ)
