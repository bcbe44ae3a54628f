"""The MAC mask list (P61 to P70).

The checks add the client's own address first and remove it last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.header import ErrorCode
from aoe.macmask import DirectiveCommand, MaskCommand, MaskError, MaskList
from initiator.check.expect import (
    ANY_MASK_LIST,
    ANY_RESPONSE,
    ANYTHING,
    SILENCE,
    Satisfies,
    mask_fails,
    mask_is,
    refuses,
    succeeds,
)
from initiator.check.model import Needs, Skip, Table

if TYPE_CHECKING:
    from initiator.check.model import Steps
    from initiator.check.subject import Subject

table: Final = Table()

READ, EDIT = MaskCommand
NONE, ADD, DELETE = DirectiveCommand
BAD_DIRECTIVE, FULL = MaskError.BAD_DIRECTIVE, MaskError.FULL
CLAIM: Final = Needs.MASK | Needs.HAZARD
"""Hazardous: vblade 25 crashes when the first address of the list is removed."""
UNKNOWN_DIRECTIVE: Final = 9
LIST_LIMIT: Final = 255
AT_ONCE: Final = 100
"""Directives per request when the list is filled."""


def edit(t: Subject, *directives: tuple[int, bytes], src: bytes | None = None) -> bytes:
    """Build an edit request."""
    return t.mask_list(*directives, mcmd=EDIT, src=src or t.client)


def enable_list(t: Subject, *macs: bytes) -> Steps:
    """Add the client and ``macs`` to the list."""
    listed = dict.fromkeys((*t.mask, t.client, *macs))
    yield edit(t, *((ADD, mac) for mac in listed)), mask_is(*listed, mcmd=EDIT)


@table.must("P62")
def read(t: Subject) -> Steps:
    """Read returns the list; directives in the request are ignored."""
    is_list = mask_is(*t.mask, mcmd=READ)
    yield t.mask_list(), is_list
    yield t.mask_list((ADD, t.third), (UNKNOWN_DIRECTIVE, t.third)), is_list
    yield t.mask_list(declared=200), is_list
    yield t.mask_list(), is_list


@table.must("P68")
def unknown(t: Subject) -> Steps:
    """An unknown MCmd gives AoE error 2 and changes nothing."""
    is_list = mask_is(*t.mask, mcmd=READ)
    for mcmd in (2, 0xFF):
        request = t.mask_list((NONE, t.client), mcmd=mcmd)
        yield request, refuses(ErrorCode.BAD_ARGUMENT)
    yield t.mask_list(), is_list


@table.must("P63 P67")
def edit_nothing(t: Subject) -> Steps:
    """An edit without changes returns the list."""
    is_list = mask_is(*t.mask, mcmd=EDIT)
    yield edit(t), is_list
    yield edit(t, (NONE, t.third)), is_list


@table.must("P63 P67", CLAIM)
def in_order(t: Subject) -> Steps:
    """Directives apply in order to a set; the response has the whole list."""
    yield from enable_list(t)
    before = tuple(dict.fromkeys((*t.mask, t.client)))
    steps = [(ADD, t.third), (NONE, t.other), (ADD, t.client), (DELETE, t.third)]
    yield edit(t, *steps), mask_is(*before, mcmd=EDIT)
    steps = [(DELETE, t.third), (ADD, t.third), (ADD, t.third)]
    yield edit(t, *steps), mask_is(*before, t.third, mcmd=EDIT)
    yield edit(t, *steps), mask_is(*before, t.third, mcmd=EDIT)
    yield t.mask_list(), mask_is(*before, t.third, mcmd=READ)


@table.must("P61", CLAIM)
def unlisted_client(t: Subject) -> Steps:
    """All commands of a client that is not in the list are ignored."""
    yield from require_responses_to_others(t)
    yield from enable_list(t)
    for request in (
        t.config(src=t.other),
        t.identify(src=t.other),
        t.mask_list(src=t.other),
        t.reserve(src=t.other),
        t.frame(9, bytes(36), src=t.other),
    ):
        yield request, SILENCE
    yield from enable_list(t, t.other)
    yield t.config(src=t.other), ANY_RESPONSE


def require_responses_to_others(t: Subject) -> Steps:
    """Skip the check unless responses to another MAC address are received."""
    if t.mask:
        raise Skip("the list is not empty and excludes other addresses")
    response = yield t.config(src=t.other), ANYTHING
    if not response:
        raise Skip("responses to another MAC address are not received on this network")


@table.must("P70", CLAIM)
def self_exclusion(t: Subject) -> Steps:
    """A client that excludes itself gets a response, and then is ignored."""
    yield from require_responses_to_others(t)
    yield edit(t, (ADD, t.client), src=t.other), mask_is(t.client, mcmd=EDIT)
    yield t.mask_list(src=t.other), SILENCE
    yield t.mask_list(), mask_is(t.client, mcmd=READ)


@table.must("P61", CLAIM)
def listed_client(t: Subject) -> Steps:
    """A client in the list is served."""
    yield from enable_list(t)
    yield t.config(), Satisfies("a response to us", lambda r: r[:6] == t.client)
    yield t.identify(), succeeds(sectors=1)


WRONG: Final = 1
"""Index of the bad directive."""


@table.must("P64", CLAIM)
def bad_directive(t: Subject) -> Steps:
    """A bad directive gives MError 2, its index as the count, E clear."""
    yield from enable_list(t)
    yield bad_edit(t), mask_fails(BAD_DIRECTIVE, WRONG, EDIT)


def bad_edit(t: Subject) -> bytes:
    """Build an edit with a bad directive in the middle."""
    return edit(t, (ADD, t.other), (UNKNOWN_DIRECTIVE, t.client), (ADD, t.third))


@table.advice("P65", CLAIM)
def bad_directive_partial_edit(t: Subject) -> Steps:
    """Directives before a bad one are executed, those after it are not."""
    yield from enable_list(t)
    before = tuple(dict.fromkeys((*t.mask, t.client)))
    yield bad_edit(t), ANY_RESPONSE
    yield t.mask_list(), mask_is(*before, t.other, mcmd=READ)


@table.advice("P66", CLAIM)
def bad_directive_body(t: Subject) -> Steps:
    """The response to a bad directive repeats those of the request."""
    yield from enable_list(t)
    request = bad_edit(t)
    end = 28 + 3 * 8
    text = "the directives of the request"
    yield request, Satisfies(text, lambda r: r[28:end] == request[28:end])


@table.must("P61 P64", CLAIM)
def full_list(t: Subject) -> Steps:
    """A full list gives MError 3 at the first directive without room."""
    yield from enable_list(t)
    held = len(dict.fromkeys((*t.mask, t.client)))
    for first in range(0, LIST_LIMIT + 1, AT_ONCE):
        macs = [t.invented(number) for number in range(first, first + AT_ONCE)]
        request = edit(t, *((ADD, mac) for mac in macs))
        response = yield request, ANY_MASK_LIST
        mask_list = MaskList.unpack_from(response)
        if mask_list.merror:
            yield from check_full(t, held + first, macs)
            return
    yield t.mask_list(), Satisfies("a list of 255 at most", lambda _: False)


def check_full(t: Subject, held: int, macs: list[bytes]) -> Steps:
    """Check that the list is full and which directive had no room."""
    response = yield t.mask_list(), ANY_MASK_LIST
    now = [mac for _, mac in MaskList.unpack_from(response).directives]
    done = max(0, len(now) - held)
    # Adding the listed addresses again changes nothing (P63).
    request = edit(t, *((ADD, mac) for mac in macs))
    yield request, mask_fails(FULL, done, EDIT)
    limit = Satisfies("a list of 255 at most", lambda _: len(now) <= LIST_LIMIT)
    yield t.mask_list(), limit


@table.must("P69", CLAIM)
def missing_directives(t: Subject) -> Steps:
    """An edit with missing directives executes only those that it has."""
    yield from enable_list(t)
    before = tuple(dict.fromkeys((*t.mask, t.client)))
    request = t.mask_list((NONE, t.client), mcmd=EDIT, declared=200)
    yield request, ANYTHING
    yield t.mask_list(), mask_is(*before, mcmd=READ)


@table.advice("P69", CLAIM)
def missing_directives_error(t: Subject) -> Steps:
    """Fewer directives than the count give AoE error 2."""
    yield from enable_list(t)
    request = t.mask_list((NONE, t.client), mcmd=EDIT, declared=200)
    yield request, refuses(ErrorCode.BAD_ARGUMENT)
