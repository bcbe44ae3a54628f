"""The driver's objects (drivers/block/aoe/aoe.h): devices, targets, frames.

::

    AoeDev  one shelf.slot            --- targets -->  AoeTgt  one MAC address of it
      | factive, rexmitq: by tag                          | ifs
      v                                                   v
    Frame   one AoE command on its way                  AoeIf  one local interface
      | buf
      v
    Buf     one bio, cut into frames
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from aoe.ata import SECTOR
from aoe.errors import AoEError, DeviceError, UnsupportedError, UsageError
from aoe.header import sectors_per_frame
from aoe.identify import Identity
from initiator.driver.bio import Bio, BioIter, Op
from initiator.driver.frame import Buf, Followup, Frame
from initiator.driver.requests import TRIM_BLOCK
from initiator.driver.skbuff import Skb
from initiator.driver.write_order import RangeLocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe.address import Address
    from initiator.driver.netdev import NetDevice
    from initiator.driver.timing import Timing, Window

DEFAULT_BCNT: Final = 2 * SECTOR
"""Bytes a frame while nothing better is known (DEFAULTBCNT)."""
FRAMES_LIMIT: Final = 512
"""Frames that one target's pool may grow to (K7)."""
IFS_LIMIT: Final = 8
"""Interfaces that one target may be reached through (NAOEIFS, K7)."""
_CUT_UP: Final = BioIter([], 0)
"""Where a bio stands of which all has been cut into frames."""
_READ: Final = Op.READ
_WRITE: Final = Op.WRITE
_DISCARD: Final = Op.DISCARD
SKBPOOL_LIMIT: Final = 256
"""Skbs that a device may keep because clones of them are still about (K7)."""


class State(Enum):
    """What ``aoe-stat`` prints of a device."""

    DOWN = "down"
    UP = "up"
    CLOSEWAIT = "down,closewait"


@dataclass(slots=True, eq=False)
class AoeIf:
    """``struct aoeif``: a local interface through which a target was heard (K4).

    Attributes:
        lost: losses since the last good answer came in on it.
        lost_at: when the last of them was found out.
    """

    netdev: NetDevice
    bcnt: int
    lost: int = 0
    lost_at: float = float("-inf")


@dataclass(slots=True, eq=False)
class AoeTgt:
    """``struct aoetgt``: one MAC address that serves a device (K3).

    Attributes:
        ifp: which of ``ifs`` was used last; behind them all, if that was taken away.
        minbcnt: bytes a frame that all its interfaces carry (K18).
        taint: answers until it is trusted again; while not 0, the others are used.
        nout_probes: probes outstanding (K57).
        heard: when it last answered.
        rpkts, wpkts: read and write frames answered.
    """

    addr: bytes
    window: Window
    ifs: list[AoeIf] = field(default_factory=list)
    ifp: int = 0
    ffree: list[Frame] = field(default_factory=list)
    minbcnt: int = DEFAULT_BCNT
    taint: int = 0
    nout_probes: int = 0
    heard: float = float("-inf")
    rpkts: int = 0
    wpkts: int = 0

    @property
    def can_send(self) -> bool:
        """There is room in the window, and an interface to send on (K41)."""
        window = self.window
        return window.nout < window.maxout and self.ifp < len(self.ifs)

    def update_if(self, netdev: NetDevice, sector_count: int) -> bool:
        """Note that the target, which takes so many sectors, is behind ``netdev``.

        A frame carries what both ends can, and 1024 bytes if that is nothing: the MTU
        has no room for a sector, or the target says 0 and means 2 (K17, K18).

        Returns:
            Whether it can be used: a target has eight interfaces at most (K7).
        """
        bcnt = min(sectors_per_frame(netdev.mtu), sector_count) * SECTOR
        ifp = self.find_if(netdev)
        if ifp is not None:
            ifp.bcnt = bcnt or DEFAULT_BCNT
        elif len(self.ifs) < IFS_LIMIT:
            self.ifs.append(AoeIf(netdev, bcnt or DEFAULT_BCNT))
        else:
            return False
        self.update_minbcnt()
        return True

    def find_if(self, netdev: NetDevice) -> AoeIf | None:
        """``getif``."""
        return next((ifp for ifp in self.ifs if ifp.netdev is netdev), None)

    def rotate(self) -> None:
        """Go to the next interface (``ifrotate``, K42)."""
        ifp = self.ifp + 1
        self.ifp = ifp if ifp < len(self.ifs) else 0

    def eject(self, ifp: AoeIf) -> None:
        """Stop using an interface that loses too much (``ejectif``, K50).

        The next one steps into its place. If there is none, no new frame is sent until
        a resend has gone to the next; the kernel does not do that here either.
        """
        self.ifs.remove(ifp)

    def update_minbcnt(self) -> None:
        """The narrowest of its interfaces decides (K18)."""
        self.minbcnt = min(ifp.bcnt for ifp in self.ifs)

    def raise_taint(self, limit: int) -> None:
        """Trust it less: 3, 12, 39, 120, 363 and so on, up to ``limit`` (K57)."""
        self.taint = min((self.taint + 1) * 3, limit)


