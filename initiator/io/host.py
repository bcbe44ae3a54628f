"""A host that talks AoE: its links, one driver, and the loop that runs them."""

from __future__ import annotations

import os
import select
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Self

from aoe.errors import AoEError, DeviceError, NotFoundError, UsageError
from aoe.header import sectors_per_frame
from aoe.net.busy_poll import BusyPoller, ring_checks
from aoe.net.link import open_link
from aoe.net.netdevice import get_link_info
from initiator.driver.aoedev import AoeDev, State
from initiator.driver.driver import Driver
from initiator.driver.options import Options
from initiator.io.fast_path import Express
from initiator.io.link_device import LinkDevice
from initiator.io.tags import claim_tag_base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aoe.address import Address
    from aoe.net.link import Link
    from initiator.driver.bio import Bio
    from initiator.driver.netdev import NetDevice

_AWAY = 0.1
"""Who takes no turn for longer, in seconds, was busy with something else."""
_TIMER_SLACK = 0.005
"""While frames keep coming, the timer is asked this often, in seconds."""
_BATCH = 32
"""Frames taken in one go, before anything else has its turn."""
_LOOK_INTERVAL = 0.2
"""Seconds between looks at the interfaces: whether they are there, and as they were."""
_QUERY_INTERVAL = 10.0
"""Seconds between questions for more ways to the open devices; the kernel takes 60."""


