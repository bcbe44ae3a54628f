"""Command 0: the ATA opcodes, and how their outcome is told.

``OPERATIONS`` leads from an opcode to the function that executes it, in
``target/protocol/transfers.py`` or ``target/protocol/features.py``. What is not in it
is answered with an aborted ATA command (P43).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, AFlag, AtaError, Opcode, Status
from aoe.header import FRAME_MINIMUM, ErrorCode
from target.protocol.disk import GONE
from target.protocol.features import (
    check_power_mode,
    identify,
    idle,
    rest,
    set_features,
    smart,
)
from target.protocol.frames import REPLY, REPLY_DATA, Drop, Fields
from target.protocol.transfers import (
    CommandError,
    OutgrownError,
    flush,
    read,
    spoil,
    trim,
    verify,
    write,
    write_stable,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from target.protocol.target import Target

    Operation: TypeAlias = Callable[
        [Target, Fields, memoryview, memoryview], tuple[int, int]
    ]

# Plain numbers: one operator of an enum costs more than the rest of a frame's header.
_READY: Final = int(Status.READY)
_FAULT: Final = int(Status.READY | Status.DEVICE_FAULT | Status.ERROR)
_AFLAGS: Final = int(AFlag.EXTENDED | AFlag.DEVICE | AFlag.ASYNC | AFlag.WRITE)
_IDENTIFY: Final = int(Opcode.IDENTIFY)


def execute_ata(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> int:
    """Execute command 0 and write its reply: 36 bytes of registers, and the data.

    An operation that fails is answered with an ATA status and no data, because clients
    throw AoE errors away and repeat the request for minutes (P15, P32). Only a disk
    that is gone for good answers with AoE error 3 (P41), and one that is reserved for
    others with AoE error 6 (P74).
    """
    if len(request) < ATA_DATA:
        return target.drop(Drop.SHORT)
    src, _, _, _, _, _, tag, aflags, asked, opcode, low, high = fields
    members = target.export.state.members
    if members and src not in members and opcode != _IDENTIFY:
        return target.refuse(request, reply, ErrorCode.RESERVED, ATA_DATA)  # P74
    status, error = _READY, 0
    try:
        length, count = OPERATIONS.get(opcode, abort)(target, fields, request, reply)
    except OutgrownError:
        return target.drop(Drop.OUTGROWN)
    except (CommandError, OSError) as failure:
        if isinstance(failure, OSError) and failure.errno in GONE:
            code = ErrorCode.DEVICE_UNAVAILABLE
            return target.refuse(request, reply, code, ATA_DATA)
        told = _tell(failure, opcode)
        target.count_error(told.kind)
        length, count, status, error = 0, asked, told.status, told.error
    # The padded layout would wipe the first bytes of the data.
    (REPLY_DATA if length else REPLY).pack_into(
        reply,
        0,
        src,
        target.reply_head,
        tag,
        aflags & _AFLAGS,
        error,
        count,
        status,
        low,
        high,
    )
    return ATA_DATA + length if length else FRAME_MINIMUM


def _tell(failure: CommandError | OSError, opcode: int) -> CommandError:
    # The registers for a disk that failed (P41).
    if isinstance(failure, CommandError):
        return failure
    if opcode in _READ_OPCODES:
        return CommandError(AtaError.UNCORRECTABLE)
    return CommandError(AtaError.ABORTED, _FAULT, "device_fault")


def abort(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """Any opcode that we do not know (P43).

    Raises:
        CommandError: always.
    """
    del target, fields, request, reply
    raise CommandError(AtaError.ABORTED)


OPERATIONS: Final[dict[int, Operation]] = {
    Opcode.DATA_SET_MANAGEMENT: trim,
    Opcode.READ: read,
    Opcode.READ_EXT: read,
    Opcode.READ_DMA_EXT: read,
    Opcode.WRITE: write,
    Opcode.WRITE_EXT: write,
    Opcode.WRITE_DMA_EXT: write,
    Opcode.WRITE_DMA_FUA_EXT: write_stable,
    Opcode.READ_VERIFY: verify,
    Opcode.READ_VERIFY_EXT: verify,
    Opcode.WRITE_UNCORRECTABLE_EXT: spoil,
    Opcode.SMART: smart,
    Opcode.READ_DMA: read,
    Opcode.WRITE_DMA: write,
    Opcode.STANDBY_IMMEDIATE: rest,
    Opcode.IDLE_IMMEDIATE: idle,
    Opcode.STANDBY: rest,
    Opcode.IDLE: idle,
    Opcode.CHECK_POWER_MODE: check_power_mode,
    Opcode.SLEEP: rest,
    Opcode.FLUSH: flush,
    Opcode.FLUSH_EXT: flush,
    Opcode.IDENTIFY: identify,
    Opcode.SET_FEATURES: set_features,
}
_READ_OPCODES: Final = frozenset(
    opcode for opcode, operation in OPERATIONS.items() if operation in (read, verify)
)
