"""The AoE header: address, flags, version, tag, unknown commands (P1 to P18)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.address import MAC_BROADCAST, SHELF_ALL, SLOT_ALL
from aoe.config import ConfigCommand
from aoe.header import TAG_COUNTER, ErrorCode, Flag
from initiator.check.expect import (
    ANY_RESPONSE,
    SILENCE,
    Satisfies,
    config_is,
    is_failure,
    refuses,
    refuses_and_echoes,
)
from initiator.check.model import Table

if TYPE_CHECKING:
    from initiator.check.expect import Expectation
    from initiator.check.model import Steps
    from initiator.check.subject import Subject

table: Final = Table()

RESERVED_FLAGS: Final = 0x03
RESERVED_AFLAGS: Final = 0xAC
UNKNOWN: Final = (4, 9, 0x7F, 0xEF)
VENDORS: Final = (0xF0, 0xFF)


def own_config(t: Subject) -> Expectation:
    """Return the expected response to a query config read."""
    return config_is(t.string, ConfigCommand.READ)


@table.must("P1 P10 P12 P14")
def answered(t: Subject) -> Steps:
    """A query config response has R set, E clear, the tag, and the own MAC."""
    yield t.config(), own_config(t)


@table.must("P8 P9")
def broadcast_addresses(t: Subject) -> Steps:
    """A query to a broadcast shelf or slot is answered with the own address."""
    shelf, slot = t.address
    for address in ((SHELF_ALL, SLOT_ALL), (SHELF_ALL, slot), (shelf, SLOT_ALL)):
        yield t.config(address=address), own_config(t)


@table.must("P8 P12")
def broadcast_mac(t: Subject) -> Steps:
    """A query to the broadcast MAC is answered from the own MAC."""
    yield t.config(dst=MAC_BROADCAST), own_config(t)
    yield t.config(dst=MAC_BROADCAST, address=(SHELF_ALL, SLOT_ALL)), own_config(t)


@table.must("P8")
def other_addresses(t: Subject) -> Steps:
    """A request to another shelf or slot is ignored."""
    shelf, slot = t.address
    for address in ((shelf ^ 0x5A5A, slot), (shelf, slot ^ 0x5A)):
        yield t.config(address=address), SILENCE
        yield t.identify(address=address), SILENCE


@table.must("P7")
def response_flag(t: Subject) -> Steps:
    """A frame with the R flag is ignored."""
    yield t.config(flags=Flag.RESPONSE), SILENCE
    yield t.config(flags=Flag.RESPONSE | Flag.ERROR, error=1), SILENCE
    yield t.identify(flags=Flag.RESPONSE), SILENCE


@table.must("P3 P4")
def reserved_flags(t: Subject) -> Steps:
    """Reserved header flags are ignored, and clear in the response."""
    for bit in (0x01, 0x02, RESERVED_FLAGS):
        yield t.config(flags=bit), own_config(t)


@table.must("P3 P4")
def reserved_aflags(t: Subject) -> Steps:
    """Reserved ATA flags are ignored, and clear in the response."""
    text = "success, reserved ATA flags clear"
    clear = Satisfies(text, lambda r: bool(r) and not r[24] & RESERVED_AFLAGS)
    yield t.identify(aflags=RESERVED_AFLAGS), clear


@table.must("P13")
def errors_in_requests(t: Subject) -> Steps:
    """E and Error of a request are ignored, and clear in the response."""
    yield t.config(flags=Flag.ERROR, error=ErrorCode.RESERVED), own_config(t)
    text = "success, E and Error clear"
    good = Satisfies(text, lambda r: bool(r) and not is_failure(r) and not r[15])
    yield t.identify(flags=Flag.ERROR, error=9), good


@table.must("P13")
def error_codes_in_requests(t: Subject) -> Steps:
    """Error without E in a request is ignored, and clear in the response."""
    yield t.config(error=9), own_config(t)


@table.advice("P5 P6")
def versions(t: Subject) -> Steps:
    """A version other than 1 gives AoE error 5."""
    for version in (0, 2, 15):
        yield t.config(version=version), refuses(ErrorCode.BAD_VERSION)
        yield t.identify(version=version), refuses(ErrorCode.BAD_VERSION)


@table.must("P10")
def tags(t: Subject) -> Steps:
    """The response has the tag of the request, bit for bit."""
    for bits in (0, 1, 0x2AAAA, 0x155555, TAG_COUNTER):
        yield t.config(tag=t.tag_first | bits), own_config(t)
        yield t.identify(tag=t.tag_first | bits), ANY_RESPONSE


@table.must("P16")
def unknown_commands(t: Subject) -> Steps:
    """An unknown or vendor-specific command gives AoE error 1."""
    for command in (*UNKNOWN, *VENDORS):
        yield t.frame(command, bytes(36)), refuses(ErrorCode.BAD_COMMAND)


@table.advice("P16 P18")
def error_echoes_request(t: Subject) -> Steps:
    """An error response has the whole request after its header."""
    body = bytes(range(100))
    yield t.frame(9, body), refuses_and_echoes(ErrorCode.BAD_COMMAND)


@table.advice("P62 P71")
def newer_commands(t: Subject) -> Steps:
    """The commands 2 and 3 of newer specifications are supported."""
    known = Satisfies("no AoE error", lambda r: bool(r) and not r[14] & Flag.ERROR)
    yield t.mask_list(), known
    yield t.reserve(), known
