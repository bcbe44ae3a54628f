"""The everyday frames of a whole batch at one go, between rings and the memory of bios.

Reads and writes of a device with one target on one interface, and answers that say that
all went well, are most of what an initiator ever sees. Here their headers are packed
and unpacked where they lie in the rings. The rules are not here: they are in the
``Driver``, which gets whatever is not so simple, and which could do the rest as well.

::

    bios --> READ, WRITE? one path? room? --> slot to send from    --> wire
                  | no                                                   |
                  +-> Driver.work                                        |
                                                                         v
    bio ends <-- data copied <-- whole, expected, no error? <-- slot received in
                  | no
                  +-> Driver.receive
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, STATUS_BAD
from aoe.header import ETH_P_AOE, FRAME_MINIMUM, VERSION, Command, Flag
from aoe.net.rings import (
    DATA_OFFSET,
    FRAME_OFFSET,
    TP_STATUS_KERNEL,
    TP_STATUS_SEND_REQUEST,
    TPACKET2_HEADER,
)
from initiator.driver.bio import Op
from initiator.driver.requests import TAG_COUNTER, everyday_registers, untagged

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.net.rings import Rings
    from initiator.driver.aoedev import AoeDev, AoeTgt
    from initiator.driver.driver import Driver
    from initiator.driver.frame import Buf, Frame
    from initiator.driver.netdev import NetDevice

_ANSWER: Final = Struct(">4x10s462x6x6sQIxxxB")
"""A slot up to the registers. Of the ring: the shape. Of the frame: src, the lane, tag
and status."""
_SHAPE: Final = Struct("=IIH")
"""Length on the wire, in the slot, offset of the frame."""
_LANE: Final = Struct("!HBBHBB")
"""What an answer of one device has in common with the next: EtherType, version and R
flag, no error, shelf, slot, command 0."""
_REQUEST: Final = Struct(">16s460x20sI4s8s")
"""A slot up to its data: the ring's header, ``untagged``, tag, registers, LBA."""
_PADDED: Final = Struct(_REQUEST.format + "24x")
"""The same without data (P19)."""
_SHAPES_LIMIT: Final = 64
"""Lengths of answers that are known; the rest is looked at with care."""
_IS_BAD: Final = int(STATUS_BAD)
_READ: Final = Op.READ
_WRITE: Final = Op.WRITE


class _Order:
    """What requests of one kind and length have in common.

    Args:
        op: the kind, READ or WRITE.
        length: bytes of data.

    Attributes:
        size: ``length``.
        slot: header of the slot.
        registers: aflags, feature, count and opcode.
        length: bytes of the frame.
        everyday: bytes of an answer, at least.
    """

    __slots__ = (
        "everyday",
        "length",
        "op",
        "pack",
        "registers",
        "size",
        "slot",
        "writes",
    )

    def __init__(self, op: Op | None, length: int) -> None:
        self.op, self.size = op, length
        self.writes = op is _WRITE
        self.length = ATA_DATA + length if self.writes else FRAME_MINIMUM
        self.everyday = ATA_DATA if self.writes else ATA_DATA + length
        self.slot = TPACKET2_HEADER.pack(
            TP_STATUS_SEND_REQUEST, self.length, 0, FRAME_OFFSET, 0
        )
        self.registers = everyday_registers(length, writes=self.writes)
        self.pack = (_REQUEST if self.writes else _PADDED).pack_into


