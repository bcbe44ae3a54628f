"""The target of a world without a network: it answers at once, from memory.

A world on a real wire has ``WirePeer`` instead, in ``initiator.lab.wire``.
"""

from __future__ import annotations

from typing import Final, Protocol

from aoe.address import Address
from aoe.ata import ATA_DATA, SECTOR, Opcode, Registers, Status
from aoe.config import Config
from aoe.header import FRAME_MINIMUM, VERSION, Command, Flag, Header
from aoe.identify import Identity

ADDRESS: Final = Address(0, 0)


class Peer(Protocol):
    """Whoever answers the frames of a world."""

    def exchange(self, frame: bytes) -> bytes | None:
        """Execute a request and return the answer to it."""

    def contents(self, offset: int, length: int) -> bytes:
        """What the disk holds there now."""


class MemoryPeer:
    """A disk in memory behind address e0.0.

    Args:
        sectors: its size.
    """

    mac: Final = bytes.fromhex("020000000002")

    def __init__(self, sectors: int = 64) -> None:
        self.disk = bytearray(sectors * SECTOR)

    def contents(self, offset: int, length: int) -> bytes:
        """What the disk holds there now."""
        return bytes(self.disk[offset : offset + length])

    def exchange(self, frame: bytes) -> bytes | None:
        """Answer config queries, IDENTIFY and writes, which is all a world sends."""
        request = Header.unpack_from(frame)
        if request.command == Command.CONFIG:
            reply = bytearray(FRAME_MINIMUM)
            config = Config(buffer_count=16, sector_count=16, version=VERSION)
            config.pack_into(reply)
            return self._send(reply, request)
        registers = Registers.unpack_from(frame)
        data = b""
        if registers.command == Opcode.IDENTIFY:
            data = Identity(len(self.disk) // SECTOR, model="lab").pack()
        else:
            written = frame[ATA_DATA:]
            start = registers.lba * SECTOR
            self.disk[start : start + len(written)] = written
        reply = bytearray(max(FRAME_MINIMUM, ATA_DATA + len(data)))
        answer = Registers(registers.aflags, 0, 0, Status.READY, registers.lba)
        answer.pack_into(reply)
        reply[ATA_DATA : ATA_DATA + len(data)] = data
        return self._send(reply, request)

    def _send(self, reply: bytearray, request: Header) -> bytes:
        header = Header(
            request.src,
            self.mac,
            *ADDRESS,
            request.command,
            request.tag,
            flags=Flag.RESPONSE,
        )
        header.pack_into(reply)
        return bytes(reply)
