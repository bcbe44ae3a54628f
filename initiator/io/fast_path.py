"""The fast path: plain reads and writes, a batch at a time, between rings and bios.

Requests of a device with one target and one interface, and successful responses, are
nearly all frames of an initiator. Their headers are packed and unpacked in the slots of
the rings, without an skb. The fast path does not implement the rules of the protocol:
other work goes to the slow path, the ``Driver``, which must give the same result.

::

    bios --> READ or WRITE, one path, window open? --> slot of the send ring --> wire
                  | no                                                            |
                  +--> Driver.work (slow path)                                    |
                                                                                  v
    bio ends <-- copy <-- outstanding, complete, no error? <-- slot of the receive ring
                               | no
                               +--> Driver.receive (slow path)
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, STATUS_BAD
from aoe.header import ETH_P_AOE, FRAME_MINIMUM, TAG_COUNTER, VERSION, Command, Flag
from aoe.net.rings import (
    DATA_OFFSET,
    FRAME_OFFSET,
    TP_STATUS_KERNEL,
    TP_STATUS_SEND_REQUEST,
    TPACKET2_HEADER,
)
from initiator.driver.bio import Op
from initiator.driver.requests import read_write_registers, untagged_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.net.rings import Rings
    from initiator.driver.aoedev import AoeDev
    from initiator.driver.driver import Driver
    from initiator.driver.netdev import NetDevice
    from initiator.driver.structs import AoeTgt, Buf, Frame

_RESPONSE: Final = Struct(">4x10s462x6x6sQIxxxB")
"""A slot up to the registers: the frame geometry of the ring's header; src, flow key,
tag and ATA status of the frame."""
_GEOMETRY: Final = Struct("=IIH")
"""Frame geometry: length on the wire, length in the slot, offset of the frame."""
_FLOW_KEY: Final = Struct("!HBBHBB")
"""The bytes common to all successful responses of a device: EtherType, version and R
flag, no error, shelf, slot, command 0."""
_REQUEST: Final = Struct(">16s460x20sI4s8s")
"""A slot up to its data: the ring's header, header without tag, tag, registers, LBA."""
_PADDED: Final = Struct(_REQUEST.format + "24x")
"""The same without data, padded to 60 bytes (P19)."""
_GEOMETRIES_LIMIT: Final = 64
"""Maximum number of frame geometries; frames with others take the slow path."""
_IS_BAD: Final = int(STATUS_BAD)
_READ: Final = Op.READ
_WRITE: Final = Op.WRITE


class _RequestTemplate:
    """The fields that all requests of one kind and length have in common.

    Args:
        op: READ or WRITE.
        length: bytes of data.

    Attributes:
        size: bytes of data.
        slot_header: the ring's header of the slot.
        registers: aflags, feature, count and opcode.
        length: bytes of the frame.
        min_response: minimum length of a response.
    """

    __slots__ = (
        "length",
        "min_response",
        "op",
        "pack",
        "registers",
        "size",
        "slot_header",
        "writes",
    )

    def __init__(self, op: Op | None, length: int) -> None:
        self.op, self.size = op, length
        self.writes = op is _WRITE
        self.length = ATA_DATA + length if self.writes else FRAME_MINIMUM
        self.min_response = ATA_DATA if self.writes else ATA_DATA + length
        self.slot_header = TPACKET2_HEADER.pack(
            TP_STATUS_SEND_REQUEST, self.length, 0, FRAME_OFFSET, 0
        )
        self.registers = read_write_registers(length, writes=self.writes)
        self.pack = (_REQUEST if self.writes else _PADDED).pack_into