class _Streak:
    """Answers behind each other that came from one target, on one interface.

    Args:
        d: the device.
        f: the frame that the first of them is for.
        netdev: the interface.
    """

    __slots__ = ("d", "free", "ifp", "mac", "reads", "sent", "target", "writes")

    def __init__(self, d: AoeDev, f: Frame, netdev: NetDevice) -> None:
        self.d, self.target, self.ifp = d, f.target, f.ifp
        self.free = f.target.ffree
        is_everyday = not f.target.taint and f.ifp.netdev is netdev
        self.mac = f.target.addr if is_everyday else b""
        """Whom they have to be from; nobody is right where all take care."""
        self.reads = self.writes = 0
        self.sent: dict[float, None] = {}
        """When their frames were sent: those of one turn count as one."""

    def settle(self, now: float) -> None:
        """Take note of them where each alone would be taken note of."""
        target, window = self.target, self.target.window
        answers = self.reads + self.writes
        if not answers:
            return
        # The window was as full for each: what goes out for them goes out later.
        for _ in range(answers if window.maxout < window.nframes else 0):
            window.answered()
        window.nout -= answers
        for sent in self.sent:
            self.d.timing.sample(now - sent)
        self.ifp.lost = 0
        target.heard = now
        target.rpkts += self.reads
        target.wpkts += self.writes
        if self.writes:
            self.d.read_only = False


