"""One interface, and the targets that are served on it, for as long as both like.

The interface may go down, change its MTU or its address, get another name, or vanish
and come back: the port follows, and the targets stay.

::

    up --- MTU or address changed: opened anew ---> up, announced
     | \\
     |  +-- no room for a sector, or gone ---> away --- there again ---> up, announced
     +-- down, or its carrier lost ---> waiting --- back ---> up, announced
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.address import SHELF_ALL, SLOT_ALL
from aoe.errors import AoEError, NotFoundError, UsageError
from aoe.header import HEADER_LENGTH, sectors_per_frame
from aoe.net.base import LinkStatistics
from target.filters.stack import with_filters
from target.filters.target import FilteredTarget
from target.protocol.target import Target
from target.server.fast_path import Express

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aoe.address import Address
    from aoe.net.interfaces import Interface
    from aoe.net.link import Link
    from target.protocol.exports import Export

log: Final = logging.getLogger("aoe-target")

_BATCH: Final = 64
_BATCH_LONG: Final = 8
_BATCH_BYTES: Final = 512 << 10
"""Frames between two flushes, at most, where they are long, and what is long: the first
of them waits for the last, and so does the client."""
_FULL_PAUSE: Final = 0.001
"""Seconds to wait when an interface takes no more replies."""
_DRAIN_LIMIT: Final = 64
"""Batches that are still answered on a link that is about to be closed."""
_ADDRESS: Final = Struct("!16xHB")
"""Shelf and slot, where they lie in a frame."""


class Port:
    """One interface, and the targets that are served on it.

    Args:
        link: the interface; the port closes it when it opens another in its stead, and
            with ``close``.
        exports: what is served there, no address twice.
        reopen: opens the interface of this name, with receive buffers for so many
            frames; without it, an interface that has changed or is gone is given up.
        frames: receive buffers that ``link`` has.

    Raises:
        UsageError: the interface's MTU has no room for a sector.
    """

    def __init__(
        self,
        link: Link,
        exports: Iterable[Export] = (),
        reopen: Callable[[str, int], Link] | None = None,
        frames: int = 0,
    ) -> None:
        check_mtu(link)
        self.name = link.name
        """As it was called when the port was made, and will be when it comes back."""
        self.link: Link | None = link
        self.last = link
        """The link, or the one before it went away."""
        self.targets: list[Target] = []
        self.strays = 0
        """Frames that were for none of the targets."""
        self._reopen = reopen or _no_other
        self._frames = frames
        self._ready = True
        self._before = LinkStatistics()
        self._by_address: dict[tuple[int, int], Target | FilteredTarget] = {}
        self._filtered: list[FilteredTarget] = []
        self._express = self._make_express(link)
        for export in exports:
            self.add(export)

    # --- what is served -----------------------------------------------------------

    def add(self, export: Export) -> Target:
        """Serve an export from now on; ``announce`` tells others."""
        target = Target(export, self.last.mac, self.last.mtu)
        self.targets.append(target)
        served = self._by_address[export.address] = with_filters(target)
        if isinstance(served, FilteredTarget):
            self._filtered.append(served)
        elif self._express is not None:
            self._express.add(target)
        return target

    def remove(self, address: Address) -> None:
        """Serve it no longer: frames for it are strays from now on."""
        served = self._by_address.pop(address)
        if isinstance(served, FilteredTarget):
            self._filtered.remove(served)
            served = served.target
        elif self._express is not None:
            self._express.remove(served)
        self.targets.remove(served)

    def target(self, address: Address) -> Target | None:
        """Return what serves an address here; None in the moment of an exchange."""
        served = self._by_address.get(address)
        return served.target if isinstance(served, FilteredTarget) else served

    def announce(self, targets: Iterable[Target] | None = None) -> None:
        """Tell everybody whom they serve that the targets are ready (P48)."""
        link = self.link
        if link is None:
            return
        for target in self.targets if targets is None else targets:
            for mac in target.export.audience:
                frame = link.reserve()
                if frame is None:
                    # More of them than there is room for at once.
                    link.flush()
                    frame = link.reserve()
                if frame is not None:
                    link.commit(target.announce(frame, mac))
        link.flush()

    # --- frames -------------------------------------------------------------------

    def _make_express(self, link: Link) -> Express | None:
        rings = link.rings
        if rings is None or sys.byteorder != "little":
            return None
        express = Express(rings, self._answer_next)
        for served in self._by_address.values():
            if not isinstance(served, FilteredTarget):
                express.add(served)
        return express

    def serve(self, now: float) -> bool:
        """Answer a batch of frames, and tell whether there were any.

        A frame is taken only when there is memory for its reply; until then frames wait
        in the receive ring.

        Raises:
            NotFoundError: the interface is gone.
        """
        link = self.link
        if link is None:
            return False
        batch = max(_BATCH_LONG, min(_BATCH, _BATCH_BYTES // link.mtu))
        if self._express is not None:
            count = self._express.serve(batch, now)
        else:
            count = 0
            while count < batch and self._answer_next(now):
                count += 1
        for served in self._filtered:
            self._serve_due(link, served, now)
        link.flush()
        return count > 0

    def _answer_next(self, now: float) -> bool:
        # Whether there was a frame, and memory for a reply.
        link = self.last
        reply = link.reserve()
        if reply is None:
            time.sleep(_FULL_PAUSE)
            return False
        request = link.receive()
        if request is None:
            return False
        if len(request) < HEADER_LENGTH:
            self.strays += 1
        elif (target := self._by_address.get(_ADDRESS.unpack_from(request))) is None:
            self._serve_all(link, request, now)
        elif length := target.handle(request, reply, now):
            link.commit(length)
        return True

    def _serve_due(self, link: Link, served: FilteredTarget, now: float) -> None:
        # What finds no slot stays due.
        while (reply := link.reserve()) is not None:
            length = served.handle_due(reply, now)
            if not length:
                break
            link.commit(length)

    def next_timeout(self) -> float | None:
        """Return the ``now`` at which ``serve`` has something to do without a frame."""
        if self.link is None:
            return None
        times = [served.next_timeout() for served in self._filtered]
        return min((time for time in times if time is not None), default=None)

    def _serve_all(self, link: Link, request: memoryview, now: float) -> None:
        # A broadcast address is for every target that it matches (P9).
        shelf, slot = _ADDRESS.unpack_from(request)
        if shelf != SHELF_ALL and slot != SLOT_ALL:
            self.strays += 1
            return
        for target in self._by_address.values():
            reply = link.reserve()
            if reply is None:
                return
            if length := target.handle(request, reply, now):
                link.commit(length)

    # --- the interface's life -----------------------------------------------------

    def look(self, interfaces: Sequence[Interface]) -> None:
        """Follow what has become of the interface, one of all that there are."""
        if self.link is None:
            self._look_for_return(interfaces)
            return
        link = self.link
        here = next((each for each in interfaces if each.index == link.index), None)
        if here is None:
            self.lose("interface is gone, waiting for it to come back")
            return
        if here.name != link.name:
            log.warning("%s: is now called %s", link.name, here.name)
            link.name = here.name
        changed = (here.mtu, here.mac) != (link.mtu, link.mac)
        if changed and here.up:
            self._change(here)
        ready = here.up and here.carrier
        if ready and not self._ready:
            log.info("%s: is up", here.name)
            self.announce()
        elif self._ready and not ready:
            log.warning("%s: %s", here.name, "no carrier" if here.up else "is down")
        self._ready = ready

    def widen(self, frames: int) -> None:
        """Have receive buffers for so many frames at least (P60).

        Raises:
            AoEError: the interface could not be opened anew.
        """
        if frames > self._frames:
            self._frames = frames
            if self.link is not None:
                self._replace(self._reopen(self.link.name, frames))

    def lose(self, why: str) -> None:
        """Do without the interface until it is there again."""
        if self.link is None:
            return
        log.warning("%s: %s", self.link.name, why)
        for served in self._filtered:
            served.clear_queue()
        self._retire(self.link)
        self.link = None

    def _look_for_return(self, interfaces: Sequence[Interface]) -> None:
        # One of its name, or itself by another, which it got meanwhile.
        like = [e for e in interfaces if self.last.index == e.index]
        like += [e for e in interfaces if e.name == self.name]
        usable = [e for e in like if e.up and sectors_per_frame(e.mtu)]
        if not usable:
            return
        try:
            self._begin(self._reopen(usable[0].name, self._frames))
        except AoEError as error:
            log.warning("%s", error)
            return
        log.info("%s: is back, MTU %d", self.last.name, self.last.mtu)

    def _change(self, here: Interface) -> None:
        if not sectors_per_frame(here.mtu):
            self.lose(f"an MTU of {here.mtu} has no room for a sector, waiting")
            return
        try:
            link = self._reopen(here.name, self._frames)
        except AoEError as error:
            self.lose(f"{error.why}, waiting")
            return
        log.info("%s: MTU %d, address %s", link.name, link.mtu, link.mac.hex(":"))
        self._replace(link)

    def _replace(self, link: Link) -> None:
        # What the old one has received is answered, then the new one takes over; what
        # both have received is executed twice, as any frame may be (P2).
        with contextlib.suppress(NotFoundError):
            for _ in range(_DRAIN_LIMIT):
                if not self.serve(time.monotonic()):
                    break
        if self.link is not None:
            self._retire(self.link)
        self._begin(link)

    def _begin(self, link: Link) -> None:
        check_mtu(link)
        self.link = self.last = link
        self._ready = True
        for target in self.targets:
            target.adapt(link.mac, link.mtu)
        self._express = self._make_express(link)
        self.announce()

    def _retire(self, link: Link) -> None:
        # It has views of the link's memory.
        self._express = None
        link.close()
        self._before += link.statistics()

    def statistics(self) -> LinkStatistics:
        """Return what all links of this port have counted."""
        now = LinkStatistics() if self.link is None else self.link.statistics()
        return self._before + now

    @property
    def state(self) -> str:
        """``up``, ``down`` (switched off, or without carrier) or ``gone``."""
        if self.link is None:
            return "gone"
        return "up" if self._ready and self.link.up else "down"

    def close(self) -> None:
        """Close the link. Safe to call twice."""
        if self.link is not None:
            self._retire(self.link)
            self.link = None


def _no_other(name: str, _frames: int) -> Link:
    raise AoEError(name, "cannot be opened anew")


def check_mtu(link: Link) -> None:
    """Make sure that frames on this interface have room for a sector.

    Raises:
        UsageError: they have not.
    """
    if not sectors_per_frame(link.mtu):
        raise UsageError(
            link.name,
            f"an MTU of {link.mtu} has no room for a sector",
            f"Raise it with: ip link set {link.name} mtu 1500",
        )
