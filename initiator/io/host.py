"""Run one driver over the links of a host: the initiator's event loop."""

from __future__ import annotations

import os
import select
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self

from aoe.errors import AoEError, DeviceError, NotFoundError, UsageError
from aoe.header import sectors_per_frame
from aoe.net.base import check_distinct
from aoe.net.busy_poll import BusyPoller, ring_checks
from aoe.net.link import open_link
from aoe.net.netdevice import get_link_info
from initiator.driver import discovery
from initiator.driver.aoedev import AoeDev, State
from initiator.driver.driver import Driver
from initiator.driver.options import Options
from initiator.io.fast_path import FastPath
from initiator.io.link_device import LinkDevice
from initiator.io.tags import claim_tag_base, random_tag_start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aoe.address import Address
    from aoe.net.link import Link
    from initiator.driver.bio import Bio
    from initiator.driver.netdev import NetDevice

_STALL = 0.1
"""A gap between calls of ``run_once`` longer than this, in seconds, stops the clock."""
_GAP = 0.005
"""A gap after which frames are received before any are sent, in seconds."""
_PAUSE = 0.3
"""A gap in which a target may have been restarted, in seconds."""
_TIMER_SLACK = 0.005
"""Minimum seconds between two queries of the driver's timer."""
_BATCH = 32
"""Maximum frames received from one interface per call of ``run_once``."""
_CHECK_INTERVAL = 0.2
"""Seconds between checks whether interfaces have disappeared, returned or changed."""
_SETTLE = 0.05
"""Seconds to wait for further responses after the first path was proven. Of two targets
with different disks at one address, none may be used by chance."""
_QUERY_INTERVAL = 10.0
"""Seconds between queries for further paths to open devices; the kernel's is 60."""


def _log_warning(address: Address, text: str) -> None:
    # Not needed by the commands, whose start it would delay.
    import logging

    logging.getLogger("aoe").warning("%s: %s", address, text)


