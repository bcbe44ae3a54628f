from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe import describe as module
from aoe.ata import AFlag, Opcode, Registers
from aoe.config import Config, ConfigCommand
from aoe.describe import describe
from aoe.header import Command, ErrorCode, Flag, Header
from aoe.macmask import Directive, DirectiveCommand, MaskCommand, MaskError, MaskList
from aoe.reserve import Reserve, ReserveCommand

CLIENT = bytes.fromhex("525400ae0002")
OTHER = bytes.fromhex("525400ae0003")
RESPONSE = Flag.RESPONSE
REFUSED = Flag.RESPONSE | Flag.ERROR

Message = Registers | Config | MaskList | Reserve | None


def described(
    command: int,
    message: Message,
    flags: int = 0,
    *,
    error: int = 0,
    address: tuple[int, int] = (7, 3),
    version: int = 1,
    data: bytes = b"",
) -> str:
    header = Header(
        b"\xff" * 6, CLIENT, *address, command, 0x8000_0001, flags, error, version
    )
    frame = bytearray(1514)
    length = header.pack_into(frame)
    if message is not None:
        length += message.pack_into(frame)
    text = describe(bytes(frame[:length]) + data)
    assert "\n" not in text
    return text.replace(" tag 0x80000001", "")


def ata(command: int, aflags: int = 0, lba: int = 0, count: int = 0) -> Registers:
    return Registers(aflags, 0, count, command, lba)


@pytest.mark.parametrize(
    ("registers", "text"),
    [
        (ata(Opcode.READ_EXT, AFlag.EXTENDED, 8, 2), "READ EXT e7.3 lba 8 x2"),
        (
            ata(Opcode.WRITE_EXT, AFlag.EXTENDED | AFlag.WRITE, 1 << 40, 17),
            "WRITE EXT e7.3 lba 1099511627776 x17",
        ),
        # P30: the bits of the device register are not part of the address.
        (ata(Opcode.READ, 0, 0xE000_0009, 1), "READ e7.3 lba 9 x1"),
        (ata(Opcode.WRITE, AFlag.WRITE, 0xEFFF_FFFF, 1), "WRITE e7.3 lba 268435455 x1"),
        (ata(Opcode.IDENTIFY), "IDENTIFY e7.3"),
        (ata(Opcode.FLUSH_EXT), "FLUSH EXT e7.3"),
        (ata(0xB1), "ATA 0xb1 e7.3"),
    ],
)
def test_ata_requests(registers: Registers, text: str) -> None:
    assert described(Command.ATA, registers) == text


def test_ata_responses() -> None:
    ok = ata(0x40, AFlag.EXTENDED, 8, 2)
    assert described(Command.ATA, ok, RESPONSE, data=bytes(1024)) == (
        "response ok e7.3 lba 8 x2, 1024 bytes"
    )
    assert (
        described(Command.ATA, ok, RESPONSE, data=bytes(24))
        == "response ok e7.3 lba 8 x2"
    )
    failed = Registers(AFlag.EXTENDED, 0x10, 2, 0x41, 8)
    assert described(Command.ATA, failed, RESPONSE) == (
        "response failed e7.3 lba 8 x2: sector not found (status 0x41, error 0x10)"
    )


@pytest.mark.parametrize(
    ("ccmd", "text"),
    [
        (ConfigCommand.READ, "query config e7.3"),
        (ConfigCommand.TEST, 'query config, if the string is "me" e7.3'),
        (ConfigCommand.PREFIX, 'query config, if the string begins with "me" e7.3'),
        (ConfigCommand.SET, 'set config string "me" e7.3'),
        (ConfigCommand.FORCE, 'force config string "me" e7.3'),
        (9, "query config 9 e7.3"),
    ],
)
def test_config_requests(ccmd: int, text: str) -> None:
    assert described(Command.CONFIG, Config(ccmd, b"me")) == text


