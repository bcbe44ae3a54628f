"""The fast path: plain READs and WRITEs, a batch at a time, from ring to ring.

READs and WRITEs of a plain file, with neither mask list nor reservation, are nearly all
of a target's load. The fast path recognizes such a request by the bytes of its header,
looks up its flow, and answers it with one system call for the disk and none for the
network. It does not implement the rules of the protocol: a frame without a valid flow
goes to the slow path, ``Target.handle``, which must give the same result.

::

    header --> target key --> registers --> flow --> disk --> response
                 |              |            |         |
                 | no such      | no flow    | invalid | failed
                 v              v            v         v
                 +------------ Target.handle (slow path) ------> response
"""

from __future__ import annotations

import os
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, LBA28_LIMIT, LBA48_OPCODES, SECTOR, AFlag, Status
from aoe.header import ETH_P_AOE, FRAME_MINIMUM, VERSION, Command
from aoe.net.rings import (
    FRAME_OFFSET,
    TP_STATUS_AVAILABLE,
    TP_STATUS_KERNEL,
    TP_STATUS_SEND_REQUEST,
    TPACKET2_HEADER,
)
from target.disks.file import FileDisk
from target.protocol.ata import OPERATIONS
from target.protocol.transfers import read, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.net.rings import Rings
    from target.protocol.target import Target

_REQUEST: Final = Struct("<4x10s462x6x6sQIIQ")
"""A slot up to its data: the frame geometry of the ring's header; src, target key, tag,
registers, and LBA with two reserved bytes of the frame."""
_GEOMETRY: Final = Struct("<IIH")
"""Frame geometry: length on the wire, length in the slot, offset of the frame."""
_DATA_RESPONSE: Final = Struct("<16s460x6s14sIIQ")
"""A slot up to its data: the ring's header, dst, ``Target.response_head``, tag,
registers, LBA."""
_RESPONSE: Final = Struct(_DATA_RESPONSE.format + "24x")
"""The same without data, padded to 60 bytes (P19)."""
_TARGET_KEY: Final = Struct("!HBBHBB")
"""The bytes common to all plain requests to a target: EtherType, version without flags,
no error, shelf, slot, command 0."""
_REGISTERS: Final = Struct("BBBB")
"""aflags, error/feature, count, status/opcode."""
_FLOWS_LIMIT: Final = 512
"""Most flows of a target; requests of further flows take the slow path."""
_GEOMETRIES_LIMIT: Final = 8
"""Most frame geometries of a flow: clients pad requests to different lengths."""
_SLOW_BURST: Final = 8
"""Frames that take the slow path before the next attempt to process a batch."""
_AFLAGS: Final = int(AFlag.EXTENDED | AFlag.DEVICE | AFlag.ASYNC | AFlag.WRITE)
_EXTENDED: Final = int(AFlag.EXTENDED)
_WRITE: Final = int(AFlag.WRITE)
_READY: Final = int(Status.READY)


