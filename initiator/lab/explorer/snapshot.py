"""Snapshots of a world, restored exactly and many thousand times a second.

A snapshot holds the values of all mutable objects, and ``restore`` writes them back
into the same objects. There is no deep copy, so that references to these objects, from
closures and fragments for example, stay valid.

Permanent objects exist as long as the world and are collected once. Transient objects
(bios, frames, skbs, clones, slab objects) are collected for each snapshot. The tests
check that no attribute is missing by comparing whole worlds.
"""

from __future__ import annotations

from collections import deque
from itertools import compress, repeat
from operator import attrgetter, call, is_, ne
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from initiator.lab.kernel.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from initiator.driver.structs import Frame
    from initiator.lab.world import World


class Kind(NamedTuple):
    """Accessors for the mutable state of a kind of object.

    Args:
        read: returns the state of an object as an immutable value.
        write: writes such a value back.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object]


def attributes(names: str) -> Kind:
    """Return accessors for the named attributes, separated by spaces."""
    words = names.split()
    if len(words) == 1:
        return Kind(attrgetter(names), lambda to, was: setattr(to, names, was))
    # deque(maxlen=0) consumes the map in C: an exploration spends most time here.
    return Kind(
        attrgetter(*words),
        lambda to, was: deque(map(setattr, repeat(to), words, was), maxlen=0),
    )


_SEQUENCE: Final = Kind(tuple, lambda to, was: to.__setitem__(slice(None), was))
_BYTES: Final = Kind(bytes, _SEQUENCE.write)
_QUEUE: Final = Kind(tuple, lambda to, was: (to.clear(), to.extend(was)))
_SET: Final = Kind(frozenset, lambda to, was: (to.clear(), to.update(was)))
_DICT: Final = Kind(
    lambda of: tuple(of.items()), lambda to, was: (to.clear(), to.update(was))
)
"""A dict including its order, in which equal dicts may differ."""
_PAGE: Final = attributes("count head slab frozen free kept_out owner block")
_OBJECT: Final = attributes("owner deferred")
_BUFFER: Final = attributes("is_held")
_WRITE: Final = attributes("completed ended executed")
_BIO: Final = attributes("error")
_FRAME: Final = attributes(
    "skb op sector length segments buf tag attempts waited waited_total sent due ifp "
    "target earlier graced graces is_probe"
)
_BUF: Final = attributes("nframesout")
_ITER: Final = attributes("_index _done sector size")
_SKB: Final = attributes("frags dataref owns_frags")
_CLONE: Final = attributes("skb head frags linear users")


class Objects:
    """Objects of several kinds with their accessors."""

    __slots__ = ("reads", "targets", "writes")

    def __init__(self, objects: Iterable[tuple[Kind, object]]) -> None:
        found = list(objects)
        self.targets = [target for _, target in found]
        self.reads = [kind.read for kind, _ in found]
        self.writes = [kind.write for kind, _ in found]

    def same_objects(self, others: Objects) -> bool:
        """Return True if these are the same objects, by identity."""
        mine, theirs = self.targets, others.targets
        return len(mine) == len(theirs) and all(map(is_, mine, theirs))

    def read(self) -> list[Any]:
        """Return the state of each object."""
        return list(map(call, self.reads, self.targets))

    def write(self, values: list[Any]) -> None:
        """Restore the state of each object that has changed."""
        differs = map(ne, map(call, self.reads, self.targets), values)
        for at in list(compress(range(len(values)), differs)):
            self.writes[at](self.targets[at], values[at])


class Snapshot(NamedTuple):
    """A state of a world.

    Args:
        transient: the transient objects of this state.
        permanent_values: states of the permanent objects.
        transient_values: states of the transient objects.
        contents: the contents of each page, as numbers assigned by ``Snapshots``.
    """

    transient: Objects
    permanent_values: list[Any]
    transient_values: list[Any]
    contents: tuple[int, ...]


class Snapshots:
    """Snapshots of one world, whose device is up.

    Args:
        world: the world.
        others: further mutable objects that belong to its state, with their kinds.

    Attributes:
        permanent: the objects that exist as long as the world.
    """

    def __init__(
        self, world: World, others: Sequence[tuple[Kind, object]] = ()
    ) -> None:
        self._world = world
        self.permanent = Objects([*_permanent(world), *others])
        self._arena = world.memory.arena
        self._numbers: dict[bytes, int] = {}
        self._bytes: list[bytes] = []
        self._last = b""
        self._last_contents: tuple[int, ...] = ()

    def contents(self) -> tuple[int, ...]:
        """Return a number for the contents of each page; equal bytes, equal number."""
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
        """Take a snapshot; values that are equal in ``base`` are shared with it."""
        transient = Objects(_transient(self._world))
        permanent_values, transient_values = self.permanent.read(), transient.read()
        if base is not None:
            permanent_values = _share_equal(permanent_values, base.permanent_values)
            if transient.same_objects(base.transient):
                transient = base.transient
                transient_values = _share_equal(transient_values, base.transient_values)
        return Snapshot(transient, permanent_values, transient_values, self.contents())

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot."""
        self.permanent.write(snapshot.permanent_values)
        snapshot.transient.write(snapshot.transient_values)
        if self.contents() != snapshot.contents:
            self._last = b"".join([self._bytes[n] for n in snapshot.contents])
            self._last_contents = snapshot.contents
            self._arena[:] = self._last


