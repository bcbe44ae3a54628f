"""The target's protocol core: one frame in, at most one frame out, no I/O of its own.

::

    request --> length --> EtherType, --> address --> mask --> version --> command
                  |         R flag           |         |          |           |
                  +--- dropped, counted -----+---------+       error 5     response

``target/protocol/commands.py`` implements the commands.
"""

from __future__ import annotations

from collections import Counter
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
from target.protocol.engine import TargetStatistics
from target.protocol.frames import ETHERTYPE, REQUEST, RESPONSE_HEAD, Drop, pad, swap16

if TYPE_CHECKING:
    from target.protocol.exports import Export

_RESPONSE: Final = int(Flag.RESPONSE)
_SECTORS_LIMIT: Final = 255


class Target:
    """One export on one interface.

    Args:
        export: the export to serve.
        mac: the interface's address, six bytes: the source of every response (P12).
        mtu: the interface's MTU, at least 548: one sector per frame.

    Raises:
        ValueError: an MTU below 548.
    """

    def __init__(self, export: Export, mac: bytes, mtu: int) -> None:
        self.export = export
        self.shelf, self.slot = export.address
        self.largest_advertised = 0
        """The largest sector count advertised so far, before an MTU reduction."""
        self.reconfigure(mac, mtu)
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
        """Time of the current request, seconds."""

    def reconfigure(self, mac: bytes, mtu: int) -> None:
        """Apply a new address or MTU of the interface.

        Args:
            mac: the interface's address, six bytes.
            mtu: the interface's MTU, at least 548.

        Raises:
            ValueError: an MTU below 548.
        """
        advertised = sectors_per_frame(mtu)
        if not advertised:
            raise ValueError(f"an MTU of {mtu} has no room for a sector")
        self.mac = mac
        self.advertised_sectors = advertised
        self.largest_advertised = max(self.largest_advertised, advertised)
        self.frame_limit = ETHERNET_LENGTH + mtu
        # A transfer above the advertised count is served if the response fits (P37).
        room = (self.frame_limit - ATA_DATA) // SECTOR
        self.sector_limit = min(room, _SECTORS_LIMIT)
        self.response_head = RESPONSE_HEAD.pack(
            mac,
            ETH_P_AOE,
            VERSION << 4 | Flag.RESPONSE,
            0,
            self.shelf,
            self.slot,
            Command.ATA,
        )

    def handle(self, request: memoryview, response: memoryview, now: float) -> int:
        """Execute one request and write its response into ``response``: the slow path.

        It implements every rule of the protocol, and is called for each request that
        the fast path (``target.server.fast_path``) does not handle. No request content
        makes it raise.

        Args:
            request: the frame, from the Ethernet header on, padding included.
            response: memory for one frame, at least ``14 + mtu`` bytes, with any
                content; it must not overlap the request.
            now: seconds.

        Returns:
            The length of the response, 60 to ``14 + mtu``, or 0 if there is none.
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
        mask_set = self.export.state.mask_set
        if mask_set and fields[0] not in mask_set:
            return self.drop(Drop.MASKED)  # P61
        if fields[2] >> 4 == VERSION:
            execute = COMMANDS.get(fields[5], unknown_command)
        else:
            execute = unknown_version
        return execute(self, fields, request, response)

    def announce(self, response: memoryview, dst: bytes = MAC_BROADCAST) -> int:
        """Write an announcement: an unsolicited query config response (P48).

        Args:
            response: memory for the frame.
            dst: the destination; a target with a mask list sends one announcement to
                each address in it.

        Returns:
            The length of the frame.
        """
        return pack_config(self, response, dst, tag=0)

    def refuse(
        self,
        request: memoryview,
        response: memoryview,
        code: ErrorCode,
        limit: int | None = None,
    ) -> int:
        """Write an error response: the request with a new header (P6, P16, P18).

        Args:
            request: the frame, at least 24 bytes.
            response: memory for the response.
            code: the AoE error.
            limit: bytes of the request to echo; never more than the MTU allows.

        Returns:
            The length of the response.
        """
        length = min(len(request), limit or self.frame_limit, self.frame_limit)
        response[:length] = request[:length]
        header = Header.unpack_from(request)
        self.pack_header(response, header.src, header.command, header.tag, code)
        return pad(response, length)

    def pack_header(
        self,
        response: memoryview,
        dst: bytes,
        command: int,
        tag: int,
        code: ErrorCode | None = None,
    ) -> None:
        """Write a response header, with this target's own address (P9, P12)."""
        flags = Flag.RESPONSE
        if code is not None:
            self.count_error(code.name.lower())
            flags |= Flag.ERROR
        Header(
            dst, self.mac, self.shelf, self.slot, command, tag, flags, code or 0
        ).pack_into(response)

    def drop(self, reason: Drop) -> int:
        """Count a dropped frame and return 0, the length of no response."""
        self._dropped[reason] += 1
        return 0

    @property
    def uncorrectable_errors(self) -> int:
        """Number of reads that failed with UNC."""
        return self._errors["uncorrectable"]

    def count_error(self, kind: str) -> None:
        """Count an error response."""
        self._errors[kind] += 1

    def statistics(self) -> TargetStatistics:
        """Return a snapshot of the counters."""
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
