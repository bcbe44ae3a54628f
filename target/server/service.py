"""The event loop: frames from the interfaces to the targets, and replies back.

::

    link --> receive --> shelf.slot --> Target.handle --> reserved slot --> flush
      ^                                                                       |
      +------------- poll, when no interface had anything -------------------+

Everything else that happens to a target waits for its turn between two batches: news
of the interfaces, timers, signals, and what other threads want done (``call``).
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

from aoe.common.sizes import format_count, short_size
from aoe.errors import AoEError, NotFoundError
from aoe.net.busy_poll import BusyPoller, ring_checks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from aoe.net.interfaces import InterfaceMonitor
    from aoe.net.link import LinkStatistics
    from target.protocol.target import TargetStatistics
    from target.server.ports import Port

    Handler = Callable[[int, Any], None]

log: Final = logging.getLogger("aoe-target")

_DOWN_INTERVAL: Final = 0.2
"""Seconds between looks at an interface that is down."""
_NEWS_INTERVAL: Final = 0.1
"""Seconds that news of the interfaces may wait while there are frames all the time."""
_Result = TypeVar("_Result")


class Timer(Protocol):
    """Something that wants to be called when its time has come."""

    def next_timeout(self) -> float | None:
        """When ``tick`` is wanted, in seconds as ``now`` is; None for not at all."""
        ...

    def tick(self, now: float) -> None:
        """Do what is due."""
        ...


class Service:
    """Serves ports until it is told to stop.

    Args:
        ports: the interfaces at first; ``ports`` may be changed, in the loop's thread.
        watch: tells of changes to the interfaces, where it shall be followed.
    """

    def __init__(
        self, ports: Iterable[Port] = (), watch: InterfaceMonitor | None = None
    ) -> None:
        self.ports = list(ports)
        self.timers: list[Timer] = []
        """What is called between two batches when its time has come."""
        self.reload: Callable[[], None] = lambda: log.warning("nothing to reload")
        """What a HUP asks for; it is called in the loop and must not take long."""
        self._interfaces = watch
        self._stopping = False
        self._ended = False
        self._signals: set[int] = set()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._poller = select.poll()
        self._polled: dict[Port, int] = {}
        self._busy_poller = BusyPoller()
        self._ring_checks: list[Callable[[], bool]] = []
        self._awake, self.wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        """The pipe that ends a poll; ``signal.set_wakeup_fd`` takes ``wakeup``."""

    # --- from anywhere ------------------------------------------------------------

    def stop(self) -> None:
        """End ``run`` once the frames at hand are answered."""
        self._stopping = True
        self._wake()

    def report(self) -> None:
        """Have ``run`` log the statistics."""
        self.note(signal.SIGUSR1)

    def note(self, number: int) -> None:
        """Have ``run`` do what a signal asks for: USR1 or HUP."""
        self._signals.add(number)
        self._wake()

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Run a function in the loop's thread, and return what it returns.

        For other threads: the loop's own would wait for itself. Until the loop runs,
        the caller waits.

        Raises:
            AoEError: the service has ended, or the function says so.
        """
        future: Future[_Result] = Future()
        self._calls.append((function, future))
        self._wake()
        if self._ended:
            self._answer_calls()
        return future.result()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self.wakeup, b"\0")

    # --- in the loop's thread -----------------------------------------------------

    def remove(self, port: Port) -> None:
        """Serve an interface no longer, and close it."""
        self.ports.remove(port)
        port.close()
        self._watch_ports()

    # --- the loop -----------------------------------------------------------------

    def run(self) -> None:
        """Serve until ``stop``, whatever becomes of the interfaces."""
        # What exists by now stays: the collector need not look at it again.
        gc.freeze()
        self._poller.register(self._awake, select.POLLIN)
        if self._interfaces is not None:
            self._poller.register(self._interfaces, select.POLLIN)
            self._look()
        self._watch_ports()
        tick = polled = 0.0
        while not self._stopping:
            now = time.monotonic()
            busy = self._serve_ports(now)
            if now >= tick:
                tick = self._tick(now)
            busy = busy or self._busy_poller.poll(self._ring_checks)
            if not busy or now - polled > _NEWS_INTERVAL:
                self._poll(0 if busy else self._due(tick) - time.monotonic())
                # Whatever came of it, there may be new timers.
                polled, tick = now, 0.0
            if self._calls or self._signals:
                self._attend()
        self._serve_ports(time.monotonic())
        self._ended = True
        self._answer_calls()

    def _serve_ports(self, now: float) -> bool:
        busy = False
        for port in self.ports:
            try:
                busy = port.serve(now) or busy
            except NotFoundError as error:
                port.lose(f"{error.why}, waiting for it to come back")
                self._watch_ports()
        return busy

    def _tick(self, now: float) -> float:
        # Do what is due, and tell when something is next.
        due = math.inf
        for timer in self.timers:
            time_of_it = timer.next_timeout()
            if time_of_it is not None and time_of_it <= now:
                timer.tick(now)
                time_of_it = timer.next_timeout()
            due = min(due, math.inf if time_of_it is None else time_of_it)
        return due

    def _due(self, tick: float) -> float:
        # When to wake up: for timers, and for what ports hold back, which any batch of
        # frames may have changed.
        times = [port.next_timeout() for port in self.ports]
        return min(tick, *(time for time in times if time is not None), math.inf)

    def _poll(self, wait: float) -> None:
        if not all(port.link.up for port in self.ports if port.link is not None):
            wait = min(wait, _DOWN_INTERVAL)
        timeout = -1 if wait == math.inf else max(0, math.ceil(wait * 1000))
        asleep = time.monotonic()
        ready = {fd for fd, _ in self._poller.poll(timeout)}
        if timeout and ready:
            self._busy_poller.record_sleep(time.monotonic() - asleep)
        if self._awake in ready:
            os.read(self._awake, 4096)
        if self._interfaces is not None and self._interfaces.fileno() in ready:
            self._look()

    def _look(self) -> None:
        if self._interfaces is None:
            return
        try:
            interfaces = self._interfaces.refresh()
        except (AoEError, OSError) as error:
            log.warning("interfaces: %s", error)
            return
        for port in self.ports:
            port.look(interfaces)
        self._watch_ports()

    def _watch_ports(self) -> None:
        # Links come and go: poll those that there are.
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

    def _attend(self) -> None:
        while self._signals:
            if self._signals.pop() == signal.SIGHUP:
                self.reload()
            else:
                self.log_statistics()
        self._answer_calls()
        self._watch_ports()

    def _answer_calls(self) -> None:
        # After the end, callers come here too: only one of them gets a call.
        while call := self._next_call():
            function, future = call
            if self._ended:
                future.set_exception(AoEError("target", "is ending"))
                continue
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)

    def _next_call(self) -> tuple[Callable[[], Any], Future[Any]] | None:
        try:
            return self._calls.popleft()
        except IndexError:
            return None

    # --- what it says -------------------------------------------------------------

    def log_statistics(self) -> None:
        """Log a line for each target on each interface, and one for the interface."""
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
            for name, times in (
                export.filters.trigger_counts() if export.filters else ()
            ):
                if times is not None:
                    often = format_count(times, "time")
                    log.info("%s: filter %s triggered %s", export.address, name, often)

    def close(self) -> None:
        """Close the pipe and the ports."""
        for port in self.ports:
            port.close()
        if self._interfaces is not None:
            self._interfaces.close()
        os.close(self._awake)
        os.close(self.wakeup)


@contextlib.contextmanager
def signals(service: Service) -> Iterator[None]:
    """Let signals rule a service: TERM and INT stop it, HUP reloads, USR1 reports.

    A second TERM or INT ends the process at once, whatever it is busy with. For the
    main thread only.
    """
    endings = (signal.SIGTERM, signal.SIGINT)

    def end(_number: int, _frame: object) -> None:
        for number in endings:
            signal.signal(number, signal.SIG_DFL)
        service.stop()

    def note(number: int, _frame: object) -> None:
        service.note(number)

    handlers: dict[int, Handler] = dict.fromkeys(endings, end)
    handlers |= dict.fromkeys((signal.SIGHUP, signal.SIGUSR1), note)
    before = {number: signal.signal(number, how) for number, how in handlers.items()}
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