class AoeDev:
    """``struct aoedev``: one AoE device, an address that answered (K1).

    Attributes:
        ssize: size in sectors, 0 until IDENTIFY was answered.
        maxbcnt: bytes a frame that all paths carry (K18).
        factive: frames that wait for an answer, by tag, longest sent first.
        rexmitq: frames that are to be sent again, by their last tag (K50).
        rests: what frames had to leave when their paths became narrower, and what has
            to be done another way.
        bios: bios of which no frame has been built yet; ``buf``: the one in work.
        skbpool: skbs whose clones were not all gone when their frame was used again.
        kickme: no frame was to be had and none is out: nothing will start the work
            again but the timer (K44); ``kicked``, how often that was so.
        retransmits: frames sent again since the device is known.
        takes_fua: WRITE DMA FUA EXT has not been refused yet.
        trim_blocks: 512-byte blocks of ranges that one TRIM may carry; 0: no TRIM.
        order: which writes wait for others.
        wants_identify: an IDENTIFY is to be sent as soon as there is a frame for it.
        on_resize: called when an open device's size has changed.
        read_only: what became of the last write since the target was announced:
            refused, or accepted; None before there was one.
    """

    def __init__(self, address: Address, timing: Timing) -> None:
        self.address = address
        self.timing = timing
        self.state = State.DOWN
        self.nopen = 0
        self.fw_ver = 0
        self.ext = False
        self.ssize = 0
        self.ident = b""
        self.lasttag = 0
        self.maxbcnt = DEFAULT_BCNT
        self.targets: list[AoeTgt] = []
        self.tgt = 0
        self.factive: dict[int, Frame] = {}
        self.rexmitq: dict[int, Frame] = {}
        self.rests: deque[Followup] = deque()
        self.bios: deque[Bio] = deque()
        self.buf: Buf | None = None
        self.skbpool: deque[Skb] = deque()
        self.next_tick: float | None = None
        self.retransmits = 0
        self.kickme = False
        self.kicked = 0
        self.takes_fua = True
        self.trim_blocks = 0
        self.write_locks = RangeLocks()
        self.wants_identify = False
        self.on_resize: list[Callable[[], None]] = []
        self.read_only: bool | None = None

    @property
    def identity(self) -> Identity | None:
        """What the disk last said of itself."""
        return Identity.unpack(self.ident) if self.ident else None

    def find_target(self, mac: bytes) -> AoeTgt | None:
        """``gettgt``."""
        for target in self.targets:
            if target.addr == mac:
                return target
        return None

    @property
    def status(self) -> str:
        """What ``aoe-stat`` prints of it (K65)."""
        if self.kickme:
            return "up,kickme" if self.state is State.UP else "down,kickme"
        return self.state.value

    def check_bio(self, bio: Bio, *, trims: bool) -> AoEError | None:
        """Tell why a bio cannot be done here; ``trims``: TRIM may be sent."""
        size = bio.size
        if self.state is not State.UP:
            return DeviceError(str(self.address), "device is not up")
        if not 0 <= bio.sector <= self.ssize - size // SECTOR:
            return UsageError(str(self.address), "beyond the end of the device")
        if size % SECTOR:
            return UsageError("bio", "not a whole number of 512-byte sectors")
        if bio.op is _DISCARD and not (trims and self.trim_blocks):
            return UnsupportedError(str(self.address), "the disk has no TRIM")
        return None

    @property
    def has_untainted(self) -> bool:
        """At least one target answers as it should."""
        return not all(target.taint for target in self.targets)

    def new_frame(self) -> Frame | None:
        """Take a frame of the target whose turn it is, on its next interface.

        ``newframe``: targets take turns, from the one behind the last used; tainted
        ones only if all are (K41, K42).
        """
        if len(self.targets) == 1:
            [target] = self.targets
            free = target.ffree
            if not target.can_send:
                if target.window.nout and not target.taint:
                    return None
            elif free and free[-1].skb.dataref == 1:
                target.rotate()
                self.tgt = 0
                return free.pop()
        return self._search_frame()

    def _search_frame(self) -> Frame | None:
        """Do as ``new_frame``, for any number of targets in any state."""
        count = len(self.targets)
        out = 0
        trusted = False
        for tainted_too in (False, True):
            for step in range(1, count + 1):
                index = (self.tgt + step) % count
                target = self.targets[index]
                if not target.taint:
                    trusted = True
                    out += target.window.nout
                elif not tainted_too:
                    continue
                if target.can_send and (frame := self.frame_of(target)) is not None:
                    target.rotate()
                    self.tgt = index
                    return frame
            if trusted:
                break
        if not out:
            self.kicked += 1
            self.kickme = True
        return None

    def frame_of(self, target: AoeTgt) -> Frame | None:
        """Take the frame that was used last, with an skb that nobody else has (K43).

        ``newtframe``.

        While a clone is still somewhere, head and fragment table must stay as they are:
        the skb is parked, and the one parked longest is taken if its clones are gone.
        If not, and no more may be parked, there is no frame (K7).
        """
        frame = target.ffree.pop() if target.ffree else self.frame_for(target)
        if frame.skb.dataref != 1:
            pool = self.skbpool
            if pool and pool[0].dataref == 1:
                free = pool.popleft()
            elif len(pool) < SKBPOOL_LIMIT:
                free = Skb()
            else:
                target.ffree.append(frame)
                return None
            pool.append(frame.skb)
            frame.skb = free
        return frame

    def frame_for(self, target: AoeTgt) -> Frame:
        """Make a frame that stays with this target until it is lost there."""
        frame = Frame()
        frame.target = target
        return frame

    def update_maxbcnt(self) -> None:
        """The smallest path decides for all frames built from now on (K18)."""
        self.maxbcnt = min(t.minbcnt for t in self.targets)

    def cut(self, f: Frame) -> None:
        """Cut the next frame's memory off what waits; there is something (K28-K30)."""
        if self.rests:
            buf, op, position = self.rests[0]
        elif self.cut_whole(f):
            return
        else:
            buf = self.buf = self.buf or Buf(self.bios.popleft())
            op, position = buf.bio.op, buf.iter
        f.buf, f.op, f.sector = buf, op, position.sector
        f.length = length = min(self.limit(op), position.size)
        f.segments = position.take(length)
        f.fua = False
        if buf.bio.fua and op is _WRITE:
            # One flush costs less than frames that are each made stable alone.
            f.fua = self.takes_fua and self.ext and length == buf.bio.size
            buf.flush = not f.fua
        buf.nframesout += 1
        if position.size:
            return
        if self.rests:
            self.rests.popleft()
            buf.nframesout -= 1
        else:
            self.buf = None

    def cut_whole(self, f: Frame) -> bool:
        """Make one frame of the next bio, if it is so simple; most are."""
        if self.buf is not None:
            return False
        bio = self.bios[0]
        op, length = bio.op, bio.size
        if not 0 < length <= self.maxbcnt or op is _DISCARD or bio.fua:
            return False
        self.bios.popleft()
        f.buf = buf = Buf(bio, _CUT_UP)
        buf.nframesout = 1
        f.op, f.sector, f.length = op, bio.sector, length
        f.segments, f.fua = bio.vecs, False
        return True

    def cut_piece(self, f: Frame) -> bool:
        """Cut the next frame off, as ``cut`` does, of what is just read or written."""
        buf = self.buf
        if buf is None:
            buf = Buf(self.bios[0])
        bio, position = buf.bio, buf.iter
        op = bio.op
        if bio.fua or (op is not _READ and op is not _WRITE):
            return False
        if self.buf is None:
            self.bios.popleft()
        length = min(self.maxbcnt, position.size)
        f.buf, f.op, f.sector, f.length = buf, op, position.sector, length
        f.segments, f.fua = position.take(length), False
        buf.nframesout += 1
        self.buf = buf if position.size else None
        return True

    def limit(self, op: Op) -> int:
        """Count the bytes of the device that one frame can be about."""
        if op is not _DISCARD:
            return self.maxbcnt
        return min(self.trim_blocks, self.maxbcnt // SECTOR) * TRIM_BLOCK

    def add_followup(self, buf: Buf, op: Op, position: BioIter) -> None:
        """Have something done beside the bio's own course, before it is done."""
        # Until it is cut into frames, it counts as one.
        buf.nframesout += 1
        self.rests.append(Followup(buf, op, position))

    @property
    def is_identifying(self) -> bool:
        """An IDENTIFY waits for its answer."""
        frames = (*self.factive.values(), *self.rexmitq.values())
        return any(f.op is None and not f.is_probe for f in frames)

    def on_late_response(self, tag: int, now: float) -> None:
        """Take note that a transmission was executed that nobody waits for."""
        self.write_locks.answered(tag)
        for f in (*self.factive.values(), *self.rexmitq.values()):
            sent = f.earlier.pop(tag, None)
            if sent is not None and f.tag in self.factive:
                f.due = max(f.due, now + f.grace(now - sent))

    def match(self, tag: int, now: float) -> Frame | None:
        """Take the frame that an answer is for: active, or lost, not resent (K51)."""
        f = self.factive.pop(tag, None)
        if f is not None:
            target = f.target
            target.window.answered()
            target.window.nout -= 1
            target.nout_probes -= f.is_probe
        else:
            f = self.rexmitq.pop(tag, None)
            if f is None:
                return None
            target = f.target
        target.heard = now
        self.timing.sample(now - f.sent)
        return f

    def due(self, f: Frame) -> float:
        """When a frame counts as lost."""
        # The kernel asks its estimate when it looks, not when it sends (K48).
        return f.sent + self.timing.timeout(0) if self.timing.tick else f.due

    def timeouts(self) -> Iterator[float]:
        """When ``Driver.handle_timer`` may have something to do here."""
        if self.next_tick is not None:
            yield self.next_tick
            return
        yield from (f.due for f in self.factive.values())
        free_at = self.write_locks.next_timeout()
        if free_at is not None:
            yield free_at
        if self.rexmitq and self.has_untainted:
            for f in self.rexmitq.values():
                if f.is_probe and f.target.window.is_open:
                    yield self.next_probe(f)

    def next_probe(self, f: Frame) -> float:
        """When a lost probe may be sent again (K57)."""
        return f.sent + self.timing.probe_interval(f.target.taint)

    def reassign(self, f: Frame) -> bool:
        """Let a lost frame go to another target, if one has room (``reassign_frame``).

        The frame that was to be had there stays, for the old target's next one: pools
        keep their size.
        """
        other = self.new_frame()
        if other is None:
            return False
        target = other.target
        if target is not f.target:
            other.target, f.target = f.target, target
            f.waited = 0.0
            if not target.taint:
                f.attempts = 0
        other.target.ffree.append(other)
        return target is not other.target

    def expire_oversized(self, now: float) -> None:
        """Count the frames as lost that are longer than what all paths carry now."""
        for f in self.factive.values():
            if self._is_too_long(f):
                f.due = now

    def _is_too_long(self, f: Frame) -> bool:
        return f.op is not None and f.length > self.limit(f.op)

    def shrink(self, f: Frame) -> bool:
        """Cut a frame to what all paths carry now, if it is longer; keep the rest."""
        if f.buf is None or f.op is None or not self._is_too_long(f):
            return False
        whole = BioIter(f.segments, f.sector, f.length)
        f.length = self.limit(f.op)
        f.segments = whole.take(f.length)
        left, sector = whole.size, whole.sector
        self.add_followup(f.buf, f.op, BioIter(whole.take(left), sector, left))
        return True
