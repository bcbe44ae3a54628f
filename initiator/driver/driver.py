"""The AoE driver: bios in, frames out, answers in, bi_end_io out.

Mirrors drivers/block/aoe/aoecmd.c as it is since v3.7 (the third generation: frames
cross page borders, requests are cut in order) with the rules K10 to K64. It does no
I/O and has no clock. Three things drive it: ``submit`` and its siblings, ``receive``,
and ``handle_timer``, called when ``next_timeout`` has come; all are given ``now``, in
seconds of any steady clock. What is done about lost frames is in
``initiator.driver.rexmit``.

Where the kernel's manners do not serve a user, ``Options`` says what is done instead;
``Options.kernel()`` is the kernel to the letter.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final, cast

from aoe.address import BROADCAST, Address
from aoe.ata import ATA_DATA
from aoe.config import Config
from aoe.errors import (
    AoEError,
    BusyError,
    DecodeError,
    DeviceError,
)
from aoe.header import (
    ETH_P_AOE,
    HEADER_LENGTH,
    TAG_USER,
    Command,
    ErrorCode,
    Flag,
)
from initiator.driver import discovery, responses
from initiator.driver.aoedev import AoeDev, State
from initiator.driver.bio import Bio, BioIter, Op
from initiator.driver.frame import NEVER
from initiator.driver.options import Options
from initiator.driver.requests import (
    TAG_COUNTER,
    put_command,
    put_header,
    put_identify,
    put_trim,
    query,
)
from initiator.driver.rexmit import Rexmit

if TYPE_CHECKING:
    from initiator.driver.frame import Buf, Frame
    from initiator.driver.netdev import NetDevice
    from initiator.driver.page_hooks import PageHooks

_ANSWER: Final = Struct("!6sHBBHBBI")
"""A header from its source MAC on: who answers needs no look at the destination."""
# Plain numbers: with enums, these bits would cost a frame more than all the rest.
_IS_RESPONSE: Final = int(Flag.RESPONSE)
_IS_ERROR: Final = int(Flag.ERROR)
_ATA: Final = int(Command.ATA)
_CONFIG: Final = int(Command.CONFIG)
_READ: Final = Op.READ
_WRITE: Final = Op.WRITE
_DISCARD: Final = Op.DISCARD
_FLUSH: Final = Op.FLUSH
_UP: Final = State.UP


class Driver:
    """All AoE devices of one host.

    Attributes:
        devices: those that have answered, by address.
        log: the last 100 lines of what /dev/etherd/err would say (K58, K66).
        unexpected: answers that nothing waited for.
        foreign: answers from who never said that the device is his.
        runts: answers to reads that were too short, and waited for again.
        page_hooks: called where a page-count policy acts; None borrows pages (K98).
        later: devices for which there is something to do; whoever sets it to a
            dictionary calls ``work`` for them before time passes. With None the driver
            does it at once.
    """

    def __init__(
        self, options: Options | None = None, page_hooks: PageHooks | None = None
    ) -> None:
        self.options = options or Options()
        self.page_hooks = page_hooks
        self.devices: dict[Address, AoeDev] = {}
        self._at = cast("dict[tuple[int, int], AoeDev]", self.devices)
        self.netdevs: list[NetDevice] = []
        self.log: deque[str] = deque(maxlen=100)
        self.unexpected = self.foreign = self.runts = 0
        self._user_tags = self.options.tags == "user"
        self.tag_base = TAG_USER | ((self.options.tag_base or 0) & 0xFFF) << 19
        self._checks = self.options.check_responses
        self._rexmit = Rexmit(self)
        self.run_queue: dict[AoeDev, None] | None = None

    # --- driven by the user -----------------------------------------------------

    def add_netdev(self, netdev: NetDevice) -> None:
        """Use an interface from now on, for queries and for targets heard on it."""
        self.netdevs.append(netdev)

    def netdev_changed(self, netdev: NetDevice, now: float) -> None:
        """Take note that an interface is another by now: back, or with another MTU.

        What it carries less than before is cut down at once; what it carries more, and
        who is behind it, is asked.
        """
        discovery.apply_mtu(self, netdev, now)
        self.discover_open()

    def discover_open(self) -> None:
        """Ask for the devices that are open: there may be more ways to them by now."""
        for d in self.devices.values():
            if d.nopen:
                self.discover(d.address)

    def discover(self, address: Address = BROADCAST) -> None:
        """Broadcast a config query on every interface (K10-K12)."""
        tag = TAG_USER if self.options.tags == "user" else 0
        for netdev in self.netdevs:
            netdev.xmit(query(netdev.mac, address, tag))

    def open(self, d: AoeDev) -> None:
        """Hold the device open: its size stays as it is (K19)."""
        d.nopen += 1

    def close(self, d: AoeDev) -> None:
        """Let go of it. The last close asks for its state anew (K10, K56)."""
        d.nopen -= 1
        if d.nopen == 0:
            if d.state is State.CLOSEWAIT:
                d.state = State.DOWN
            self.discover(d.address)

    def submit(self, d: AoeDev, bio: Bio, now: float) -> None:
        """Take a bio; its ``end_io`` runs exactly once, maybe before this returns.

        A bio for a device that is down (K40), for sectors that it does not have or for
        part of one fails at once, as does a DISCARD where there is no TRIM (K38).
        """
        bio.error = None
        op, size = bio.op, bio.size
        sends_flush = self.options.send_flush
        error = d.check_bio(bio, trims=self.options.send_discard)
        if error is not None:
            _end_bio(bio, error)
            return
        if not sends_flush:
            bio.fua = False
        if not (size or (sends_flush and op is _FLUSH)):
            _end_bio(bio, None)
            return
        if self.page_hooks is not None:
            self.page_hooks.bio_arrives(bio)
        changes = op is _WRITE or op is _DISCARD
        if not (changes and self.options.quarantine) or d.write_locks.acquire(bio, now):
            d.bios.append(bio)
            self.schedule(d, now)

    def fail(self, d: AoeDev, error: AoEError) -> None:
        """Take the device down; all its bios end with ``error`` (``downdev``, K55).

        Frames that were handed to an interface are not called back.
        """
        d.state = State.CLOSEWAIT if d.nopen else State.DOWN
        d.ssize = 0
        frames = [*d.factive.values(), *d.rexmitq.values()]
        d.factive.clear()
        d.rexmitq.clear()
        waiting = dict.fromkeys(f.buf.bio for f in frames if f.buf is not None)
        if d.buf is not None:
            waiting[d.buf.bio] = None
            d.buf = None
        waiting |= dict.fromkeys((*(rest.buf.bio for rest in d.rests), *d.bios))
        waiting |= dict.fromkeys(d.write_locks.clear_queue())
        d.rests.clear()
        d.bios.clear()
        for frame in frames:
            if frame.buf is not None:
                d.write_locks.add_in_flight(
                    frame.buf.bio, {**frame.earlier, frame.tag: frame.sent}
                )
            frame.buf = None
            self.free_frame(frame)
        for target in d.targets:
            target.window.reset()
            target.window.nout = target.nout_probes = 0
        for bio in waiting:
            self._bio_done(d, bio, error)

    # --- driven by the timer ----------------------------------------------------

    def next_timeout(self) -> float | None:
        """When ``handle_timer`` is wanted next; None while nothing is outstanding."""
        times = [time for d in self.devices.values() for time in d.timeouts()]
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        """Find lost frames and send them again (``rexmit_timer``, K48-K50)."""
        for d in list(self.devices.values()):
            if d.next_tick is not None:
                if now < d.next_tick:
                    continue
                d.next_tick = now + d.timing.tick
            if self._rexmit.expire(d, now):
                self._kick(d, now)
            self._wake(d, now)

    def _kick(self, d: AoeDev, now: float) -> None:
        """Send lost frames again; and new ones, if we are kicked (K44, K50)."""
        self._rexmit.resend_deferred(d, now)
        d.kickme = False
        if self.options.kick:
            self.schedule(d, now)

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
        if ethertype != ETH_P_AOE or not verfl & _IS_RESPONSE:
            return
        if bool(tag & TAG_USER) != self._user_tags and (tag or command != _CONFIG):
            return
        d = self._at.get((shelf, slot))
        if command != _CONFIG and d is not None and self._is_foreign(d, src):
            self.foreign += 1
        elif command == _ATA and d is not None and not verfl & _IS_ERROR:
            self._ata_rsp(d, tag, frame, netdev, now)
        else:
            address = Address(shelf, slot)
            if verfl & _IS_ERROR:
                self._error_rsp(address, error, command, tag, now)
            elif command == _CONFIG:
                self._config_rsp(address, src, tag, frame, netdev, now)
            elif command == _ATA:
                self.log.append(f"aoecmd_ata_rsp: no such device {address}")
            elif command < 0xF0:
                self.log.append(f"unknown command {command} from {address}")

    def _is_foreign(self, d: AoeDev, src: bytes) -> bool:
        return self._checks and d.find_target(src) is None

    def _error_rsp(
        self, address: Address, error: int, command: int, tag: int, now: float
    ) -> None:
        known = error in list(ErrorCode)
        text = ErrorCode(error).text if known else f"unknown error {error}"
        self.log.append(f"error packet from {address}; ecode={error} '{text}'")
        d = self.devices.get(address)
        if d is None or command != Command.ATA or not self.options.report_errors:
            return
        f = d.match(tag, now)
        if f is None:
            d.on_late_response(tag, now)
        else:
            self.work(d, now)
            kind = BusyError if error == ErrorCode.RESERVED else DeviceError
            self._frame_done(d, f, kind(str(address), text), now)
        self._wake(d, now)

    def _config_rsp(
        self,
        address: Address,
        src: bytes,
        tag: int,
        frame: memoryview,
        netdev: NetDevice,
        now: float,
    ) -> None:
        try:
            config = Config.unpack_from(frame)
        except DecodeError:
            return
        d = discovery.on_config_response(self, address, src, config, netdev)
        if d is None:
            return
        if not tag:
            # Nobody asked: the target starts, and may have become another (P48).
            d.read_only = None
        if self.options.shrink:
            d.expire_oversized(now)
        if d.nopen == 0 or (self.options.revive and d.state is not _UP):
            d.fw_ver = config.firmware
            self._identify(d, now)
        elif self._follows_size(d):
            d.wants_identify = True
            self.schedule(d, now)

    def _follows_size(self, d: AoeDev) -> bool:
        is_up = d.state is State.UP
        return self.options.follow_resize and is_up and not d.is_identifying

    def _ata_rsp(
        self, d: AoeDev, tag: int, frame: memoryview, netdev: NetDevice, now: float
    ) -> None:
        if len(frame) < ATA_DATA:
            return
        if self._checks and responses.is_runt(d, tag, frame):
            self.runts += 1
            return
        f = d.match(tag, now)
        if f is None:
            self._unexpected(d, frame, tag, now)
            self._wake(d, now)
            return
        # New frames go out before the answer is looked at (K27).
        self.work(d, now)
        self._frame_done(d, f, responses.take(d, f, frame, netdev), now)
        self._wake(d, now)

    def _unexpected(self, d: AoeDev, frame: memoryview, tag: int, now: float) -> None:
        self.unexpected += 1
        jiffies = self.jiffies(now)
        if self.options.tags == "kernel":
            # It may be the end of a jiffy already.
            d.timing.sample_late(((jiffies - tag & 0xFFFF) + 1) / self.options.hz)
        self.log.append(
            f"{'unexpected rsp':>15} {d.address}    tag={tag:08x}@{jiffies:08x} "
            f"s={frame[6:12].hex()} d={frame[:6].hex()}"
        )
        d.on_late_response(tag, now)

    def _frame_done(
        self, d: AoeDev, f: Frame, error: AoEError | None, now: float
    ) -> None:
        """End a frame and, with its last one, the bio; the rest still runs (K63)."""
        buf, f.buf = f.buf, None
        if f.target.taint:
            self._rexmit.lower_taint(d, f.target, now)
        self.free_frame(f)
        if buf is None:
            if error is not None:
                self.log.append(str(error))
            return
        bio = buf.bio
        if f.earlier:
            d.write_locks.add_in_flight(bio, f.earlier)
        if bio.error is None:
            bio.error = error
        buf.nframesout -= 1
        if not (buf.nframesout or buf.iter.size):
            self.buf_done(d, buf)

    def buf_done(self, d: AoeDev, buf: Buf) -> None:
        """All frames of a bio are answered: it ends, or a FLUSH is still to come."""
        if buf.flush and buf.bio.error is None:
            buf.flush = False
            d.add_followup(buf, Op.FLUSH, BioIter([], 0))
        else:
            self._bio_done(d, buf.bio, None)

    def free_frame(self, f: Frame) -> None:
        """``aoe_freetframe``: its skb stays with it, to be reused (K82)."""
        if self.page_hooks is not None:
            f.skb = self.page_hooks.frame_done(f.skb)
        f.target.ffree.append(f)

    def _bio_done(self, d: AoeDev, bio: Bio, error: AoEError | None) -> None:
        if self.page_hooks is not None:
            self.page_hooks.bio_ends(bio)
        if bio.op is not _READ and self.options.quarantine:
            # What answers slowly keeps its frames as long.
            d.write_locks.release(
                bio, lambda: max(self.options.quarantine, 4 * d.timing.timeout(0))
            )
        _end_bio(bio, error)

    def go_on(self, d: AoeDev, now: float) -> None:
        """Go on where answers may have made room."""
        if d.bios or d.buf is not None or d.rexmitq or d.wants_identify:
            self.schedule(d, now)
        self._wake(d, now)

    def _wake(self, d: AoeDev, now: float) -> None:
        """Go on with what waits for others: a FLUSH behind writes, a later write."""
        if d.write_locks.queued:
            d.bios.extend(d.write_locks.grant(now))
            self.schedule(d, now)
        elif d.rests:
            self.schedule(d, now)

    # --- frames out -------------------------------------------------------------

    def schedule(self, d: AoeDev, now: float) -> None:
        """Have ``work`` done."""
        if self.run_queue is None:
            self.work(d, now)
        else:
            self.run_queue[d] = None

    def work(self, d: AoeDev, now: float) -> None:
        """``aoecmd_work``: deferred frames first, then new ones (K27)."""
        if d.rexmitq:
            self._rexmit.resend_deferred(d, now)
        if d.wants_identify:
            self._identify(d, now)
        while d.rests or d.buf is not None or d.bios:
            f = d.new_frame()
            if f is None:
                return
            d.cut(f)
            self.fill(d, f)
            f.begin()
            self.transmit(d, f, now)

    def fill(self, d: AoeDev, f: Frame) -> None:
        """``aoecmd_ata_rw``: registers, and the memory of a write (K28-K36)."""
        skb, op = f.skb, f.op
        if f.buf is None or op is None:
            return
        if op is _DISCARD:
            put_trim(skb, f.sector, f.length, ext=d.ext)
            return
        put_command(skb, op, f.sector, f.length, ext=d.ext, fua=f.fua)
        if op is not _WRITE:
            skb.frags = []
        elif self.page_hooks is None:
            skb.frags = f.segments
        else:
            self.page_hooks.attach(f.buf.bio, skb, f.segments)

    def _identify(self, d: AoeDev, now: float) -> None:
        """``aoecmd_ata_id``: IDENTIFY DEVICE, and the estimate starts anew (K20)."""
        f = d.new_frame()
        if f is None:
            return
        f.buf = f.op = None
        f.segments = f.skb.frags = []
        put_identify(f.skb)
        d.wants_identify = False
        if not d.nopen:
            d.timing.reset()
        if d.timing.tick and d.next_tick is None:
            d.next_tick = now + d.timing.tick
        f.begin()
        self.transmit(d, f, now)

    def transmit(self, d: AoeDev, f: Frame, now: float) -> None:
        """Send a frame on its target's present interface.

        Every transmission has a new tag, in the one header there is (K25, K52).
        """
        f.tag = tag = self._new_tag(d, now)
        target = f.target
        f.ifp = ifp = target.ifs[target.ifp]
        netdev = ifp.netdev
        put_header(f.skb, target.addr, netdev.mac, d.address, _ATA, tag)
        f.sent = now
        f.due = now + d.timing.timeout(f.attempts)
        f.everyday = NEVER
        d.factive[tag] = f
        target.window.nout += 1
        netdev.xmit(f.skb)

    def jiffies(self, now: float) -> int:
        """Return the kernel's count of ticks at this time."""
        return int(now * self.options.hz) & 0xFFFF_FFFF

    def _new_tag(self, d: AoeDev, now: float) -> int:
        while True:
            d.lasttag += 1
            if self._user_tags:
                tag = self.tag_base | d.lasttag & TAG_COUNTER
            else:
                tag = (d.lasttag & 0x7FFF) << 16 | self.jiffies(now) & 0xFFFF
            # The kernel does not guard against a tag that is still in use (K26).
            if tag not in d.factive and tag not in d.rexmitq:
                return tag


def _end_bio(bio: Bio, error: AoEError | None) -> None:
    """``bio_endio``; what went wrong first counts."""
    if bio.error is None:
        bio.error = error
    bio.end_io(bio)
