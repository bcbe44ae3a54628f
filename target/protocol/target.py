"""The target's protocol core: one frame in, at most one frame out, no I/O of its own.

::

    request --> length --> EtherType, --> address --> mask --> version --> command
                  |         R flag           |         |          |           |
                  +--- silence, counted -----+---------+       error 5  reply in place

What a command does stands in ``target/protocol/commands.py``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aoe.address import MAC_BROADCAST, SHELF_ALL, SLOT_ALL
from aoe.ata import ATA_DATA, SECTOR
from aoe.header import (
    ETH_P_AOE,
    ETHERNET_LENGTH,
    HEADER_LENGTH,
    VERSION,
    Command,
    ErrorCode,
    Flag,
    Header,
    sectors_per_frame,
)
from target.protocol.commands import (
    COMMANDS,
    pack_config,
    unknown_command,
    unknown_version,
)
from target.protocol.frames import ETHERTYPE, REPLY_HEAD, REQUEST, Drop, pad, swap16

if TYPE_CHECKING:
    from collections.abc import Mapping

    from target.protocol.exports import Export

_RESPONSE: Final = int(Flag.RESPONSE)
_SECTORS_LIMIT: Final = 255


@dataclass(frozen=True, slots=True)
class TargetStatistics:
    """What one target has done so far.

    Args:
        requests: frames that were for this target, answered or not.
        reads: READ commands that succeeded.
        writes: WRITE commands that succeeded.
        read_bytes: bytes of disk sent.
        written_bytes: bytes of disk received.
        flushes: FLUSH commands that succeeded.
        errors: replies that told of a failure, by kind.
        dropped: frames met with silence, by ``Drop``.
        last_request: when the last request came, seconds of the caller's clock.
    """

    requests: int
    reads: int
    writes: int
    read_bytes: int
    written_bytes: int
    flushes: int
    errors: Mapping[str, int]
    dropped: Mapping[str, int]
    last_request: float | None


class Target:
    """One export as it is served on one interface.

    Args:
        export: what is served.
        mac: the interface's address, six bytes: every reply's source (P12).
        mtu: the interface's MTU, at least 548: the room for one sector.

    Raises:
        ValueError: an MTU below 548.
    """

    def __init__(self, export: Export, mac: bytes, mtu: int) -> None:
        self.export = export
        self.shelf, self.slot = export.address
        self.sectors_once = 0
        """The most sectors that were ever advertised, before the MTU became smaller."""
        self.adapt(mac, mtu)
        self._shelves = frozenset({swap16(self.shelf), SHELF_ALL})
        self._slots = frozenset({self.slot, SLOT_ALL})
        self.requests = 0
        self.reads = 0
        self.writes = 0
        self.read_bytes = 0
        self.written_bytes = 0
        self.flushes = 0
        self._errors: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self.now = 0.0
        """The time of the request at hand, seconds."""

    def adapt(self, mac: bytes, mtu: int) -> None:
        """Follow an interface that has another address or MTU now.

        Args:
            mac: as for the target itself.
            mtu: the same.

        Raises:
            ValueError: an MTU below 548.
        """
        advertised = sectors_per_frame(mtu)
        if not advertised:
            raise ValueError(f"an MTU of {mtu} has no room for a sector")
        self.mac = mac
        self.advertised_sectors = advertised
        self.sectors_once = max(self.sectors_once, advertised)
        self.frame_limit = ETHERNET_LENGTH + mtu
        # More than the advertised figure is served if only the reply fits (P37).
        room = (self.frame_limit - ATA_DATA) // SECTOR
        self.sector_limit = min(room, _SECTORS_LIMIT)
        self.reply_head = REPLY_HEAD.pack(
            mac,
            ETH_P_AOE,
            VERSION << 4 | Flag.RESPONSE,
            0,
            self.shelf,
            self.slot,
            Command.ATA,
        )

    def handle(self, request: memoryview, reply: memoryview, now: float) -> int:
        """Execute one request and write its reply where it will be sent from.

        Nothing that a request can hold makes this raise.

        Args:
            request: the frame from its first Ethernet byte, padding and all.
            reply: memory for one frame, at least ``14 + mtu`` bytes, whatever it
                holds; it must not overlap the request.
            now: seconds.

        Returns:
            The length of the reply, 60 to ``14 + mtu``, or 0 for silence.
        """
        length = len(request)
        if length >= ATA_DATA:
            fields = REQUEST.unpack_from(request)
        elif length >= HEADER_LENGTH:
            fields = REQUEST.unpack(bytes(request).ljust(ATA_DATA, b"\0"))
        else:
            return self.drop(Drop.SHORT)
        if fields[1] != ETHERTYPE:
            return self.drop(Drop.FOREIGN)
        if fields[2] & _RESPONSE:
            return self.drop(Drop.RESPONSE)
        if fields[3] not in self._shelves or fields[4] not in self._slots:
            return self.drop(Drop.ADDRESS)
        self.requests += 1
        self.now = now
        listed = self.export.state.listed
        if listed and fields[0] not in listed:
            return self.drop(Drop.MASKED)  # P61
        if fields[2] >> 4 == VERSION:
            execute = COMMANDS.get(fields[5], unknown_command)
        else:
            execute = unknown_version
        return execute(self, fields, request, reply)

    def announce(self, reply: memoryview, dst: bytes = MAC_BROADCAST) -> int:
        """Write the unsolicited query config response of a target that is ready (P48).

        Args:
            reply: where the frame goes.
            dst: to whom; a target with a mask list tells those in it, one by one.

        Returns:
            The length of the frame.
        """
        return pack_config(self, reply, dst, tag=0)

    def refuse(
        self,
        request: memoryview,
        reply: memoryview,
        code: ErrorCode,
        limit: int | None = None,
    ) -> int:
        """Write an error reply: the request itself, with another header (P6, P16, P18).

        Args:
            request: the frame, at least 24 bytes.
            reply: where the reply goes.
            code: the AoE error.
            limit: bytes of the request to echo; the MTU cuts it in any case.

        Returns:
            The length of the reply.
        """
        length = min(len(request), limit or self.frame_limit, self.frame_limit)
        reply[:length] = request[:length]
        asked = Header.unpack_from(request)
        self.pack_header(reply, asked.src, asked.command, asked.tag, code)
        return pad(reply, length)

    def pack_header(
        self,
        reply: memoryview,
        dst: bytes,
        command: int,
        tag: int,
        code: ErrorCode | None = None,
    ) -> None:
        """Write a reply's header, with our own address whatever was asked (P9, P12)."""
        flags = Flag.RESPONSE
        if code is not None:
            self.count_error(code.name.lower())
            flags |= Flag.ERROR
        Header(
            dst, self.mac, self.shelf, self.slot, command, tag, flags, code or 0
        ).pack_into(reply)

    def drop(self, reason: Drop) -> int:
        """Count a frame that is met with silence, and return the length of silence."""
        self._dropped[reason] += 1
        return 0

    @property
    def uncorrectable_errors(self) -> int:
        """Reads that failed because sectors could not be read."""
        return self._errors["uncorrectable"]

    def count_error(self, kind: str) -> None:
        """Count a reply that tells of a failure."""
        self._errors[kind] += 1

    def statistics(self) -> TargetStatistics:
        """Take a snapshot of the counters."""
        return TargetStatistics(
            self.requests,
            self.reads,
            self.writes,
            self.read_bytes,
            self.written_bytes,
            self.flushes,
            dict(self._errors),
            dict(self._dropped),
            self.now if self.requests else None,
        )