def _share_equal(values: list[Any], base: list[Any]) -> list[Any]:
    return [old if new == old else new for new, old in zip(values, base, strict=True)]


def _permanent(world: World) -> Iterator[tuple[Kind, object]]:
    """Yield the permanent objects of a world."""
    device, journal, memory = world.device, world.journal, world.memory
    for page in memory.pages:
        yield _PAGE, page
    yield _SEQUENCE, memory.free_list
    yield attributes("free_in_end_io rewrite_in_end_io _drop_frames"), world
    for some in (world.writes, world.realloc_buffers, world.responses):
        yield _SEQUENCE, some
    yield attributes("gets puts copied wasted held deferred"), journal.costs
    yield attributes("step now"), journal
    yield from ((_SEQUENCE, journal.entries), (_SEQUENCE, journal.faults))
    yield _SET, journal.flags
    yield attributes("clones"), world.ops
    for cache in world.submitters.caches.values():
        yield from ((_SEQUENCE, cache.slabs), (_SEQUENCE, cache.freelist))
    yield attributes("unexpected"), world.driver
    yield _QUEUE, world.driver.log
    yield (
        attributes(
            "state nopen ssize lasttag maxbcnt tgt buf next_tick retransmits "
            "kickme kicked read_only"
        ),
        device,
    )
    yield attributes("answered"), device.epochs
    yield from ((_DICT, device.factive), (_DICT, device.rexmitq))
    yield from ((_QUEUE, device.bios), (_QUEUE, device.skbpool))
    yield attributes("rttavg rttdev"), device.timing
    for target in device.targets:
        yield (
            attributes("ifp minbcnt taint nout_probes last_response rpkts wpkts"),
            target,
        )
        yield _SEQUENCE, target.ffree
        yield attributes("nframes nout maxout ssthresh next_cwnd"), target.window
        for ifp in target.ifs:
            yield attributes("bcnt lost lost_at"), ifp
    yield from _permanent_nic(world)


def _permanent_nic(world: World) -> Iterator[tuple[Kind, object]]:
    nic = world.nic
    yield attributes("hold_tx removed hold_qdisc hold_ring hold_completion"), nic
    for some in (nic.tx_list, nic.qdisc, nic.ring, nic.sent, nic.tapped):
        yield _SEQUENCE, some
    disk = getattr(world.peer, "disk", None)
    if disk is not None:
        yield _BYTES, disk


def _transient(world: World) -> Iterator[tuple[Kind, object]]:
    """Yield the transient objects of a world."""
    for write in world.writes:
        yield from ((_WRITE, write), (_BIO, write.bio), (_BUFFER, write.buffer))
    for buffer in world.realloc_buffers:
        yield _BUFFER, buffer
    for cache in world.submitters.caches.values():
        for slab in cache.slabs:
            for each in slab:
                yield _OBJECT, each
    yield from _transient_frames(world)


def _transient_frames(world: World) -> Iterator[tuple[Kind, object]]:
    skbs = dict.fromkeys(world.device.skbpool)
    bufs = dict.fromkeys([world.device.buf])
    for frame in frames(world):
        yield from ((_FRAME, frame), (_DICT, frame.earlier))
        skbs[frame.skb] = None
        bufs[frame.buf] = None
    for clone in world.nic.clones():
        yield _CLONE, clone
        if clone.skb is not None:
            skbs[clone.skb] = None
    for buf in bufs:
        if buf is not None:
            yield from ((_BUF, buf), (_ITER, buf.iter))
    for skb in skbs:
        yield from ((_SKB, skb), (_BYTES, skb.head))


def frames(world: World) -> Iterator[Frame]:
    """Yield the driver's frames: outstanding, deferred for retransmission, free."""
    device = world.device
    yield from device.factive.values()
    yield from device.rexmitq.values()
    for target in device.targets:
        yield from target.ffree
