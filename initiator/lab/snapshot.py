"""Take a world back to where it was, exactly and many thousand times a second.

A snapshot notes what every object that may change holds, and ``restore`` puts it back
into the same objects. So nothing is copied deeply, and whatever names an object by
itself, a closure or a fragment, still names the right one afterwards.

Most objects are there for as long as the world is and are looked up once; only those
that come and go (bios, frames, skbs, clones, slab objects) are looked up each time.
That no attribute is forgotten is for the tests to show: they compare whole worlds.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from initiator.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from initiator.aoedev import Frame
    from initiator.lab.world import World
    from initiator.netdev import ModelledCard
    from initiator.skbuff import Clone


class Kind(NamedTuple):
    """How objects of one kind are read, as a tuple, and written back."""

    read: Callable[[Any], tuple[Any, ...]]
    write: Callable[[Any, tuple[Any, ...]], object]


def attributes(names: str) -> Kind:
    """Objects of which these attributes may change."""
    words = names.split()

    def write(to: object, held: tuple[Any, ...]) -> None:
        for name, value in zip(words, held, strict=True):
            setattr(to, name, value)

    if len(words) > 1:
        return Kind(attrgetter(*words), write)
    return Kind(
        lambda of: (getattr(of, names),), lambda to, held: setattr(to, names, held[0])
    )


_SEQUENCE: Final = Kind(tuple, lambda to, held: to.__setitem__(slice(None), held))
_BYTES: Final = Kind(lambda of: (bytes(of),), lambda to, held: _fill(to, held[0]))
_QUEUE: Final = Kind(tuple, lambda to, held: (to.clear(), to.extend(held)))
_SET: Final = Kind(tuple, lambda to, held: (to.clear(), to.update(held)))
_DICT: Final = Kind(
    lambda of: tuple(of.items()), lambda to, held: (to.clear(), to.update(held))
)
_PAGE: Final = attributes("count head slab free kept_out owner block")
_OBJECT: Final = attributes("owner put_off")
_BUFFER: Final = attributes("is_held")
_WRITE: Final = attributes("ended executed")
_BIO: Final = attributes("error")
_FRAME: Final = attributes(
    "skb segments buf tag attempts born sent due ifp target earlier"
)
_BUF: Final = attributes("nframesout")
_ITER: Final = attributes("_index _done sector size")
_SKB: Final = attributes("frags dataref owns_frags")
_CLONE: Final = attributes("skb head frags linear users")


def _fill(to: bytearray, content: bytes) -> None:
    to[:] = content


class Snapshot(NamedTuple):
    """A state of a world.

    Args:
        passing: the objects that come and go, those that were there.
        held: what the lasting objects and these held.
        contents: the bytes of each page, as numbers that ``Snapshots`` gave them.
    """

    passing: list[tuple[Kind, Any]]
    held: list[tuple[Any, ...]]
    contents: tuple[int, ...]


class Snapshots:
    """Takes and restores snapshots of one world, which must be up.

    Args:
        world: which.
        others: mutable objects beside it that belong to its state, and their kinds.
    """

    def __init__(
        self, world: World, others: Sequence[tuple[Kind, object]] = ()
    ) -> None:
        self._world = world
        self._lasting = [*_lasting(world), *others]
        self._arena = world.memory.arena
        self._numbers: dict[bytes, int] = {}
        self._bytes: list[bytes] = []
        self._last = b""
        self._last_contents: tuple[int, ...] = ()

    def contents(self) -> tuple[int, ...]:
        """Number the contents of every page; equal bytes have equal numbers."""
        arena = bytes(self._arena)
        if arena != self._last:
            self._last = arena
            self._last_contents = tuple(
                self._number(arena[start : start + PAGE_SIZE])
                for start in range(0, len(arena), PAGE_SIZE)
            )
        return self._last_contents

    def _number(self, content: bytes) -> int:
        number = self._numbers.setdefault(content, len(self._bytes))
        if number == len(self._bytes):
            self._bytes.append(content)
        return number

    def take(self, base: Snapshot | None = None) -> Snapshot:
        """Note everything; what is as in ``base`` is shared with it."""
        passing = list(_passing(self._world))
        held = self._read(passing)
        if base is not None:
            if passing == base.passing:
                passing = base.passing
            both = zip(held, base.held, strict=False)
            held[: len(base.held)] = [old if new == old else new for new, old in both]
        return Snapshot(passing, held, self.contents())

    def _read(self, passing: list[tuple[Kind, Any]]) -> list[tuple[Any, ...]]:
        held = [read(target) for (read, _), target in self._lasting]
        held += [read(target) for (read, _), target in passing]
        return held

    def restore(self, snapshot: Snapshot) -> None:
        """Put everything back as it was."""
        now, was = self._read(snapshot.passing), snapshot.held
        if now != was:
            lasting = len(self._lasting)
            for at in [at for at, held in enumerate(was) if now[at] != held]:
                if at < lasting:
                    (_, write), target = self._lasting[at]
                else:
                    (_, write), target = snapshot.passing[at - lasting]
                write(target, was[at])
        if self.contents() != snapshot.contents:
            self._last = b"".join([self._bytes[n] for n in snapshot.contents])
            self._last_contents = snapshot.contents
            self._arena[:] = self._last


def _lasting(world: World) -> Iterator[tuple[Kind, object]]:
    """Find what is there for as long as the world is."""
    device, journal, memory = world.device, world.journal, world.memory
    for page in memory.pages:
        yield _PAGE, page
    yield _SEQUENCE, memory.free_list
    yield attributes("now giving_up _is_losing"), world
    for some in (world.writes, world.victims, world.answers):
        yield _SEQUENCE, some
    yield attributes("gets puts copied wasted held put_off"), journal.costs
    yield attributes("step"), journal
    yield from ((_SEQUENCE, journal.entries), (_SEQUENCE, journal.faults))
    yield _SET, journal.flags
    yield attributes("clones"), world.ops
    yield _DICT, world.accounting.fragment_refs
    for cache in world.submitters.caches.values():
        yield attributes("free_objects"), cache
        yield from ((_SEQUENCE, cache.slabs), (_SEQUENCE, cache.free_objects))
    yield attributes("unexpected"), world.driver
    yield _QUEUE, world.driver.log
    yield (
        attributes("state nopen ssize lasttag maxbcnt tgt buf next_tick retransmits"),
        device,
    )
    yield from ((_DICT, device.factive), (_DICT, device.rexmitq))
    yield from ((_QUEUE, device.bios), (_QUEUE, device.skbpool))
    yield attributes("rttavg rttdev"), device.timing
    for target in device.targets:
        yield attributes("ifp minbcnt rpkts wpkts"), target
        yield _SEQUENCE, target.ffree
        yield attributes("nframes nout maxout ssthresh next_cwnd"), target.window
        for ifp in target.ifs:
            yield attributes("bcnt lost"), ifp
    yield from _lasting_outside(world)


def _lasting_outside(world: World) -> Iterator[tuple[Kind, object]]:
    card = world.card
    yield attributes("hold_queue hold_ring hold_completion"), card
    for some in (card.queue, card.ring, card.sent, card.tapped):
        yield _SEQUENCE, some
    disk = getattr(world.peer, "disk", None)
    if disk is not None:
        yield _BYTES, disk


def _passing(world: World) -> Iterator[tuple[Kind, object]]:
    """Find what has come and may go."""
    for write in world.writes:
        yield from ((_WRITE, write), (_BIO, write.bio), (_BUFFER, write.buffer))
    for victim in world.victims:
        yield _BUFFER, victim
    for cache in world.submitters.caches.values():
        for slab in cache.slabs:
            for each in slab:
                yield _OBJECT, each
    yield from _passing_frames(world)


def _passing_frames(world: World) -> Iterator[tuple[Kind, object]]:
    skbs = dict.fromkeys(world.device.skbpool)
    bufs = dict.fromkeys([world.device.buf])
    for frame in frames(world):
        yield from ((_FRAME, frame), (_DICT, frame.earlier))
        skbs[frame.skb] = None
        bufs[frame.buf] = None
    for clone in clones(world.card):
        yield _CLONE, clone
        if clone.skb is not None:
            skbs[clone.skb] = None
    for buf in bufs:
        if buf is not None:
            yield from ((_BUF, buf), (_ITER, buf.iter))
    for skb in skbs:
        yield from ((_SKB, skb), (_BYTES, skb.head))


def frames(world: World) -> Iterator[Frame]:
    """Yield the driver's frames: waiting for an answer, to be sent again, free."""
    device = world.device
    yield from device.factive.values()
    yield from device.rexmitq.values()
    for target in device.targets:
        yield from target.ffree


def clones(card: ModelledCard) -> Iterator[Clone]:
    """Yield the clones that the card still has, in the order of their stations."""
    yield from card.queue
    yield from card.ring
    yield from card.sent
    yield from card.tapped
