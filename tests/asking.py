"""Frames for a target that are put together by hand, and what should come back."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from aoe.address import Address
from target.disks.memory import MemoryDisk
from target.protocol.exports import Export
from target.protocol.target import Target

if TYPE_CHECKING:
    from target.disks import Disk

CLIENT = bytes.fromhex("525400c11e47")
TARGET = bytes.fromhex("5254007a26e7")
TAG = 0x11223344
SECTORS = 2048


def make_target(disk: Disk | None = None, mtu: int = 1500) -> Target:
    """Return the target 7.3 of 1 MiB, each sector of which differs from the others."""
    if disk is None:
        disk = MemoryDisk(b"".join(sector(number) for number in range(SECTORS)))
    export = Export(Address(7, 3), disk, buffer_count=16, firmware_number=0x4019)
    return Target(export, TARGET, mtu)


def sector(number: int) -> bytes:
    """Return the bytes that a sector of the disk begins with."""
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
    """Put a request together."""
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
    """Put an ATA request together."""
    registers = bytes((aflags, feature, count, opcode)) + lba.to_bytes(6, "little")
    return frame(0, registers + bytes(2) + data, dst=TARGET, **header)


def config(ccmd: int, string: bytes = b"", length: int | None = None) -> bytes:
    """Put a query config request together."""
    declared = len(string) if length is None else length
    return frame(1, struct.pack("!HHBBH", 0, 0, 0, ccmd, declared) + string)


def response_frame(
    command: int, argument: bytes, *, verfl: int = 0x18, error: int = 0
) -> bytes:
    """Put the whole reply together that is expected, zeroes at its end included."""
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
    """Put the reply to an ATA request together that is expected."""
    said = bytes((aflags, error, count, status)) + lba.to_bytes(6, "little")
    return response_frame(0, said + bytes(2) + data)


def config_response(
    ccmd: int, string: bytes = b"", *, code: int = 0, sectors: int = 2
) -> bytes:
    """Put the reply to a query config request together that is expected."""
    argument = struct.pack("!HHBBH", 16, 0x4019, sectors, 0x10 | ccmd, len(string))
    verfl = 0x1C if code else 0x18
    return response_frame(1, argument + string, verfl=verfl, error=code)


def directives(*those: tuple[int, bytes]) -> bytes:
    """Put directives of a mask list together."""
    return b"".join(bytes((0, dcmd)) + mac for dcmd, mac in those)


def mask(mcmd: int, *those: tuple[int, bytes], count: int | None = None) -> bytes:
    """Put a MAC mask list request together."""
    declared = len(those) if count is None else count
    return frame(2, bytes((0, mcmd, 0, declared)) + directives(*those))


def mask_response(*macs: bytes, mcmd: int = 0, code: int = 0) -> bytes:
    """Put the reply to a mask list request together that is expected."""
    argument = bytes((0, mcmd, 0, len(macs)))
    argument += directives(*((0, mac) for mac in macs))
    return response_frame(2, argument, verfl=0x1C if code else 0x18, error=code)


def reserve(rcmd: int, *macs: bytes, count: int | None = None) -> bytes:
    """Put a reserve/release request together."""
    declared = len(macs) if count is None else count
    return frame(3, bytes((rcmd, declared)) + b"".join(macs))


def reserve_response(*macs: bytes, rcmd: int = 0, code: int = 0) -> bytes:
    """Put the reply to a reserve/release request together that is expected."""
    argument = bytes((rcmd, len(macs))) + b"".join(macs)
    return response_frame(3, argument, verfl=0x1C if code else 0x18, error=code)


def sent_by(src: bytes, request: bytes) -> bytes:
    """Let another client ask."""
    return request[:6] + src + request[12:]


def sent_to(dst: bytes, reply: bytes) -> bytes:
    """Let another client be answered."""
    return dst + reply[6:]


def ask(target: Target, request: bytes, now: float = 0.0) -> bytes:
    """Hand a request over, with a reply slot that somebody has used before."""
    slot = memoryview(bytearray(b"\xdb" * target.frame_limit))
    length = target.handle(memoryview(request), slot, now)
    return bytes(slot[:length])
