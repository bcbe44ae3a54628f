"""Frames of the codecs, dissected by tshark and tcpdump.

Wireshark dissects the header and ATA, tcpdump all four commands.
"""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pytest

from aoe.ata import AFlag, AtaError, Opcode, Registers, Status
from aoe.config import Config, ConfigCommand
from aoe.header import FRAME_MINIMUM, Command, ErrorCode, Flag, Header
from aoe.identify import Identity
from aoe.macmask import Directive, DirectiveCommand, MaskCommand, MaskError, MaskList
from aoe.reserve import Reserve, ReserveCommand
from tests.requirements import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe.buffers import WriteBuffer

CLIENT = bytes.fromhex("525400ae0001")
TARGET = bytes.fromhex("525400ae0002")
MACS = (CLIENT, bytes.fromhex("001b21aabbcc"))
DATA = bytes(range(256)) * 4
# Started by root, tcpdump drops privileges first, which fails in a user namespace that
# denies setgroups(2). There it is started as another user.
GROUPS = Path("/proc/self/setgroups")
IS_CONFINED = GROUPS.exists() and GROUPS.read_text() == "deny\n"
AS_USER = ("unshare", "--user", "--map-user=1000") if IS_CONFINED else ()
RESPONSE = Flag.RESPONSE
FAILED = Flag.RESPONSE | Flag.ERROR


class Body(Protocol):
    def pack_into(self, buffer: WriteBuffer, offset: int = ...) -> int: ...


class Case(NamedTuple):
    """A frame and the text that tcpdump prints for it."""

    name: str
    header: Header
    body: Body
    data: bytes
    tcpdump: tuple[str, ...]

    @property
    def frame(self) -> bytes:
        buffer = bytearray(2048)
        end = self.header.pack_into(buffer)
        end += self.body.pack_into(buffer)
        return bytes(buffer[:end]) + self.data


def request(name: str, body: Body, *expected_text: str, data: bytes = b"") -> Case:
    header = Header(TARGET, CLIENT, 7, 3, command_of(body), 0x91223344)
    return Case(f"{name} request", header, body, data, expected_text)


def response(
    name: str, body: Body, *expected_text: str, data: bytes = b"", error: int = 0
) -> Case:
    flags = FAILED if error else RESPONSE
    header = Header(CLIENT, TARGET, 7, 3, command_of(body), 0x91223344, flags, error)
    return Case(f"{name} response", header, body, data, expected_text)


def command_of(body: Body) -> Command:
    return {
        Registers: Command.ATA,
        Config: Command.CONFIG,
        MaskList: Command.MASK,
        Reserve: Command.RESERVE,
    }[type(body)]


def config(ccmd: ConfigCommand, string: bytes) -> Config:
    return Config(ccmd, string, buffer_count=16, sector_count=2, version=1)


def mask(*commands: DirectiveCommand) -> tuple[Directive, ...]:
    return tuple(Directive(*entry) for entry in zip(commands, MACS, strict=True))


def ata(
    command: int, lba: int = 0, count: int = 0, error: int = 0, aflags: int = 0
) -> Registers:
    return Registers(aflags, error, count, command, lba)


EXTENDED = AFlag.EXTENDED
WRITE = AFlag.EXTENDED | AFlag.WRITE | AFlag.ASYNC
LBA = 0x123456789ABC