def test_config_responses() -> None:
    config = Config(0, b'a"\xff\n', 64, 0x4019, 17, 1)
    assert described(Command.CONFIG, config, RESPONSE) == (
        'config e7.3 buffers 64 x17 firmware 0x4019 string "a"\xff\\n"'
    ).replace("\xff", "\\xff")
    # Sector count 0 means 2.
    assert " x2 " in described(Command.CONFIG, Config(), RESPONSE)


def test_broadcast_addresses() -> None:
    assert described(Command.CONFIG, Config(), address=(0xFFFF, 0xFF)) == (
        "query config broadcast"
    )
    assert (
        described(Command.CONFIG, Config(), address=(7, 0xFF)) == "query config e7.255"
    )


def test_mac_mask_lists() -> None:
    edit = MaskList(
        MaskCommand.EDIT,
        (
            Directive(DirectiveCommand.ADD, CLIENT),
            Directive(DirectiveCommand.DELETE, OTHER),
            Directive(9, OTHER),
        ),
    )
    assert described(Command.MASK, MaskList()) == "read MAC mask list of e7.3"
    assert described(Command.MASK, edit) == (
        "edit MAC mask list of e7.3 +52:54:00:ae:00:02 -52:54:00:ae:00:03 "
        "?52:54:00:ae:00:03"
    )
    assert described(Command.MASK, MaskList(7)) == "command 7 to MAC mask list of e7.3"
    listed = MaskList(directives=(Directive(DirectiveCommand.NONE, CLIENT),))
    assert described(Command.MASK, listed, RESPONSE) == (
        "MAC mask list of e7.3 52:54:00:ae:00:02"
    )
    full = MaskList(merror=MaskError.FULL)
    assert (
        described(Command.MASK, full, RESPONSE) == "MAC mask list error from e7.3: full"
    )


@pytest.mark.parametrize(
    ("message", "flags", "text"),
    [
        (Reserve(), 0, "read reserve list of e7.3"),
        (Reserve(ReserveCommand.SET), 0, "release e7.3"),
        (
            Reserve(ReserveCommand.SET, (CLIENT, OTHER)),
            0,
            "reserve e7.3 for 52:54:00:ae:00:02, 52:54:00:ae:00:03",
        ),
        (
            Reserve(ReserveCommand.FORCE, (CLIENT,)),
            0,
            "force: reserve e7.3 for 52:54:00:ae:00:02",
        ),
        (Reserve(9), 0, "reserve/release 9 e7.3"),
        (Reserve(), RESPONSE, "e7.3 is not reserved"),
        (
            Reserve(0, (CLIENT,)),
            RESPONSE,
            "e7.3 is reserved for 52:54:00:ae:00:02",
        ),
    ],
)
def test_reservations(message: Reserve, flags: int, text: str) -> None:
    assert described(Command.RESERVE, message, flags) == text


def test_aoe_errors_and_unknown_commands() -> None:
    assert described(Command.ATA, None, REFUSED, error=ErrorCode.RESERVED) == (
        "ATA error from e7.3: target is reserved"
    )
    assert described(Command.CONFIG, None, REFUSED, error=99) == (
        "query config error from e7.3: error 99"
    )
    assert described(0xF1, None) == "vendor command 0xf1 e7.3"
    assert described(0x04, None, RESPONSE) == "unknown command 0x04 response e7.3"
    # P6: the announcement of vblade has version 0.
    assert described(Command.CONFIG, Config(), version=0) == (
        "query config e7.3 version 0"
    )


def test_p17_truncated_frames() -> None:
    assert described(Command.ATA, None) == "ATA e7.3, truncated: need 12 bytes"
    assert describe(b"short") == "not AoE: needs 24 bytes"
    assert describe(bytes(60)) == "not AoE: EtherType is 0x0000"


@given(st.binary(max_size=200))
def test_any_bytes_are_described_in_printable_ascii(body: bytes) -> None:
    frame = bytes(12) + b"\x88\xa2" + body
    for view in (frame, memoryview(frame), body):
        text = describe(view)
        assert text
        assert text.isascii()
        assert text.isprintable()


def test_the_doctest_passes() -> None:
    assert doctest.testmod(module).failed == 0
