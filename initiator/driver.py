"""The AoE driver: bios in, frames out, answers in, bi_end_io out.

Mirrors drivers/block/aoe/aoecmd.c as it is since v3.7 (the third generation: frames
cross page borders, requests are cut in order) with the rules K10 to K64. It does no
I/O and has no clock. Three things drive it: ``submit`` and its siblings, ``receive``,
and ``handle_timer``, called when ``next_timeout`` has come; all are given ``now``, in
seconds of any steady clock.

Where the kernel's manners do not serve a user, ``Options`` says what is done instead;
``Options.kernel()`` is the kernel to the letter.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.address import BROADCAST, MAC_BROADCAST, SHELF_ALL, SLOT_ALL, Address
from aoe.ata import (
    ATA_DATA,
    DEVICE_LBA,
    REGISTERS,
    SECTOR,
    STATUS_BAD,
    AFlag,
    Opcode,
    describe_failure,
)
from aoe.config import CONFIG_STRING, Config
from aoe.errors import (
    AoEError,
    BusyError,
    DecodeError,
    DeviceError,
    NotFoundError,
    UsageError,
)
from aoe.header import (
    ETH_P_AOE,
    HEADER,
    HEADER_LENGTH,
    TAG_USER,
    VERSION,
    Command,
    ErrorCode,
    Flag,
)
from aoe.identify import Identity
from initiator.aoedev import AoeDev, AoeTgt, Buf, Frame, State
from initiator.bio import Bio, Op
from initiator.options import Options
from initiator.skbuff import Skb
from initiator.timing import TIMINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initiator.netdev import NetDevice

_ANSWER: Final = Struct("!6sHBBHBBI")
"""A header from its source MAC on: who answers needs no look at the destination."""
_STATUS: Final = 27
_ERROR: Final = 25
_SHELF_SWITCHES: Final = 0x0FFF
"""Shelf of a box whose address switches were never set; the kernel rejects it (K14)."""


class Driver:
    """All AoE devices of one host.

    Attributes:
        devices: those that have answered, by address.
        log: the last 100 lines of what /dev/etherd/err would say (K58, K66).
        unexpected: answers that nothing waited for.
    """

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.devices: dict[Address, AoeDev] = {}
        self.netdevs: list[NetDevice] = []
        self.log: deque[str] = deque(maxlen=100)
        self.unexpected = 0

    # --- driven by the user -----------------------------------------------------

    def add_netdev(self, netdev: NetDevice) -> None:
        """Use an interface from now on, for queries and for targets heard on it."""
        self.netdevs.append(netdev)

    def discover(self, address: Address = BROADCAST) -> None:
        """Broadcast a config query on every interface (K10-K12)."""
        user = self.options.tags == "user"
        for netdev in self.netdevs:
            skb = Skb(CONFIG_STRING)
            _put_header(
                skb,
                MAC_BROADCAST,
                netdev.mac,
                address,
                Command.CONFIG,
                TAG_USER if user else 0,
            )
            Config().pack_into(skb.head)
            netdev.xmit(skb)

    def open(self, d: AoeDev) -> None:
        """Hold the device open: its size stays as it is (K19)."""
        d.nopen += 1

    def close(self, d: AoeDev) -> None:
        """Let go of it. The last close asks for its state anew (K10)."""
        d.nopen -= 1
        if d.nopen == 0:
            self.discover(d.address)

    def submit(self, d: AoeDev, bio: Bio, now: float) -> None:
        """Take a bio; its ``end_io`` runs exactly once, maybe before this returns.

        A bio for a device that is down or beyond its end fails at once (K40).
        """
        if d.state is not State.UP:
            _end_bio(bio, DeviceError(str(d.address), "device is not up"))
        elif bio.sector + bio.size // SECTOR > d.ssize:
            _end_bio(bio, UsageError(str(d.address), "beyond the end of the device"))
        elif not bio.vecs and not (bio.op is Op.FLUSH and self.options.send_flush):
            _end_bio(bio, None)
        else:
            d.bios.append(bio)
            self._work(d, now)

    def fail(self, d: AoeDev, error: AoEError) -> None:
        """Take the device down; all its bios end with ``error`` (``downdev``, K55).

        Frames that were handed to an interface are not called back.
        """
        d.state = State.CLOSEWAIT if d.nopen else State.DOWN
        d.ssize = 0
        frames = [*d.factive.values(), *d.rexmitq.values()]
        d.factive.clear()
        d.rexmitq.clear()
        bios = {id(f.buf.bio): f.buf.bio for f in frames if f.buf is not None}
        if d.buf is not None:
            bios[id(d.buf.bio)] = d.buf.bio
            d.buf = None
        waiting = [*bios.values(), *d.bios]
        d.bios.clear()
        for frame in frames:
            frame.buf = None
            frame.target.ffree.append(frame)
        for target in d.targets:
            target.window.reset()
            target.window.nout = 0
        for bio in waiting:
            _end_bio(bio, error)

    # --- driven by the timer ----------------------------------------------------

    def next_timeout(self) -> float | None:
        """When ``handle_timer`` is wanted next; None while nothing is outstanding."""
        times = [time for d in self.devices.values() for time in _timeouts(d)]
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        """Find lost frames and send them again (``rexmit_timer``, K48-K50)."""
        for d in list(self.devices.values()):
            if d.next_tick is not None:
                if now < d.next_tick:
                    continue
                d.next_tick = now + d.timing.tick
            self._expire(d, now)
            self._work(d, now)

    def _expire(self, d: AoeDev, now: float) -> None:
        expired = [f for f in d.factive.values() if _due(d, f) <= now]
        deadsecs = self.options.deadsecs
        for frame in expired:
            if deadsecs and int(now - frame.born) > deadsecs:
                why = f"no answer for {int(now - frame.born)} s, device is down"
                self.fail(d, NotFoundError(str(d.address), why))
                return
            target = frame.target
            target.window.lost(frame.attempts + 1, frame.sent, now)
            ifp = frame.ifp
            ifp.lost += 1
            if (
                ifp.lost > 2 * target.window.nframes
                and len(target.ifs) > 1
                and ifp in target.ifs
            ):
                target.eject(ifp)
                d.update_maxbcnt()
            del d.factive[frame.tag]
            d.rexmitq[frame.tag] = frame
            target.window.nout -= 1
            frame.attempts += 1

    # --- driven by the network --------------------------------------------------

    def receive(self, frame: memoryview, netdev: NetDevice, now: float) -> None:
        """Take a frame from its first Ethernet byte; it is not kept (K13).

        Whatever the bytes are, nothing is raised: what is no answer to us is ignored.
        """
        if len(frame) < HEADER_LENGTH:
            return
        src, ethertype, verfl, error, shelf, slot, command, tag = _ANSWER.unpack_from(
            frame, 6
        )
        if ethertype != ETH_P_AOE or not verfl & Flag.RESPONSE:
            return
        user = self.options.tags == "user"
        if bool(tag & TAG_USER) != user and (tag or command != Command.CONFIG):
            return
        address = Address(shelf, slot)
        if verfl & Flag.ERROR:
            self._error_rsp(address, error, tag)
        elif command == Command.ATA:
            self._ata_rsp(address, src, tag, frame, now)
        elif command == Command.CONFIG:
            self._config_rsp(address, src, frame, netdev, now)
        elif command < 0xF0:
            self.log.append(f"unknown command {command} from {address}")

    def _error_rsp(self, address: Address, error: int, tag: int) -> None:
        known = error in list(ErrorCode)
        text = ErrorCode(error).text if known else f"unknown error {error}"
        self.log.append(f"error packet from {address}; ecode={error} '{text}'")
        d = self.devices.get(address)
        if d is None or not self.options.report_errors:
            return
        frame = self._take_frame(d, tag)
        if frame is not None:
            kind = BusyError if error == ErrorCode.RESERVED else DeviceError
            self._frame_done(d, frame, kind(str(address), text))

    def _config_rsp(
        self,
        address: Address,
        src: bytes,
        frame: memoryview,
        netdev: NetDevice,
        now: float,
    ) -> None:
        try:
            config = Config.unpack_from(frame)
        except DecodeError:
            return
        if (
            address.shelf in (SHELF_ALL, _SHELF_SWITCHES)
            or address.slot == SLOT_ALL
            or (self.options.only and address not in self.options.only)
        ):
            return
        d = self.devices.get(address)
        if d is None:
            timing = TIMINGS[self.options.timing]()
            d = self.devices[address] = AoeDev(address, timing)
        nframes = min(config.buffer_count, self.options.maxout)
        target = d.find_target(src)
        if target is None:
            target = AoeTgt(src, d.timing.window(nframes))
            d.targets.append(target)
        else:
            target.window.resize(nframes)
        target.hear(netdev, config.sector_count)
        d.update_maxbcnt()
        if d.nopen == 0:
            d.fw_ver = config.firmware
            self._identify(d, now)

    def _ata_rsp(
        self, address: Address, src: bytes, tag: int, frame: memoryview, now: float
    ) -> None:
        d = self.devices.get(address)
        if d is None:
            self.log.append(f"aoecmd_ata_rsp: no such device {address}")
            return
        if len(frame) < ATA_DATA:
            return
        f = d.factive.pop(tag, None)
        if f is not None:
            d.timing.sample(now - f.sent)
            f.target.window.answered()
            f.target.window.nout -= 1
        else:
            f = d.rexmitq.pop(tag, None)
            if f is None:
                self._unexpected(d, src, tag, now)
                return
            d.timing.sample(now - f.sent)
        # New frames go out before the answer is looked at (K27).
        self._work(d, now)
        self._complete(d, f, frame)

    def _unexpected(self, d: AoeDev, src: bytes, tag: int, now: float) -> None:
        self.unexpected += 1
        if self.options.tags == "kernel":
            hz = self.options.hz
            d.timing.stray_sample((int(now * hz) - tag & 0xFFFF) / hz)
        self.log.append(f"unexpected rsp {d.address} tag={tag:08x} s={src.hex()}")

    def _complete(self, d: AoeDev, f: Frame, frame: memoryview) -> None:
        """``ktiocomplete``: look at the status and copy data out (K60, K61)."""
        status = frame[_STATUS]
        error: AoEError | None = None
        if status & STATUS_BAD:
            why = describe_failure(status, frame[_ERROR])
            error = DeviceError(str(d.address), why)
        elif f.buf is None:
            self._identified(d, frame)
        elif f.buf.bio.op is Op.READ:
            position = ATA_DATA
            wanted = f.skb.head[26] * SECTOR
            if len(frame) < ATA_DATA + wanted:
                why = f"runt: {len(frame) - ATA_DATA} of {wanted} bytes"
                error = DeviceError(str(d.address), why)
            else:
                for page, offset, length in f.segments:
                    end = position + length
                    page.data[offset : offset + length] = frame[position:end]
                    position = end
                f.target.rpkts += 1
        else:
            f.target.wpkts += 1
        self._frame_done(d, f, error)

    def _identified(self, d: AoeDev, frame: memoryview) -> None:
        page = bytes(frame[ATA_DATA : ATA_DATA + SECTOR])
        if len(page) < SECTOR:
            self.log.append(f"runt IDENTIFY from {d.address}: {len(page)} bytes")
            return
        identity = Identity.unpack(page)
        d.ident = page
        d.ext = identity.lba48
        d.ssize = identity.sectors
        d.state = State.UP

    def _take_frame(self, d: AoeDev, tag: int) -> Frame | None:
        frame = d.factive.pop(tag, None)
        if frame is None:
            return d.rexmitq.pop(tag, None)
        frame.target.window.nout -= 1
        return frame

    def _frame_done(self, d: AoeDev, f: Frame, error: AoEError | None) -> None:
        """End a frame and, with its last one, the bio; the rest still runs (K63)."""
        buf, f.buf = f.buf, None
        f.target.ffree.append(f)
        if buf is None:
            if error is not None:
                self.log.append(str(error))
            return
        if error is not None and buf.bio.error is None:
            buf.bio.error = error
        buf.nframesout -= 1
        if buf.nframesout == 0 and d.buf is not buf:
            _end_bio(buf.bio, None)

    # --- frames out -------------------------------------------------------------

    def _work(self, d: AoeDev, now: float) -> None:
        """``aoecmd_work``: deferred frames first, then new ones (K27)."""
        if d.rexmitq:
            self._resend_deferred(d, now)
        while d.buf is not None or d.bios:
            target = d.next_target()
            if target is None:
                return
            if d.buf is None:
                d.buf = Buf(d.bios.popleft())
            self._build(d, target, d.buf, now)

    def _build(self, d: AoeDev, target: AoeTgt, buf: Buf, now: float) -> None:
        """``aoecmd_ata_rw``: cut the next frame off the bio (K28-K36)."""
        f = target.new_frame()
        f.buf = buf
        bio, position = buf.bio, buf.iter
        lba = position.sector
        length = min(d.maxbcnt, position.size)
        f.segments = position.take(length)
        aflags = 0
        if bio.op is Op.FLUSH:
            opcode = Opcode.FLUSH
        else:
            opcode = Opcode.WRITE if bio.op is Op.WRITE else Opcode.READ
            if d.ext:
                aflags = AFlag.EXTENDED
                opcode = Opcode(opcode | 0x04)
            else:
                # Bits 32 to 47 stay, as in the kernel: nothing looks at them.
                lba = lba & ~0xF000_0000 | DEVICE_LBA << 24
        skb = f.skb
        skb.frags = []
        if bio.op is Op.WRITE:
            aflags |= AFlag.WRITE
            skb.frags = f.segments
        REGISTERS.pack_into(
            skb.head,
            HEADER_LENGTH,
            aflags,
            0,
            length // SECTOR,
            opcode,
            lba & 0xFFFF_FFFF,
            lba >> 32,
            0,
        )
        buf.nframesout += 1
        if not position.size:
            d.buf = None
        f.born = now
        f.attempts = 0
        self._transmit(d, f, now)

    def _identify(self, d: AoeDev, now: float) -> None:
        """``aoecmd_ata_id``: IDENTIFY DEVICE, and the estimate starts anew (K20)."""
        target = d.next_target()
        if target is None:
            return
        f = target.new_frame()
        f.buf = None
        f.segments = f.skb.frags = []
        REGISTERS.pack_into(
            f.skb.head, HEADER_LENGTH, 0, 0, 1, Opcode.IDENTIFY, 0xA0 << 24, 0, 0
        )
        d.timing.reset()
        if d.timing.tick and d.next_tick is None:
            d.next_tick = now + d.timing.tick
        f.born = now
        f.attempts = 0
        self._transmit(d, f, now)

    def _resend_deferred(self, d: AoeDev, now: float) -> None:
        """Send lost frames again as far as the windows allow (K50, K52)."""
        for tag, f in list(d.rexmitq.items()):
            if not f.target.window.is_open:
                continue
            del d.rexmitq[tag]
            self._transmit(d, f, now)
            d.retransmits += 1
            self.log.append(
                f"retransmit {d.address} oldtag={tag:08x} newtag={f.tag:08x} "
                f"s={f.ifp.netdev.mac.hex()} d={f.target.addr.hex()} "
                f"nout={f.target.window.nout}"
            )

    def _transmit(self, d: AoeDev, f: Frame, now: float) -> None:
        """Every transmission has a new tag, in the one header there is (K25, K52)."""
        f.tag = tag = self._new_tag(d, now)
        f.ifp = ifp = f.target.rotate()
        netdev = ifp.netdev
        _put_header(f.skb, f.target.addr, netdev.mac, d.address, Command.ATA, tag)
        f.sent = now
        f.due = now + d.timing.timeout(f.attempts)
        d.factive[tag] = f
        f.target.window.nout += 1
        netdev.xmit(f.skb)

    def _new_tag(self, d: AoeDev, now: float) -> int:
        d.lasttag += 1
        options = self.options
        if options.tags == "kernel":
            return (d.lasttag & 0x7FFF) << 16 | int(now * options.hz) & 0xFFFF
        return TAG_USER | (options.tag_base & 0xFFF) << 19 | d.lasttag & 0x7FFFF


def _put_header(
    skb: Skb, dst: bytes, src: bytes, address: Address, command: int, tag: int
) -> None:
    HEADER.pack_into(
        skb.head,
        0,
        dst,
        src,
        ETH_P_AOE,
        VERSION << 4,
        0,
        address.shelf,
        address.slot,
        command,
        tag,
    )


def _due(d: AoeDev, f: Frame) -> float:
    # The kernel asks its estimate when it looks, not when it sends (K48).
    return f.sent + d.timing.timeout(0) if d.timing.tick else f.due


def _timeouts(d: AoeDev) -> Iterator[float]:
    if d.next_tick is not None:
        yield d.next_tick
    else:
        yield from (f.due for f in d.factive.values())


def _end_bio(bio: Bio, error: AoEError | None) -> None:
    """``bio_endio``."""
    if error is not None:
        bio.error = error
    bio.end_io(bio)