class Express:
    """Takes and sends the everyday frames of one interface, while its link is open.

    Args:
        driver: does everything else.
        netdev: the interface.
        rings: where its frames are.
        receive: returns the next frame for the slow path; see ``Link.receive``.
    """

    def __init__(
        self,
        driver: Driver,
        netdev: NetDevice,
        rings: Rings,
        receive: Callable[[], memoryview | None],
    ) -> None:
        self._driver = driver
        self._netdev = netdev
        self._rings = rings
        self._receive = receive
        self._lanes: dict[int, AoeDev] = {}
        self._shapes: dict[bytes, int] = {}
        self._orders: dict[tuple[Op | None, int], _Order] = {}
        self._order = _Order(_READ, 0)
        self._streaks: list[_Streak] = []
        self._ended: deque[tuple[AoeDev, Buf]] = deque()
        self._is_empty = False

    # --- answers --------------------------------------------------------------------

    def receive(self, limit: int, now: float) -> int:
        """Take what has come, so many frames at most, and return how many it were.

        Raises:
            NotFoundError: the interface is gone.
        """
        taken = 0
        driver, netdev, receive = self._driver, self._netdev, self._receive
        while taken < limit:
            taken += self._rush(min(limit - taken, self._rings.rx.slots.count))
            self._finish(now)
            if self._is_empty and taken:
                break
            # Whoever learns something has a look at the same frame again.
            if taken < limit and not self._learn():
                frame = receive()
                if frame is None:
                    break
                driver.receive(frame, netdev, now)
                taken += 1
        return taken

    def _rush(self, limit: int) -> int:
        # Up to the first frame that is no everyday answer. No code of the user's runs
        # in between. All that the loop needs more than once is a local variable.
        rings, lanes, shapes = self._rings, self._lanes, self._shapes
        memory, status, unpack = rings.memory, rings.status, _ANSWER.unpack_from
        netdev, ended, streak, lane = self._netdev, self._ended, None, 0
        first, starts = rings.rx.begin_batch(), rings.rx.slots.offsets
        self._is_empty = False
        count = 0
        try:
            for count in range(limit):
                start = starts[first + count]
                if not memory[start]:
                    self._is_empty = True
                    break
                shape, src, key, tag, outcome = unpack(memory, start)
                if key != lane:
                    d, lane, streak = lanes[key], key, None
                    factive = d.factive
                f = factive[tag]
                if streak is None or f.ifp is not streak.ifp:
                    streak = _Streak(d, f, netdev)
                    self._streaks.append(streak)
                if (
                    shapes[shape] < f.everyday
                    or outcome & _IS_BAD
                    or src != streak.mac
                    or (buf := f.buf) is None
                ):
                    break
                del factive[tag]
                if f.op is _READ:
                    at = start + DATA_OFFSET
                    for page, offset, length in f.segments:
                        end = at + length
                        page.data[offset : offset + length] = memory[at:end]
                        at = end
                    streak.reads += 1
                else:
                    streak.writes += 1
                status[start >> 2] = TP_STATUS_KERNEL
                streak.sent[f.sent] = None
                f.buf = None
                streak.free.append(f)
                buf.nframesout -= 1
                if not (buf.nframesout or buf.iter.size):
                    ended.append((d, buf))
            else:
                count = limit
        except KeyError:
            pass
        rings.rx.end_batch(count)
        return count

    def _finish(self, now: float) -> None:
        # Who is told of an end may take turns himself: then this goes on in there.
        driver, ended = self._driver, self._ended
        streaks, self._streaks = self._streaks, []
        for streak in streaks:
            streak.settle(now)
        try:
            while ended:
                d, buf = ended.popleft()
                bio = buf.bio
                if bio.op is _READ:
                    bio.end_io(bio)
                else:
                    driver.buf_done(d, buf)
        finally:
            for streak in streaks:
                driver.go_on(streak.d, now)

    def _learn(self) -> bool:
        # Whether the frame at hand has a device or a length that was not known.
        rx, memory = self._rings.rx, self._rings.memory
        start = rx.slots.offsets[rx.begin_batch()]
        if not memory[start]:
            return False
        shape, _, key, _, _ = _ANSWER.unpack_from(memory, start)
        length, stored, at = _SHAPE.unpack(shape)
        if length != stored or at != FRAME_OFFSET or length < ATA_DATA:
            return False
        known = shape in self._shapes or len(self._shapes) == _SHAPES_LIMIT
        if not known:
            self._shapes[shape] = length
        if key in self._lanes:
            return not known
        for address, d in self._driver.devices.items():
            head = VERSION << 4 | Flag.RESPONSE, 0, *address, Command.ATA
            if key == int.from_bytes(_LANE.pack(ETH_P_AOE, *head)):
                self._lanes[key] = d
                return True
        return not known

    # --- requests -------------------------------------------------------------------

    def send(self, d: AoeDev, now: float) -> None:
        """Send what is everyday among a device's bios, as far as there is room."""
        if d.rexmitq or d.rests or d.wants_identify or not d.ext:
            return
        target = d.targets[0]
        window = target.window
        room = min(window.maxout - window.nout, self._rings.tx.slots.count - 1)
        if room <= 0 or target.taint or target.ifp >= len(target.ifs):
            return
        sent, length = self._put(d, target, room, now)
        window.nout += sent
        self._rings.tx.end_batch(sent, length)

    def _put(self, d: AoeDev, target: AoeTgt, room: int, now: float) -> tuple[int, int]:
        tx, factive, free, bios = self._rings.tx, d.factive, target.ffree, d.bios
        memory, cut_whole = self._rings.memory, d.cut_whole
        [ifp] = target.ifs
        head = untagged(target.addr, self._netdev.mac, d.address, Command.ATA)
        due = now + d.timing.timeout(0)
        base, lasttag = self._driver.tag_base, d.lasttag
        first, starts = tx.begin_batch(), tx.slots.offsets
        total = count = 0
        order = self._order
        for count in range(room):
            space = starts[first + count]
            if memory[space] or not (bios or d.buf is not None):
                return count, total
            f = free.pop() if free else d.frame_for(target)
            if not (cut_whole(f) or d.cut_piece(f)):
                free.append(f)
                return count, total
            if f.length != order.size or f.op is not order.op:
                order = self._order_for(f)
            while True:
                lasttag += 1
                tag = base | lasttag & TAG_COUNTER
                if tag not in factive:
                    break
            lba = f.sector.to_bytes(8, "little")
            order.pack(memory, space, order.slot, head, tag, order.registers, lba)
            if order.writes:
                at = space + DATA_OFFSET
                for page, offset, length in f.segments:
                    end = at + length
                    memory[at:end] = page.data[offset : offset + length]
                    at = end
            if f.earlier or f.attempts or f.is_probe:
                f.begin()
            f.tag, f.ifp, f.sent, f.due = tag, ifp, now, due
            f.everyday = order.everyday
            factive[tag] = f
            d.lasttag = lasttag
            total += order.length
        return room, total

    def _order_for(self, f: Frame) -> _Order:
        kind = f.op, f.length
        order = self._orders.get(kind)
        if order is None:
            order = self._orders[kind] = _Order(f.op, f.length)
        self._order = order
        return order
