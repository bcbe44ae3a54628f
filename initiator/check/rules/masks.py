"""The MAC mask list (P61 to P70).

We are the first whom these checks add, and the last whom they take out.
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
"""Hazardous, because vblade 25 dies when its list's first address is taken out."""
UNKNOWN_DIRECTIVE: Final = 9
LIST_LIMIT: Final = 255
AT_ONCE: Final = 100
"""Directives in one of the edits that fill a list."""


def edit(t: Subject, *directives: tuple[int, bytes], src: bytes | None = None) -> bytes:
    """Build a request to edit the list."""
    return t.mask_list(*directives, mcmd=EDIT, src=src or t.client)


def begin(t: Subject, *macs: bytes) -> Steps:
    """Let the list be us, whoever is in it already, and these."""
    listed = dict.fromkeys((*t.mask, t.client, *macs))
    yield edit(t, *((ADD, mac) for mac in listed)), mask_is(*listed, mcmd=EDIT)


@table.must("P62")
def read(t: Subject) -> Steps:
    """Read tells the list; what the request lists is ignored."""
    is_list = mask_is(*t.mask, mcmd=READ)
    yield t.mask_list(), is_list
    yield t.mask_list((ADD, t.third), (UNKNOWN_DIRECTIVE, t.third)), is_list
    yield t.mask_list(declared=200), is_list
    yield t.mask_list(), is_list


@table.must("P68")
def unknown(t: Subject) -> Steps:
    """An unknown MCmd: AoE error 2, no change."""
    is_list = mask_is(*t.mask, mcmd=READ)
    for mcmd in (2, 0xFF):
        asked = t.mask_list((NONE, t.client), mcmd=mcmd)
        yield asked, refuses(ErrorCode.BAD_ARGUMENT)
    yield t.mask_list(), is_list


@table.must("P63 P67")
def edit_nothing(t: Subject) -> Steps:
    """An edit of nothing tells the list."""
    is_list = mask_is(*t.mask, mcmd=EDIT)
    yield edit(t), is_list
    yield edit(t, (NONE, t.third)), is_list


@table.must("P63 P67", CLAIM)
def in_order(t: Subject) -> Steps:
    """Directives count in order; the list is a set; reply: all."""
    yield from begin(t)
    before = tuple(dict.fromkeys((*t.mask, t.client)))
    steps = [(ADD, t.third), (NONE, t.other), (ADD, t.client), (DELETE, t.third)]
    yield edit(t, *steps), mask_is(*before, mcmd=EDIT)
    steps = [(DELETE, t.third), (ADD, t.third), (ADD, t.third)]
    yield edit(t, *steps), mask_is(*before, t.third, mcmd=EDIT)
    yield edit(t, *steps), mask_is(*before, t.third, mcmd=EDIT)
    yield t.mask_list(), mask_is(*before, t.third, mcmd=READ)


@table.must("P61", CLAIM)
def unlisted_client(t: Subject) -> Steps:
    """Who is not in the list meets with silence, whatever the command."""
    yield from hear_others(t)
    yield from begin(t)
    for request in (
        t.config(src=t.other),
        t.identify(src=t.other),
        t.mask_list(src=t.other),
        t.reserve(src=t.other),
        t.frame(9, bytes(36), src=t.other),
    ):
        yield request, SILENCE
    yield from begin(t, t.other)
    yield t.config(src=t.other), ANY_RESPONSE


def hear_others(t: Subject) -> Steps:
    """Go on if replies to another MAC address reach us, where it is served."""
    if t.mask:
        raise Skip("there is a list already, which shuts other addresses out")
    response = yield t.config(src=t.other), ANYTHING
    if not response:
        raise Skip("replies to another MAC address do not reach us on this network")