class Host:
    """An event loop that runs a driver over links, in the caller's thread.

    There is no background thread: frames are sent, received and retransmitted only
    while a method of the host runs. The driver's clock stops between calls.

    An interface may disappear and return, or change its MTU or MAC address. Frames that
    are lost meanwhile are retransmitted, on other interfaces if there are any.

    Further file descriptors can be watched in the same loop.

    Args:
        links: open links, which the host closes in ``close``.
        options: options of the driver.
        opener: opens an interface again that has returned or changed. With None, an
            interface that disappears is not used again.

    Raises:
        UsageError: an interface's MTU has no room for a sector.
        BusyError: too many initiators run on this machine.
    """

    def __init__(
        self,
        links: Iterable[Link],
        options: Options | None = None,
        opener: Callable[[str], Link] | None = None,
    ) -> None:
        self._opener = opener
        self._check_due = 0.0
        self._query_due = time.monotonic() + _QUERY_INTERVAL
        self.ports = [LinkDevice(link) for link in links]
        self._poll = select.poll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timer_check_due = 0.0
        self._busy_poller = BusyPoller()
        self._ring_checks: list[Callable[[], bool]] = []
        self._stalled = 0.0
        self._has_paused = False
        self._last_run = time.monotonic()
        self._tag_claim = -1
        for port in self.ports:
            if sectors_per_frame(port.mtu) == 0:
                raise UsageError(
                    port.name,
                    f"an MTU of {port.mtu} has no room for a sector",
                    f"Raise it: ip link set {port.name} mtu 1500",
                )
        self.driver = Driver(self._with_tags(options or Options()))
        self.driver.on_warning = _log_warning
        self._run_queue: dict[AoeDev, None] = {}
        self.driver.run_queue = self._run_queue
        self._fast_paths: dict[NetDevice, FastPath] = {}
        for port in self.ports:
            self.driver.add_netdev(port)
            self._add_link(port)

    def _with_tags(self, options: Options) -> Options:
        if options.tags != "user" or options.tag_base is not None:
            return options
        base, self._tag_claim = claim_tag_base()
        return replace(options, tag_base=base, tag_start=random_tag_start())

    @classmethod
    def on(
        cls,
        *interfaces: str,
        options: Options | None = None,
        rings: bool | None = None,
        opener: Callable[[str], Link] | None = None,
    ) -> Self:
        """Open a host on these interfaces.

        Args:
            interfaces: their names.
            options: as for the class.
            rings: as for ``open_link``.
            opener: opens an interface, instead of ``open_link``.
        """
        opener = opener or partial(open_link, rings=rings, responses=True)
        links: list[Link] = []
        try:
            links.extend(map(opener, interfaces))
            check_distinct((link.index, link.name) for link in links)
            return cls(links, options, opener)
        except BaseException:
            for link in links:
                link.close()
            raise

    def watch(
        self, fd: int, callback: Callable[[int], None], events: int = select.POLLIN
    ) -> None:
        """Call ``callback(events)`` from ``run_once`` when a file descriptor is ready.

        The callback may submit bios, watch and unwatch. Its exceptions propagate from
        ``run_once``. For a descriptor that is already watched, callback and events are
        replaced.

        Args:
            fd: the descriptor, which the caller has to close.
            callback: called with the events, which may include POLLERR and POLLHUP.
            events: as for ``select.poll``.
        """
        self._watched[fd] = callback
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop watching a file descriptor, before it is closed."""
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def filenos(self) -> set[int]:
        """Return the descriptors to wait on for input before calling ``run_once``.

        They may change with each call.
        """
        links = (port.link for port in self.ports)
        return {link.fileno() for link in links if link is not None} | {*self._watched}

    def now(self) -> float:
        """Return the time of the driver's clock, in seconds.

        It leaves out gaps in which ``run_once`` was not called, for example while the
        caller was blocked on a pipe: responses were received, but not processed, and
        must not count as late.
        """
        present = time.monotonic()
        if present - self._last_run > _STALL:
            self._stalled += present - self._last_run
            if present - self._last_run > _PAUSE:
                self._has_paused = self.driver.options.send_flush
        self._last_run = present
        return present - self._stalled

    def submit(self, d: AoeDev, bio: Bio) -> None:
        """Submit a bio (``Driver.submit``); ``run_once`` sends its frames."""
        # The time of the last run is conservative: no quarantine ends early by it.
        self.driver.submit(d, bio, self._last_run - self._stalled)

    def run_once(self, wait: float | None = None) -> None:
        """Send, receive and run the timer; if nothing was received, wait for an event.

        Watched descriptors are polled in each call, even under a load of frames.

        Args:
            wait: maximum seconds to wait; None waits until there is an event, which is
                for ever if no frame is outstanding.
        """
        before = self._last_run
        now = self.now()
        received = False
        if self._last_run - before > _GAP:
            # A target may have announced that it has restarted, with another disk.
            received = self._receive_all(now)
        if self._has_paused:
            self._has_paused = False
            self.driver.identify_open(now)
        # Sent first, so that targets work while responses are processed.
        self._send(now)
        received = self._receive_all(now) or received
        if now >= self._check_due:
            self._check_interfaces(now)
        due: float | None = self._timer_check_due
        if now >= self._timer_check_due:
            self._timer_check_due = now + _TIMER_SLACK
            due = self.driver.next_timeout()
            if due is not None and due <= now:
                self.driver.handle_timer(now)
                # Bios may have ended, and nothing be left to wake up for: do not wait.
                received = True
        received = received or bool(self._run_queue)
        # On a fast network, a wake-up takes longer than the response.
        may_poll = not received and wait != 0 and self._ring_checks
        if may_poll and self._busy_poller.poll(self._ring_checks):
            received = self._receive_all(self.now())
        self._send(now)
        if not received:
            self._wait(wait, due)
        elif self._watched:
            self._dispatch(0)

    def _send(self, now: float) -> None:
        """Run the devices of the run queue, on the fast path first; flush the links."""
        driver, run_queue = self.driver, self._run_queue
        while run_queue:
            d, _ = run_queue.popitem()
            if len(d.targets) == 1 and len(d.targets[0].ifs) == 1:
                fast_path = self._fast_paths.get(d.targets[0].ifs[0].netdev)
                if fast_path is not None:
                    fast_path.send(d, now)
            driver.work(d, now)
        for port in self.ports:
            if port.link is not None:
                try:
                    port.link.flush()
                except NotFoundError as error:
                    port.error = error

    def _receive_all(self, now: float) -> bool:
        received = False
        for port in self.ports:
            received = self._receive_on(port, now) or received
        return received

    def _receive_on(self, port: LinkDevice, now: float) -> bool:
        count = 0
        try:
            if port.error is None:
                fast_path = self._fast_paths.get(port)
                if fast_path is not None:
                    count = fast_path.receive(_BATCH, now)
                elif port.link is not None:
                    count = self._receive_slow(port, port.link, now)
        except NotFoundError as error:
            port.error = error
        if port.error is not None:
            self._remove_link(port)
        return count > 0

    def _receive_slow(self, port: LinkDevice, link: Link, now: float) -> int:
        receive, take = link.receive, self.driver.receive
        for count in range(_BATCH):
            frame = receive()
            if frame is None:
                return count
            take(frame, port, now)
        return _BATCH

    # --- interfaces that change ---------------------------------------------------

    def _add_link(self, port: LinkDevice) -> None:
        link = port.link
        if link is not None:
            self._poll.register(link.fileno(), select.POLLIN)
            rings = link.rings
            if rings is not None and self.driver.options.allows_fast_path:
                self._fast_paths[port] = FastPath(
                    self.driver, port, rings, link.receive
                )
        self._update_ring_checks()

    def _remove_link(self, port: LinkDevice) -> None:
        if port.link is not None:
            self._fast_paths.pop(port, None)
            self._poll.unregister(port.link.fileno())
            port.close()
        self._update_ring_checks()

    def _update_ring_checks(self) -> None:
        links = (port.link for port in self.ports)
        self._ring_checks = ring_checks(link for link in links if link is not None)

    def _check_interfaces(self, now: float) -> None:
        self._check_due = now + _CHECK_INTERVAL
        if self._opener is not None:
            for port in self.ports:
                self._reopen(port, self._opener, now)
        if now >= self._query_due:
            self._query_due = now + _QUERY_INTERVAL
            self.driver.discover_open()

    def _reopen(
        self, port: LinkDevice, opener: Callable[[str], Link], now: float
    ) -> None:
        """Open an interface again if index, MAC address or MTU have changed."""
        link = port.link
        try:
            info = get_link_info(port.name)
            if link is not None and info[1:] == (link.index, port.mac, port.mtu):
                return
            if sectors_per_frame(info.mtu) == 0:
                return
            another = opener(port.name)
        except AoEError:
            # Missing or down: an open link will report that it has disappeared.
            return
        self._remove_link(port)
        port.attach(another)
        self._add_link(port)
        self.driver.netdev_changed(port, now)

    def _wait(self, wait: float | None, due: float | None) -> None:
        if due is not None:
            until_due = max(0.0, due - self.now())
            wait = until_due if wait is None else min(wait, until_due)
        if not all(port.link is not None and port.link.up for port in self.ports):
            # An interface that returns or disappears does not wake up poll().
            wait = _CHECK_INTERVAL if wait is None else min(wait, _CHECK_INTERVAL)
        self._dispatch(None if wait is None else wait * 1000)

    def _dispatch(self, milliseconds: float | None) -> None:
        start = time.monotonic()
        ready = self._poll.poll(milliseconds)
        self._last_run = time.monotonic()
        if ready and milliseconds != 0:
            self._busy_poller.record_sleep(self._last_run - start)
        calls = [(fd, self._watched.get(fd), events) for fd, events in ready]
        for fd, callback, events in calls:
            # An earlier callback may have unwatched or replaced this one.
            if callback is not None and self._watched.get(fd) is callback:
                callback(events)

    def run_until(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Call ``run_once`` until ``done()`` is true; return False on timeout."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self.run_once(left)
        return True

    def find(self, address: Address, timeout: float = 3.0) -> AoeDev:
        """Query a device and wait until it is up.

        Args:
            address: the device.
            timeout: seconds after which to give up.

        Raises:
            NotFoundError: there was no response.
            DeviceError: the target responded, but rejected IDENTIFY, or targets with
                different disks have responded.
        """
        self.begin_search(address)
        deadline = time.monotonic() + timeout
        interval = 0.05

        def is_found() -> bool:
            return self.is_settled(address)

        while not is_found():
            left = deadline - time.monotonic()
            if left <= 0:
                raise self.not_found(address, timeout)
            self.driver.discover(address)
            self.run_until(is_found, min(interval, left))
            interval *= 2
        return self.found(address)

    def begin_search(self, address: Address) -> None:
        """Forget the paths of a device, unless it is open or was verified just now."""
        d = self.driver.devices.get(address)
        if d is not None and self.now() - d.verified > _SETTLE:
            discovery.forget_paths(self.driver, d)

    def is_settled(self, address: Address) -> bool:
        """Return True if a device is up or in conflict, and no response is awaited.

        After the first path was proven, others have had time to announce themselves.
        """
        d = self.driver.devices.get(address)
        if d is None or d.conflict is not None:
            return d is not None
        is_final = d.nopen or not self.driver.options.verify_paths
        is_up = d.state is State.UP
        return is_up and (bool(is_final) or self.now() - d.up_since >= _SETTLE)

    def found(self, address: Address) -> AoeDev:
        """Return a device that is settled.

        Raises:
            DeviceError: its paths have different disks.
        """
        d = self.driver.devices[address]
        if d.conflict is not None:
            raise d.conflict
        return d

    def not_found(self, address: Address, timeout: float) -> AoEError:
        """Return the error of ``find`` for a device that is not up in time."""
        names = ",".join(port.name for port in self.ports)
        errors = [port.error for port in self.ports if port.error is not None]
        if len(errors) == len(self.ports):
            return errors[0]
        if address in self.driver.devices:
            why = self.driver.log[-1] if self.driver.log else "no response to IDENTIFY"
            return DeviceError(str(address), f"target found, but no disk: {why}")
        return NotFoundError(
            str(address),
            f"no response on {names} within {timeout:g} s",
            f"List the targets with: aoe discover -i {names}",
        )

    def close(self) -> None:
        """Close the links; outstanding bios never end. Safe to call twice."""
        for port in self.ports:
            port.close()
        if self._tag_claim >= 0:
            os.close(self._tag_claim)
            self._tag_claim = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
