"""The event loop: frames from the interfaces to the targets, and replies back.

::

    link --> receive --> shelf.slot --> Target.handle --> reserved slot --> flush
      ^                                                                       |
      +------------- poll, when no interface had anything -------------------+
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import select
import signal
import time
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.address import SHELF_ALL, SLOT_ALL
from aoe.errors import NotFoundError, UsageError
from aoe.header import HEADER_LENGTH, sectors_per_frame
from aoe.sizes import short_size
from target.filters.stack import filtered
from target.filters.target import FilteredTarget
from target.server import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aoe.link import Link, LinkStatistics
    from target.exports import Export
    from target.server import TargetStatistics

log: Final = logging.getLogger("aoe-target")

_BATCH: Final = 64
"""Frames between two flushes: the last of them waits for the first."""
_DOWN_INTERVAL: Final = 0.2
"""Seconds between looks at an interface that is down."""
_FULL_PAUSE: Final = 0.001
"""Seconds to wait when an interface takes no more replies."""
_ADDRESS: Final = Struct("!16xHB")
"""Shelf and slot, where they lie in a frame."""


class Port:
    """One interface, and the targets that are served on it.

    Args:
        link: the interface.
        exports: what is served there, no address twice.

    Raises:
        UsageError: the interface's MTU has no room for a sector.
    """

    def __init__(self, link: Link, exports: Iterable[Export]) -> None:
        if not sectors_per_frame(link.mtu):
            raise UsageError(
                link.name,
                f"an MTU of {link.mtu} has no room for a sector",
                f"Raise it with: ip link set {link.name} mtu 1500",
            )
        self.link = link
        self.targets = [Target(export, link.mac, link.mtu) for export in exports]
        self.strays = 0
        """Frames that were for none of the targets."""
        self._by_address: dict[tuple[int, int], Target | FilteredTarget] = {
            target.export.address: filtered(target) for target in self.targets
        }
        self._filtered = [
            target
            for target in self._by_address.values()
            if isinstance(target, FilteredTarget)
        ]

    def announce(self) -> None:
        """Tell everybody whom they serve that the targets are ready (P48)."""
        for target in self.targets:
            for mac in target.export.audience:
                frame = self.link.reserve()
                if frame is None:
                    # More of them than there is room for at once.
                    self.link.flush()
                    frame = self.link.reserve()
                if frame is not None:
                    self.link.commit(target.announce(frame, mac))
        self.link.flush()

    def serve(self, now: float) -> bool:
        """Answer a batch of frames, and tell whether there were any.

        A frame is taken only when there is memory for its reply; until then frames wait
        in the receive ring.

        Raises:
            NotFoundError: the interface is gone.
        """
        link = self.link
        by_address = self._by_address
        count = 0
        while count < _BATCH:
            reply = link.reserve()
            if reply is None:
                time.sleep(_FULL_PAUSE)
                break
            request = link.receive()
            if request is None:
                break
            if len(request) < HEADER_LENGTH:
                self.strays += 1
            elif (target := by_address.get(_ADDRESS.unpack_from(request))) is None:
                self._serve_all(request, now)
            elif length := target.handle(request, reply, now):
                link.commit(length)
            count += 1
        for filtered_target in self._filtered:
            self._serve_due(filtered_target, now)
        link.flush()
        return count > 0

    def _serve_due(self, target: FilteredTarget, now: float) -> None:
        # What finds no slot stays due.
        while (reply := self.link.reserve()) is not None:
            length = target.handle_due(reply, now)
            if not length:
                break
            self.link.commit(length)

    def next_timeout(self) -> float | None:
        """Return the ``now`` at which ``serve`` has something to do without a frame."""
        times = [target.next_timeout() for target in self._filtered]
        return min((time for time in times if time is not None), default=None)

    def _serve_all(self, request: memoryview, now: float) -> None:
        # A broadcast address is for every target that it matches (P9).
        shelf, slot = _ADDRESS.unpack_from(request)
        if shelf != SHELF_ALL and slot != SLOT_ALL:
            self.strays += 1
            return
        for target in self._by_address.values():
            reply = self.link.reserve()
            if reply is None:
                return
            if length := target.handle(request, reply, now):
                self.link.commit(length)


class Service:
    """Serves ports until it is told to stop.

    Args:
        ports: at least one.
    """

    def __init__(self, ports: Sequence[Port]) -> None:
        self.ports = list(ports)
        self._stopping = False
        self._reporting = False
        self._awake, self.wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        """The pipe that ends a poll; ``signal.set_wakeup_fd`` takes ``wakeup``."""

    def stop(self) -> None:
        """End ``run`` once the frames at hand are answered; from anywhere."""
        self._stopping = True
        self._wake()

    def report(self) -> None:
        """Have ``run`` log the statistics; from anywhere."""
        self._reporting = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self.wakeup, b"\0")

    def run(self) -> None:
        """Serve until ``stop``, or until the last interface is gone.

        Raises:
            NotFoundError: the last interface is gone.
        """
        # What exists by now stays: the collector need not look at it again.
        gc.freeze()
        poller = select.poll()
        poller.register(self._awake, select.POLLIN)
        for port in self.ports:
            poller.register(port.link, select.POLLIN)
        while not self._stopping:
            if not self._serve_ports(poller):
                self._sleep(poller)
            if self._reporting:
                self._reporting = False
                self.log_statistics()
        self._serve_ports(poller)

    def _serve_ports(self, poller: select.poll) -> bool:
        now = time.monotonic()
        busy = False
        for port in tuple(self.ports):
            try:
                busy = port.serve(now) or busy
            except NotFoundError as error:
                self.ports.remove(port)
                poller.unregister(port.link)
                if not self.ports:
                    raise
                log.warning("%s", error)
        return busy

    def _sleep(self, poller: select.poll) -> None:
        waits = [
            max(0.0, timeout - time.monotonic())
            for port in self.ports
            if (timeout := port.next_timeout()) is not None
        ]
        if not all(port.link.up for port in self.ports):
            waits.append(_DOWN_INTERVAL)
        ready = poller.poll(math.ceil(min(waits) * 1000) if waits else None)
        if (self._awake, select.POLLIN) in ready:
            os.read(self._awake, 4096)

    def log_statistics(self) -> None:
        """Log a line for each target on each interface, and one for the interface."""
        for port in self.ports:
            for target in port.targets:
                log.info(
                    "%s on %s: %s",
                    target.export.address,
                    port.link.name,
                    describe_target(target.statistics()),
                )
            log.info("%s: %s", port.link.name, describe_link(port.link.statistics()))
        exports = {t.export.address: t.export for p in self.ports for t in p.targets}
        for export in exports.values():
            for name, times in export.filters.strikes() if export.filters else ():
                log.info("%s: filter %s struck %d times", export.address, name, times)

    def close(self) -> None:
        """Close the pipe; ports belong to whoever opened them."""
        os.close(self._awake)
        os.close(self.wakeup)


@contextlib.contextmanager
def signals(service: Service) -> Iterator[None]:
    """Let signals rule a service: TERM and INT stop it, USR1 logs its statistics.

    A second TERM or INT ends the process at once, whatever it is busy with. For the
    main thread only.
    """
    endings = (signal.SIGTERM, signal.SIGINT)

    def end(_number: int, _frame: object) -> None:
        for number in endings:
            signal.signal(number, signal.SIG_DFL)
        service.stop()

    def report(_number: int, _frame: object) -> None:
        service.report()

    before = {number: signal.signal(number, end) for number in endings}
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, report)
    wakeup = signal.set_wakeup_fd(service.wakeup, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)


def describe_target(counters: TargetStatistics) -> str:
    """Write a target's statistics as one line."""
    parts = [
        f"{counters.requests} requests",
        f"{counters.reads} reads ({short_size(counters.read_bytes)})",
        f"{counters.writes} writes ({short_size(counters.written_bytes)})",
        f"{counters.flushes} flushes",
    ]
    for title, counts in (("errors", counters.errors), ("dropped", counters.dropped)):
        if counts:
            kinds = " ".join(f"{kind} {n}" for kind, n in sorted(counts.items()))
            parts.append(f"{title}: {kinds}")
    return ", ".join(parts)


def describe_link(counters: LinkStatistics) -> str:
    """Write an interface's statistics as one line."""
    return (
        f"{counters.received} received, {counters.sent} sent, "
        f"{counters.dropped} dropped, {counters.truncated} truncated, "
        f"{counters.unsent} unsent"
    )