@table.must("P70", CLAIM)
def self_exclusion(t: Subject) -> Steps:
    """Who shuts itself out is told so, and is out from then on."""
    yield from hear_others(t)
    yield edit(t, (ADD, t.client), src=t.other), mask_is(t.client, mcmd=EDIT)
    yield t.mask_list(src=t.other), SILENCE
    yield t.mask_list(), mask_is(t.client, mcmd=READ)


@table.must("P61", CLAIM)
def listed_client(t: Subject) -> Steps:
    """Those in the list are served."""
    yield from begin(t)
    yield t.config(), Satisfies("an answer to us", lambda r: r[:6] == t.client)
    yield t.identify(), succeeds(sectors=1)


WRONG: Final = 1
"""Where the bad directive stands."""


@table.must("P64", CLAIM)
def bad_directive(t: Subject) -> Steps:
    """A bad directive: MError 2, its place for a count, E clear."""
    yield from begin(t)
    yield wrong_edit(t), mask_fails(BAD_DIRECTIVE, WRONG, EDIT)


def wrong_edit(t: Subject) -> bytes:
    """An edit that goes wrong halfway."""
    return edit(t, (ADD, t.other), (UNKNOWN_DIRECTIVE, t.client), (ADD, t.third))


@table.advice("P65", CLAIM)
def bad_directive_partial_edit(t: Subject) -> Steps:
    """What stands before a bad directive is done, nothing behind it."""
    yield from begin(t)
    before = tuple(dict.fromkeys((*t.mask, t.client)))
    yield wrong_edit(t), ANY_RESPONSE
    yield t.mask_list(), mask_is(*before, t.other, mcmd=READ)


@table.advice("P66", CLAIM)
def bad_directive_body(t: Subject) -> Steps:
    """The reply to a bad directive repeats the request's."""
    yield from begin(t)
    asked = wrong_edit(t)
    end = 28 + 3 * 8
    words = "the directives of the request"
    yield asked, Satisfies(words, lambda r: r[28:end] == asked[28:end])


@table.must("P61 P64", CLAIM)
def full_list(t: Subject) -> Steps:
    """A list that is full: MError 3 where the first has no room."""
    yield from begin(t)
    held = len(dict.fromkeys((*t.mask, t.client)))
    for first in range(0, LIST_LIMIT + 1, AT_ONCE):
        macs = [t.invented(number) for number in range(first, first + AT_ONCE)]
        asked = edit(t, *((ADD, mac) for mac in macs))
        response = yield asked, ANY_MASK_LIST
        answer = MaskList.unpack_from(response)
        if answer.merror:
            yield from full(t, held + first, macs)
            return
    yield t.mask_list(), Satisfies("a list of 255 at most", lambda _: False)


def full(t: Subject, held: int, macs: list[bytes]) -> Steps:
    """The list has been filled: by whom, and who had no room any more?"""
    response = yield t.mask_list(), ANY_MASK_LIST
    now = [mac for _, mac in MaskList.unpack_from(response).directives]
    done = max(0, len(now) - held)
    # Those that are listed are added again, which changes nothing (P63).
    asked = edit(t, *((ADD, mac) for mac in macs))
    yield asked, mask_fails(FULL, done, EDIT)
    limit = Satisfies("a list of 255 at most", lambda _: len(now) <= LIST_LIMIT)
    yield t.mask_list(), limit


@table.must("P69", CLAIM)
def missing_directives(t: Subject) -> Steps:
    """Fewer directives than the count says: nothing else is done."""
    yield from begin(t)
    before = tuple(dict.fromkeys((*t.mask, t.client)))
    asked = t.mask_list((NONE, t.client), mcmd=EDIT, declared=200)
    yield asked, ANYTHING
    yield t.mask_list(), mask_is(*before, mcmd=READ)


@table.advice("P69", CLAIM)
def missing_directives_error(t: Subject) -> Steps:
    """Fewer directives than the count says: AoE error 2."""
    yield from begin(t)
    asked = t.mask_list((NONE, t.client), mcmd=EDIT, declared=200)
    yield asked, refuses(ErrorCode.BAD_ARGUMENT)
