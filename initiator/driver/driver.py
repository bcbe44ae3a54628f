"""The AoE driver: turns bios into frames, and responses into calls of bi_end_io.

Mirrors drivers/block/aoe/aoecmd.c since v3.7 (third generation: frames span pages,
requests are split in order), rules K10 to K64. It does no I/O and has no clock. It is
driven by three groups of calls: ``submit`` and other user requests, ``receive``, and
``handle_timer``, due at ``next_timeout``. All take ``now``, in seconds of any monotonic
clock. Retransmission is in ``initiator.driver.rexmit``.

By default the driver differs from the kernel where the kernel's behaviour loses data or
time; see ``Options``. ``Options.kernel()`` selects the behaviour of Linux 6.1.
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import TYPE_CHECKING, Final, cast

from aoe.address import BROADCAST, Address
from aoe.ata import ATA_DATA
from aoe.errors import AoEError, BusyError, DeviceError
from aoe.header import (
    ETH_P_AOE,
    HEADER_LENGTH,
    TAG_COUNTER,
    TAG_USER,
    Command,
    ErrorCode,
    Flag,
    tag_prefix,
)
from initiator.driver import discovery, responses
from initiator.driver.aoedev import AoeDev, State
from initiator.driver.bio import Bio, BioIter, Op
from initiator.driver.options import Options
from initiator.driver.paths import candidates, narrow, unavailable, verify
from initiator.driver.requests import put_header, put_identify, put_request, query
from initiator.driver.rexmit import Rexmit
from initiator.driver.structs import SLOW_PATH_ONLY

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.driver.netdev import NetDevice
    from initiator.driver.page_hooks import PageHooks
    from initiator.driver.structs import Buf, Frame

_RESPONSE: Final = Struct("!6sHBBHBBI")
"""A header from its source MAC on; the destination MAC is not needed."""
# Plain integers: operations on enum members would dominate the cost per frame.
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
    """The AoE driver of one host, with all its devices.

    Attributes:
        devices: the devices that have responded to a query, by address.
        log: the last 100 lines that the kernel would write to /dev/etherd/err (K58,
            K66).
        unexpected: responses without an outstanding request.
        foreign: responses from MAC addresses that have not announced the device.
        runts: responses to reads that were too short and were ignored.
        page_hooks: page-count policy; None borrows pages without counting (K98).
        run_queue: devices with pending work. A caller that sets it to a dictionary has
            to call ``work`` for its devices before time advances; with None the driver
            calls ``work`` immediately.
        on_warning: called with an address and a line for the user, such as that a path
            was refused because it serves another disk.
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
        self.tag_base = tag_prefix(self.options.tag_base or 0)
        self._checks = self.options.check_responses
        self._rexmit = Rexmit(self)
        self.run_queue: dict[AoeDev, None] | None = None
        self.on_warning: Callable[[Address, str], None] | None = None

    # --- called by the user -----------------------------------------------------

    def add_netdev(self, netdev: NetDevice) -> None:
        """Add an interface to send queries on and receive responses from."""
        self.netdevs.append(netdev)

    def netdev_changed(self, netdev: NetDevice, now: float) -> None:
        """Handle an interface that was opened again or has another MTU.

        A smaller MTU applies immediately. A query for the open devices finds paths that
        are new or can carry larger frames.
        """
        discovery.apply_mtu(self, netdev, now)
        self.discover_open()

    def discover_open(self) -> None:
        """Query the open devices, to find further paths to them."""
        for d in self.devices.values():
            if d.nopen:
                self.discover(d.address)

    def identify_open(self, now: float) -> None:
        """Identify the open devices before anything else is sent to them (P84)."""
        for d in self.devices.values():
            if d.nopen and self.options.verify_paths:
                candidates.suspect_all(self, d, now)
            elif d.nopen and d.epochs.is_clean and d.targets:
                d.to_identify[d.targets[0]] = None
                self.schedule(d, now)

    def discover(self, address: Address = BROADCAST) -> None:
        """Broadcast a config query on every interface (K10-K12)."""
        tag = TAG_USER if self.options.tags == "user" else 0
        for netdev in self.netdevs:
            netdev.xmit(query(netdev.mac, address, tag))

    def open(self, d: AoeDev) -> None:
        """Open the device, which fixes its size (K19)."""
        if d.nopen == 0 and d.ident:
            d.epochs.reopen(d.ident)
        d.nopen += 1

    def close(self, d: AoeDev) -> None:
        """Close the device. The last close sends a query for its state (K10, K56)."""
        d.nopen -= 1
        if d.nopen == 0:
            if d.state is State.CLOSEWAIT:
                d.state = State.DOWN
            self.discover(d.address)

    def submit(self, d: AoeDev, bio: Bio, now: float) -> None:
        """Accept a bio; its ``end_io`` runs exactly once, possibly before the return.

        A bio fails at once if the device is down (K40), if it is not within the device
        or not whole sectors, or if it is a DISCARD and there is no TRIM (K38).
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

    def warn(self, d: AoeDev, text: str) -> None:
        """Log a line, and pass it to ``on_warning``."""
        self.log.append(f"{d.address}: {text}")
        if self.on_warning is not None:
            self.on_warning(d.address, text)

    def fail(self, d: AoeDev, error: AoEError) -> None:
        """Take the device down and end all its bios with ``error`` (``downdev``, K55).

        Frames that are in flight cannot be recalled; the sectors of writes among them
        stay locked until no duplicate can be in the network.
        """
        d.state = State.CLOSEWAIT if d.nopen else State.DOWN
        d.ssize = 0
        frames = [*d.factive.values(), *d.rexmitq.values()]
        d.factive.clear()
        d.rexmitq.clear()
        bios = dict.fromkeys(f.buf.bio for f in frames if f.buf is not None)
        if d.buf is not None:
            bios[d.buf.bio] = None
            d.buf = None
        bios |= dict.fromkeys((*(each.buf.bio for each in d.followups), *d.bios))
        bios |= dict.fromkeys(d.write_locks.clear_queue())
        d.followups.clear()
        d.bios.clear()
        for frame in frames:
            if frame.buf is not None:
                d.write_locks.add_in_flight(
                    frame.buf.bio, {**frame.earlier, frame.tag: frame.sent}
                )
            frame.buf = None
            self.free_frame(frame)
        d.candidates.clear()
        d.to_identify.clear()
        unavailable.reset(d)
        for target in d.targets:
            target.window.reset()
            target.window.nout = target.nout_probes = 0
            target.is_proven = not self.options.verify_paths
            target.identifying.clear()
            target.held.clear()
        for bio in bios:
            self._bio_done(d, bio, error)

    # --- called by the timer ----------------------------------------------------

    def next_timeout(self) -> float | None:
        """Return when ``handle_timer`` is due; None while nothing is outstanding."""
        times = [time for d in self.devices.values() for time in d.timeouts()]
        return min(times, default=None)

    def handle_timer(self, now: float) -> None:
        """Expire frames and retransmit them (``rexmit_timer``, K48-K50)."""
        for d in list(self.devices.values()):
            if d.next_tick is not None:
                if now < d.next_tick:
                    continue
                d.next_tick = now + d.timing.tick
            if self._rexmit.expire(d, now):
                self._kick(d, now)
            if d.candidates:
                verify.expire(self, d, now)
            self._run_unblocked(d, now)

    def _kick(self, d: AoeDev, now: float) -> None:
        """Retransmit expired frames; restart transmission after KICKME (K44, K50)."""
        if d.has_tags(now):
            self._rexmit.resend_deferred(d, now)
        d.kickme = False
        if self.options.kick:
            self.schedule(d, now)

    # --- called by the network --------------------------------------------------

    def receive(self, frame: memoryview, netdev: NetDevice, now: float) -> None:
        """Process a received Ethernet frame (K13); part of the slow path.

        It is called for each frame that the fast path does not handle. Frames that are
        malformed or not responses to this driver are ignored; no input raises. No
        reference to ``frame`` is kept.
        """
        if len(frame) < HEADER_LENGTH:
            return
        src, ethertype, verfl, error, shelf, slot, command, tag = _RESPONSE.unpack_from(
            frame, 6
        )
        if ethertype != ETH_P_AOE or not verfl & _IS_RESPONSE:
            return
        if bool(tag & TAG_USER) != self._user_tags and (tag or command != _CONFIG):
            return
        d = self._at.get((shelf, slot))
        if (
            command != _CONFIG
            and d is not None
            and not verify.admits(self, d, src, tag, frame, netdev, now)
        ):
            return
        if command == _ATA and d is not None and not verfl & _IS_ERROR:
            self._ata_rsp(d, tag, frame, netdev, now)
        else:
            address = Address(shelf, slot)
            if verfl & _IS_ERROR:
                self._error_rsp(address, error, command, tag, now)
            elif command == _CONFIG:
                discovery.on_config_response(
                    self, address, src, frame, netdev, tag, now
                )
            elif command == _ATA:
                self.log.append(f"aoecmd_ata_rsp: no such device {address}")
            elif command < 0xF0:
                self.log.append(f"unknown command {command} from {address}")

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
            if error == ErrorCode.DEVICE_UNAVAILABLE and f.needs_disk:
                unavailable.ask_again_later(self, d, f, now)
                return
            self.work(d, now)
            kind = BusyError if error == ErrorCode.RESERVED else DeviceError
            self._frame_done(d, f, kind(str(address), text), now)
        self._run_unblocked(d, now)

    def _ata_rsp(
        self, d: AoeDev, tag: int, frame: memoryview, netdev: NetDevice, now: float
    ) -> None:
        if len(frame) < ATA_DATA:
            return
        if self._checks and responses.is_runt(d, tag, frame, now):
            self.runts += 1
            return
        is_other = self._checks and responses.repeats_another_lba(d, tag, frame, now)
        f = None if is_other else d.match(tag, now)
        if f is None:
            responses.on_unexpected(self, d, frame, tag, now)
            self._run_unblocked(d, now)
            return
        if d.is_unavailable and f.needs_disk:
            unavailable.on_available(self, d, now)
        # New frames are sent before the response is processed (K27).
        self.work(d, now)
        if f.op is None and not f.is_probe:
            error = self._on_identify(d, f, frame, netdev, now)
        else:
            error = responses.complete(d, f, frame, netdev)
        self._frame_done(d, f, error, now)
        self._run_unblocked(d, now)

    def _on_identify(
        self, d: AoeDev, f: Frame, frame: memoryview, netdev: NetDevice, now: float
    ) -> AoEError | None:
        """Process the response to IDENTIFY; return the error of its FLUSH, or None."""
        if not self.options.verify_paths:
            error = responses.complete(d, f, frame, netdev)
            return error or d.epochs.on_identify(f, frame)
        error = responses.identify_error(d, frame) or d.epochs.on_identify(f, frame)
        if error is None or f.buf is None:
            verify.on_identify(self, d, f.target, frame, now)
        return error

    def _frame_done(
        self, d: AoeDev, f: Frame, error: AoEError | None, now: float
    ) -> None:
        """End a frame, and the bio with its last one.

        After an error the bio's other frames still run (K63).
        """
        buf, f.buf = f.buf, None
        if f.target.taint:
            self._rexmit.lower_taint(d, f.target, now)
        self.free_frame(f)
        if f.is_path_test:
            narrow.on_test_result(self, d, f, now, is_lost=False)
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
        """End a bio whose frames are all done, or queue FLUSH or IDENTIFY first."""
        if buf.flush and buf.bio.error is None:
            buf.flush = False
            d.add_followup(buf, Op.FLUSH, BioIter([], 0))
        elif buf.covers >= 0 and buf.bio.error is None and d.epochs.on_flushed(buf):
            d.add_followup(buf, None, BioIter([], 0))
        else:
            self._bio_done(d, buf.bio, None)

    def free_frame(self, f: Frame) -> None:
        """Return a frame and its skb to the target's pool (``aoe_freetframe``, K82)."""
        if self.page_hooks is not None:
            f.skb = self.page_hooks.frame_done(f.skb)
        f.target.ffree.append(f)

    def _bio_done(self, d: AoeDev, bio: Bio, error: AoEError | None) -> None:
        if self.page_hooks is not None:
            self.page_hooks.bio_ends(bio)
        if bio.op is not _READ and self.options.quarantine:
            d.write_locks.release(bio, lambda: d.frame_lifetime)
        _end_bio(bio, error)

    def resume(self, d: AoeDev, now: float) -> None:
        """Schedule work that the window may admit after responses."""
        if d.bios or d.buf is not None or d.rexmitq or d.to_identify:
            self.schedule(d, now)
        self._run_unblocked(d, now)

    def _run_unblocked(self, d: AoeDev, now: float) -> None:
        """Schedule writes whose range lock was granted, and follow-up commands."""
        if d.write_locks.queued:
            d.bios.extend(d.write_locks.grant(now))
            self.schedule(d, now)
        elif d.followups:
            self.schedule(d, now)

    # --- frames out -------------------------------------------------------------

    def schedule(self, d: AoeDev, now: float) -> None:
        """Put the device on the run queue, or run ``work`` if there is none."""
        if self.run_queue is None:
            self.work(d, now)
        else:
            self.run_queue[d] = None

    def work(self, d: AoeDev, now: float) -> None:
        """Send deferred frames, then new ones (``aoecmd_work``, K27).

        The slow path: any operation, any state of the targets.
        """
        if not d.has_tags(now):
            return
        if d.rexmitq:
            self._rexmit.resend_deferred(d, now)
        if d.to_identify:
            candidates.identify_waiting(self, d, now)
        while d.followups or d.buf is not None or d.bios:
            f = d.new_frame()
            if f is None:
                return
            d.assign(f)
            put_request(f, self.page_hooks, ext=d.ext)
            f.begin()
            self.transmit(d, f, now)

    def identify_any(self, d: AoeDev, now: float) -> None:
        """Send IDENTIFY on the next path (``aoecmd_ata_id``, K20)."""
        f = d.new_frame()
        if f is not None:
            if not d.nopen:
                d.timing.reset()
            self.send_identify(d, f, now)

    def send_identify(self, d: AoeDev, f: Frame, now: float, attempts: int = 0) -> None:
        """Send IDENTIFY, with the back-off after ``attempts`` lost frames."""
        f.buf = f.op = None
        f.segments = f.skb.frags = []
        put_identify(f.skb)
        if d.timing.tick and d.next_tick is None:
            d.next_tick = now + d.timing.tick
        f.begin()
        f.attempts = attempts
        self.transmit(d, f, now)

    def transmit(self, d: AoeDev, f: Frame, now: float) -> None:
        """Send a frame on its target's current interface.

        Each transmission writes a new tag into the frame's only header (K25, K52).
        """
        f.tag = tag = self._new_tag(d, now)
        target = f.target
        f.ifp = ifp = target.ifs[target.ifp]
        netdev = ifp.netdev
        put_header(f.skb, target.addr, netdev.mac, d.address, _ATA, tag)
        f.sent = now
        f.due = now + d.timing.timeout(f.attempts)
        f.min_response = SLOW_PATH_ONLY
        d.factive[tag] = f
        target.window.nout += 1
        if f.op is None and not f.is_probe:
            d.epochs.on_sent(f, (*d.factive.values(), *d.rexmitq.values()))
        netdev.xmit(f.skb)

    def jiffies(self, now: float) -> int:
        """Return the kernel's ``jiffies`` at this time, 32 bits."""
        return int(now * self.options.hz) & 0xFFFF_FFFF

    def _new_tag(self, d: AoeDev, now: float) -> int:
        while True:
            d.lasttag += 1
            if self._user_tags:
                tag = self.tag_base | d.lasttag & TAG_COUNTER
            else:
                tag = (d.lasttag & 0x7FFF) << 16 | self.jiffies(now) & 0xFFFF
            # The kernel does not check whether a tag is still in use (K26).
            if tag not in d.factive and tag not in d.rexmitq:
                return tag


def _end_bio(bio: Bio, error: AoEError | None) -> None:
    """Call ``end_io``; the first error of a bio is kept (``bio_endio``)."""
    if bio.error is None:
        bio.error = error
    bio.end_io(bio)
