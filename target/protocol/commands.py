"""The AoE commands: ``COMMANDS`` maps the header's command byte to a handler.

An unknown command is refused with AoE error 1 (P16). Command 0 is implemented in
``target/protocol/ata.py``, commands 2 and 3 in ``target/protocol/lists.py``.
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
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> int:
    """Execute command 1: read, test or set the config string (P49 to P58)."""
    del fields
    if len(request) < CONFIG_STRING:
        return target.drop(Drop.SHORT)
    config = Config.unpack_from(request)
    current = target.export.config_string
    code: ErrorCode | None = None
    if config.ccmd == ConfigCommand.READ:
        pass  # The string and length in the request are ignored (P51).
    elif config.ccmd not in _CONFIG_COMMANDS or not config.is_valid:
        code = ErrorCode.BAD_ARGUMENT  # P56, P57
    elif config.ccmd == ConfigCommand.TEST:
        if current != config.string:
            return target.drop(Drop.NO_MATCH)
    elif config.ccmd == ConfigCommand.PREFIX:
        if not current.startswith(config.string):
            return target.drop(Drop.NO_MATCH)
    else:
        code = _set_config(target, config)
    header = Header.unpack_from(request)
    return pack_config(target, response, header.src, header.tag, config.ccmd, code)


def _set_config(target: Target, config: Config) -> ErrorCode | None:
    # The response to a failed claim has the current string, which names the winner
    # (P54). A string that could not be saved is not set, so that no client takes it
    # for a successful claim.
    try:
        if config.ccmd == ConfigCommand.FORCE:
            target.export.force(config.string)
        elif not target.export.claim(config.string):
            return ErrorCode.CONFIG_PRESENT
    except OSError:
        return ErrorCode.DEVICE_UNAVAILABLE
    return None


def pack_config(
    target: Target,
    response: memoryview,
    dst: bytes,
    tag: int,
    ccmd: int = ConfigCommand.READ,
    code: ErrorCode | None = None,
) -> int:
    """Write a query config response with the current config string (P50).

    The string is truncated to the MTU: it can have been set on an interface with a
    larger one.
    """
    target.pack_header(response, dst, Command.CONFIG, tag, code)
    length = Config(
        ccmd,
        target.export.config_string[: target.frame_limit - CONFIG_STRING],
        target.export.buffer_count,
        target.export.firmware_number,
        target.advertised_sectors,
        VERSION,
    ).pack_into(response)
    return pad(response, HEADER_LENGTH + length)


def unknown_command(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> int:
    """Refuse a command that is not in ``COMMANDS``, vendor commands included (P16)."""
    del fields
    return target.refuse(request, response, ErrorCode.BAD_COMMAND)


def unknown_version(
    target: Target, fields: Fields, request: memoryview, response: memoryview
) -> int:
    """Refuse any version but 1; other targets do not check it (P6)."""
    del fields
    return target.refuse(request, response, ErrorCode.BAD_VERSION)


_CONFIG_COMMANDS: Final = frozenset(ConfigCommand)

COMMANDS: Final[dict[int, Execute]] = {
    Command.ATA: execute_ata,
    Command.CONFIG: query_config,
    Command.MASK: mask_list,
    Command.RESERVE: reserve,
}
