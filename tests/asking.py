"""Requests and expected responses, built without the code under test."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from aoe.address import Address
from target.disks.memory import MemoryDisk
from target.protocol.exports import Export
from tests.engines import ENGINES, selected

if TYPE_CHECKING:
    from target.disks import Disk
    from target.protocol.engine import Engine

CLIENT = bytes.fromhex("525400c11e47")
TARGET = bytes.fromhex("5254007a26e7")
TAG = 0x11223344
SECTORS = 2048


def make_target(disk: Disk | None = None, mtu: int = 1500) -> Engine:
    """Return a target 7.3 of 1 MiB in which all sectors differ."""
    if disk is None:
        disk = MemoryDisk(b"".join(sector(number) for number in range(SECTORS)))
    export = Export(Address(7, 3), disk, buffer_count=16, firmware_number=0x4019)
    return serve(export, mtu)


def serve(export: Export, mtu: int = 1500) -> Engine:
    """Return the selected engine with an export."""
    return ENGINES[selected.get()](export, TARGET, mtu)


def sector(number: int) -> bytes:
    """Return the initial contents of a sector."""
    return struct.pack("<Q", number) * 64


def frame(
    command: int,
    argument: bytes = b"",
    *,
    dst: bytes = TARGET,
    ethertype: int = 0x88A2,
    verfl: int = 0x10,
    error: int = 0,
    shelf: int = 7,
    slot: int = 3,
    tag: int = TAG,
) -> bytes:
    """Build a request."""
    head = struct.pack("!HBBHBBI", ethertype, verfl, error, shelf, slot, command, tag)
    return dst + CLIENT + head + argument


def ata(
    opcode: int,
    lba: int = 0,
    count: int = 1,
    *,
    aflags: int = 0x40,
    feature: int = 0,
    data: bytes = b"",
    **header: int,
) -> bytes:
    """Build an ATA request."""
    registers = bytes((aflags, feature, count, opcode)) + lba.to_bytes(6, "little")
    return frame(0, registers + bytes(2) + data, dst=TARGET, **header)


def config(ccmd: int, string: bytes = b"", length: int | None = None) -> bytes:
    """Build a query config request."""
    declared = len(string) if length is None else length
    return frame(1, struct.pack("!HHBBH", 0, 0, 0, ccmd, declared) + string)


def response_frame(
    command: int, argument: bytes, *, verfl: int = 0x18, error: int = 0
) -> bytes:
    """Build an expected response, padding included."""
    head = struct.pack("!HBBHBBI", 0x88A2, verfl, error, 7, 3, command, TAG)
    return (CLIENT + TARGET + head + argument).ljust(60, b"\0")


def ata_response(
    status: int,
    error: int = 0,
    *,
    count: int = 0,
    lba: int = 0,
    aflags: int = 0x40,
    data: bytes = b"",
) -> bytes:
    """Build the expected response to an ATA request."""
    registers = bytes((aflags, error, count, status)) + lba.to_bytes(6, "little")
    return response_frame(0, registers + bytes(2) + data)


def config_response(
    ccmd: int, string: bytes = b"", *, code: int = 0, sectors: int = 2
) -> bytes:
    """Build the expected response to a query config request."""
    argument = struct.pack("!HHBBH", 16, 0x4019, sectors, 0x10 | ccmd, len(string))
    verfl = 0x1C if code else 0x18
    return response_frame(1, argument + string, verfl=verfl, error=code)


def directives(*entries: tuple[int, bytes]) -> bytes:
    """Build the directives of a mask list."""
    return b"".join(bytes((0, dcmd)) + mac for dcmd, mac in entries)


def mask(mcmd: int, *entries: tuple[int, bytes], count: int | None = None) -> bytes:
    """Build a MAC mask list request."""
    declared = len(entries) if count is None else count
    return frame(2, bytes((0, mcmd, 0, declared)) + directives(*entries))


def mask_response(*macs: bytes, mcmd: int = 0, code: int = 0) -> bytes:
    """Build the expected response to a MAC mask list request."""
    argument = bytes((0, mcmd, 0, len(macs)))
    argument += directives(*((0, mac) for mac in macs))
    return response_frame(2, argument, verfl=0x1C if code else 0x18, error=code)


def reserve(rcmd: int, *macs: bytes, count: int | None = None) -> bytes:
    """Build a reserve/release request."""
    declared = len(macs) if count is None else count
    return frame(3, bytes((rcmd, declared)) + b"".join(macs))


def reserve_response(*macs: bytes, rcmd: int = 0, code: int = 0) -> bytes:
    """Build the expected response to a reserve/release request."""
    argument = bytes((rcmd, len(macs))) + b"".join(macs)
    return response_frame(3, argument, verfl=0x1C if code else 0x18, error=code)


def sent_by(src: bytes, request: bytes) -> bytes:
    """Return a request with another source address."""
    return request[:6] + src + request[12:]


def sent_to(dst: bytes, response: bytes) -> bytes:
    """Return a response with another destination address."""
    return dst + response[6:]


def ask(target: Engine, request: bytes, now: float = 0.0) -> bytes:
    """Pass a request to a target, with a slot that has old contents."""
    slot = memoryview(bytearray(b"\xdb" * target.frame_limit))
    length = target.handle(memoryview(request), slot, now)
    return bytes(slot[:length])
