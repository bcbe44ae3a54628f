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
from aoe.rings import FRAME, IN_FLIGHT, KERNEL, SEND_REQUEST, SLOT_HEADER, USER
from target.ata import OPERATIONS
from target.disks.file import FileDisk
from target.transfers import read, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.rings import Rings
    from target.server import Target

_REQUEST: Final = Struct("<4xIIH462x6x6sQIIQ")
"""A slot up to its data. Of the ring: length on the wire, in the slot, offset of the
frame. Of the frame: src, the lane, tag, the plan, the LBA and two reserved bytes."""
_DATA_REPLY: Final = Struct("<16s460x6s14sIIQ")
"""A slot up to its data: the ring's header, dst, ``Target.reply_head``, tag, registers,
LBA."""
_REPLY: Final = Struct(_DATA_REPLY.format + "24x")
"""The same without data (P19)."""
_LANE: Final = Struct("!HBBHBB")
"""What a request to one target has in common with the next: EtherType, version and no
flags, no error, shelf, slot, command 0."""
_PLAN: Final = Struct("BBBB")
"""aflags, error/feature, count, status/opcode."""
_PLANS_LIMIT: Final = 512
"""Kinds of request that are known for each target; the rest is done with care."""
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
        views: memory for the data, of each slot to send from, or that was received in.
    """

    __slots__ = (
        "count",
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
        "target",
        "views",
    )

    def __init__(
        self,
        target: Target,
        disk: FileDisk,
        registers: tuple[int, int, int, int],
        views: list[list[memoryview]],
    ) -> None:
        aflags, _, sectors, opcode = registers
        self.target, self.disk = target, disk
        self.reads = OPERATIONS[opcode] is read
        self.views = views
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
        self.registers = int.from_bytes(_PLAN.pack(aflags, 0, 0, _READY), "little")
        self.order = SLOT_HEADER.pack(SEND_REQUEST, self.replied, 0, FRAME, 0)
        self.pack = (_DATA_REPLY if self.reads else _REPLY).pack_into
        self.count = 0
        """Requests that were answered and not yet counted."""

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
        self._unknown: tuple[int, int] | None = None

    def add(self, target: Target) -> None:
        """Serve a target from now on."""
        lane = _lane(target)
        self._targets[lane] = target
        self._lanes[lane] = {}

    def remove(self, target: Target) -> None:
        """Serve it no longer."""
        lane = _lane(target)
        self._targets.pop(lane, None)
        self._lanes.pop(lane, None)

    def serve(self, limit: int, now: float) -> int:
        """Answer what waits, so many frames at most, and return how many it were."""
        taken = 0
        while taken < limit:
            rushed = self._rush(limit - taken)
            self._settle(now)
            taken += rushed
            while taken < limit:
                if not self._answer_next(now):
                    return taken
                taken += 1
                if rushed:
                    break
            self._learn()
        return taken

    def _rush(self, limit: int) -> int:
        # Up to the first frame that there is no plan for, or that has more to it.
        rings, lanes = self._rings, self._lanes
        memory, status = rings.memory, rings.status
        arrivals, departures = rings.arrivals, rings.departures
        slots, spaces = len(arrivals), len(departures)
        unpack = _REQUEST.unpack_from
        used = self._used.append
        first, tx = rings.begin()
        rx, size, count = first, 0, 0
        self._unknown = None
        while count < limit:
            word, start = arrivals[rx]
            if not status[word] & USER:
                break
            length, stored, at, src, key, tag, registers, lba = unpack(memory, start)
            plan = lanes.get(key, _NOTHING).get(registers)
            if plan is None:
                self._unknown = key, registers
                break
            free, space = departures[tx]
            if (
                length < plan.needed
                or lba > plan.last
                or length != stored
                or at != FRAME
                or status[free] & IN_FLIGHT
                or not (plan.count or plan.applies())
            ):
                break
            view = plan.views[tx if plan.reads else rx]
            try:
                if plan.move(plan.fd, view, plan.offset + lba * SECTOR) != plan.length:
                    break
            except OSError:
                break
            plan.pack(
                memory, space, plan.order, src, plan.head, tag, plan.registers, lba
            )
            status[word] = KERNEL
            if not plan.count:
                used(plan)
            plan.count += 1
            size += plan.replied
            count += 1
            rx = rx + 1 if rx + 1 < slots else 0
            tx = tx + 1 if tx + 1 < spaces else 0
        rings.advance(rx, tx, count, size)
        return count

    def _settle(self, now: float) -> None:
        for plan in self._used:
            plan.settle(now)
        self._used.clear()

    def _learn(self) -> None:
        if self._unknown is None:
            return
        key, packed = self._unknown
        lane, target = self._lanes.get(key), self._targets.get(key)
        if lane is None or target is None or len(lane) >= _PLANS_LIMIT:
            return
        plan = self._plan(target, _PLAN.unpack(packed.to_bytes(4, "little")))
        if plan is not None:
            lane[packed] = plan

    def _plan(
        self, target: Target, registers: tuple[int, int, int, int]
    ) -> Plan | None:
        # Only what `Target.handle` would do as well, and without a word.
        aflags, feature, sectors, opcode = registers
        operation, disk = OPERATIONS.get(opcode), target.export.disk
        reads = operation is read
        if (
            type(disk) is not FileDisk
            or feature
            or aflags & ~_AFLAGS
            or not 0 < sectors <= min(target.sector_limit, target.export.sectors)
            or bool(aflags & _WRITE) is reads
        ):
            return None
        if not reads and (
            operation is not write or disk.read_only or target.export.sync
        ):
            # A disk that is to be stable at once tells of a failure only once.
            return None
        rings = self._rings
        views = (rings.replies if reads else rings.received).of(sectors * SECTOR)
        return None if views is None else Plan(target, disk, registers, views)


def _lane(target: Target) -> int:
    head = _LANE.pack(
        ETH_P_AOE, VERSION << 4, 0, target.shelf, target.slot, Command.ATA
    )
    return int.from_bytes(head, "little")


_NOTHING: Final[dict[int, Plan]] = {}