CASES = [
    request("identify", ata(Opcode.IDENTIFY, 0xA0 << 24, 1), "Cmd/Status: 236"),
    response(
        "identify",
        ata(Status.READY, 0xA0 << 24),
        "AFlags: [none]",
        "Data: 512 bytes",
        data=Identity(2048, "serial").pack(),
    ),
    request(
        "read",
        ata(Opcode.READ_EXT, LBA, 2, aflags=EXTENDED | AFlag.DEVICE),
        "AFlags: [Ext48, Device]",
        "Sector Count: 2",
        "lba0: 188, lba1: 154, lba2: 120, lba3: 86, lba4: 52, lba5: 18",
    ),
    response(
        "read",
        ata(Status.READY, LBA, aflags=EXTENDED),
        "AFlags: [Ext48]",
        "Cmd/Status: 64",
        "Data: 1024 bytes",
        data=DATA,
    ),
    request("read 28", ata(Opcode.READ, 0xE0000008, 1), "lba0: 8", "lba3: 224"),
    request(
        "write",
        ata(Opcode.WRITE_EXT, LBA, 2, aflags=WRITE),
        "AFlags: [Ext48, Async, Write]",
        "Data: 1024 bytes",
        data=DATA,
    ),
    response("write", ata(Status.READY, LBA, aflags=WRITE), "Cmd/Status: 64"),
    request("flush", ata(Opcode.FLUSH), "Cmd/Status: 231"),
    response(
        "beyond the end",
        ata(Status.READY | Status.ERROR, LBA, 2, AtaError.NOT_FOUND, EXTENDED),
        "Flags: [Response]",
        "Err/Feature: 16, Sector Count: 2, Cmd/Status: 65",
    ),
    response(
        "reserved",
        ata(Opcode.READ, 8, 1),
        "Flags: [Response, Error]",
        "Error: Target is reserved",
        error=ErrorCode.RESERVED,
    ),
    request("config read", Config(), "CCmd: read config string"),
    request(
        "config set",
        Config(ConfigCommand.SET, b"hello"),
        "CCmd: set config string",
        "Config String (length 5): hello",
    ),
    response(
        "config",
        config(ConfigCommand.READ, b"hello"),
        "Buffer Count: 16, Firmware Version: 0, Sector Count: 2, AoE: 1",
        "Config String (length 5): hello",
    ),
    response(
        "config set",
        config(ConfigCommand.SET, b"other"),
        "Error: Config string present",
        error=ErrorCode.CONFIG_PRESENT,
    ),
    request("mask read", MaskList(), "MCmd: Read Mac Mask List"),
    request(
        "mask edit",
        MaskList(MaskCommand.EDIT, mask(DirectiveCommand.ADD, DirectiveCommand.DELETE)),
        "MCmd: Edit Mac Mask List",
        # tcpdump has no name for MError 0.
        "MError: Unknown (0x00), Dir Count: 2",
        "DCmd: Add mac address to mask list, Ethernet Address: 52:54:00:ae:00:01",
        "DCmd: Delete mac address from mask list, Ethernet Address: 00:1b:21:aa:bb:cc",
    ),
    response(
        "mask",
        MaskList(directives=mask(DirectiveCommand.NONE, DirectiveCommand.NONE)),
        "Dir Count: 2",
        "DCmd: No Directive, Ethernet Address: 52:54:00:ae:00:01",
    ),
    response(
        "full mask",
        MaskList(merror=MaskError.FULL, declared=0),
        "MError: Mask list full, Dir Count: 0",
    ),
    request("reserve read", Reserve(), "RCmd: Read reserve list, NMacs: 0"),
    request(
        "reserve set",
        Reserve(ReserveCommand.SET, MACS),
        "RCmd: Set reserve list, NMacs: 2",
        "Ethernet Address 0: 52:54:00:ae:00:01",
        "Ethernet Address 1: 00:1b:21:aa:bb:cc",
    ),
    response(
        "reserve", Reserve(ReserveCommand.FORCE, MACS), "RCmd: Force set", "NMacs: 2"
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def write_capture(path: Path, frames: list[bytes]) -> Path:
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for number, frame in enumerate(frames):
            file.write(struct.pack("<IIII", number, 0, len(frame), len(frame)))
            file.write(frame)
    return path


def run(name: str, *arguments: str | Path) -> str:
    command = [*AS_USER, program(name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def leaves(tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the fields of a packet from all of its subtrees."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield name, value


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a capture of all cases, padded to 60 bytes."""
    frames = [case.frame.ljust(FRAME_MINIMUM, b"\0") for case in CASES]
    return write_capture(tmp_path_factory.mktemp("padded") / "frames.pcap", frames)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a capture of all cases without padding."""
    frames = [case.frame for case in CASES]
    return write_capture(tmp_path_factory.mktemp("bare") / "frames.pcap", frames)


@pytest.fixture(scope="module")
def tshark_fields(padded: Path) -> Callable[[Case], dict[str, str]]:
    packets = json.loads(run("tshark", "-r", padded, "-T", "json"))
    found = [dict(leaves(p["_source"]["layers"]["aoe"])) for p in packets]
    return lambda case: found[CASES.index(case)]


@every_case
def test_tshark_reads_the_header(
    case: Case, tshark_fields: Callable[[Case], dict[str, str]]
) -> None:
    header = case.header
    expected = {
        "aoe.version": "1",
        "aoe.response": f"{bool(header.flags & Flag.RESPONSE):d}",
        "aoe.flags_error": f"{bool(header.flags & Flag.ERROR):d}",
        "aoe.major": "0x0007",
        "aoe.minor": "0x03",
        "aoe.cmd": f"{header.command:d}",
        "aoe.tag": "0x91223344",
    }
    if header.flags & Flag.ERROR:
        expected["aoe.error"] = f"{header.error:d}"
    assert tshark_fields(case).items() >= expected.items()


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if isinstance(case.body, Registers)],
    ids=lambda case: case.name,
)
def test_tshark_reads_the_ata_registers(
    case: Case, tshark_fields: Callable[[Case], dict[str, str]]
) -> None:
    registers = case.body
    assert isinstance(registers, Registers)
    flags = registers.aflags
    is_response = bool(case.header.flags & Flag.RESPONSE)
    expected = {
        "aoe.aflags.e": f"{bool(flags & AFlag.EXTENDED):d}",
        "aoe.aflags.w": f"{bool(flags & AFlag.WRITE):d}",
        "aoe.err_feature": f"{registers.feature:#04x}",
        "aoe.sector_count": f"{registers.count:d}",
        "aoe.ata.status" if is_response else "aoe.ata.cmd": f"{registers.command:#04x}",
        "aoe.lba": f"{registers.lba:#018x}",
    }
    # Shown only if they apply.
    if flags & AFlag.EXTENDED:
        expected["aoe.aflags.d"] = f"{bool(flags & AFlag.DEVICE):d}"
    if flags & AFlag.WRITE:
        expected["aoe.aflags.a"] = f"{bool(flags & AFlag.ASYNC):d}"
    assert tshark_fields(case).items() >= expected.items()


@pytest.mark.parametrize("capture", ["padded", "bare"])
def test_tshark_reports_no_malformed_frames(
    capture: str, request: pytest.FixtureRequest
) -> None:
    output = run("tshark", "-r", request.getfixturevalue(capture), "-V")
    assert output.count("ATAoverEthernet") == len(CASES)
    for marker in ("Malformed", "Expert Info", "Unreassembled", "Truncated"):
        assert marker not in output


@pytest.fixture(scope="module")
def tcpdump_output(bare: Path) -> Callable[[Case], str]:
    output = run("tcpdump", "-nn", "-vv", "-t", "-r", bare)
    found = output.split("AoE length")[1:]
    return lambda case: found[CASES.index(case)]


@every_case
def test_tcpdump_reads_all_fields(
    case: Case, tcpdump_output: Callable[[Case], str]
) -> None:
    """Without padding, which tcpdump reports as invalid (P79)."""
    output = tcpdump_output(case)
    assert "Major: 0x0007, Minor: 0x03" in output
    assert "Tag: 0x91223344" in output
    for text in case.tcpdump:
        assert text in output
    assert "[|aoe]" not in output
    assert "invalid" not in output
