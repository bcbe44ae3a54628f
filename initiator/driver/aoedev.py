"""``struct aoedev``: a device with its targets and frames (drivers/block/aoe/aoedev.c).

::

    AoeDev  one shelf.slot            --- targets -->  AoeTgt  one MAC address of it
      | factive, rexmitq: by tag                          | ifs
      v                                                   v
    Frame   one AoE command in flight                   AoeIf  one local interface
      | buf
      v
    Buf     one bio, split into frames
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Final

from aoe.ata import SECTOR
from aoe.errors import AoEError, DeviceError, UnsupportedError, UsageError
from aoe.identify import Identity
from initiator.driver.bio import Bio, BioIter, Op
from initiator.driver.flush.epoch import EpochGuard
from initiator.driver.requests import TRIM_BLOCK, TagBlocks, put_identify
from initiator.driver.skbuff import Skb
from initiator.driver.structs import (
    DEFAULT_BCNT,
    AoeTgt,
    Buf,
    Followup,
    Frame,
    Refusal,
)
from initiator.driver.write_order import RangeLocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe.address import Address
    from initiator.driver.netdev import NetDevice
    from initiator.driver.options import Options
    from initiator.driver.structs import AoeIf
    from initiator.driver.timing import Timing

FRAMES_LIMIT: Final = 512
"""Maximum number of frames in one target's pool (K7)."""
_EXHAUSTED: Final = BioIter([], 0)
"""The iterator of a bio that has been split into frames completely."""
_READ: Final = Op.READ
_WRITE: Final = Op.WRITE
_DISCARD: Final = Op.DISCARD
_FLUSH: Final = Op.FLUSH
SKBPOOL_LIMIT: Final = 256
"""Maximum number of skbs in a device's pool, whose clones are not freed yet (K7)."""


class State(Enum):
    """Device state, as ``aoe-stat`` prints it."""

    DOWN = "down"
    UP = "up"
    CLOSEWAIT = "down,closewait"