class _AckBatch:
    """Consecutive responses of one target, whose effects are committed together.

    Args:
        d: the device.
        f: the frame of the first response.
        netdev: the interface on which they are received.

    Attributes:
        mac: the source MAC that they must have; empty if the slow path is required.
        sent: transmission times of their frames. Frames sent in one batch have the same
            time and count as one RTT sample.
    """

    __slots__ = ("d", "free", "ifp", "mac", "reads", "sent", "target", "writes")

    def __init__(self, d: AoeDev, f: Frame, netdev: NetDevice) -> None:
        self.d, self.target, self.ifp = d, f.target, f.ifp
        self.free = f.target.ffree
        target = f.target
        is_plain = not target.taint and target.is_proven and f.ifp.netdev is netdev
        self.mac = target.source if is_plain else b""
        self.reads = self.writes = 0
        self.sent: dict[float, None] = {}

    def commit(self, now: float) -> None:
        """Update window, RTT estimate and counters, as the driver does per response."""
        target, window = self.target, self.target.window
        responses = self.reads + self.writes
        if not responses:
            return
        # No request is sent before the commit, so nout is the same for each response.
        for _ in range(responses if window.maxout < window.nframes else 0):
            window.on_response()
        window.nout -= responses
        for sent in self.sent:
            self.d.timing.sample(now - sent)
        self.ifp.lost = 0
        target.last_response = now
        target.rpkts += self.reads
        target.wpkts += self.writes
        self.d.epochs.answered += self.writes
        if self.writes:
            self.d.read_only = False


