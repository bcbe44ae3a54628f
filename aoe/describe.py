"""One-line description of a frame, for captures, logs and error messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.address import BROADCAST, Address, format_mac
from aoe.ata import (
    ATA_DATA,
    SECTOR_OPCODES,
    STATUS_BAD,
    AFlag,
    Opcode,
    Registers,
    describe_failure,
)
from aoe.config import Config, ConfigCommand
from aoe.errors import DecodeError
from aoe.header import Command, ErrorCode, Flag, Header
from aoe.macmask import DirectiveCommand, MaskCommand, MaskError, MaskList
from aoe.reserve import Reserve, ReserveCommand

if TYPE_CHECKING:
    from aoe.buffers import ReadBuffer

_LBA28: Final = (1 << 28) - 1
_FIRST_VENDOR_COMMAND: Final = 0xF0


def describe(frame: ReadBuffer) -> str:
    """Return a one-line description of a frame. Never raises.

    >>> describe(
    ...     bytes.fromhex(
    ...         "525400ae0001 525400ae0002 88a2 10 00 0000 00 00 80000007"
    ...         "40 00 02 24 080000000000 0000"
    ...     )
    ... )
    'READ EXT e0.0 lba 8 x2 tag 0x80000007'
    """
    try:
        header = Header.unpack_from(frame)
    except DecodeError as error:
        return f"not AoE: {error.why}"
    address = Address(header.shelf, header.slot)
    target = "broadcast" if address == BROADCAST else str(address)
    response = bool(header.flags & Flag.RESPONSE)
    if response and header.flags & Flag.ERROR:
        text = f"{_command(header)} error from {target}: {_error(header.error)}"
    else:
        try:
            text = _body(header, frame, target, response=response)
        except DecodeError as error:
            text = f"{_command(header)} {target}, truncated: {error.why}"
    version = "" if header.version == 1 else f" version {header.version}"
    return f"{text} tag {header.tag:#010x}{version}"


def _command(header: Header) -> str:
    names = {
        Command.ATA: "ATA",
        Command.CONFIG: "query config",
        Command.MASK: "MAC mask list",
        Command.RESERVE: "reserve/release",
    }
    if header.command in names:
        return names[Command(header.command)]
    kind = "vendor" if header.command >= _FIRST_VENDOR_COMMAND else "unknown"
    return f"{kind} command {header.command:#04x}"


def _error(code: int) -> str:
    return ErrorCode(code).text if code in list(ErrorCode) else f"error {code}"


def _body(header: Header, frame: ReadBuffer, target: str, *, response: bool) -> str:
    match header.command:
        case Command.ATA:
            registers = Registers.unpack_from(frame)
            if response:
                return _ata_response(registers, len(frame) - ATA_DATA, target)
            return _ata_request(registers, target)
        case Command.CONFIG:
            config = Config.unpack_from(frame)
            describe = _config_response if response else _config
            return describe(config, target)
        case Command.MASK:
            return _mask(MaskList.unpack_from(frame), target, response=response)
        case Command.RESERVE:
            return _reserve(Reserve.unpack_from(frame), target, response=response)
        case _:
            return f"{_command(header)} {'response ' * response}{target}"


def _ata_request(registers: Registers, target: str) -> str:
    if registers.command not in list(Opcode):
        return f"ATA {registers.command:#04x} {target}"
    opcode = Opcode(registers.command)
    text = f"{opcode.name.replace('_', ' ')} {target}"
    if opcode not in SECTOR_OPCODES:
        return text
    return f"{text} {_sectors(registers)}"


def _ata_response(registers: Registers, data: int, target: str) -> str:
    if registers.command & STATUS_BAD:
        failure = describe_failure(registers.command, registers.feature)
        return f"response failed {target} {_sectors(registers)}: {failure}"
    # The padding of a response without data (P19) is shorter than a sector.
    length = data // 512 * 512
    text = f"response ok {target} {_sectors(registers)}"
    return f"{text}, {length} bytes" if length else text


def _sectors(registers: Registers) -> str:
    lba = registers.lba
    if not registers.aflags & AFlag.EXTENDED:
        lba &= _LBA28
    return f"lba {lba} x{registers.count}"


def _config(config: Config, target: str) -> str:
    verbs = {
        ConfigCommand.READ: "query config",
        ConfigCommand.TEST: "query config, if the string is",
        ConfigCommand.PREFIX: "query config, if the string begins with",
        ConfigCommand.SET: "set config string",
        ConfigCommand.FORCE: "force config string",
    }
    if config.ccmd not in verbs:
        return f"query config {config.ccmd} {target}"
    string = "" if config.ccmd == ConfigCommand.READ else f" {_text(config.string)}"
    return f"{verbs[ConfigCommand(config.ccmd)]}{string} {target}"


def _config_response(config: Config, target: str) -> str:
    return (
        f"config {target} buffers {config.buffer_count} x{config.sector_count or 2} "
        f"firmware {config.firmware:#06x} string {_text(config.string)}"
    )


def _text(string: bytes) -> str:
    return '"' + ascii(string.decode("latin-1"))[1:-1] + '"'


def _mask(mask: MaskList, target: str, *, response: bool) -> str:
    if response and mask.merror:
        known = mask.merror in list(MaskError)
        name = MaskError(mask.merror).name if known else f"error {mask.merror}"
        return f"MAC mask list error from {target}: {name.lower().replace('_', ' ')}"
    verbs = {int(MaskCommand.READ): "read ", int(MaskCommand.EDIT): "edit "}
    verb = "" if response else verbs.get(mask.mcmd, f"command {mask.mcmd} to ")
    macs = " ".join(_directive(*directive) for directive in mask.directives)
    return f"{verb}MAC mask list of {target} {macs}".rstrip()


def _directive(command: int, mac: bytes) -> str:
    signs = {
        int(DirectiveCommand.NONE): "",
        int(DirectiveCommand.ADD): "+",
        int(DirectiveCommand.DELETE): "-",
    }
    return signs.get(command, "?") + format_mac(mac)


def _reserve(reserve: Reserve, target: str, *, response: bool) -> str:
    holders = ", ".join(format_mac(mac) for mac in reserve.macs)
    if response:
        return f"{target} is {f'reserved for {holders}' if holders else 'not reserved'}"
    if reserve.rcmd == ReserveCommand.READ:
        return f"read reserve list of {target}"
    if reserve.rcmd not in list(ReserveCommand):
        return f"reserve/release {reserve.rcmd} {target}"
    force = "force: " * (reserve.rcmd == ReserveCommand.FORCE)
    return f"{force}reserve {target} for {holders}" if holders else f"release {target}"
