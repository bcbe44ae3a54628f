"""The steps of a world that the explorer interleaves.

A ``Stepper`` drives a world in which nothing happens by itself: clones wait in the
qdisc, in the TX ring and for TX completion, and responses wait for delivery, until a
step moves them on. Time passes only in the step that times frames out. ``STEPS`` lists
the steps, ``Bounds`` limits them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.ata import SECTOR, Registers
from initiator.driver.aoedev import State
from initiator.lab.cases import ALL_SUBMITTERS, DEFAULT
from initiator.lab.explorer.snapshot import Snapshots, attributes
from initiator.lab.kernel.memory import PAGE_SIZE
from initiator.lab.kernel.submitters import HUGE_ORDER
from initiator.lab.peer import MemoryPeer
from initiator.lab.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.driver.structs import Frame
    from initiator.lab.cases import Switches
    from initiator.lab.kernel.journal import Journal
    from initiator.lab.kernel.kernels import Rules
    from initiator.lab.kernel.nic import Nic
    from initiator.lab.kernel.policy import Policy
    from initiator.lab.kernel.skbuff import Clone

_MOMENT: Final = 0.001
"""Seconds between two steps: frames of different steps have different send times."""

_PAGES: Final = {"page": 1, "slab": 1, "large kmalloc": 1 << HUGE_ORDER}
"""Pages of a buffer, by kind of memory, if not 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits of the search.

    Args:
        bios: write bios submitted.
        buffers: buffers per bio.
        retransmissions: retransmissions per frame.
        duplicates: duplicate responses.
        reallocations: allocations by a new owner.
        failures: device failures, at most 1.
        max_steps: length of an interleaving, None for no limit.
        max_states: number of states after which the search ends.
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
    """A step.

    Args:
        kind: a key of ``STEPS``.
        which: number of the bio or clone, index of the response, or number of frames.
        what: name of the submitter.
    """

    kind: str
    which: int = 0
    what: str = ""


STEPS: Final = {
    "submit": "bio {which} is submitted: {what}",
    "dequeue": "clone {which} leaves the qdisc",
    "transmit": "the NIC transmits clone {which}: pages are read, target receives it",
    "lose": "the NIC transmits clone {which}: pages are read, frame is lost",
    "complete": "TX completion of clone {which}: it is freed",
    "response": "the response for bio {which} arrives",
    "duplicate": "the response for bio {which} arrives, a duplicate will follow",
    "unexpected response": "a response without a matching frame arrives",
    "time out": "RTO expires: {which} frame(s) retransmitted",
    "fail": "the device fails, all bios end",
    "fail and free": "the device fails, all bios end, their owners free the buffers",
    "free": "the owner of bio {which} frees the buffer",
    "reallocate": "a new owner allocates and fills memory: {what}",
    "shrink": "slab returns its empty slabs to the page allocator",
    "rewrite": "the owner of bio {which} writes new content into the buffer",
    "finish": "all remaining clones, responses and buffers are processed and freed",
}
"""Descriptions of the steps."""