class Flow:
    """Requests to one target with equal registers, except for the LBA.

    The flow key is target key and registers. A flow has the frame geometries of valid
    requests, the response template, and what the disk access needs.

    Args:
        target: the target of the requests.
        disk: the target's disk.
        registers: aflags, feature, count and opcode.
        data: views of the sector data by slot, of the send ring for a READ and of the
            receive ring for a WRITE.
    """

    __slots__ = (
        "data",
        "disk",
        "fd",
        "geometries",
        "is_read",
        "last_lba",
        "length",
        "offset",
        "pack",
        "registers",
        "request_minimum",
        "response_head",
        "response_length",
        "slot_header",
        "target",
        "transfer",
        "uncounted",
    )

    def __init__(
        self,
        target: Target,
        disk: FileDisk,
        registers: tuple[int, int, int, int],
        data: dict[int, list[memoryview]],
    ) -> None:
        aflags, _, sectors, opcode = registers
        self.target, self.disk = target, disk
        self.is_read = OPERATIONS[opcode] is read
        self.data = data
        self.fd, self.offset = disk.fd, disk.offset
        self.transfer = os.preadv if self.is_read else os.pwritev
        self.length = sectors * SECTOR
        self.request_minimum = ATA_DATA if self.is_read else ATA_DATA + self.length
        """Minimum length of a complete request, bytes."""
        self.response_length = ATA_DATA + self.length if self.is_read else FRAME_MINIMUM
        """Length of the response, bytes."""
        is_long = aflags & _EXTENDED or opcode in LBA48_OPCODES
        end = target.export.sectors
        self.last_lba = (end if is_long else min(end, LBA28_LIMIT)) - sectors
        """The largest LBA at which the transfer is within the disk. An LBA with device
        bits or reserved bytes set is larger. A write of the last sector is excluded: it
        gives a truncated file its size again, which hides the truncation."""
        if not self.is_read:
            self.last_lba = min(self.last_lba, end - sectors - 1)
        self.response_head = target.response_head
        self.registers = int.from_bytes(_REGISTERS.pack(aflags, 0, 0, _READY), "little")
        self.slot_header = TPACKET2_HEADER.pack(
            TP_STATUS_SEND_REQUEST, self.response_length, 0, FRAME_OFFSET, 0
        )
        self.pack = (_DATA_RESPONSE if self.is_read else _RESPONSE).pack_into
        self.geometries: set[bytes] = set()
        self.uncounted = 0
        """Requests that were answered since the last ``commit_counters``."""

    def add_geometry(self, geometry: bytes) -> bool:
        """Add the geometry of a complete frame; return True if it was added."""
        length, stored, at = _GEOMETRY.unpack(geometry)
        if (
            length != stored
            or at != FRAME_OFFSET
            or length < self.request_minimum
            or geometry in self.geometries
            or len(self.geometries) == _GEOMETRIES_LIMIT
        ):
            return False
        self.geometries.add(geometry)
        return True

    def is_valid(self) -> bool:
        """Return True if the target still handles these requests as the flow does."""
        target, disk = self.target, self.disk
        export = target.export
        return (self.is_read or disk.is_intact()) and not (
            disk.fault
            or export.state.mask_set
            or export.state.holder_set
            or export.uncorrectable
            or export.disk is not disk
            or target.response_head is not self.response_head
            or (export.write_through and not self.is_read)
        )

    def commit_counters(self, now: float) -> None:
        """Add the requests that were answered to the target's counters."""
        target, count = self.target, self.uncounted
        self.uncounted = 0
        target.now = now
        target.requests += count
        if self.is_read:
            target.reads += count
            target.read_bytes += count * self.length
        else:
            target.writes += count
            target.written_bytes += count * self.length


