"""A machine with a block driver over TCP, and its target (K160-K168)."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, cast

from aoe.ata import SECTOR
from aoe.errors import DeviceError
from initiator.lab.drivers.tcp import Packet, Receiver, Socket
from initiator.lab.kernel.journal import Flag
from initiator.lab.kernel.policy import Policy
from initiator.lab.machine import Machine, Write
from initiator.lab.peer import MemoryPeer

if TYPE_CHECKING:
    from initiator.lab.drivers.models import DriverModel
    from initiator.lab.kernel.kernels import Rules
    from initiator.lab.kernel.memory import Page
    from initiator.lab.kernel.nic import Nic

_RESPONSE: Final = Struct(">HI")
"""Number of the write, and the sequence number up to which all is acknowledged."""
_RTO: Final = 0.2
"""TCP's shortest retransmission timeout (TCP_RTO_MIN)."""


class TcpWorld(Machine):
    """A machine with one block driver over TCP, one NIC and one target.

    Args:
        model: the driver.
        nic: the kind of NIC.
        rules: page handling of the kernel, if not that of the model.
        keep_entries: record all events, not only faults.
        redzone: bytes in front of slab objects.
    """

    def __init__(
        self,
        model: DriverModel,
        nic: Nic,
        *,
        rules: Rules | None = None,
        keep_entries: bool = True,
        redzone: int = 0,
    ) -> None:
        super().__init__(
            Policy(name=model.name, summary=model.summary),
            nic,
            driver=model.actor,
            rules=rules or model.rules,
            keep_entries=keep_entries,
            redzone=redzone,
            fragment_rule="K161",
        )
        self.model = model
        self.peer = MemoryPeer()
        self.socket = Socket(model, self.ops, self.nic)
        self._receiver = Receiver()
        self._received: dict[int, int] = {}

    def _queue_bio(self, write: Write) -> None:
        parts = [(cast("Page", p), offset, n) for p, offset, n in write.bio.vecs]
        if not self.socket.send(write.number, parts):
            self._end_bio(write, DeviceError(self.name, "EIO"))
        elif self.model.ends_when_queued:
            self._end_bio(write, None)

    def _end_bio(self, write: Write, error: DeviceError | None) -> None:
        write.bio.error = error
        write.bio.end_io(write.bio)

    def deliver_response(self, index: int = 0, *, duplicate: bool = False) -> None:
        """Pass a response to the driver; TCP drops the second of a ``duplicate``."""
        if duplicate:
            note = "a second copy of the response: dropped by TCP"
            self.journal.add("network", "response", rule="K167", note=note)
            return
        if not self.responses:
            # The socket refused a page: the target waits for the rest of the write.
            note = "none: the target has not received the whole write"
            self.journal.add("network", "response", rule="K165", note=note)
            return
        number, acknowledged = _RESPONSE.unpack(self.responses.pop(index))
        self.now += 0.001
        self.socket.acknowledge(acknowledged)
        note = f"reaches {self.name}"
        self.journal.add("network", "response", rule="K167", note=note)
        if not self.writes[number].completed:
            self._end_bio(self.writes[number], None)

    def retransmit(self) -> None:
        """Advance the clock by the retransmission timeout, and retransmit."""
        self.now += _RTO
        self.socket.retransmit()

    def fail_device(self) -> None:
        """Fail the device: the driver ends the bios, TCP goes on with what it has."""
        note = "device failed; TCP keeps its write queue"
        self.journal.add(self.name, "fail", rule="K161", note=note)
        for write in self.writes:
            if not write.completed:
                self._end_bio(write, DeviceError(self.name, "device failed"))

    def _on_wire(self, frame: bytes) -> None:
        packet = Packet.parse(frame)
        write = self.writes[packet.write]
        is_duplicate = self._receiver.is_duplicate(packet)
        self._record_transmission(
            write, packet.offset, packet.payload, dropped=is_duplicate
        )
        for each in self._receiver.receive(packet):
            self._execute(each)

    def _execute(self, packet: Packet) -> None:
        """Write received bytes to the disk; respond when a write is complete."""
        write = self.writes[packet.write]
        start = write.bio.sector * SECTOR + packet.offset
        self.peer.disk[start : start + len(packet.payload)] = packet.payload
        received = self._received.get(packet.write, 0) + len(packet.payload)
        self._received[packet.write] = received
        if received == len(write.expected):
            write.executed += 1
            response = _RESPONSE.pack(packet.write, self._receiver.next)
            self.responses.append(response)

    def _drain(self) -> None:
        super()._drain()
        if self.socket.queue:
            self.journal.flags.add(Flag.EIO)
            note = "connection reset: TCP frees its write queue"
            self.journal.add("network", "tcp_reset", rule="K161", note=note)
            self.socket.close()