class Host:
    """Runs a driver over real links, in the caller's thread.

    Nothing happens in the background: frames move while one of the methods waits.
    Retransmissions too wait for the next call, and the driver's clock stands still
    until then.

    An interface may go, and come back under its name, or get another MTU or address:
    frames are lost meanwhile, and sent again on others if there are any.

    Other files may be watched beside the links, in the same thread.

    Args:
        links: open links; the host closes them when it is closed.
        options: how the driver behaves.
        opener: opens an interface anew that came back or has changed; without it, one
            that goes is gone for good.

    Raises:
        UsageError: an interface's MTU has no room for one sector.
        BusyError: there are too many hosts on this machine.
    """

    def __init__(
        self,
        links: Iterable[Link],
        options: Options | None = None,
        opener: Callable[[str], Link] | None = None,
    ) -> None:
        self._opener = opener
        self._look_due = 0.0
        self._query_due = time.monotonic() + _QUERY_INTERVAL
        self.ports = [LinkDevice(link) for link in links]
        self._poll = select.poll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timer_asked = 0.0
        self._busy_poller = BusyPoller()
        self._ring_checks: list[Callable[[], bool]] = []
        self._away = 0.0
        self._seen = time.monotonic()
        self._tags = -1
        for port in self.ports:
            if sectors_per_frame(port.mtu) == 0:
                raise UsageError(
                    port.name,
                    f"an MTU of {port.mtu} has no room for a sector",
                    f"Raise it: ip link set {port.name} mtu 1500",
                )
        self.driver = Driver(self._with_tags(options or Options()))
        self._run_queue: dict[AoeDev, None] = {}
        self.driver.run_queue = self._run_queue
        self._express: dict[NetDevice, Express] = {}
        for port in self.ports:
            self.driver.add_netdev(port)
            self._listen(port)

    def _with_tags(self, options: Options) -> Options:
        if options.tags != "user" or options.tag_base is not None:
            return options
        base, self._tags = claim_tag_base()
        return replace(options, tag_base=base)

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
            opener: what opens them, now and later, instead of that.
        """
        opener = opener or partial(open_link, rings=rings, responses=True)
        links: list[Link] = []
        try:
            links.extend(map(opener, interfaces))
            return cls(links, options, opener)
        except BaseException:
            for link in links:
                link.close()
            raise

    def watch(
        self, fd: int, callback: Callable[[int], None], events: int = select.POLLIN
    ) -> None:
        """Call ``callback(events)`` in a turn whenever a file descriptor is ready.

        It may submit bios, watch and unwatch; what it raises comes out of the turn.
        Whoever watches what is watched already replaces callback and events.

        Args:
            fd: the descriptor, which stays the caller's to close.
            callback: told which events there are. POLLERR and POLLHUP come unasked.
            events: as for ``select.poll``.
        """
        self._watched[fd] = callback
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop watching a file descriptor, before it is closed."""
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def filenos(self) -> set[int]:
        """Return the descriptors that wake a turn when they are ready to be read.

        They may be others after each turn.
        """
        links = (port.link for port in self.ports)
        return {link.fileno() for link in links if link is not None} | {*self._watched}

    def now(self) -> float:
        """Tell the time that the driver goes by, in seconds.

        It leaves out the time in which nobody took turns, for a slow pipe say: answers
        that came meanwhile were not late, and no target was silent.
        """
        present = time.monotonic()
        if present - self._seen > _AWAY:
            self._away += present - self._seen
        self._seen = present
        return present - self._away

    def submit(self, d: AoeDev, bio: Bio) -> None:
        """Take a bio, as ``Driver.submit``; its frames leave with the next turn."""
        # Time of the last turn: nothing that an earlier time allows is wrong later.
        self.driver.submit(d, bio, self._seen - self._away)

    def run_once(self, wait: float | None = None) -> None:
        """Deliver what has come, send what is due; if there was nothing, wait once.

        What is watched is looked at in every turn, however many frames keep coming.

        Args:
            wait: seconds to wait at most; None waits for as long as it takes, which is
                for ever if no frame is outstanding.
        """
        now = self.now()
        # What is waiting goes out before answers are looked at: others can work then.
        self._send(now)
        received = self._hear(now)
        if now >= self._look_due:
            self._look_around(now)
        due: float | None = self._timer_asked
        if now >= self._timer_asked:
            self._timer_asked = now + _TIMER_SLACK
            due = self.driver.next_timeout()
            if due is not None and due <= now:
                self.driver.handle_timer(now)
                # Bios may have ended by it, with nothing left that would wake us.
                received = True
        received = received or bool(self._run_queue)
        # To be woken takes longer than an answer, where answers take microseconds.
        may_poll = not received and wait != 0 and self._ring_checks
        if may_poll and self._busy_poller.poll(self._ring_checks):
            received = self._hear(self.now())
        self._send(now)
        if not received:
            self._wait(wait, due)
        elif self._watched:
            self._dispatch(0)

    def _send(self, now: float) -> None:
        """Send what is to be sent, the everyday part of it fast."""
        driver, later = self.driver, self._run_queue
        while later:
            d, _ = later.popitem()
            if len(d.targets) == 1 and len(d.targets[0].ifs) == 1:
                express = self._express.get(d.targets[0].ifs[0].netdev)
                if express is not None:
                    express.send(d, now)
            driver.work(d, now)
        for port in self.ports:
            if port.link is not None:
                try:
                    port.link.flush()
                except NotFoundError as error:
                    port.gone = error

    def _hear(self, now: float) -> bool:
        received = False
        for port in self.ports:
            received = self._hear_on(port, now) or received
        return received

    def _hear_on(self, port: LinkDevice, now: float) -> bool:
        count = 0
        try:
            if port.gone is None:
                express = self._express.get(port)
                if express is not None:
                    count = express.receive(_BATCH, now)
                elif port.link is not None:
                    count = self._receive(port, port.link, now)
        except NotFoundError as error:
            port.gone = error
        if port.gone is not None:
            self._let_go(port)
        return count > 0

    def _receive(self, port: LinkDevice, link: Link, now: float) -> int:
        receive, take = link.receive, self.driver.receive
        for count in range(_BATCH):
            frame = receive()
            if frame is None:
                return count
            take(frame, port, now)
        return _BATCH

    # --- interfaces that change ---------------------------------------------------

    def _listen(self, port: LinkDevice) -> None:
        link = port.link
        if link is not None:
            self._poll.register(link.fileno(), select.POLLIN)
            rings = link.rings
            if rings is not None and self.driver.options.allows_fast_path:
                self._express[port] = Express(self.driver, port, rings, link.receive)
        self._update_ring_checks()

    def _let_go(self, port: LinkDevice) -> None:
        if port.link is not None:
            self._express.pop(port, None)
            self._poll.unregister(port.link.fileno())
            port.close()
        self._update_ring_checks()

    def _update_ring_checks(self) -> None:
        links = (port.link for port in self.ports)
        self._ring_checks = ring_checks(link for link in links if link is not None)

    def _look_around(self, now: float) -> None:
        self._look_due = now + _LOOK_INTERVAL
        if self._opener is not None:
            for port in self.ports:
                self._follow(port, self._opener, now)
        if now >= self._query_due:
            self._query_due = now + _QUERY_INTERVAL
            self.driver.discover_open()

    def _follow(
        self, port: LinkDevice, opener: Callable[[str], Link], now: float
    ) -> None:
        """Open an interface anew if it is another than it was."""
        link = port.link
        try:
            facts = get_link_info(port.name)
            if link is not None and facts[1:] == (link.index, port.mac, port.mtu):
                return
            if sectors_per_frame(facts.mtu) == 0:
                return
            another = opener(port.name)
        except AoEError:
            # Away, or down: if it was there, its link finds out which.
            return
        self._let_go(port)
        port.attach(another)
        self._listen(port)
        self.driver.netdev_changed(port, now)

    def _wait(self, wait: float | None, due: float | None) -> None:
        if due is not None:
            until_due = max(0.0, due - self.now())
            wait = until_due if wait is None else min(wait, until_due)
        if not all(port.link is not None and port.link.up for port in self.ports):
            # That an interface comes back or goes for good wakes nobody.
            wait = _LOOK_INTERVAL if wait is None else min(wait, _LOOK_INTERVAL)
        self._dispatch(None if wait is None else wait * 1000)

    def _dispatch(self, milliseconds: float | None) -> None:
        asleep = time.monotonic()
        ready = self._poll.poll(milliseconds)
        self._seen = time.monotonic()
        if ready and milliseconds != 0:
            self._busy_poller.record_sleep(self._seen - asleep)
        calls = [(fd, self._watched.get(fd), events) for fd, events in ready]
        for fd, callback, events in calls:
            # An earlier one may have ended this one's watch.
            if callback is not None and self._watched.get(fd) is callback:
                callback(events)

    def run_until(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Take turns until ``done()`` holds; tell whether it did within ``timeout``."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self.run_once(left)
        return True

    def find(self, address: Address, timeout: float = 3.0) -> AoeDev:
        """Discover one device and wait until it is up.

        Args:
            address: the one that is wanted.
            timeout: seconds to go on asking for.

        Raises:
            NotFoundError: nothing answered in time.
            DeviceError: it answered, but refused IDENTIFY.
        """
        driver = self.driver
        deadline = time.monotonic() + timeout
        patience = 0.05

        def is_up() -> bool:
            d = driver.devices.get(address)
            return d is not None and d.state is State.UP

        while not is_up():
            left = deadline - time.monotonic()
            if left <= 0:
                raise self.not_found(address, timeout)
            driver.discover(address)
            self.run_until(is_up, min(patience, left))
            patience *= 2
        return driver.devices[address]

    def not_found(self, address: Address, timeout: float) -> AoEError:
        """Make the error of a search that has found no disk for ``timeout`` seconds."""
        names = ",".join(port.name for port in self.ports)
        gone = [port.gone for port in self.ports if port.gone is not None]
        if len(gone) == len(self.ports):
            return gone[0]
        if address in self.driver.devices:
            why = self.driver.log[-1] if self.driver.log else "no answer to IDENTIFY"
            return DeviceError(str(address), f"target found, but not its disk: {why}")
        return NotFoundError(
            str(address),
            f"no answer on {names} within {timeout:g} s",
            f"List the targets with: aoe discover -i {names}",
        )

    def close(self) -> None:
        """Close the links. Bios that are not done never end. Safe to call twice."""
        for port in self.ports:
            port.close()
        if self._tags >= 0:
            os.close(self._tags)
            self._tags = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
