"""Reserve/release (P71 to P79). Checks undo their reservations by force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.ata import Opcode
from aoe.config import ConfigCommand
from aoe.header import ErrorCode
from aoe.reserve import ReserveCommand
from initiator.check.expect import (
    ANYTHING,
    config_is,
    holders_are,
    mask_is,
    refuses,
    succeeds,
)
from initiator.check.model import Needs, Table

if TYPE_CHECKING:
    from initiator.check.model import Steps
    from initiator.check.subject import Subject

table: Final = Table()

READ, SET, FORCE = ReserveCommand
CLAIM: Final = Needs.RESERVE
BAD_ARGUMENT, RESERVED = ErrorCode.BAD_ARGUMENT, ErrorCode.RESERVED


def force_holders(t: Subject, *macs: bytes) -> Steps:
    """Reserve the target for ``macs`` by force."""
    yield t.reserve(*macs, rcmd=FORCE), holders_are(*macs, rcmd=FORCE)


@table.must("P71 P73")
def read(t: Subject) -> Steps:
    """Any client may read the holders."""
    yield t.reserve(), holders_are(*t.holders, rcmd=READ)
    yield t.reserve(t.third), holders_are(*t.holders, rcmd=READ)


@table.must("P75")
def unknown(t: Subject) -> Steps:
    """An unknown RCmd gives AoE error 2 and changes nothing."""
    holders = t.holders
    for rcmd in (3, 0xFF):
        yield t.reserve(t.third, rcmd=rcmd), refuses(BAD_ARGUMENT)
    yield t.reserve(), holders_are(*holders, rcmd=READ)


@table.must("P75 P79")
def padding(t: Subject) -> Steps:
    """Padding and trailing bytes are not addresses."""
    holders = holders_are(*t.holders, rcmd=READ)
    yield t.reserve(is_padded=False), holders
    yield t.reserve(tail=b"\xed" * 60), holders


@table.must("P72", CLAIM)
def set_free(t: Subject) -> Steps:
    """Any client may set if free, holders later; an empty set releases."""
    for macs in ((t.client,), (t.client, t.third), ()):
        yield t.reserve(*macs, rcmd=SET), holders_are(*macs, rcmd=SET)
        yield t.reserve(), holders_are(*macs, rcmd=READ)


@table.must("P72", CLAIM)
def set_non_holder(t: Subject) -> Steps:
    """Set by a client that is not a holder gives AoE error 6, no change."""
    yield from force_holders(t, t.third)
    for macs in ((t.client,), ()):
        yield t.reserve(*macs, rcmd=SET), refuses(RESERVED)
        yield t.reserve(), holders_are(t.third, rcmd=READ)


@table.must("P72", CLAIM)
def set_others(t: Subject) -> Steps:
    """A client may reserve the target for others only."""
    yield from force_holders(t)
    # A retransmission would come from a client that is not a holder any more.
    yield t.reserve(t.third, rcmd=SET), ANYTHING
    yield t.reserve(), holders_are(t.third, rcmd=READ)


@table.advice("P71", CLAIM)
def error_has_holders(t: Subject) -> Steps:
    """An error response has the holders."""
    yield from force_holders(t, t.third)
    request = t.reserve(t.client, rcmd=SET)
    yield request, holders_are(t.third, rcmd=SET, code=RESERVED)
    request = t.reserve(t.client, rcmd=3)
    yield request, holders_are(t.third, rcmd=3, code=BAD_ARGUMENT)


@table.must("P73", CLAIM)
def force(t: Subject) -> Steps:
    """Force works for a client that is not a holder."""
    yield from force_holders(t, t.third)
    yield from force_holders(t, t.client)
    yield from force_holders(t)


@table.must("P74", CLAIM)
def non_holder_read(t: Subject) -> Steps:
    """READ by a non-holder gives AoE error 6; IDENTIFY is answered."""
    yield from force_holders(t, t.third)
    yield t.read(), refuses(RESERVED)
    yield t.identify(), succeeds(sectors=1)


@table.must("P74", CLAIM | Needs.DISK)
def non_holder_write(t: Subject) -> Steps:
    """WRITE by a non-holder gives AoE error 6."""
    yield from force_holders(t, t.third)
    yield t.write(t.scratch[0], t.inverted()), refuses(RESERVED)
    yield from force_holders(t)
    yield t.read(t.scratch[0]), succeeds(t.original())


@table.advice("P74", CLAIM)
def non_holder_commands(t: Subject) -> Steps:
    """Every ATA command but IDENTIFY by a non-holder gives AoE error 6."""
    yield from force_holders(t, t.third)
    for opcode in (Opcode.CHECK_POWER_MODE, Opcode.FLUSH, Opcode.FLUSH_EXT, 0x02):
        yield t.ata(opcode), refuses(RESERVED)


@table.must("P58 P74", CLAIM)
def non_holder_queries(t: Subject) -> Steps:
    """Query config and mask list are answered to non-holders."""
    yield from force_holders(t, t.third)
    yield t.config(), config_is(t.string, ConfigCommand.READ)
    if t.mask_before is not None:
        yield t.mask_list(), mask_is(*t.mask, mcmd=0)


@table.must("P61 P77", CLAIM)
def holders_read(t: Subject) -> Steps:
    """READ by each of several holders succeeds."""
    for macs in ((t.client,), (t.third, t.client), (t.client, t.third)):
        yield from force_holders(t, *macs)
        yield t.read(), succeeds(sectors=1)


@table.must("P76", CLAIM)
def holder_order(t: Subject) -> Steps:
    """Several holders are kept in their order, not sorted."""
    macs = (t.third, t.client, t.other, t.invented(1))
    yield from force_holders(t, *macs)
    yield t.reserve(), holders_are(*macs, rcmd=READ)
    yield t.read(), succeeds(sectors=1)


@table.must("P75", CLAIM)
def missing_addresses(t: Subject) -> Steps:
    """Fewer addresses than the count change nothing."""
    yield from force_holders(t, t.client)
    yield t.reserve(t.third, rcmd=FORCE, declared=200), ANYTHING
    yield t.reserve(), holders_are(t.client, rcmd=READ)


@table.must("P75", CLAIM)
def missing_addresses_error(t: Subject) -> Steps:
    """Fewer addresses than the count give AoE error 2."""
    yield t.reserve(t.third, rcmd=FORCE, declared=200), refuses(BAD_ARGUMENT)
