"""Frame lengths and padding (P17 to P23, P34)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, SECTOR, Opcode
from aoe.config import CONFIG_STRING, ConfigCommand
from aoe.header import HEADER_LENGTH, Command
from aoe.macmask import DIRECTIVE_LENGTH, MASK_LENGTH
from aoe.reserve import RESERVE_LENGTH
from initiator.check.expect import (
    ANYTHING,
    NOT_AWAITED,
    SILENCE,
    config_is,
    is_blank_from,
    is_long,
    is_padded,
    succeeds,
)
from initiator.check.model import Skip, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initiator.check.model import Steps
    from initiator.check.subject import Subject

table: Final = Table()

MASK_END: Final = HEADER_LENGTH + MASK_LENGTH
RESERVE_END: Final = HEADER_LENGTH + RESERVE_LENGTH
JUNK: Final = b"\xed" * 100
UNKNOWN_OPCODE: Final = 0x02


def short_responses(t: Subject, tail: bytes = b"") -> Iterator[tuple[bytes, int]]:
    """Yield requests with short responses, and where the message of each ends."""
    yield t.config(tail=tail), CONFIG_STRING + len(t.string)
    yield t.ata(UNKNOWN_OPCODE, tail=tail), ATA_DATA
    yield t.ata(Opcode.CHECK_POWER_MODE, tail=tail), ATA_DATA
    yield t.ata(Opcode.FLUSH, tail=tail), ATA_DATA
    if t.identity is not None:
        yield t.read(t.sectors, tail=tail), ATA_DATA
    if t.mask_before is not None:
        yield t.mask_list(tail=tail), MASK_END + DIRECTIVE_LENGTH * len(t.mask_before)
    if t.holders_before is not None:
        yield t.reserve(tail=tail), RESERVE_END + 6 * len(t.holders_before)


@table.must("P19")
def padded(t: Subject) -> Steps:
    """A response has at least 60 bytes, the minimum of an Ethernet frame."""
    for request, _ in short_responses(t):
        yield request, is_padded()


@table.must("P3 P34")
def zero_padding(t: Subject) -> Steps:
    """A response is padded with zeros only."""
    for request, end in short_responses(t, JUNK):
        yield request, is_blank_from(end)


SHORT: Final = {
    "a header without its last byte": (Command.ATA, HEADER_LENGTH - 1),
    "ATA": (Command.ATA, ATA_DATA - 1),
    "query config": (Command.CONFIG, CONFIG_STRING - 1),
    "MAC mask list": (Command.MASK, MASK_END - 1),
    "reserve/release": (Command.RESERVE, RESERVE_END - 1),
}
"""A command and a length that is too short for it."""


@table.must("P17")
def too_short(t: Subject) -> Steps:
    """A frame that is too short for its command is ignored."""
    # A NIC may pad short frames with zeros. So first send the padded frame, and skip
    # the check if both get the same response. These requests change nothing.
    for command, length in SHORT.values():
        # The last byte of the tag may be missing, so it is 0.
        frame = t.frame(command, bytes(36), tag=t.tag_first | length << 8)
        padded_response = yield frame[:length].ljust(60, b"\0"), ANYTHING
        response = yield frame[:length], NOT_AWAITED
        if response and response == padded_response:
            raise Skip("the network may pad short frames: same response with padding")
        if response:
            yield frame[:length], SILENCE


@table.must("P20")
def unpadded_requests(t: Subject) -> Steps:
    """A request without padding is answered."""
    read = config_is(t.string, ConfigCommand.READ)
    yield t.config(is_padded=False), read
    yield t.identify(is_padded=False), succeeds(sectors=1)


@table.must("P20")
def trailing_bytes(t: Subject) -> Steps:
    """Trailing bytes after a request are ignored."""
    yield t.config(tail=JUNK), config_is(t.string, ConfigCommand.READ)
    yield t.identify(tail=JUNK), succeeds(sectors=1)
    yield t.read(tail=JUNK), succeeds(sectors=1)


@table.must("P23")
def mtu_probe_padding(t: Subject) -> Steps:
    """IDENTIFY and READ ignore the padding of a path MTU probe."""
    for count in range(1, t.frame_sectors + 1):
        yield t.identify(tail=bytes(count * SECTOR)), succeeds(sectors=1)
        yield t.read(0, 1, tail=bytes(count * SECTOR)), succeeds(sectors=1)


@table.must("P21 P29")
def exact_length(t: Subject) -> Steps:
    """A data response has 36 bytes and the sectors, and no further bytes."""
    yield t.identify(), is_long(ATA_DATA + SECTOR)
    for count in range(1, min(t.frame_sectors, t.sectors) + 1):
        yield t.read(0, count), is_long(ATA_DATA + count * SECTOR)


@table.must("P22 P37")
def advertised_sectors(t: Subject) -> Steps:
    """A READ of as many sectors as the target advertises succeeds."""
    if t.frame_sectors < t.advertised:
        raise Skip(f"the MTU carries {t.frame_sectors} of {t.advertised} sectors")
    if t.sectors < t.advertised:
        raise Skip(f"the disk has {t.sectors} of {t.advertised} sectors")
    yield t.read(0, t.advertised), succeeds(sectors=t.advertised)
