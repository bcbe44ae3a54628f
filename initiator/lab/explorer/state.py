"""State hashing: two worlds are in the same state if their futures are the same.

The hash covers what later behaviour depends on: pages with counts, owners, flags and
contents, the order of the free list, slab objects, frames, clones and their references,
responses in flight, and bios. It leaves out the history: tags without a frame, the
clock, round-trip estimates (a step of ``initiator.lab.explorer.steps`` times a frame
out at any estimate), statistics, and the order of free frames' idle skbs.
"""

from __future__ import annotations

import marshal
from hashlib import blake2b
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, cast

from initiator.lab.explorer.steps import tag_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from initiator.driver.bio import BioVec
    from initiator.driver.skbuff import Skb
    from initiator.driver.structs import Buf, Frame
    from initiator.lab.explorer.steps import Stepper
    from initiator.lab.kernel.memory import Page
    from initiator.lab.kernel.skbuff import Clone
    from initiator.lab.kernel.slab import KmemCache
    from initiator.lab.machine import Write

_DEAD: Final = -1
"""Stands for all tags that belong to no frame."""
_PAGE: Final = attrgetter("count", "free", "slab", "frozen", "kept_out", "owner")
_REGISTERS: Final = slice(24, 36)
"""The ATA registers in a frame."""


def state_hash(stepper: Stepper) -> bytes:
    """Return the hash of a world's state, 16 bytes."""
    return blake2b(marshal.dumps(canonical_state(stepper), 2), digest_size=16).digest()


def canonical_state(stepper: Stepper) -> tuple[Any, ...]:
    """Return the state of a world as plain values without identities."""
    return _State(stepper).everything()


class _State:
    """Builds a canonical state; objects are numbered in the order of their use."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        self.world = stepper.world
        device = stepper.world.device
        frames = (*device.factive.values(), *device.rexmitq.values())
        self.tags = {frame.tag: number for number, frame in enumerate(frames)}
        self.bios = {write.bio: write.number for write in stepper.world.writes}
        self.skbs: dict[Skb, int] = {}

    def everything(self) -> tuple[Any, ...]:
        world, stepper = self.world, self.stepper
        responses = [self.tags.get(tag_of(each), _DEAD) for each in world.responses]
        return (
            self._memory(),
            self._driver(),
            self._clones(),
            [self._skb(skb) for skb in self.skbs],
            sorted(responses),
            [self._write(write) for write in world.writes],
            [(each.is_held, _places(each.pieces)) for each in world.realloc_buffers],
            (stepper.duplicates, *sorted(stepper.rewritten)),
        )

    def _write(self, write: Write) -> tuple[Any, ...]:
        buffer, bio = write.buffer, write.bio
        if write.ended and not buffer.is_held:
            return (bio.error is None,)
        return (
            write.completed,
            write.ended,
            bio.error is None,
            buffer.is_held,
            _places(buffer.pieces),
        )

    def _memory(self) -> tuple[Any, ...]:
        memory = self.world.memory
        pages = memory.pages
        return (
            [_PAGE(page) for page in pages],
            [page.head.pfn if page.head is not None else -1 for page in pages],
            [
                (page.block[0].pfn, len(page.block)) if page.block else 0
                for page in pages
            ],
            [page.pfn for page in memory.free_list],
            self.stepper.snapshots.contents() if self.stepper.track_contents else (),
            *[self._cache(cache) for cache in self.world.submitters.caches.values()],
        )

    def _cache(self, cache: KmemCache) -> tuple[Any, ...]:
        if not cache.slabs:
            return ()
        return (
            [
                (
                    slab[0].pages[0].pfn,
                    [(each.owner, each.deferred) for each in slab],
                )
                for slab in cache.slabs
            ],
            [(each.pages[0].pfn, each.offset) for each in cache.freelist],
        )

    def _driver(self) -> tuple[Any, ...]:
        device = self.world.device
        target = device.targets[0]
        window = target.window
        return (
            device.state.value,
            (window.nout, window.maxout, window.ssthresh, window.next_cwnd),
            self._outstanding(device.factive.values()),
            self._outstanding(device.rexmitq.values()),
            [self._idle(frame.skb) for frame in target.ffree],
            [self._idle(skb) for skb in device.skbpool],
            [self.bios[bio] for bio in device.bios],
            self._buf(device.buf),
        )

    def _outstanding(self, frames: Iterable[Frame]) -> list[Any]:
        found = []
        last = 0.0
        for frame in frames:
            # Frames sent at the same time can only time out together.
            together, last = frame.sent == last, frame.sent
            found.append(
                (self._name(frame.skb), frame.attempts, together, *self._buf(frame.buf))
            )
        return found

    def _buf(self, buf: Buf | None) -> tuple[Any, ...]:
        if buf is None:
            return ()
        return self.bios[buf.bio], buf.nframesout, buf.iter.size

    def _idle(self, skb: Skb) -> int:
        """Return -1 for an skb without clones: it is reset before its next use."""
        return self._name(skb) if skb.dataref != 1 else -1

    def _name(self, skb: Skb) -> int:
        return self.skbs.setdefault(skb, len(self.skbs))

    def _skb(self, skb: Skb) -> tuple[Any, ...]:
        return (
            skb.dataref,
            skb.owns_frags,
            _places(skb.frags),
            bytes(skb.head[_REGISTERS]),
            self.tags.get(tag_of(skb.head), _DEAD),
        )

    def _clones(self) -> tuple[Any, ...]:
        nic = self.world.nic
        return (
            # The steps take clones from a queue in any order, so sort them.
            sorted([self._clone(clone) for clone in nic.qdisc]),
            sorted([self._clone(clone) for clone in nic.ring]),
            sorted([self._sent(clone) for clone in nic.sent]),
            sorted([self._clone(clone) for clone in nic.tapped]),
        )

    def _shared(self, clone: Clone) -> tuple[Any, ...]:
        """Return the number of the skb, or its state if only clones refer to it."""
        skb = cast("Skb", clone.skb)
        number = self.skbs.get(skb)
        if number is None:
            return (len(self.skbs), clone.users, *self._skb(skb))
        return number, clone.users

    def _sent(self, clone: Clone) -> tuple[Any, ...]:
        if clone.skb is not None:
            return self._shared(clone)
        return -1, clone.users, _places(clone.frags)

    def _clone(self, clone: Clone) -> tuple[Any, ...]:
        if clone.skb is not None:
            return self._shared(clone)
        return (
            -1,
            clone.users,
            _places(clone.frags),
            self.tags.get(tag_of(clone.head), _DEAD),
            clone.head[_REGISTERS],
            self.stepper.number(clone.linear) if self.stepper.track_contents else 0,
        )


def _places(pieces: Iterable[BioVec] | Iterable[tuple[Page, int, int]]) -> list[Any]:
    return [(cast("Page", page).pfn, offset, length) for page, offset, length in pieces]
