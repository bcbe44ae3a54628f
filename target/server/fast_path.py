"""The everyday commands of a whole batch at one go, from ring to ring.

A READ or WRITE of a plain file that anybody may use is most of what a target ever gets.
Here it is recognised by the bytes of its header, looked up in two tables, and answered
with one call for the disk and none for the wire. The rules are not here: they are in
``Target.handle``, which gets every frame that is not in the tables, and whose answer
is as good for those that are.

::

    header --> lane: shelf, slot --> plan: aflags, count, opcode --> disk --> reply
                 |                     |                              |
                 + not there           + not there, masked,           + failed
                 v                     v beyond the end ...           v
                 +-------------------- Target.handle -----------------+-----> reply
"""

from __future__ import annotations

import os
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, LBA28_LIMIT, LBA48_OPCODES, SECTOR, AFlag, Status
from aoe.header import ETH_P_AOE, FRAME_MINIMUM, VERSION, Command
from aoe.net.rings import (
    FRAME_OFFSET,
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
"""A slot up to its data. Of the ring: the shape. Of the frame: src, the lane, tag, the
plan, the LBA and two reserved bytes."""
_SHAPE: Final = Struct("<IIH")
"""Length on the wire, in the slot, offset of the frame."""
_DATA_REPLY: Final = Struct("<16s460x6s14sIIQ")
"""A slot up to its data: the ring's header, dst, ``Target.reply_head``, tag, registers,
LBA."""
_REPLY: Final = Struct(_DATA_REPLY.format + "24x")
"""The same without data (P19)."""
_LANE: Final = Struct("!HBBHBB")
"""What a request to one target has in common with the next: EtherType, version and no
flags, no error, shelf, slot, command 0."""
_REGISTERS: Final = Struct("BBBB")
"""aflags, error/feature, count, status/opcode."""
_PLANS_LIMIT: Final = 512
"""Kinds of request that are known for each target; the rest is done with care."""
_SHAPES_LIMIT: Final = 8
"""Lengths of such a request that are known: clients pad, or do not."""
_CAREFUL: Final = 8
"""Frames that are answered with care before something everyday is looked for again."""
_AFLAGS: Final = int(AFlag.EXTENDED | AFlag.DEVICE | AFlag.ASYNC | AFlag.WRITE)
_EXTENDED: Final = int(AFlag.EXTENDED)
_WRITE: Final = int(AFlag.WRITE)
_READY: Final = int(Status.READY)


class Plan:
    """What is done for requests to one target whose registers are the same but the LBA.

    Args:
        target: whose requests they are.
        disk: its disk.
        registers: aflags, feature, count and opcode.
        data: memory for the data, of each slot to send from, or that was received in.
    """

    __slots__ = (
        "count",
        "data",
        "disk",
        "fd",
        "head",
        "last",
        "length",
        "move",
        "needed",
        "offset",
        "order",
        "pack",
        "reads",
        "registers",
        "replied",
        "shapes",
        "target",
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
        self.reads = OPERATIONS[opcode] is read
        self.data = data
        self.fd, self.offset = disk.fd, disk.offset
        self.move = os.preadv if self.reads else os.pwritev
        self.length = sectors * SECTOR
        self.needed = ATA_DATA if self.reads else ATA_DATA + self.length
        """Bytes that a whole request has at least."""
        self.replied = ATA_DATA + self.length if self.reads else FRAME_MINIMUM
        """Bytes of the reply."""
        is_long = aflags & _EXTENDED or opcode in LBA48_OPCODES
        end = target.export.sectors
        self.last = (end if is_long else min(end, LBA28_LIMIT)) - sectors
        """The last LBA that is within the disk. Device bits and reserved bytes that are
        not zero are beyond it, too."""
        self.head = target.reply_head
        self.registers = int.from_bytes(_REGISTERS.pack(aflags, 0, 0, _READY), "little")
        self.order = TPACKET2_HEADER.pack(
            TP_STATUS_SEND_REQUEST, self.replied, 0, FRAME_OFFSET, 0
        )
        self.pack = (_DATA_REPLY if self.reads else _REPLY).pack_into
        self.shapes: set[bytes] = set()
        self.count = 0
        """Requests that were answered and not yet counted."""

    def learn(self, shape: bytes) -> bool:
        """Take note of what a whole request can look like; tell whether that is new."""
        length, stored, at = _SHAPE.unpack(shape)
        is_whole = length == stored and at == FRAME_OFFSET and length >= self.needed
        if not is_whole or shape in self.shapes or len(self.shapes) == _SHAPES_LIMIT:
            return False
        self.shapes.add(shape)
        return True

    def applies(self) -> bool:
        """Tell whether nobody has arranged for something else meanwhile."""
        target = self.target
        export = target.export
        return not (
            export.state.listed
            or export.state.members
            or export.uncorrectable
            or export.disk is not self.disk
            or target.reply_head is not self.head
            or (export.write_through and not self.reads)
        )

    def settle(self, now: float) -> None:
        """Add what was answered to the target's counters."""
        target, count = self.target, self.count
        self.count = 0
        target.now = now
        target.requests += count
        if self.reads:
            target.reads += count
            target.read_bytes += count * self.length
        else:
            target.writes += count
            target.written_bytes += count * self.length


class Express:
    """Answers the everyday commands of one interface, as long as its link is open.

    Args:
        rings: where the frames are.
        answer_next: answers the next frame with care, if there is one and memory for
            its reply; tells whether there was.
    """

    def __init__(self, rings: Rings, answer_next: Callable[[float], bool]) -> None:
        self._rings = rings
        self._answer_next = answer_next
        self._targets: dict[int, Target] = {}
        self._lanes: dict[int, dict[int, Plan]] = {}
        self._used: list[Plan] = []
        self._is_empty = False
        self._slots = rings.rx.slots.count

    def add(self, target: Target) -> None:
        """Serve a target from now on."""
        lane = _lane(target)
        self._targets[lane] = target
        self._lanes[lane] = {}

    def remove(self, target: Target) -> None:
        """Serve it no longer."""
        lane = _lane(target)
        del self._targets[lane], self._lanes[lane]

    def serve(self, limit: int, now: float) -> int:
        """Answer what waits, so many frames at most, and return how many it were."""
        taken = 0
        while taken < limit:
            rushed = self._rush(min(limit - taken, self._slots))
            self._settle(now)
            taken += rushed
            if self._is_empty and taken:
                break
            if self._learn():
                continue
            # Where there is nothing everyday, it is not worth a look each time.
            for _ in range(1 if rushed else _CAREFUL):
                if taken == limit or not self._answer_next(now):
                    return taken
                taken += 1
        return taken

    def _rush(self, limit: int) -> int:
        # Up to the first frame that there is no plan for, or that has more to it. All
        # that the loop needs more than once is a local variable.
        rings, lanes, used = self._rings, self._lanes, self._used
        memory, status = rings.memory, rings.status
        consumer, producer = rings.rx.begin_batch(), rings.tx.begin_batch()
        starts, spaces = rings.rx.slots.offsets, rings.tx.slots.offsets
        unpack = _REQUEST.unpack_from
        self._is_empty = False
        count = 0
        try:
            for count in range(limit):
                start, space = starts[consumer + count], spaces[producer + count]
                if not memory[start]:
                    self._is_empty = True
                    break
                shape, src, key, tag, registers, lba = unpack(memory, start)
                plan = lanes[key][registers]
                if (
                    lba > plan.last
                    or shape not in plan.shapes
                    or memory[space]
                    or not (plan.count or plan.applies())
                ):
                    break
                data = plan.data[space if plan.reads else start]
                if plan.move(plan.fd, data, plan.offset + lba * SECTOR) != plan.length:
                    break
                plan.pack(
                    memory, space, plan.order, src, plan.head, tag, plan.registers, lba
                )
                status[start >> 2] = TP_STATUS_KERNEL
                if not plan.count:
                    used.append(plan)
                plan.count += 1
            else:
                count = limit
        except (KeyError, OSError):
            pass
        rings.rx.end_batch(count)
        rings.tx.end_batch(count, sum(plan.count * plan.replied for plan in used))
        return count

    def _settle(self, now: float) -> None:
        for plan in self._used:
            plan.settle(now)
        self._used.clear()

    def _learn(self) -> bool:
        # Whether there is a plan for the frame at hand that there was not before.
        rx, memory = self._rings.rx, self._rings.memory
        start = rx.slots.offsets[rx.begin_batch()]
        shape, _, key, _, packed, _ = _REQUEST.unpack_from(memory, start)
        if not memory[start] or key not in self._lanes:
            return False
        lane = self._lanes[key]
        plan = lane.get(packed)
        if plan is None and len(lane) < _PLANS_LIMIT:
            registers = _REGISTERS.unpack(packed.to_bytes(4, "little"))
            plan = self._plan(self._targets[key], registers)
        if plan is None or not plan.learn(shape):
            return False
        lane[packed] = plan
        return True

    def _plan(
        self, target: Target, registers: tuple[int, int, int, int]
    ) -> Plan | None:
        # Only for what `Target.handle` would do, and without another word.
        aflags, feature, sectors, opcode = registers
        operation, disk = OPERATIONS.get(opcode), target.export.disk
        reads = operation is read
        if (
            operation not in (read, write)
            or type(disk) is not FileDisk
            or feature
            or aflags & ~_AFLAGS
            or bool(aflags & _WRITE) is reads
            or not 0 < sectors <= target.sector_limit
            # A disk that is stable at once tells of a failure once: it is not asked
            # again by those who take more care.
            or (not reads and (disk.read_only or target.export.sync))
        ):
            return None
        rings = self._rings
        slots = rings.tx.slots if reads else rings.rx.slots
        data = slots.data_views(sectors * SECTOR)
        return None if data is None else Plan(target, disk, registers, data)


def _lane(target: Target) -> int:
    head = _LANE.pack(
        ETH_P_AOE, VERSION << 4, 0, target.shelf, target.slot, Command.ATA
    )
    return int.from_bytes(head, "little")
