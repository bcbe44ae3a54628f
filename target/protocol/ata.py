"""Command 0: the ATA opcodes, and how their result is reported.

``OPERATIONS`` maps an opcode to the function that executes it, in
``target/protocol/transfers.py`` or ``target/protocol/features.py``. An unknown opcode
ends with ABRT (P43).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, AFlag, AtaError, Opcode, Status
from aoe.header import FRAME_MINIMUM, ErrorCode
from target.protocol.disk import DEVICE_GONE
from target.protocol.features import (
    check_power_mode,
    identify,
    idle,
    set_features,
    smart,
    standby,
)
from target.protocol.frames import RESPONSE, RESPONSE_DATA, Drop, Fields
from target.protocol.transfers import (
    CommandError,
    OversizedError,
    flush,
    read,
    trim,
    verify,
    write,
    write_fua,
    write_uncorrectable,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from target.protocol.target import Target

    Operation: TypeAlias = Callable[
        [Target, Fields, memoryview, memoryview], tuple[int, int]
    ]

# Plain integers: one operation on an enum flag costs more than unpacking the header.
_READY: Final = int(Status.READY)
_FAULT: Final = int(Status.READY | Status.DEVICE_FAULT | Status.ERROR)
_AFLAGS: Final = int(AFlag.EXTENDED | AFlag.DEVICE | AFlag.ASYNC | AFlag.WRITE)
_IDENTIFY: Final = int(Opcode.IDENTIFY)


def execute_ata(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> int:
    """Execute command 0 and write its response: 36 bytes of registers, and the data.

    A failed operation is reported in the ATA status, without data, because clients
    ignore AoE errors and retransmit the request for minutes (P15, P32). Only a disk
    that is gone for good is reported as AoE error 3 (P41), and a reservation conflict
    as AoE error 6 (P74).
    """
    if len(request) < ATA_DATA:
        return target.drop(Drop.SHORT)
    src, _, _, _, _, _, tag, aflags, requested, opcode, low, high = fields
    holder_set = target.export.state.holder_set
    if holder_set and src not in holder_set and opcode != _IDENTIFY:
        return target.refuse(request, response, ErrorCode.RESERVED, ATA_DATA)  # P74
    status, error = _READY, 0
    try:
        length, count = OPERATIONS.get(opcode, abort)(target, fields, request, response)
    except OversizedError:
        return target.drop(Drop.OVERSIZED)
    except (CommandError, OSError) as failure:
        if isinstance(failure, OSError) and failure.errno in DEVICE_GONE:
            code = ErrorCode.DEVICE_UNAVAILABLE
            return target.refuse(request, response, code, ATA_DATA)
        failed = _to_ata_error(failure, opcode)
        target.count_error(failed.kind)
        length, count, status, error = 0, requested, failed.status, failed.error
    # The padded layout would overwrite the first bytes of the data.
    (RESPONSE_DATA if length else RESPONSE).pack_into(
        response,
        0,
        src,
        target.response_head,
        tag,
        aflags & _AFLAGS,
        error,
        count,
        status,
        low,
        high,
    )
    return ATA_DATA + length if length else FRAME_MINIMUM


def _to_ata_error(failure: CommandError | OSError, opcode: int) -> CommandError:
    # The registers that report a failure of the disk (P41).
    if isinstance(failure, CommandError):
        return failure
    if opcode in _READ_OPCODES:
        return CommandError(AtaError.UNCORRECTABLE)
    return CommandError(AtaError.ABORTED, _FAULT, "device_fault")


def abort(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> tuple[int, int]:
    """Abort an unknown opcode (P43).

    Raises:
        CommandError: always.
    """
    del target, fields, request, response
    raise CommandError(AtaError.ABORTED)


OPERATIONS: Final[dict[int, Operation]] = {
    Opcode.DATA_SET_MANAGEMENT: trim,
    Opcode.READ: read,
    Opcode.READ_EXT: read,
    Opcode.READ_DMA_EXT: read,
    Opcode.WRITE: write,
    Opcode.WRITE_EXT: write,
    Opcode.WRITE_DMA_EXT: write,
    Opcode.WRITE_DMA_FUA_EXT: write_fua,
    Opcode.READ_VERIFY: verify,
    Opcode.READ_VERIFY_EXT: verify,
    Opcode.WRITE_UNCORRECTABLE_EXT: write_uncorrectable,
    Opcode.SMART: smart,
    Opcode.READ_DMA: read,
    Opcode.WRITE_DMA: write,
    Opcode.STANDBY_IMMEDIATE: standby,
    Opcode.IDLE_IMMEDIATE: idle,
    Opcode.STANDBY: standby,
    Opcode.IDLE: idle,
    Opcode.CHECK_POWER_MODE: check_power_mode,
    Opcode.SLEEP: standby,
    Opcode.FLUSH: flush,
    Opcode.FLUSH_EXT: flush,
    Opcode.IDENTIFY: identify,
    Opcode.SET_FEATURES: set_features,
}
_READ_OPCODES: Final = frozenset(
    opcode for opcode, operation in OPERATIONS.items() if operation in (read, verify)
)
