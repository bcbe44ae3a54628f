"""ATA commands about the device: IDENTIFY, SMART, SET FEATURES, power management.

Each operation returns the number of data bytes that it wrote after the response's
registers, and the sector count register of a successful response (P35). A failure
raises ``CommandError``, which sets the status and error registers (P15).
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
"""Attribute flags: event count, collected online, not a pre-failure attribute."""
_TRANSFER_MODES: Final = frozenset(
    {0x00, 0x01, *range(0x08, 0x0D), *range(0x20, 0x23), *range(0x40, 0x47)}
)
"""PIO, PIO with flow control, multiword DMA and Ultra DMA modes."""


def identify(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute IDENTIFY DEVICE, also for a broadcast address (P44); one sector (P45)."""
    del request
    _, _, _, _, _, _, _, aflags, count, *_ = fields
    if count != 1 or aflags & _WRITE:
        raise CommandError(AtaError.ABORTED)
    response[ATA_DATA : ATA_DATA + SECTOR] = target.export.identity_page
    return SECTOR, 0


def check_power_mode(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute CHECK POWER MODE: always active (P47)."""
    del target, fields, request, response
    return 0, _POWER_ACTIVE


def standby(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute STANDBY, STANDBY IMMEDIATE and SLEEP: flush the disk.

    The disk remains active; the timer in the sector count is ignored.
    """
    del fields, request, response
    target.export.flush()
    return 0, 0


def idle(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute IDLE and IDLE IMMEDIATE: do nothing."""
    del target, fields, request, response
    return 0, 0


def set_features(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute SET FEATURES: write cache, look-ahead, transfer mode.

    Disabling the write cache flushes the disk, and from then on a write is answered
    when it is stable. The setting persists across restarts, because a client does not
    notice a restart. Transfer modes have no effect on a network; a mode that the
    identity page offers can be selected and is then shown there.
    """
    del response
    _, _, _, _, _, _, _, _, count, *_ = fields
    export = target.export
    match request[_FEATURE]:
        case Feature.WRITE_CACHE_ON:
            export.update_state(replace(export.state, write_cache=True))
        case Feature.WRITE_CACHE_OFF:
            export.update_state(replace(export.state, write_cache=False))
            export.flush()
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
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Execute SMART: read data, enable, disable, return status.

    The status is always good: the key in the LBA register is echoed unchanged.
    """
    _, _, _, _, _, _, _, aflags, _, _, low, _ = fields
    feature = request[_FEATURE]
    export = target.export
    is_enabled = FeatureSet.SMART in export.enabled
    if (
        low >> 8 & 0xFFFF != SMART_KEY
        or aflags & _WRITE
        or not (is_enabled or feature == SmartFeature.ENABLE)
    ):
        raise CommandError(AtaError.ABORTED)
    match feature:
        case SmartFeature.READ_DATA:
            response[ATA_DATA : ATA_DATA + SECTOR] = _smart_page(target)
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
    # Counters of this interface since the program started.
    counts = {
        187: target.uncorrectable_errors,
        241: target.written_bytes // SECTOR,
        242: target.read_bytes // SECTOR,
    }
    return pack_attributes(
        Attribute(number, _SMART_COUNTS, 100, 100, raw & 0xFFFF_FFFF_FFFF)
        for number, raw in counts.items()
    )
