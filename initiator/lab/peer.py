"""The target of a world without a network: a disk in memory.

``WirePeer`` in ``initiator.lab.wire`` is a real target on a link.
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
    """The target of a world."""

    def exchange(self, frame: bytes) -> bytes | None:
        """Execute a request and return the response."""

    def contents(self, offset: int, length: int) -> bytes:
        """Return the current contents of the disk."""


class MemoryPeer:
    """A target at e0.0 with a disk in memory.

    Args:
        sectors: size of the disk.
    """

    mac: Final = bytes.fromhex("020000000002")

    def __init__(self, sectors: int = 64) -> None:
        self.disk = bytearray(sectors * SECTOR)

    def contents(self, offset: int, length: int) -> bytes:
        """Return the current contents of the disk."""
        return bytes(self.disk[offset : offset + length])

    def exchange(self, frame: bytes) -> bytes | None:
        """Respond to config queries, IDENTIFY and writes, all that a world sends."""
        request = Header.unpack_from(frame)
        if request.command == Command.CONFIG:
            response = bytearray(FRAME_MINIMUM)
            config = Config(buffer_count=16, sector_count=16, version=VERSION)
            config.pack_into(response)
            return self._finish(response, request)
        registers = Registers.unpack_from(frame)
        data = b""
        if registers.command == Opcode.IDENTIFY:
            data = Identity(len(self.disk) // SECTOR, model="lab").pack()
        else:
            written = frame[ATA_DATA:]
            start = registers.lba * SECTOR
            self.disk[start : start + len(written)] = written
        response = bytearray(max(FRAME_MINIMUM, ATA_DATA + len(data)))
        success = Registers(registers.aflags, 0, 0, Status.READY, registers.lba)
        success.pack_into(response)
        response[ATA_DATA : ATA_DATA + len(data)] = data
        return self._finish(response, request)

    def _finish(self, response: bytearray, request: Header) -> bytes:
        header = Header(
            request.src,
            self.mac,
            *ADDRESS,
            request.command,
            request.tag,
            flags=Flag.RESPONSE,
        )
        header.pack_into(response)
        return bytes(response)