class Stepper:
    """A world and the steps that are possible in it.

    Args:
        policy: the page-count policy.
        rules: the kernel.
        nic: the kind of NIC.
        submitters: names of submitters, used by the bios in rotation.
        bounds: limits of the search.
        switches: deviations from the defaults of the kernel.
        track_contents: page contents are part of the state, and owners may rewrite
            their buffers.
        keep_entries: record all events, not only faults.

    Attributes:
        duplicates: number of duplicate responses so far.
        rewritten: numbers of the bios whose buffers were rewritten.
    """

    def __init__(
        self,
        policy: Policy,
        rules: Rules,
        nic: Nic,
        submitters: Sequence[str],
        bounds: Bounds,
        switches: Switches = DEFAULT,
        *,
        track_contents: bool = True,
        keep_entries: bool = False,
    ) -> None:
        self.submitters = [ALL_SUBMITTERS[name] for name in submitters]
        self.bounds = bounds
        self.track_contents = track_contents
        pages = self._pages_needed(policy, switches)
        self.world = World(
            policy,
            nic,
            rules=switches.applied_to(rules),
            pages=pages,
            peer=MemoryPeer(bounds.bios * bounds.buffers * PAGE_SIZE // SECTOR),
            keep_entries=keep_entries,
            redzone=switches.redzone,
        )
        for submitter in dict.fromkeys(self.submitters):
            self.world.submitters.add_neighbours(submitter)
        queues = self.world.nic
        queues.hold_qdisc = queues.hold_ring = queues.hold_completion = True
        driver = self.world.driver
        # Device failure is a step of its own; aoe_deadsecs must not trigger it.
        driver.options = replace(driver.options, deadsecs=0)
        self._victims = self._victim_names(switches.victim)
        self._payloads: dict[bytes, int] = {}
        self.duplicates = 0
        self.rewritten: tuple[int, ...] = ()
        mine = [(attributes("duplicates rewritten"), self)]
        self.snapshots = Snapshots(self.world, mine)

    def _pages_needed(self, policy: Policy, switches: Switches) -> int:
        """Return enough pages for all buffers and copies at the same time."""
        bounds = self.bounds
        buffers = bounds.bios * bounds.buffers
        copies = buffers if policy.sendpage_ok else 0
        buffers += bounds.reallocations
        kinds = {each.kind for each in self.submitters}
        if policy.filesystem_uses_pages:
            kinds &= {"vmalloc"}
        most = max((_PAGES.get(kind, 2) for kind in kinds), default=1)
        if switches.redzone:
            most = max(most, 2)
        return most * (buffers + copies)

    def _victim_names(self, victim: str) -> list[str]:
        """Return the kinds of memory that a new owner may allocate.

        They are those of the submitters, and a page of the page cache where slab may
        have returned the pages; ``Switches.victim`` selects.
        """
        if victim == "page":
            return ["pagecache"]
        names = dict.fromkeys(each.name for each in self.submitters)
        if victim == "same":
            return list(names)
        if self.world.submitters.caches.keys() & {
            each.kind for each in self.submitters
        }:
            names["pagecache"] = None
        return list(names)

    @property
    def journal(self) -> Journal:
        """The event log of the world."""
        return self.world.journal

    def number(self, payload: bytes) -> int:
        """Return a number for a clone's private payload; equal bytes, equal number."""
        return self._payloads.setdefault(payload, len(self._payloads))

    # --- enabled steps -----------------------------------------------------------

    def enabled_steps(self) -> list[Step]:
        """Return the enabled steps; of steps with the same effect, only one."""
        return [
            *self._network_steps(),
            *self._driver_steps(),
            *self._owner_steps(),
        ]

    def _network_steps(self) -> Iterator[Step]:
        nic = self.world.nic
        for clone in _distinct(nic.qdisc):
            yield Step("dequeue", clone.number)
        for clone in _distinct(nic.ring):
            yield Step("transmit", clone.number)
            yield Step("lose", clone.number)
        for clone in _distinct(nic.sent):
            yield Step("complete", clone.number)
        frames = set()
        for index, response in enumerate(self.world.responses):
            frame = self._frame_for(tag_of(response))
            if frame in frames:
                continue
            frames.add(frame)
            if frame is None:
                yield Step("unexpected response", index)
                continue
            yield Step("response", index)
            if self.duplicates < self.bounds.duplicates:
                yield Step("duplicate", index)

    def _driver_steps(self) -> Iterator[Step]:
        device = self.world.device
        outstanding = list(device.factive.values())
        for number, frame in enumerate(outstanding, 1):
            if frame.attempts >= self.bounds.retransmissions:
                break
            if number == len(outstanding) or outstanding[number].sent != frame.sent:
                yield Step("time out", number)
        if device.state is State.UP and self.bounds.failures and self.world.writes:
            yield Step("fail")
            if len([w for w in self.world.writes if not w.ended]) > 1:
                # With a single bio, "fail" followed by "free" has the same effect.
                yield Step("fail and free")

    def _owner_steps(self) -> Iterator[Step]:
        world = self.world
        number = len(world.writes)
        if number < self.bounds.bios:
            submitter = self.submitters[number % len(self.submitters)]
            yield Step("submit", number, submitter.name)
        for write in world.writes:
            if write.ended and write.buffer.is_held:
                yield Step("free", write.number)
                if self.track_contents and write.number not in self.rewritten:
                    yield Step("rewrite", write.number)
        if number and len(world.realloc_buffers) < self.bounds.reallocations:
            for name in self._victims:
                yield Step("reallocate", len(world.realloc_buffers), name)
        if world.submitters.can_reclaim:
            yield Step("shrink")

    @property
    def is_quiescent(self) -> bool:
        """True if all bios have ended, all buffers are freed and no clone is left."""
        world = self.world
        return (
            len(world.writes) == self.bounds.bios
            and all(w.ended and not w.buffer.is_held for w in world.writes)
            and not any(world.nic.clones())
        )

    # --- applying steps ----------------------------------------------------------

    def apply(self, step: Step) -> None:
        """Apply a step, one of ``enabled_steps`` or ``finish``.

        Raises:
            BugOn: the machine stopped.
            AoEError: an allocation failed.
        """
        world = self.world
        world.now += _MOMENT
        match step.kind:
            case "submit":
                world.submit(ALL_SUBMITTERS[step.what], self.bounds.buffers)
            case "response" | "unexpected response":
                world.deliver_response(step.which)
            case "duplicate":
                self.duplicates += 1
                world.deliver_response(step.which, duplicate=True)
            case "time out":
                self._time_out(step.which)
            case "reallocate":
                world.reallocate(ALL_SUBMITTERS[step.what])
            case "shrink":
                world.shrink_slabs()
            case "finish":
                world.finish()
            case "dequeue" | "transmit" | "lose" | "complete":
                self._apply_to_clone(step)
            case _:
                self._apply_to_owner(step)

    def _apply_to_clone(self, step: Step) -> None:
        nic = self.world.nic
        clone = self._clone(step.which)
        match step.kind:
            case "dequeue":
                nic.validate(clone)
            case "transmit":
                nic.transmit(clone)
            case "lose":
                self.world.transmit_lost(clone)
            case "complete":
                nic.complete(clone)

    def _apply_to_owner(self, step: Step) -> None:
        world = self.world
        match step.kind:
            case "free":
                world.free_buffer(world.writes[step.which])
            case "rewrite":
                self.rewritten += (step.which,)
                world.rewrite(world.writes[step.which])
            case "fail" | "fail and free":
                world.free_in_end_io = step.kind == "fail and free"
                world.fail_device()
                world.free_in_end_io = False

    def _time_out(self, frames: int) -> None:
        """Time out the oldest ``frames`` outstanding frames, and no others.

        The time between two steps is arbitrary as long as their order holds. So the
        send times of the other frames are moved to shortly before the timeout.
        """
        world, device = self.world, self.world.device
        outstanding = list(device.factive.values())
        due = outstanding[frames - 1].sent + device.timing.timeout(0)
        until = max(world.now, due, device.next_tick or 0.0)
        others = outstanding[frames:]
        times = sorted({frame.sent for frame in others})
        for frame in others:
            frame.sent = until - _MOMENT * (len(times) - times.index(frame.sent))
        world.retransmit(until)

    # --- descriptions -------------------------------------------------------------

    def describe(self, step: Step) -> str:
        """Return the description of a step that is not applied yet."""
        which = step.which
        if step.kind in ("response", "duplicate"):
            frame = self._frame_for(tag_of(self.world.responses[which]))
            bio = frame.buf.bio if frame is not None and frame.buf is not None else None
            which = next(w.number for w in self.world.writes if w.bio is bio)
        description = STEPS[step.kind].format(which=which, what=step.what)
        if step.kind in ("dequeue", "transmit", "lose", "complete"):
            bio_number = self._bio_of(self._clone(which))
            description = description.replace(
                f"clone {which}", f"clone {which} (of bio {bio_number})"
            )
        return description

    def _clone(self, number: int) -> Clone:
        return next(c for c in self.world.nic.clones() if c.number == number)

    def _bio_of(self, clone: Clone) -> int:
        head = clone.skb.head if clone.skb is not None else clone.head
        lba = Registers.unpack_from(head).lba
        return max(w.number for w in self.world.writes if w.bio.sector <= lba)

    def _frame_for(self, tag: int) -> Frame | None:
        device = self.world.device
        return device.factive.get(tag) or device.rexmitq.get(tag)


def _distinct(queue: Sequence[Clone]) -> Iterator[Clone]:
    """Yield one clone of each group of equal clones in a queue."""
    if len(queue) < 2:
        yield from queue
        return
    seen = set()
    for clone in queue:
        key = clone.skb, clone.users, clone.head, tuple(clone.frags), clone.linear
        if key not in seen:
            seen.add(key)
            yield clone


def tag_of(frame: bytes | bytearray) -> int:
    """Return the tag of a frame."""
    return int.from_bytes(frame[20:24], "big")