class AoeDev:
    """``struct aoedev``: one AoE device, created by its first config response (K1).

    Attributes:
        ssize: size in sectors, 0 until IDENTIFY has been answered.
        maxbcnt: data bytes per frame that all paths can carry (K18).
        tags: the limit for ``lasttag``.
        factive: outstanding frames by tag, in the order of transmission.
        rexmitq: expired frames to be retransmitted, by their last tag (K50).
        followups: further commands of bios in progress: remainders of truncated frames,
            plain writes after a rejected FUA write, FLUSHes after writes, IDENTIFY
            (without an operation) after FLUSHes.
        bios: bios that no frame has been built from yet.
        buf: the bio that is being split into frames.
        skbpool: skbs whose clones were not freed when their frame was reused.
        kickme: no frame could be allocated and none is outstanding, so that only the
            timer restarts transmission (K44); ``kicked``, how often this happened.
        retransmits: frames retransmitted since the device was created.
        takes_fua: WRITE DMA FUA EXT has not been rejected yet.
        trim_blocks: 512-byte blocks of ranges per TRIM; 0 means no TRIM.
        write_locks: range locks of writes in progress.
        to_identify: targets to send IDENTIFY to as soon as their window has room, and
            on which interface.
        candidates: targets that are not proven yet, by MAC address and interface.
        refusals: targets that are not used, by MAC address; the last few.
        conflict: the error after targets with different disks have answered.
        verified: when a target was last shown to serve the disk.
        up_since: when the first one was, since the device was down.
        on_resize: callbacks for a changed size of an open device.
        read_only: True if the last write since the target's announcement was rejected,
            False if it succeeded, None if there was none.
        unavailable_since: time of the first response in a row which said that the
            disk is unavailable at present; infinity if it is not.
        available_since: time of the end of the last such row.
    """

    def __init__(self, address: Address, timing: Timing, options: Options) -> None:
        self.address = address
        self.timing = timing
        self._options = options
        self.state = State.DOWN
        self.nopen = 0
        self.fw_ver = 0
        self.ext = False
        self.ssize = 0
        self.ident = b""
        self.lasttag = options.tag_start
        self.tags = TagBlocks(self.lasttag, is_limited=options.tags == "user")
        self.maxbcnt = DEFAULT_BCNT
        self.targets: list[AoeTgt] = []
        self.tgt = 0
        self.factive: dict[int, Frame] = {}
        self.rexmitq: dict[int, Frame] = {}
        self.followups: deque[Followup] = deque()
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
        self.to_identify: dict[AoeTgt, AoeIf | None] = {}
        self.candidates: dict[tuple[bytes, NetDevice], AoeTgt] = {}
        self.refusals: dict[bytes, Refusal] = {}
        self.conflict: AoEError | None = None
        self.verified = self.up_since = -inf
        self.epochs = EpochGuard(address)
        self.on_resize: list[Callable[[], None]] = []
        self.read_only: bool | None = None
        self.unavailable_since = inf
        self.available_since = -inf
        self.is_unavailable_reported = False

    @property
    def was_never_found(self) -> bool:
        """Whether no path has ever been proven, and none is a candidate."""
        return not (self.ident or self.nopen or self.targets or self.candidates)

    @property
    def identity(self) -> Identity | None:
        """The last IDENTIFY data, decoded; None before there is any."""
        return Identity.unpack(self.ident) if self.ident else None

    def find_target(self, mac: bytes) -> AoeTgt | None:
        """Return the target with this MAC address, if any (``gettgt``)."""
        for target in self.targets:
            if target.addr == mac:
                return target
        return None

    @property
    def status(self) -> str:
        """The state as ``aoe-stat`` prints it, with ``kickme`` (K65)."""
        if self.kickme:
            return "up,kickme" if self.state is State.UP else "down,kickme"
        return self.state.value

    @property
    def frame_lifetime(self) -> float:
        """Seconds for which a frame is assumed to stay in the network."""
        # With a slow target, frames may stay longer than the option says.
        return max(self._options.quarantine, 4 * self.timing.timeout(0))

    def has_tags(self, now: float) -> bool:
        """Return True if there are tags for a batch that no frame in flight has."""
        tags = self.tags
        return self.lasttag < tags.end or tags.reach(
            self.lasttag, now, self.frame_lifetime
        )

    def check_bio(self, bio: Bio, *, trims: bool) -> AoEError | None:
        """Return the error of an invalid bio, or None; ``trims`` allows DISCARD."""
        size = bio.size
        if self.state is not State.UP:
            return self.down_error
        if not 0 <= bio.sector <= self.ssize - size // SECTOR:
            return UsageError(str(self.address), "beyond the end of the device")
        if size % SECTOR:
            return UsageError("bio", "not a whole number of 512-byte sectors")
        if bio.op is _DISCARD and not (trims and self.trim_blocks):
            return UnsupportedError(str(self.address), "the disk has no TRIM")
        return None

    @property
    def down_error(self) -> AoEError:
        """The error of a bio while the device is not up."""
        why = f"device is not up{self.refused}"
        return self.conflict or DeviceError(str(self.address), why)

    @property
    def refused(self) -> str:
        """The refused paths, to be appended to an error."""
        return "".join(f"; refused {each.why}" for each in self.refusals.values())

    @property
    def has_untainted(self) -> bool:
        """Whether at least one proven target is not tainted."""
        return any(each.is_proven and not each.taint for each in self.targets)

    @property
    def has_proven(self) -> bool:
        """Whether at least one target is proven."""
        return any(each.is_proven for each in self.targets)

    def outstanding(self, tag: int) -> Frame | None:
        """Return the frame with this tag, active or deferred."""
        f = self.factive.get(tag)
        return self.rexmitq.get(tag) if f is None else f

    def new_frame(self) -> Frame | None:
        """Return a free frame of the next target that can send, or None (``newframe``).

        Targets are selected round robin, starting after the one used last; tainted
        targets only if all are tainted. The target's interface is rotated (K41, K42).
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
        return self._new_frame_slow()

    def _new_frame_slow(self) -> Frame | None:
        """Do the work of ``new_frame`` for any number of targets in any state."""
        count = len(self.targets)
        out = 0
        untainted = False
        for tainted_too in (False, True):
            for step in range(1, count + 1):
                index = (self.tgt + step) % count
                target = self.targets[index]
                if not target.is_proven:
                    continue
                if not target.taint:
                    untainted = True
                    out += target.window.nout
                elif not tainted_too:
                    continue
                if (
                    target.can_send
                    and (frame := self.new_target_frame(target)) is not None
                ):
                    target.rotate()
                    self.tgt = index
                    return frame
            if untainted:
                break
        if not out and self.has_proven and not self.is_unavailable:
            self.kicked += 1
            self.kickme = True
        return None

    def new_target_frame(self, target: AoeTgt) -> Frame | None:
        """Return the target's most recently freed frame, or None (``newtframe``, K43).

        The frame's skb must not be shared: while a clone exists, header and fragments
        must not change. A shared skb is parked at the tail of the pool and replaced by
        the pool's head if that is unshared, else by a new skb. If the pool is full,
        there is no frame (K7).
        """
        frame = target.ffree.pop() if target.ffree else self.alloc_frame(target)
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

    def alloc_frame(self, target: AoeTgt) -> Frame:
        """Allocate a frame of this target's pool."""
        frame = Frame()
        frame.target = target
        return frame

    def update_maxbcnt(self) -> None:
        """Set ``maxbcnt`` to the smallest ``minbcnt`` of all targets (K18)."""
        self.maxbcnt = min((t.minbcnt for t in self.targets), default=DEFAULT_BCNT)

    def assign(self, f: Frame) -> None:
        """Assign the next part of the queued work to a frame (K28-K30).

        ``followups``, ``buf`` or ``bios`` must not be empty.
        """
        if self.followups:
            buf, op, position = self.followups[0]
        elif self.assign_whole(f):
            return
        else:
            buf = self.buf = self.buf or Buf(self.bios.popleft())
            op, position = buf.bio.op, buf.iter
        f.buf, f.op, f.sector = buf, op, position.sector
        f.length = length = min(self.max_length(op), position.size)
        f.segments = position.advance(length)
        f.fua = False
        if buf.bio.fua and op is _WRITE:
            # One FLUSH after all frames costs less than FUA on each of several.
            f.fua = self.takes_fua and self.ext and length == buf.bio.size
            buf.flush = not f.fua
        buf.nframesout += 1
        if op is _FLUSH:
            buf.covers = self.epochs.answered
        elif op is None:
            f.skb.frags = []
            put_identify(f.skb)
        if position.size:
            return
        if self.followups:
            self.followups.popleft()
            buf.nframesout -= 1
        else:
            self.buf = None

    def assign_whole(self, f: Frame) -> bool:
        """Assign the next bio if it fits into a frame; return False for others."""
        if self.buf is not None:
            return False
        bio = self.bios[0]
        op, length = bio.op, bio.size
        if not 0 < length <= self.maxbcnt or op is _DISCARD or bio.fua:
            return False
        self.bios.popleft()
        f.buf = buf = Buf(bio, _EXHAUSTED)
        buf.nframesout = 1
        f.op, f.sector, f.length = op, bio.sector, length
        f.segments, f.fua = bio.vecs, False
        return True

    def assign_part(self, f: Frame) -> bool:
        """Assign the next part of a plain READ or WRITE; return False for others."""
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
        f.segments, f.fua = position.advance(length), False
        buf.nframesout += 1
        self.buf = buf if position.size else None
        return True

    def max_length(self, op: Op | None) -> int:
        """Return how many bytes of the device one frame of this kind can cover."""
        if op is not _DISCARD:
            return self.maxbcnt
        return min(self.trim_blocks, self.maxbcnt // SECTOR) * TRIM_BLOCK

    def add_followup(self, buf: Buf, op: Op | None, position: BioIter) -> None:
        """Queue a further command of a bio, which ends only after it."""
        # Counts as an outstanding frame until it has been split into frames.
        buf.nframesout += 1
        self.followups.append(Followup(buf, op, position))

    def on_late_response(self, tag: int, now: float) -> None:
        """Record that an earlier transmission of a frame was answered.

        It releases the transmission's hold on the write range, and extends the timeout
        of the last one: the target is slow and probably has it queued.
        """
        self.write_locks.retire(tag)
        for f in (*self.factive.values(), *self.rexmitq.values()):
            sent = f.earlier.pop(tag, None)
            if sent is not None and f.tag in self.factive:
                f.due = max(f.due, now + f.grace(now - sent))

    def match(self, tag: int, now: float) -> Frame | None:
        """Remove and return the frame with this tag, active or deferred (K51).

        The window, the RTT estimate and the target's ``last_response`` are updated.
        """
        f = self.factive.pop(tag, None)
        if f is not None:
            target = f.target
            target.window.on_response()
            target.window.nout -= not f.is_path_test
            target.nout_probes -= f.is_probe
        else:
            f = self.rexmitq.pop(tag, None)
            if f is None:
                return None
            target = f.target
        if f.is_identify:
            target.identifying.clear()
        target.last_response = now
        self.timing.sample(now - f.sent)
        return f

    def due(self, f: Frame) -> float:
        """Return the time at which a frame expires."""
        # The kernel computes the RTO in the timer, not on transmission (K48).
        return f.sent + self.timing.timeout(0) if self.timing.tick else f.due

    def timeouts(self) -> Iterator[float]:
        """Yield the times at which ``Driver.handle_timer`` may have work to do."""
        if self.next_tick is not None:
            yield self.next_tick
            return
        yield from (f.due for f in self.factive.values())
        yield from (each.next_step for each in self.candidates.values())
        if self.tags.free_at is not None:
            yield self.tags.free_at
        free_at = self.write_locks.next_timeout()
        if free_at is not None:
            yield free_at
        if not self.rexmitq:
            return
        if not self.has_untainted:
            target = self.next_to_ask()
            if target is not None and any(f.buf for f in self.rexmitq.values()):
                yield target.ask_at
        else:
            for f in self.rexmitq.values():
                if f.is_probe and f.target.is_proven and f.target.window.is_open:
                    yield self.next_probe(f)

    @property
    def is_unavailable(self) -> bool:
        """Whether a target has said that the disk is unavailable, and is waited for."""
        return self.unavailable_since < inf

    def next_to_ask(self) -> AoeTgt | None:
        """Return the target to ask next for a disk that is unavailable.

        None if all disks are available, or a request is outstanding at the target.
        """
        waiting = [t for t in self.targets if t.is_proven and t.ask_at < inf]
        target = min(waiting, key=lambda each: each.ask_at, default=None)
        return None if target is None or target.window.nout else target

    def next_probe(self, f: Frame) -> float:
        """Return the earliest time to retransmit a lost probe (K57)."""
        return f.sent + self.timing.probe_interval(f.target.taint)

    def reassign(self, f: Frame) -> bool:
        """Move an expired frame to another target that has room (``reassign_frame``).

        The free frame of the new target goes to the old target's pool in exchange, so
        that pool sizes stay the same.

        Returns:
            False if there is no other target to move it to.
        """
        other = self.new_frame()
        return other is not None and self._exchange(f, other)

    def move(self, f: Frame, target: AoeTgt) -> bool:
        """Move a frame to a target; return False if this has no free frame."""
        other = self.new_target_frame(target)
        return other is not None and self._exchange(f, other)

    @staticmethod
    def _exchange(f: Frame, other: Frame) -> bool:
        target = other.target
        if target is not f.target:
            other.target, f.target = f.target, target
            f.waited = 0.0
            if not target.taint:
                f.attempts = 0
        other.target.ffree.append(other)
        return target is not other.target

    def expire_oversized(self, now: float) -> None:
        """Make frames that are longer than ``maxbcnt`` by now expire at once."""
        for f in self.factive.values():
            if self.is_too_long(f):
                f.due = now

    def is_too_long(self, f: Frame) -> bool:
        """Return True if a frame is longer than the paths can carry by now."""
        return f.op is not None and f.length > self.max_length(f.op)
