"""Command 0: the ATA opcodes, and how their outcome is told.

``OPERATIONS`` leads from an opcode to the function that executes it. What is not in it
is answered with an aborted ATA command (P43).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from aoe.address import SHELF_ALL, SLOT_ALL
from aoe.ata import ATA_DATA, SECTOR, AFlag, AtaError, Opcode, Status
from aoe.header import FRAME_MINIMUM, ErrorCode
from target.frames import REPLY, REPLY_DATA, Drop, Fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from target.server import Target

    Operation: TypeAlias = Callable[
        [Target, Fields, memoryview, memoryview], tuple[int, int]
    ]

# Plain numbers: one operator of an enum costs more than the rest of a frame's header.
_READY: Final = int(Status.READY)
_FAILED: Final = int(Status.READY | Status.ERROR)
_FAULT: Final = int(Status.READY | Status.DEVICE_FAULT | Status.ERROR)
_EXTENDED: Final = int(AFlag.EXTENDED)
_WRITE: Final = int(AFlag.WRITE)
_IDENTIFY: Final = int(Opcode.IDENTIFY)
_AFLAGS: Final = int(AFlag.EXTENDED | AFlag.DEVICE | AFlag.ASYNC | AFlag.WRITE)
_LONG_OPCODES: Final = frozenset({int(Opcode.READ_EXT), int(Opcode.WRITE_EXT)})
_READ_OPCODES: Final = frozenset({int(Opcode.READ), int(Opcode.READ_EXT)})
_LBA28_MASK: Final = 0x0FFF_FFFF
_POWER_ACTIVE: Final = 0xFF
_GONE: Final = frozenset({errno.ENODEV, errno.ENXIO})


class CommandError(Exception):
    """An ATA command that ends with an error: a status on the wire, no fault of ours.

    Args:
        error: the error register.
        status: the status register.
        kind: the name under which it is counted.
    """

    def __init__(
        self, error: AtaError, status: int = _FAILED, kind: str | None = None
    ) -> None:
        super().__init__(error, status)
        self.error = int(error)
        self.status = status
        self.kind = kind or str(error.name).lower()


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
    except (CommandError, OSError) as failure:
        if isinstance(failure, OSError) and failure.errno in _GONE:
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


# Operations. Each does its work and returns the bytes of data that it put behind the
# reply's registers, and the sector count register of a success (P35).


def read(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """READ SECTORS and READ SECTORS EXT: from the disk straight into the reply.

    Data behind the registers is a size probe's ballast and ignored (P23).
    """
    del request
    _, _, _, _, _, _, _, aflags, count, opcode, low, high = fields
    if aflags & _WRITE:
        raise CommandError(AtaError.ABORTED)  # P28
    offset = _locate(target, aflags, count, opcode, low, high)
    length = count * SECTOR
    target.export.disk.read_into(offset, reply[ATA_DATA : ATA_DATA + length])
    target.reads += 1
    target.read_bytes += length
    return length, 0


def write(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """WRITE SECTORS and WRITE SECTORS EXT: straight from the request to the disk.

    Refused before the disk is touched: no W flag (P28), a broadcast address (P44), a
    read-only disk (P40), less data than the sector count says (P39).
    """
    del reply
    _, _, _, shelf, slot, _, _, aflags, count, opcode, low, high = fields
    length = count * SECTOR
    disk = target.export.disk
    if (
        not aflags & _WRITE
        or shelf == SHELF_ALL
        or slot == SLOT_ALL
        or disk.read_only
        or len(request) < ATA_DATA + length
    ):
        raise CommandError(AtaError.ABORTED)
    offset = _locate(target, aflags, count, opcode, low, high)
    disk.write_from(offset, request[ATA_DATA : ATA_DATA + length])
    target.writes += 1
    target.written_bytes += length
    return 0, 0


def _locate(
    target: Target, aflags: int, count: int, opcode: int, low: int, high: int
) -> int:
    # The byte where a transfer of `count` sectors begins. A count of zero means 256 or
    # 65536 sectors, which fit no frame (P36, P37); device bits are no part of a 28-bit
    # address (P30, P31); no transfer may reach beyond the end (P38).
    if not 0 < count <= target.sector_limit:
        raise CommandError(AtaError.ABORTED)
    if aflags & _EXTENDED or opcode in _LONG_OPCODES:
        sector = high << 32 | low
    else:
        sector = low & _LBA28_MASK
    if sector + count > target.export.sectors:
        raise CommandError(AtaError.NOT_FOUND)
    return sector * SECTOR


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


def flush(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """FLUSH CACHE and FLUSH CACHE EXT: answered when the data is stable (P46)."""
    del fields, request, reply
    target.export.disk.flush()
    target.flushes += 1
    return 0, 0


def check_power_mode(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> tuple[int, int]:
    """CHECK POWER MODE: always awake (P47)."""
    del target, fields, request, reply
    return 0, _POWER_ACTIVE


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
    Opcode.READ: read,
    Opcode.READ_EXT: read,
    Opcode.WRITE: write,
    Opcode.WRITE_EXT: write,
    Opcode.CHECK_POWER_MODE: check_power_mode,
    Opcode.FLUSH: flush,
    Opcode.FLUSH_EXT: flush,
    Opcode.IDENTIFY: identify,
}
