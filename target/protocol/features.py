"""ATA commands about the disk itself: IDENTIFY, SMART, SET FEATURES and power.

Each operation does its work and returns the bytes of data that it put behind the
reply's registers, and the sector count register of a success (P35). What cannot be done
raises ``CommandError``, which becomes the status and error registers (P15).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, SECTOR, AFlag, AtaError, Feature, SmartFeature
from aoe.identify import FeatureSet
from aoe.smart import SMART_KEY, Attribute, pack_attributes
from target.protocol.transfers import CommandError

if TYPE_CHECKING:
    from target.protocol.frames import Fields
    from target.protocol.target import Target

_WRITE: Final = int(AFlag.WRITE)
_POWER_ACTIVE: Final = 0xFF
_FEATURE: Final = 25
"""Offset of the feature register in a request."""
_SMART_COUNTS: Final = 0x0032
"""Flags of an attribute: counts events, always, and foretells nothing."""
_TRANSFER_MODES: Final = frozenset(
    {0x00, 0x01, *range(0x08, 0x0D), *range(0x20, 0x23), *range(0x40, 0x47)}
)
"""PIO, PIO with flow control, multiword DMA and Ultra DMA modes."""


def identify(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """IDENTIFY DEVICE, also to a broadcast address (P44); one sector (P45)."""
    del request
    _, _, _, _, _, _, _, aflags, count, *_ = fields
    if count != 1 or aflags & _WRITE:
        raise CommandError(AtaError.ABORTED)
    reply[ATA_DATA : ATA_DATA + SECTOR] = target.export.identity_page
    return SECTOR, 0


def check_power_mode(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """CHECK POWER MODE: always awake (P47)."""
    del target, fields, request, reply
    return 0, _POWER_ACTIVE


def rest(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """STANDBY, STANDBY IMMEDIATE and SLEEP: what is written becomes stable first.

    The disk stays awake for all that; a timer in the sector count is ignored.
    """
    del fields, request, reply
    target.export.settle(target.now)
    return 0, 0


def idle(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """IDLE and IDLE IMMEDIATE: nothing to do."""
    del target, fields, request, reply
    return 0, 0


def set_features(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """SET FEATURES: the write cache, look-ahead, and a transfer mode.

    With the write cache off a write is answered when it is stable, and what was written
    before is made stable at once. That is kept over restarts, because a client does not
    notice one. A network has no transfer modes; those that the identity page offers can
    be selected, and show there.
    """
    del reply
    _, _, _, _, _, _, _, _, count, *_ = fields
    export = target.export
    match request[_FEATURE]:
        case Feature.WRITE_CACHE_ON:
            export.change(replace(export.state, write_cache=True))
        case Feature.WRITE_CACHE_OFF:
            export.change(replace(export.state, write_cache=False))
            export.settle(target.now)
        case Feature.LOOK_AHEAD_ON:
            export.enable(FeatureSet.LOOK_AHEAD)
        case Feature.LOOK_AHEAD_OFF:
            export.disable(FeatureSet.LOOK_AHEAD)
        case Feature.TRANSFER_MODE if count in _TRANSFER_MODES:
            export.select_transfer(count)
        case _:
            raise CommandError(AtaError.ABORTED)
    return 0, 0


def smart(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """SMART: read data, enable, disable, return status.

    A status of all well is the key that the request came with, echoed.
    """
    _, _, _, _, _, _, _, aflags, _, _, low, _ = fields
    feature = request[_FEATURE]
    export = target.export
    is_on = FeatureSet.SMART in export.enabled
    if (
        low >> 8 & 0xFFFF != SMART_KEY
        or aflags & _WRITE
        or not (is_on or feature == SmartFeature.ENABLE)
    ):
        raise CommandError(AtaError.ABORTED)
    match feature:
        case SmartFeature.READ_DATA:
            reply[ATA_DATA : ATA_DATA + SECTOR] = _smart_page(target)
            return SECTOR, 0
        case SmartFeature.ENABLE:
            export.enable(FeatureSet.SMART)
        case SmartFeature.DISABLE:
            export.disable(FeatureSet.SMART)
        case SmartFeature.RETURN_STATUS:
            pass
        case _:
            raise CommandError(AtaError.ABORTED)
    return 0, 0


def _smart_page(target: Target) -> bytes:
    # Only what we know: how much went over this interface since the program began.
    counts = {
        187: target.uncorrectable_errors,
        241: target.written_bytes // SECTOR,
        242: target.read_bytes // SECTOR,
    }
    return pack_attributes(
        Attribute(number, _SMART_COUNTS, 100, 100, raw & 0xFFFF_FFFF_FFFF)
        for number, raw in counts.items()
    )
