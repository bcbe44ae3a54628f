"""The AoE commands: ``COMMANDS`` leads to them by the AoE header's command byte.

What is not in it is refused with AoE error 1 (P16). Command 0 is in
``target/protocol/ata.py``, 2 and 3 are in ``target/protocol/lists.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.config import CONFIG_STRING, Config, ConfigCommand
from aoe.header import HEADER_LENGTH, VERSION, Command, ErrorCode, Header
from target.protocol.ata import execute_ata
from target.protocol.frames import Drop, Fields, pad
from target.protocol.lists import mask_list, reserve

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from target.protocol.target import Target

    Execute: TypeAlias = Callable[[Target, Fields, memoryview, memoryview], int]


def query_config(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> int:
    """Execute command 1: read, test or set the config string (P49 to P58)."""
    del fields
    if len(request) < CONFIG_STRING:
        return target.drop(Drop.SHORT)
    asked = Config.unpack_from(request)
    current = target.export.config_string
    code: ErrorCode | None = None
    if asked.ccmd == ConfigCommand.READ:
        pass  # Whatever string and length the request carries (P51).
    elif asked.ccmd not in _CONFIG_COMMANDS or not asked.is_valid:
        code = ErrorCode.BAD_ARGUMENT  # P56, P57
    elif asked.ccmd == ConfigCommand.TEST:
        if current != asked.string:
            return target.drop(Drop.NO_MATCH)
    elif asked.ccmd == ConfigCommand.PREFIX:
        if not current.startswith(asked.string):
            return target.drop(Drop.NO_MATCH)
    else:
        code = _set_config(target, asked)
    header = Header.unpack_from(request)
    return pack_config(target, reply, header.src, header.tag, asked.ccmd, code)


def _set_config(target: Target, asked: Config) -> ErrorCode | None:
    # The reply tells the loser of a claim who won (P54). A string that could not be
    # kept is not set, and must not be taken for a claim.
    try:
        if asked.ccmd == ConfigCommand.FORCE:
            target.export.force(asked.string)
        elif not target.export.claim(asked.string):
            return ErrorCode.CONFIG_PRESENT
    except OSError:
        return ErrorCode.DEVICE_UNAVAILABLE
    return None


def pack_config(
    target: Target,
    reply: memoryview,
    dst: bytes,
    tag: int,
    ccmd: int = ConfigCommand.READ,
    code: ErrorCode | None = None,
) -> int:
    """Write a query config response with the current config string (P50).

    On an interface too small for the string, which only another interface can have
    set, it is cut to what fits.
    """
    target.pack_header(reply, dst, Command.CONFIG, tag, code)
    length = Config(
        ccmd,
        target.export.config_string[: target.frame_limit - CONFIG_STRING],
        target.export.buffer_count,
        target.export.firmware_number,
        target.advertised_sectors,
        VERSION,
    ).pack_into(reply)
    return pad(reply, HEADER_LENGTH + length)


def unknown_command(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> int:
    """Refuse a command that is not in ``COMMANDS``, the vendors' own too (P16)."""
    del fields
    return target.refuse(request, reply, ErrorCode.BAD_COMMAND)


def unknown_version(
    target: Target, fields: Fields, request: memoryview, reply: memoryview
) -> int:
    """Refuse any version but ours, though no other target does (P6)."""
    del fields
    return target.refuse(request, reply, ErrorCode.BAD_VERSION)


_CONFIG_COMMANDS: Final = frozenset(ConfigCommand)

COMMANDS: Final[dict[int, Execute]] = {
    Command.ATA: execute_ata,
    Command.CONFIG: query_config,
    Command.MASK: mask_list,
    Command.RESERVE: reserve,
}
