"""Reserve/release (P71 to P79). Force takes back what a check gives away."""

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


def held_by(t: Subject, *macs: bytes) -> Steps:
    """Reserve it for these, whoever holds it."""
    yield t.reserve(*macs, rcmd=FORCE), holders_are(*macs, rcmd=FORCE)


@table.must("P71 P73")
def read(t: Subject) -> Steps:
    """Anybody may read who holds it."""
    yield t.reserve(), holders_are(*t.holders, rcmd=READ)
    yield t.reserve(t.third), holders_are(*t.holders, rcmd=READ)


@table.must("P75")
def unknown(t: Subject) -> Steps:
    """An unknown RCmd: AoE error 2, no change."""
    holders = t.holders
    for rcmd in (3, 0xFF):
        yield t.reserve(t.third, rcmd=rcmd), refuses(BAD_ARGUMENT)
    yield t.reserve(), holders_are(*holders, rcmd=READ)


@table.must("P75 P79")
def padding(t: Subject) -> Steps:
    """Padding is no address, junk behind the addresses neither."""
    holders = holders_are(*t.holders, rcmd=READ)
    yield t.reserve(is_padded=False), holders
    yield t.reserve(tail=b"\xed" * 60), holders


@table.must("P72", CLAIM)
def set_free(t: Subject) -> Steps:
    """Set: by anybody if it is free, by holders later; none releases."""
    for macs in ((t.client,), (t.client, t.third), ()):
        yield t.reserve(*macs, rcmd=SET), holders_are(*macs, rcmd=SET)
        yield t.reserve(), holders_are(*macs, rcmd=READ)


@table.must("P72", CLAIM)
def set_non_holder(t: Subject) -> Steps:
    """Set by a stranger: AoE error 6, no change."""
    yield from held_by(t, t.third)
    for macs in ((t.client,), ()):
        yield t.reserve(*macs, rcmd=SET), refuses(RESERVED)
        yield t.reserve(), holders_are(t.third, rcmd=READ)


@table.must("P72", CLAIM)
def set_others(t: Subject) -> Steps:
    """The setter may reserve it for others alone."""
    yield from held_by(t)
    # Asked twice, the second would come from a stranger.
    yield t.reserve(t.third, rcmd=SET), ANYTHING
    yield t.reserve(), holders_are(t.third, rcmd=READ)


@table.advice("P71", CLAIM)
def error_has_holders(t: Subject) -> Steps:
    """An error tells who holds it, too."""
    yield from held_by(t, t.third)
    asked = t.reserve(t.client, rcmd=SET)
    yield asked, holders_are(t.third, rcmd=SET, code=RESERVED)
    asked = t.reserve(t.client, rcmd=3)
    yield asked, holders_are(t.third, rcmd=3, code=BAD_ARGUMENT)


@table.must("P73", CLAIM)
def force(t: Subject) -> Steps:
    """Force works for strangers."""
    yield from held_by(t, t.third)
    yield from held_by(t, t.client)
    yield from held_by(t)


@table.must("P74", CLAIM)
def non_holder_read(t: Subject) -> Steps:
    """READ by a stranger: AoE error 6; IDENTIFY is answered."""
    yield from held_by(t, t.third)
    yield t.read(), refuses(RESERVED)
    yield t.identify(), succeeds(sectors=1)


@table.must("P74", CLAIM | Needs.DISK)
def non_holder_write(t: Subject) -> Steps:
    """WRITE by a stranger: AoE error 6."""
    yield from held_by(t, t.third)
    yield t.write(t.scratch[0], t.inverted()), refuses(RESERVED)
    yield from held_by(t)
    yield t.read(t.scratch[0]), succeeds(t.original())


@table.advice("P74", CLAIM)
def non_holder_commands(t: Subject) -> Steps:
    """Any ATA command but IDENTIFY by a stranger: AoE error 6."""
    yield from held_by(t, t.third)
    for opcode in (Opcode.CHECK_POWER_MODE, Opcode.FLUSH, Opcode.FLUSH_EXT, 0x02):
        yield t.ata(opcode), refuses(RESERVED)


@table.must("P58 P74", CLAIM)
def non_holder_queries(t: Subject) -> Steps:
    """Query config and the mask list are for strangers, too."""
    yield from held_by(t, t.third)
    yield t.config(), config_is(t.string, ConfigCommand.READ)
    if t.mask_before is not None:
        yield t.mask_list(), mask_is(*t.mask, mcmd=0)


@table.must("P61 P77", CLAIM)
def holders_read(t: Subject) -> Steps:
    """Every holder may READ."""
    for macs in ((t.client,), (t.third, t.client), (t.client, t.third)):
        yield from held_by(t, *macs)
        yield t.read(), succeeds(sectors=1)


@table.must("P76", CLAIM)
def holder_order(t: Subject) -> Steps:
    """It keeps several holders, not sorted, in order."""
    macs = (t.third, t.client, t.other, t.invented(1))
    yield from held_by(t, *macs)
    yield t.reserve(), holders_are(*macs, rcmd=READ)
    yield t.read(), succeeds(sectors=1)


@table.must("P75", CLAIM)
def missing_addresses(t: Subject) -> Steps:
    """Fewer addresses than the count says: no change."""
    yield from held_by(t, t.client)
    yield t.reserve(t.third, rcmd=FORCE, declared=200), ANYTHING
    yield t.reserve(), holders_are(t.client, rcmd=READ)


@table.must("P75", CLAIM)
def missing_addresses_error(t: Subject) -> Steps:
    """Fewer addresses than the count says: AoE error 2."""
    yield t.reserve(t.third, rcmd=FORCE, declared=200), refuses(BAD_ARGUMENT)
