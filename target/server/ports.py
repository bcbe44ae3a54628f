"""A port: one interface and the targets that are served on it.

The interface can go down, change its MTU, address or name, or disappear and reappear.
The port follows; its targets are kept.

::

    up --- MTU or address changed: link reopened ---> up, announced
     | \\
     |  +-- gone, or MTU too small ---> no link --- usable again ---> up, announced
     +-- down, or no carrier ---> waiting --- up again ---> up, announced
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
from target.server.fast_path import FastPath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aoe.address import Address
    from aoe.net.interfaces import Interface
    from aoe.net.link import Link
    from target.protocol.engine import Engine, MakeEngine
    from target.protocol.exports import Export

log: Final = logging.getLogger("aoe-target")

_BATCH: Final = 64
_BATCH_LONG: Final = 8
_BATCH_BYTES: Final = 512 << 10
"""Limits of a batch: frames, frames of a large MTU, and bytes. The first response of a
batch is sent together with the last one, so that a large batch adds latency."""
_FULL_DELAY: Final = 0.001
"""Seconds to sleep when the send ring is full."""
_DRAIN_LIMIT: Final = 64
"""Batches that are served on a link before it is closed."""
_ADDRESS: Final = Struct("!16xHB")
"""Shelf and slot of a frame."""


class Port:
    """One interface and the targets that are served on it.

    Args:
        link: the open interface; the port closes it when it is replaced, and in
            ``close``.
        exports: the exports; each address at most once.
        reopen: opens an interface, given its name and the number of receive buffers;
            None if an interface that has changed or is gone cannot be reopened.
        frames: number of receive buffers of ``link``.

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
        """The name at first; an interface that reappears is expected to have it."""
        self.link: Link | None = link
        self.last_link = link
        """The link, or the last one if there is none."""
        self.targets: list[Engine] = []
        self.unmatched = 0
        """Frames addressed to none of the targets."""
        self._reopen = reopen or _cannot_reopen
        self._frames = frames
        self._is_up = True
        self._closed_statistics = LinkStatistics()
        self._by_address: dict[tuple[int, int], Engine | FilteredTarget] = {}
        self._filtered: list[FilteredTarget] = []
        self._fast_path = self._make_fast_path(link)
        for export in exports:
            self.add(export)

    # --- targets ------------------------------------------------------------------

    def add(self, export: Export, make_engine: MakeEngine = Target) -> Engine:
        """Start to serve an export, without an announcement.

        Args:
            export: the export.
            make_engine: makes what executes the requests. The fast path is for
                ``Target`` only, as it must give the same result.
        """
        target = make_engine(export, self.last_link.mac, self.last_link.mtu)
        self.targets.append(target)
        served = self._by_address[export.address] = with_filters(target)
        if isinstance(served, FilteredTarget):
            self._filtered.append(served)
        elif self._fast_path is not None and isinstance(served, Target):
            self._fast_path.add(served)
        return target

    def remove(self, address: Address) -> None:
        """Stop serving an export."""
        served = self._by_address.pop(address)
        if isinstance(served, FilteredTarget):
            self._filtered.remove(served)
            served = served.target
        elif self._fast_path is not None and isinstance(served, Target):
            self._fast_path.remove(served)
        self.targets.remove(served)

    def target(self, address: Address) -> Engine | None:
        """Return the target of an address; None while its export is replaced."""
        served = self._by_address.get(address)
        return served.target if isinstance(served, FilteredTarget) else served

    def announce(self, targets: Iterable[Engine] | None = None) -> None:
        """Send announcements of the targets, by default of all (P48)."""
        link = self.link
        if link is None:
            return
        for target in self.targets if targets is None else targets:
            for mac in target.export.announcement_targets:
                frame = link.reserve()
                if frame is None:
                    # The send ring is full.
                    link.flush()
                    frame = link.reserve()
                if frame is not None:
                    link.commit(target.announce(frame, mac))
        link.flush()

    # --- frames -------------------------------------------------------------------

    def _make_fast_path(self, link: Link) -> FastPath | None:
        rings = link.rings
        if rings is None or sys.byteorder != "little":
            return None
        fast_path = FastPath(rings, self._serve_one_slow)
        for served in self._by_address.values():
            if isinstance(served, Target):
                fast_path.add(served)
        return fast_path

    def serve(self, now: float) -> bool:
        """Serve a batch of frames; return True if there were any.

        A frame is consumed only if there is memory for its response; otherwise it stays
        in the receive ring.

        Raises:
            NotFoundError: the interface is gone.
        """
        link = self.link
        if link is None:
            return False
        batch = max(_BATCH_LONG, min(_BATCH, _BATCH_BYTES // link.mtu))
        if self._fast_path is not None:
            count = self._fast_path.serve(batch, now)
        else:
            count = 0
            while count < batch and self._serve_one_slow(now):
                count += 1
        for served in self._filtered:
            self._serve_due(link, served, now)
        link.flush()
        return count > 0

    def _serve_one_slow(self, now: float) -> bool:
        # Returns True if there was a frame, and memory for a response.
        link = self.last_link
        response = link.reserve()
        if response is None:
            time.sleep(_FULL_DELAY)
            return False
        request = link.receive()
        if request is None:
            return False
        if len(request) < HEADER_LENGTH:
            self.unmatched += 1
        elif (target := self._by_address.get(_ADDRESS.unpack_from(request))) is None:
            self._serve_broadcast(link, request, now)
        elif length := target.handle(request, response, now):
            link.commit(length)
        return True

    def _serve_due(self, link: Link, served: FilteredTarget, now: float) -> None:
        # Without a free slot, responses stay queued.
        while (response := link.reserve()) is not None:
            length = served.handle_due(response, now)
            if not length:
                break
            link.commit(length)

    def next_timeout(self) -> float | None:
        """Return the time at which a delayed frame is due, None if there is none."""
        if self.link is None:
            return None
        deadlines = [served.next_timeout() for served in self._filtered]
        return min((time for time in deadlines if time is not None), default=None)

    def _serve_broadcast(self, link: Link, request: memoryview, now: float) -> None:
        # A broadcast address selects every target that it matches (P9).
        shelf, slot = _ADDRESS.unpack_from(request)
        if shelf != SHELF_ALL and slot != SLOT_ALL:
            self.unmatched += 1
            return
        for target in self._by_address.values():
            response = link.reserve()
            if response is None:
                return
            if length := target.handle(request, response, now):
                link.commit(length)

    # --- the interface ------------------------------------------------------------

    def update_interface(self, interfaces: Sequence[Interface]) -> None:
        """Apply changes of the interface, given all interfaces of the host."""
        if self.link is None:
            self._try_reopen(interfaces)
            return
        link = self.link
        interface = next(
            (each for each in interfaces if each.index == link.index), None
        )
        if interface is None:
            self.detach_link("interface is gone, waiting for it to reappear")
            return
        if interface.name != link.name:
            log.warning("%s: renamed to %s", link.name, interface.name)
            link.name = interface.name
        changed = (interface.mtu, interface.mac) != (link.mtu, link.mac)
        if changed and interface.up:
            self._apply_change(interface)
        is_up = interface.up and interface.carrier
        if is_up and not self._is_up:
            log.info("%s: is up", interface.name)
            self.announce()
        elif self._is_up and not is_up:
            log.warning(
                "%s: %s", interface.name, "no carrier" if interface.up else "is down"
            )
        self._is_up = is_up

    def ensure_buffers(self, frames: int) -> None:
        """Reopen the interface if it has fewer than ``frames`` receive buffers (P60).

        Raises:
            AoEError: the interface could not be reopened.
        """
        if frames > self._frames:
            self._frames = frames
            if self.link is not None:
                self._replace_link(self._reopen(self.link.name, frames))

    def detach_link(self, why: str) -> None:
        """Close the link, until the interface can be used again."""
        if self.link is None:
            return
        log.warning("%s: %s", self.link.name, why)
        for served in self._filtered:
            served.clear_queue()
        self._close_link(self.link)
        self.link = None

    def _try_reopen(self, interfaces: Sequence[Interface]) -> None:
        # The same interface, perhaps renamed, or a new one with the same name.
        candidates = [e for e in interfaces if self.last_link.index == e.index]
        candidates += [e for e in interfaces if e.name == self.name]
        usable = [e for e in candidates if e.up and sectors_per_frame(e.mtu)]
        if not usable:
            return
        try:
            self._attach_link(self._reopen(usable[0].name, self._frames))
        except AoEError as error:
            log.warning("%s", error)
            return
        log.info("%s: available again, MTU %d", self.last_link.name, self.last_link.mtu)

    def _apply_change(self, interface: Interface) -> None:
        if not sectors_per_frame(interface.mtu):
            self.detach_link(
                f"an MTU of {interface.mtu} has no room for a sector, waiting"
            )
            return
        try:
            link = self._reopen(interface.name, self._frames)
        except AoEError as error:
            self.detach_link(f"{error.why}, waiting")
            return
        log.info("%s: MTU %d, address %s", link.name, link.mtu, link.mac.hex(":"))
        self._replace_link(link)

    def _replace_link(self, link: Link) -> None:
        # Frames in the old receive ring are served before the old link is closed. A
        # frame that both links have received is executed twice, which P2 allows.
        with contextlib.suppress(NotFoundError):
            for _ in range(_DRAIN_LIMIT):
                if not self.serve(time.monotonic()):
                    break
        if self.link is not None:
            self._close_link(self.link)
        self._attach_link(link)

    def _attach_link(self, link: Link) -> None:
        check_mtu(link)
        self.link = self.last_link = link
        self._is_up = True
        for target in self.targets:
            target.reconfigure(link.mac, link.mtu)
        self._fast_path = self._make_fast_path(link)
        self.announce()

    def _close_link(self, link: Link) -> None:
        # The fast path has views of the link's memory.
        self._fast_path = None
        link.close()
        self._closed_statistics += link.statistics()

    def statistics(self) -> LinkStatistics:
        """Return the sum of the counters of all links of this port."""
        now = LinkStatistics() if self.link is None else self.link.statistics()
        return self._closed_statistics + now

    @property
    def state(self) -> str:
        """``up``, ``down`` (administratively, or no carrier) or ``gone``."""
        if self.link is None:
            return "gone"
        return "up" if self._is_up and self.link.up else "down"

    def close(self) -> None:
        """Close the link. Safe to call twice."""
        if self.link is not None:
            self._close_link(self.link)
            self.link = None


def _cannot_reopen(name: str, _frames: int) -> Link:
    raise AoEError(name, "cannot be reopened")


def check_mtu(link: Link) -> None:
    """Check that the MTU of an interface is large enough for a sector.

    Raises:
        UsageError: it is not.
    """
    if not sectors_per_frame(link.mtu):
        raise UsageError(
            link.name,
            f"an MTU of {link.mtu} has no room for a sector",
            f"Raise it with: ip link set {link.name} mtu 1500",
        )
