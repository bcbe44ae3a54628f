"""What can happen next in a world, one step at a time, for the explorer.

A ``Run`` is a world whose card sends nothing by itself: every clone waits until a step
moves it on, every answer until a step delivers it, and time passes only when a frame is
to time out. The steps are those of ``STEPS``; how often each may happen, ``Bounds``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.ata import SECTOR, Registers
from initiator.driver.aoedev import State
from initiator.lab.cases import ALL_SUBMITTERS
from initiator.lab.explorer.snapshot import Snapshots, attributes, clones
from initiator.lab.kernel.memory import PAGE_SIZE
from initiator.lab.peer import MemoryPeer
from initiator.lab.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.driver.frame import Frame
    from initiator.lab.kernel.journal import Journal
    from initiator.lab.kernel.nic import Nic
    from initiator.lab.kernel.policy import Policy
    from initiator.lab.kernel.skbuff import Clone

_MOMENT: Final = 0.001
"""Seconds between two steps: no two frames are sent at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far to look.

    Args:
        bios: writes that are submitted.
        buffers: buffers in each of them.
        retransmissions: how often each frame may be sent again.
        duplicates: answers that come twice.
        reallocations: how often somebody else allocates memory.
        failures: how often the device fails, once at most.
        max_steps: longest order of steps, None for no end.
        max_states: give up after so many.
    """

    bios: int = 1
    buffers: int = 1
    retransmissions: int = 1
    duplicates: int = 1
    reallocations: int = 1
    failures: int = 1
    max_steps: int | None = None
    max_states: int = 5_000_000


class Step(NamedTuple):
    """One thing that happens.

    Args:
        kind: a key of ``STEPS``.
        which: the number of the bio or clone, the place of the answer, how many frames.
        what: the submitter whose kind of memory is allocated.
    """

    kind: str
    which: int = 0
    what: str = ""


STEPS: Final = {
    "submit": "bio {which} is submitted: {what}",
    "leave": "clone {which} leaves the queue",
    "send": "the card sends clone {which}: its bytes are read and reach the target",
    "lose": "the card sends clone {which}: its bytes are read and lost on the wire",
    "complete": "TX completion of clone {which}: it is freed",
    "answer": "the answer to bio {which} arrives",
    "duplicate": "the answer to bio {which} arrives, and will come once more",
    "old answer": "an answer arrives that nobody waits for any more",
    "time out": "no answer in time: {which} frame(s) sent again",
    "fail": "the device fails, all bios end",
    "fail and free": "the device fails, all bios end, their owners give the buffers up",
    "give up": "bio {which}'s owner gives the buffer up",
    "reallocate": "somebody else allocates memory and fills it: {what}",
    "rewrite": "bio {which}'s owner writes new content into the buffer",
    "settle": "everything else comes to its end",
}
"""All kinds of steps, and how to tell them to people."""


class Stepper:
    """A world under way, and what may still happen to it.

    Args:
        policy: who counts what.
        nic: the kind of card.
        submitters: names; the bios take turns in using them.
        bounds: how often things happen.
        contents: whether it matters what pages contain; if not, no owner rewrites.
        keep: keep the whole journal.

    Attributes:
        duplicates: answers that have come twice.
        rewritten: numbers of the bios whose buffers have new content.
    """

    def __init__(
        self,
        policy: Policy,
        nic: Nic,
        submitters: Sequence[str],
        bounds: Bounds,
        *,
        contents: bool = True,
        keep_entries: bool = False,
    ) -> None:
        self.submitters = [ALL_SUBMITTERS[name] for name in submitters]
        self.bounds = bounds
        self.contents = contents
        pages = self._pages_needed(policy)
        self.world = World(
            policy,
            nic,
            pages=pages,
            peer=MemoryPeer(bounds.bios * bounds.buffers * PAGE_SIZE // SECTOR),
            keep_entries=keep_entries,
        )
        modelled = self.world.nic
        modelled.hold_qdisc = modelled.hold_ring = modelled.hold_completion = True
        driver = self.world.driver
        # When a device fails is a step of its own, not a matter of time.
        driver.options = replace(driver.options, deadsecs=0)
        self._payloads: dict[bytes, int] = {}
        self.duplicates = 0
        self.rewritten: tuple[int, ...] = ()
        mine = [(attributes("duplicates rewritten"), self)]
        self.snapshots = Snapshots(self.world, mine)

    def _pages_needed(self, policy: Policy) -> int:
        """Enough for all buffers and copies at once, in pairs if some take two."""
        bounds = self.bounds
        buffers = bounds.bios * bounds.buffers
        copies = buffers if policy.sendpage_ok else 0
        buffers += bounds.reallocations
        kinds = {each.kind for each in self.submitters}
        if policy.filesystem_uses_pages:
            kinds &= {"vmalloc"}
        return (1 if kinds <= {"page", "slab"} else 2) * (buffers + copies)

    @property
    def journal(self) -> Journal:
        """What has happened."""
        return self.world.journal

    def number(self, payload: bytes) -> int:
        """Number a clone's private copy of what it carries."""
        return self._payloads.setdefault(payload, len(self._payloads))

    # --- what can happen ---------------------------------------------------------

    def enabled_steps(self) -> list[Step]:
        """Return all that can happen next; of steps that do the same, one."""
        return [
            *self._network_steps(),
            *self._driver_steps(),
            *self._owner_steps(),
        ]

    def _network_steps(self) -> Iterator[Step]:
        nic = self.world.nic
        for clone in _distinct(nic.qdisc):
            yield Step("leave", clone.number)
        for clone in _distinct(nic.ring):
            yield Step("send", clone.number)
            yield Step("lose", clone.number)
        for clone in _distinct(nic.sent):
            yield Step("complete", clone.number)
        frames = set()
        for index, answer in enumerate(self.world.responses):
            frame = self._frame_for(tag_of(answer))
            if frame in frames:
                continue
            frames.add(frame)
            if frame is None:
                yield Step("old answer", index)
                continue
            yield Step("answer", index)
            if self.duplicates < self.bounds.duplicates:
                yield Step("duplicate", index)

    def _driver_steps(self) -> Iterator[Step]:
        device = self.world.device
        waiting = list(device.factive.values())
        for number, frame in enumerate(waiting, 1):
            if frame.attempts >= self.bounds.retransmissions:
                break
            if number == len(waiting) or waiting[number].sent != frame.sent:
                yield Step("time out", number)
        if device.state is State.UP and self.bounds.failures and self.world.writes:
            yield Step("fail")
            if len([w for w in self.world.writes if not w.ended]) > 1:
                # With one bio alone, its owner's next step is the same thing.
                yield Step("fail and free")

    def _owner_steps(self) -> Iterator[Step]:
        world = self.world
        number = len(world.writes)
        if number < self.bounds.bios:
            submitter = self.submitters[number % len(self.submitters)]
            yield Step("submit", number, submitter.name)
        for write in world.writes:
            if write.ended and write.buffer.is_held:
                yield Step("give up", write.number)
                if self.contents and write.number not in self.rewritten:
                    yield Step("rewrite", write.number)
        if number and len(world.realloc_buffers) < self.bounds.reallocations:
            for name in dict.fromkeys(each.name for each in self.submitters):
                yield Step("reallocate", len(world.realloc_buffers), name)

    @property
    def is_quiescent(self) -> bool:
        """All bios have ended, all buffers are given up, and no clone is about."""
        world = self.world
        return (
            len(world.writes) == self.bounds.bios
            and all(w.ended and not w.buffer.is_held for w in world.writes)
            and not any(clones(world.nic))
        )

    # --- letting it happen -------------------------------------------------------

    def apply(self, step: Step) -> None:
        """Let a step happen, one of ``choices`` or ``settle``.

        Raises:
            BugOn: the machine stopped.
            AoEError: no memory is left for it.
        """
        world = self.world
        world.now += _MOMENT
        match step.kind:
            case "submit":
                world.submit(ALL_SUBMITTERS[step.what], self.bounds.buffers)
            case "answer" | "old answer":
                world.deliver_response(step.which)
            case "duplicate":
                self.duplicates += 1
                world.deliver_response(step.which, duplicate=True)
            case "time out":
                self._time_out(step.which)
            case "reallocate":
                world.reallocate(ALL_SUBMITTERS[step.what])
            case "settle":
                world.finish()
            case "leave" | "send" | "lose" | "complete":
                self._apply_to_clone(step)
            case _:
                self._apply_to_owner(step)

    def _apply_to_clone(self, step: Step) -> None:
        nic = self.world.nic
        clone = self._clone(step.which)
        match step.kind:
            case "leave":
                nic.validate(clone)
            case "send":
                nic.transmit(clone)
            case "lose":
                self.world.transmit_lost(clone)
            case "complete":
                nic.complete(clone)

    def _apply_to_owner(self, step: Step) -> None:
        world = self.world
        match step.kind:
            case "give up":
                world.free_buffer(world.writes[step.which])
            case "rewrite":
                self.rewritten += (step.which,)
                world.rewrite(world.writes[step.which])
            case "fail" | "fail and free":
                world.free_in_end_io = step.kind == "fail and free"
                world.fail_device()
                world.free_in_end_io = False

    def _time_out(self, frames: int) -> None:
        """Let the longest sent few frames time out, and none of the others.

        Any time may have passed between two steps, as long as their order holds. So the
        others are taken to have been sent later than they were, shortly before now.
        """
        world, device = self.world, self.world.device
        waiting = list(device.factive.values())
        due = waiting[frames - 1].sent + device.timing.timeout(0)
        until = max(world.now, due, device.next_tick or 0.0)
        others = waiting[frames:]
        times = sorted({frame.sent for frame in others})
        for frame in others:
            frame.sent = until - _MOMENT * (len(times) - times.index(frame.sent))
        world.retransmit(until)

    # --- telling it --------------------------------------------------------------

    def describe(self, step: Step) -> str:
        """Say in words what a step is, before it happens."""
        which = step.which
        if step.kind in ("answer", "duplicate"):
            frame = self._frame_for(tag_of(self.world.responses[which]))
            bio = frame.buf.bio if frame is not None and frame.buf is not None else None
            which = next(w.number for w in self.world.writes if w.bio is bio)
        words = STEPS[step.kind].format(which=which, what=step.what)
        if step.kind in ("leave", "send", "lose", "complete"):
            bio_number = self._bio_of(self._clone(which))
            words = words.replace(
                f"clone {which}", f"clone {which} (of bio {bio_number})"
            )
        return words

    def _clone(self, number: int) -> Clone:
        return next(c for c in clones(self.world.nic) if c.number == number)

    def _bio_of(self, clone: Clone) -> int:
        head = clone.skb.head if clone.skb is not None else clone.head
        lba = Registers.unpack_from(head).lba
        return max(w.number for w in self.world.writes if w.bio.sector <= lba)

    def _frame_for(self, tag: int) -> Frame | None:
        device = self.world.device
        return device.factive.get(tag) or device.rexmitq.get(tag)


def _distinct(queue: Sequence[Clone]) -> Iterator[Clone]:
    """Yield the clones of one queue, but only one of those that are alike."""
    if len(queue) < 2:
        yield from queue
        return
    seen = set()
    for clone in queue:
        alike = clone.skb, clone.users, clone.head, tuple(clone.frags), clone.linear
        if alike not in seen:
            seen.add(alike)
            yield clone


def tag_of(frame: bytes | bytearray) -> int:
    """Read the tag of a frame."""
    return int.from_bytes(frame[20:24], "big")
