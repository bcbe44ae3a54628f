"""The event loop: passes frames from the interfaces to the targets, and responses back.

::

    link --> receive --> shelf.slot --> Target.handle --> reserved slot --> flush
      ^                                                                       |
      +--------------- poll, when no interface has frames -------------------+

All other events are handled between two batches: changes of interfaces, timers,
signals, and calls from other threads (``call``).
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
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from aoe.common.process.signals import handling, not_ignored, reset
from aoe.common.sizes import format_count, short_size
from aoe.errors import AoEError, NotFoundError
from aoe.net.busy_poll import BusyPoller, ring_checks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aoe.net.interfaces import InterfaceMonitor
    from aoe.net.link import LinkStatistics
    from target.protocol.engine import TargetStatistics
    from target.server.ports import Port


log: Final = logging.getLogger("aoe-target")

_DOWN_INTERVAL: Final = 0.2
"""Seconds between checks of an interface that is down."""
_MONITOR_INTERVAL: Final = 0.1
"""Longest delay of interface changes under continuous load, seconds."""
_Result = TypeVar("_Result")


class Timer(Protocol):
    """A timer of the event loop."""

    def next_timeout(self) -> float | None:
        """Return the time at which ``tick`` is to be called, None for never."""
        ...

    def tick(self, now: float) -> None:
        """Handle the timeout."""
        ...


class Service:
    """The event loop that serves a set of ports.

    Args:
        ports: the initial ports; change ``ports`` only in the loop's thread.
        monitor: reports changes of the interfaces; None if they are not followed.
    """

    def __init__(
        self, ports: Iterable[Port] = (), monitor: InterfaceMonitor | None = None
    ) -> None:
        self.ports = list(ports)
        self.timers: list[Timer] = []
        """The timers, called between two batches when they are due."""
        self.reload: Callable[[], None] = lambda: log.warning("nothing to reload")
        """The handler of SIGHUP, called in the loop's thread; it must not block."""
        self._monitor = monitor
        self._stopping = False
        self._ended = False
        self._signals: set[int] = set()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._poller = select.poll()
        self._polled: dict[Port, int] = {}
        self._busy_poller = BusyPoller()
        self._ring_checks: list[Callable[[], bool]] = []
        self._wakeup_fd, self.wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        """The pipe that ends a poll; ``signal.set_wakeup_fd`` takes ``wakeup``."""

    # --- from any thread ----------------------------------------------------------

    def stop(self) -> None:
        """End ``run`` after the frames that have been received are answered."""
        self._stopping = True
        self._wake()

    def request_statistics(self) -> None:
        """Make ``run`` log the statistics."""
        self.queue_signal(signal.SIGUSR1)

    def queue_signal(self, number: int) -> None:
        """Make ``run`` handle a signal, SIGUSR1 or SIGHUP."""
        self._signals.add(number)
        self._wake()

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Run a function in the loop's thread, and return its result.

        Call it only from another thread: the loop's own would deadlock. It blocks
        until the loop runs.

        Raises:
            AoEError: the service has ended, or the function raised it.
        """
        future: Future[_Result] = Future()
        self._calls.append((function, future))
        self._wake()
        if self._ended:
            self._run_calls()
        return future.result()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self.wakeup, b"\0")

    # --- in the loop's thread -----------------------------------------------------

    def remove(self, port: Port) -> None:
        """Stop serving an interface, and close it."""
        self.ports.remove(port)
        port.close()
        self._register_ports()

    # --- the loop -----------------------------------------------------------------

    def run(self) -> None:
        """Serve until ``stop``; interfaces may disappear and reappear."""
        # The objects that exist now are long-lived: exclude them from collection.
        gc.freeze()
        self._poller.register(self._wakeup_fd, select.POLLIN)
        if self._monitor is not None:
            self._poller.register(self._monitor, select.POLLIN)
            self._update_interfaces()
        self._register_ports()
        tick = polled = 0.0
        while not self._stopping:
            now = time.monotonic()
            busy = self._serve_ports(now)
            if now >= tick:
                tick = self._run_timers(now)
            busy = busy or self._busy_poller.poll(self._ring_checks)
            if not busy or now - polled > _MONITOR_INTERVAL:
                self._poll(0 if busy else self._next_deadline(tick) - time.monotonic())
                # The events may have changed the timers: run them again.
                polled, tick = now, 0.0
            if self._calls or self._signals:
                self._handle_requests()
        self._serve_ports(time.monotonic())
        self._ended = True
        self._run_calls()

    def _serve_ports(self, now: float) -> bool:
        busy = False
        for port in self.ports:
            try:
                busy = port.serve(now) or busy
            except NotFoundError as error:
                _wait_for_interface(port, error)
                self._register_ports()
        return busy

    def _run_timers(self, now: float) -> float:
        # Runs the timers that are due, and returns the time of the next one.
        due = math.inf
        for timer in self.timers:
            deadline = timer.next_timeout()
            if deadline is not None and deadline <= now:
                timer.tick(now)
                deadline = timer.next_timeout()
            due = min(due, math.inf if deadline is None else deadline)
        return due

    def _next_deadline(self, tick: float) -> float:
        # When to wake up: for timers, and for delayed frames, which any batch can add.
        deadlines = [port.next_timeout() for port in self.ports]
        return min(tick, *(time for time in deadlines if time is not None), math.inf)

    def _poll(self, wait: float) -> None:
        if not all(port.link.up for port in self.ports if port.link is not None):
            wait = min(wait, _DOWN_INTERVAL)
        timeout = -1 if wait == math.inf else max(0, math.ceil(wait * 1000))
        asleep = time.monotonic()
        ready = {fd for fd, _ in self._poller.poll(timeout)}
        if timeout and ready:
            self._busy_poller.record_sleep(time.monotonic() - asleep)
        if self._wakeup_fd in ready:
            os.read(self._wakeup_fd, 4096)
        if self._monitor is not None and self._monitor.fileno() in ready:
            self._update_interfaces()

    def _update_interfaces(self) -> None:
        if self._monitor is None:
            return
        try:
            interfaces = self._monitor.refresh()
        except (AoEError, OSError) as error:
            log.warning("interfaces: %s", error)
            return
        for port in self.ports:
            try:
                port.update_interface(interfaces)
            except NotFoundError as error:
                # It was removed while a change of it was applied.
                _wait_for_interface(port, error)
        self._register_ports()

    def _register_ports(self) -> None:
        # Ports open and close links: register exactly the current ones.
        for port in self.ports:
            port.peers = self.ports
        links = {port: port.link for port in self.ports if port.link is not None}
        for port, fd in list(self._polled.items()):
            if port not in links or links[port].fileno() != fd:
                self._poller.unregister(fd)
                del self._polled[port]
        for port, link in links.items():
            if port not in self._polled:
                self._poller.register(link, select.POLLIN)
                self._polled[port] = link.fileno()
        self._ring_checks = ring_checks(links.values())

    def _handle_requests(self) -> None:
        while self._signals:
            if self._signals.pop() == signal.SIGHUP:
                self.reload()
            else:
                self.log_statistics()
        self._run_calls()
        self._register_ports()

    def _run_calls(self) -> None:
        # After the end, calling threads run this, too; each call is popped only once.
        while call := self._next_call():
            function, future = call
            if self._ended:
                future.set_exception(AoEError("target", "is ending"))
                continue
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - raised again in the caller
                future.set_exception(error)

    def _next_call(self) -> tuple[Callable[[], Any], Future[Any]] | None:
        try:
            return self._calls.popleft()
        except IndexError:
            return None

    # --- statistics ---------------------------------------------------------------

    def log_statistics(self) -> None:
        """Log a line for each interface, each target on it, and each filter."""
        for port in self.ports:
            for target in port.targets:
                log.info(
                    "%s on %s: %s",
                    target.export.address,
                    port.name,
                    describe_target(target.statistics()),
                )
            log.info("%s: %s", port.name, describe_link(port.statistics()))
        self._log_filters()

    def _log_filters(self) -> None:
        exports = {t.export.address: t.export for p in self.ports for t in p.targets}
        for export in exports.values():
            for name, triggers in (
                export.filters.trigger_counts() if export.filters else ()
            ):
                if triggers is not None:
                    count = format_count(triggers, "time")
                    log.info("%s: filter %s triggered %s", export.address, name, count)

    def close(self) -> None:
        """Close the pipe and the ports."""
        for port in self.ports:
            port.close()
        if self._monitor is not None:
            self._monitor.close()
        os.close(self._wakeup_fd)
        os.close(self.wakeup)


def _wait_for_interface(port: Port, error: NotFoundError) -> None:
    port.detach_link(f"{error.why}, waiting for it to reappear")


@contextlib.contextmanager
def signals(service: Service) -> Iterator[None]:
    """Handle signals: TERM and INT stop a service, HUP reloads, USR1 logs statistics.

    A second TERM or INT kills the process at once. An INT that is ignored stays so.
    Use it only in the main thread.
    """
    endings = (signal.SIGTERM, *not_ignored(signal.SIGINT))

    def end(_number: int, _frame: object) -> None:
        reset(endings)
        service.stop()

    def queue_signal(number: int, _frame: object) -> None:
        service.queue_signal(number)

    with (
        handling(end, endings),
        handling(queue_signal, (signal.SIGHUP, signal.SIGUSR1)),
    ):
        wakeup = signal.set_wakeup_fd(service.wakeup, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)


def describe_target(counters: TargetStatistics) -> str:
    """Format the counters of a target as one line."""
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
    """Format the counters of an interface as one line."""
    return (
        f"{counters.received} received, {counters.sent} sent, "
        f"{counters.dropped} dropped, {counters.truncated} truncated, "
        f"{counters.unsent} unsent"
    )