class FastPath:
    """The fast path of one interface, for as long as its link is open.

    Args:
        driver: the slow path.
        netdev: the interface.
        rings: the rings of the link.
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
        self._flows: dict[int, AoeDev] = {}
        self._geometries: dict[bytes, int] = {}
        self._templates: dict[tuple[Op | None, int], _RequestTemplate] = {}
        self._template = _RequestTemplate(_READ, 0)
        self._batches: list[_AckBatch] = []
        self._ended: deque[tuple[AoeDev, Buf]] = deque()
        self._is_empty = False

    # --- responses ------------------------------------------------------------------

    def receive(self, limit: int, now: float) -> int:
        """Process up to ``limit`` received frames; return how many were processed.

        Raises:
            NotFoundError: the interface has disappeared.
        """
        received = 0
        driver, netdev, receive_one_slow = self._driver, self._netdev, self._receive
        slots = self._rings.rx.slots.count
        while received < limit:
            received += self.process_batch(min(limit - received, slots))
            self._end_batch(now)
            if self._is_empty and received:
                break
            # After a new flow or geometry, the fast path tries the same frame again.
            if received < limit and not self._install_flow():
                frame = receive_one_slow()
                if frame is None:
                    break
                driver.receive(frame, netdev, now)
                received += 1
        return received

    def process_batch(self, limit: int) -> int:
        """Process responses up to the first one for the slow path; return the number.

        No callback runs in between: ended bios are queued for ``_end_batch``.
        """
        # The hot loop: attributes that are used more than once are local variables.
        rings, flows, geometries = self._rings, self._flows, self._geometries
        memory, status, unpack = rings.memory, rings.status, _RESPONSE.unpack_from
        netdev, ended, batch, flow_key = self._netdev, self._ended, None, 0
        first, starts = rings.rx.begin_batch(), rings.rx.slots.offsets
        self._is_empty = False
        count = 0
        try:
            for count in range(limit):
                slot = starts[first + count]
                if not memory[slot]:
                    self._is_empty = True
                    break
                geometry, src, key, tag, ata_status = unpack(memory, slot)
                if key != flow_key:
                    d, flow_key, batch = flows[key], key, None
                    factive = d.factive
                f = factive[tag]
                if batch is None or f.ifp is not batch.ifp:
                    batch = _AckBatch(d, f, netdev)
                    self._batches.append(batch)
                if (
                    geometries[geometry] < f.min_response
                    or ata_status & _IS_BAD
                    or src != batch.mac
                    or (buf := f.buf) is None
                ):
                    break
                del factive[tag]
                if f.op is _READ:
                    at = slot + DATA_OFFSET
                    for page, offset, length in f.segments:
                        end = at + length
                        page.data[offset : offset + length] = memory[at:end]
                        at = end
                    batch.reads += 1
                else:
                    batch.writes += 1
                status[slot >> 2] = TP_STATUS_KERNEL
                batch.sent[f.sent] = None
                f.buf = None
                batch.free.append(f)
                buf.nframesout -= 1
                if not (buf.nframesout or buf.iter.size):
                    ended.append((d, buf))
            else:
                count = limit
        except KeyError:
            pass
        rings.rx.end_batch(count)
        return count

    def _end_batch(self, now: float) -> None:
        # end_io may call Host.run_once, whose nested call then ends the other bios.
        driver, ended = self._driver, self._ended
        batches, self._batches = self._batches, []
        for batch in batches:
            batch.commit(now)
        try:
            while ended:
                d, buf = ended.popleft()
                bio = buf.bio
                if bio.op is _READ:
                    bio.end_io(bio)
                else:
                    driver.buf_done(d, buf)
        finally:
            for batch in batches:
                driver.resume(batch.d, now)

    def _install_flow(self) -> bool:
        # Installs a flow or geometry for the next frame; returns True if one is new.
        rx, memory = self._rings.rx, self._rings.memory
        slot = rx.slots.offsets[rx.begin_batch()]
        if not memory[slot]:
            return False
        geometry, _, key, _, _ = _RESPONSE.unpack_from(memory, slot)
        length, stored, at = _GEOMETRY.unpack(geometry)
        if length != stored or at != FRAME_OFFSET or length < ATA_DATA:
            return False
        geometries = self._geometries
        is_new = geometry not in geometries and len(geometries) < _GEOMETRIES_LIMIT
        if is_new:
            geometries[geometry] = length
        known = self._flows.get(key)
        if known and self._driver.devices.get(known.address) is known:
            return is_new
        for address, d in self._driver.devices.items():
            head = VERSION << 4 | Flag.RESPONSE, 0, *address, Command.ATA
            if key == int.from_bytes(_FLOW_KEY.pack(ETH_P_AOE, *head)):
                self._flows[key] = d
                return True
        return is_new

    # --- requests -------------------------------------------------------------------

    def send(self, d: AoeDev, now: float) -> None:
        """Send plain reads and writes of a device, as far as window and ring allow."""
        if d.rexmitq or d.followups or d.to_identify or not d.ext:
            return
        if not d.has_tags(now):
            return
        target = d.targets[0]
        window = target.window
        limit = min(window.maxout - window.nout, self._rings.tx.slots.count - 1)
        if limit <= 0 or target.taint or not target.can_send:
            return
        sent, length = self._fill_slots(d, target, limit, now)
        window.nout += sent
        self._rings.tx.end_batch(sent, length)

    def _fill_slots(
        self, d: AoeDev, target: AoeTgt, limit: int, now: float
    ) -> tuple[int, int]:
        # Returns the number of frames, and the sum of their lengths.
        tx, factive, free, bios = self._rings.tx, d.factive, target.ffree, d.bios
        memory, assign_whole = self._rings.memory, d.assign_whole
        [ifp] = target.ifs
        head = untagged_header(target.addr, self._netdev.mac, d.address, Command.ATA)
        due = now + d.timing.timeout(0)
        base, lasttag = self._driver.tag_base, d.lasttag
        first, starts = tx.begin_batch(), tx.slots.offsets
        total = count = 0
        template = self._template
        for count in range(limit):
            slot = starts[first + count]
            if memory[slot] or not (bios or d.buf is not None):
                return count, total
            f = free.pop() if free else d.alloc_frame(target)
            if not (assign_whole(f) or d.assign_part(f)):
                free.append(f)
                return count, total
            if f.length != template.size or f.op is not template.op:
                template = self._template_for(f)
            while True:
                lasttag += 1
                tag = base | lasttag & TAG_COUNTER
                if tag not in factive:
                    break
            lba = f.sector.to_bytes(8, "little")
            template.pack(
                memory, slot, template.slot_header, head, tag, template.registers, lba
            )
            if template.writes:
                at = slot + DATA_OFFSET
                for page, offset, length in f.segments:
                    end = at + length
                    memory[at:end] = page.data[offset : offset + length]
                    at = end
            if f.earlier or f.attempts or f.is_probe:
                f.begin()
            f.tag, f.ifp, f.sent, f.due = tag, ifp, now, due
            f.min_response = template.min_response
            factive[tag] = f
            d.lasttag = lasttag
            total += template.length
        return limit, total

    def _template_for(self, f: Frame) -> _RequestTemplate:
        kind = f.op, f.length
        template = self._templates.get(kind)
        if template is None:
            template = self._templates[kind] = _RequestTemplate(f.op, f.length)
        self._template = template
        return template