class FastPath:
    """The fast path of one interface, for as long as its link is open.

    Args:
        rings: the rings of the link.
        serve_one_slow: handles the next frame on the slow path, if there is one and
            memory for its response; returns True if it did.
    """

    def __init__(self, rings: Rings, serve_one_slow: Callable[[float], bool]) -> None:
        self._rings = rings
        self._serve_one_slow = serve_one_slow
        self._targets: dict[int, Target] = {}
        self._flows: dict[int, dict[int, Flow]] = {}
        self._active: list[Flow] = []
        self._is_empty = False
        self.is_paused = False
        """Set while a slow frame is handled: return after it (``Port.backlog``)."""
        self._batch_limit = rings.rx.slots.count

    def add(self, target: Target) -> None:
        """Start to serve a target."""
        key = _target_key(target)
        self._targets[key] = target
        self._flows[key] = {}

    def remove(self, target: Target) -> None:
        """Stop serving a target."""
        key = _target_key(target)
        del self._targets[key], self._flows[key]

    def serve(self, limit: int, now: float) -> int:
        """Handle up to ``limit`` frames; return the number of frames handled."""
        served = 0
        while served < limit:
            processed = self.process_batch(min(limit - served, self._batch_limit))
            self._commit_counters(now)
            served += processed
            if self._is_empty and served:
                break
            if self._install_flow():
                continue
            # Without a frame for the fast path, do not try it again for each frame.
            for _ in range(1 if processed else _SLOW_BURST):
                if served == limit or not self._serve_one_slow(now):
                    return served
                served += 1
                if self.is_paused:
                    self.is_paused = False
                    return served
        return served

    def process_batch(self, limit: int) -> int:
        """Answer frames up to the first one without a valid flow; return the number."""
        # The hot loop: attributes that are used more than once are local variables.
        rings, flows, active = self._rings, self._flows, self._active
        memory, status = rings.memory, rings.status
        consumer, producer = rings.rx.begin_batch(), rings.tx.begin_batch()
        rx_offsets, tx_offsets = rings.rx.slots.offsets, rings.tx.slots.offsets
        unpack = _REQUEST.unpack_from
        self._is_empty = False
        count = 0
        try:
            for count in range(limit):
                rx, tx = rx_offsets[consumer + count], tx_offsets[producer + count]
                if not memory[rx]:
                    self._is_empty = True
                    break
                geometry, src, target_key, tag, registers, lba = unpack(memory, rx)
                flow = flows[target_key][registers]
                if (
                    lba > flow.last_lba
                    or geometry not in flow.geometries
                    or memory[tx]
                    or not (flow.uncounted or flow.is_valid())
                ):
                    break
                data = flow.data[tx if flow.is_read else rx]
                if (
                    flow.transfer(flow.fd, data, flow.offset + lba * SECTOR)
                    != flow.length
                ):
                    break
                flow.pack(
                    memory,
                    tx,
                    flow.slot_header,
                    src,
                    flow.response_head,
                    tag,
                    flow.registers,
                    lba,
                )
                status[rx >> 2] = TP_STATUS_KERNEL
                if not flow.uncounted:
                    active.append(flow)
                flow.uncounted += 1
            else:
                count = limit
        except (KeyError, OSError):
            pass
        rings.rx.end_batch(count)
        for flow in active:
            if not (flow.is_read or flow.disk.is_intact()):
                self._withdraw_batch(producer, count)
                return count
        length = sum(flow.uncounted * flow.response_length for flow in active)
        rings.tx.end_batch(count, length)
        return count

    def _withdraw_batch(self, producer: int, count: int) -> None:
        # A file was truncated during the batch, and writes may have extended it: later
        # reads of the batch may have returned zeros. The clients retransmit the
        # requests, and the slow path reports the error.
        tx = self._rings.tx.slots
        for position in range(producer, producer + count):
            self._rings.status[tx.offsets[position] >> 2] = TP_STATUS_AVAILABLE
        for flow in self._active:
            flow.uncounted = 0
            if not (flow.is_read or flow.disk.is_intact()):
                flow.disk.fail_reads()
        self._active.clear()

    def _commit_counters(self, now: float) -> None:
        for flow in self._active:
            flow.commit_counters(now)
        self._active.clear()

    def _install_flow(self) -> bool:
        # Installs a flow or a geometry for the next frame; returns True if one is new.
        rx, memory = self._rings.rx, self._rings.memory
        start = rx.slots.offsets[rx.begin_batch()]
        geometry, _, target_key, _, packed, _ = _REQUEST.unpack_from(memory, start)
        if not memory[start] or target_key not in self._flows:
            return False
        flows = self._flows[target_key]
        flow = flows.get(packed)
        if flow is None and len(flows) < _FLOWS_LIMIT:
            registers = _REGISTERS.unpack(packed.to_bytes(4, "little"))
            flow = self._make_flow(self._targets[target_key], registers)
        if flow is None or not flow.add_geometry(geometry):
            return False
        flows[packed] = flow
        return True

    def _make_flow(
        self, target: Target, registers: tuple[int, int, int, int]
    ) -> Flow | None:
        # Only for requests that `Target.handle` would execute without further checks.
        aflags, feature, sectors, opcode = registers
        operation, disk = OPERATIONS.get(opcode), target.export.disk
        is_read = operation is read
        if (
            operation not in (read, write)
            or type(disk) is not FileDisk
            or feature
            or aflags & ~_AFLAGS
            or bool(aflags & _WRITE) is is_read
            or not 0 < sectors <= target.sector_limit
            # O_DSYNC reports a write-back error only once: the slow path must not
            # repeat a write that has failed here.
            or (not is_read and (disk.read_only or target.export.sync))
        ):
            return None
        rings = self._rings
        slots = rings.tx.slots if is_read else rings.rx.slots
        data = slots.data_views(sectors * SECTOR)
        return None if data is None else Flow(target, disk, registers, data)


def _target_key(target: Target) -> int:
    key = _TARGET_KEY.pack(
        ETH_P_AOE, VERSION << 4, 0, target.shelf, target.slot, Command.ATA
    )
    return int.from_bytes(key, "little")
