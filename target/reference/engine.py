"""Serve with the reference target: frames in memory instead of scapy's sockets.

It connects ``AoETarget`` to the event loop, so that interfaces, filters, control socket
and reload are the same as with ``target.protocol``.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from typing import TYPE_CHECKING, Final

from scapy.layers.l2 import Ether

from aoe.address import MAC_BROADCAST, format_mac
from aoe.errors import AoEError
from aoe.header import ETHERNET_LENGTH
from target.protocol.engine import TargetStatistics
from target.reference.machine import AoETarget

if TYPE_CHECKING:
    from scapy.packet import Packet

    from target.protocol.exports import Export

log: Final = logging.getLogger("aoe-target")

_FAILED: Final = "engine_failed"
"""The reason for requests dropped because the machine raised an exception."""


class ScapyEngine:
    """One export on one interface, served by a scapy answering machine.

    A machine that raises an exception does not end the target: the request is dropped,
    and the exception is logged, each only once in a row.

    Args:
        export: the export to serve.
        mac: the interface's address, six bytes.
        mtu: the interface's MTU, at least 548.
        machine: ``AoETarget``, or a subclass.

    Raises:
        AoEError: the constructor of the machine raised an exception.
    """

    def __init__(
        self, export: Export, mac: bytes, mtu: int, machine: type[AoETarget] = AoETarget
    ) -> None:
        self.export = export
        self._now = 0.0
        self._last_request: float | None = None
        self._last_failure = ""
        try:
            self.machine = machine(
                export=export,
                mac=format_mac(mac),
                mtu=mtu,
                clock=lambda: self._now,
                verbose=False,
            )
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise AoEError(f"engine {machine.__name__}", why) from error

    @property
    def frame_limit(self) -> int:
        """Length of the longest frame, bytes."""
        return ETHERNET_LENGTH + int(self.machine.mtu)

    def handle(self, request: memoryview, response: memoryview, now: float) -> int:
        """Execute a request, and write its response; see ``Target.handle``."""
        self._now = now
        try:
            packet = Ether(bytes(request))
            if not self._is_request(packet):
                return 0
            return self._write(self.machine.make_reply(packet), response)
        except Exception as error:  # noqa: BLE001 - any error of a user's subclass
            self.log_failure(error)
            self.machine.dropped[_FAILED] += 1
            return 0

    def _is_request(self, packet: Packet) -> bool:
        before = self.machine.counts["requests"]
        is_request = bool(self.machine.is_request(packet))
        if self.machine.counts["requests"] != before:
            self._last_request = self._now
        return is_request

    def announce(self, response: memoryview, dst: bytes = MAC_BROADCAST) -> int:
        """Write an announcement (P48); return its length."""
        try:
            return self._write(self.machine.announcement(format_mac(dst)), response)
        except Exception as error:  # noqa: BLE001 - any error of a user's subclass
            self.log_failure(error)
            return 0

    def _write(self, packet: Packet | None, response: memoryview) -> int:
        if packet is None:
            return 0
        frame = bytes(packet)
        if len(frame) > self.frame_limit:
            what = f"a response of {len(frame)} bytes"
            raise ValueError(f"{what}, more than {self.frame_limit}")
        response[: len(frame)] = frame
        return len(frame)

    def log_failure(self, error: Exception) -> None:
        """Log an exception of the machine, unless it is the same as the last one."""
        # Where the subclass was, even if scapy raised the exception.
        source = inspect.getsourcefile(type(self.machine))
        frames = traceback.extract_tb(error.__traceback__)
        place = [each for each in frames if each.filename == source] or frames
        name = f"{type(self.machine).__name__}: {type(error).__name__}"
        failure = f"{name}: {error} ({place[-1].filename}:{place[-1].lineno})"
        if failure != self._last_failure:
            log.error("%s: %s", self.export.address, failure)
        self._last_failure = failure

    def reconfigure(self, mac: bytes, mtu: int) -> None:
        """Apply a new address or MTU of the interface."""
        try:
            self.machine.reconfigure(format_mac(mac), mtu)
        except Exception as error:  # noqa: BLE001 - any error of a user's subclass
            self.log_failure(error)

    def statistics(self) -> TargetStatistics:
        """Return a snapshot of the counters."""
        counts = self.machine.counts
        return TargetStatistics(
            requests=counts["requests"],
            reads=counts["reads"],
            writes=counts["writes"],
            read_bytes=counts["read_bytes"],
            written_bytes=counts["written_bytes"],
            flushes=counts["flushes"],
            errors=dict(self.machine.errors),
            dropped=dict(self.machine.dropped),
            last_request=self._last_request,
        )
