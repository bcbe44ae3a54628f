"""A machine with the AoE driver, and its target.

The scripts of ``initiator.lab.cases`` and the explorer
(``initiator.lab.explorer.explore``) drive it. The AoE driver is pyaoe's own driver with
the options of Linux 6.1, without its fast path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, SECTOR, Registers
from aoe.errors import DeviceError
from aoe.header import Command, Header
from initiator.driver.driver import Driver
from initiator.driver.options import Options
from initiator.lab.kernel.journal import Flag
from initiator.lab.machine import Machine, Write
from initiator.lab.peer import ADDRESS, MemoryPeer, Peer

if TYPE_CHECKING:
    from initiator.driver.aoedev import AoeDev
    from initiator.lab.kernel.kernels import Rules
    from initiator.lab.kernel.nic import Nic
    from initiator.lab.kernel.policy import Policy

_RTO: Final = 20.0
"""Longer than the kernel driver's first timeout of 16.5 s (K47)."""


class World(Machine):
    """A machine under one policy, with one NIC and one AoE target.

    Args:
        policy: the page-count policy.
        nic: the kind of NIC.
        rules: page handling of the kernel, if not the default of the policy.
        pages: number of pages of memory.
        peer: the target; by default a disk in memory.
        nic_mac: MAC address of the NIC, for a real target.
        keep_entries: record all events, not only faults.
        redzone: bytes in front of slab objects.
    """

    def __init__(
        self,
        policy: Policy,
        nic: Nic,
        *,
        rules: Rules | None = None,
        pages: int = 16,
        peer: Peer | None = None,
        nic_mac: bytes | None = None,
        keep_entries: bool = True,
        redzone: int = 0,
    ) -> None:
        super().__init__(
            policy,
            nic,
            driver="AoE driver",
            rules=rules,
            pages=pages,
            keep_entries=keep_entries,
            redzone=redzone,
            fragment_rule="K147" if policy.aoe_gets_fragments else "K143",
        )
        self.driver = Driver(Options.kernel(), self.accounting)
        if nic_mac is not None:
            self.nic.mac = nic_mac
        self.peer: Peer = peer or MemoryPeer()
        self._bring_up()

    @property
    def device(self) -> AoeDev:
        """The AoE device."""
        return self.driver.devices[ADDRESS]

    def _bring_up(self) -> None:
        self.driver.add_netdev(self.nic)
        self.driver.discover(ADDRESS)
        self.deliver_response()
        self.deliver_response()
        self.driver.open(self.device)
        self.journal.reset()
        self.ops.clones = 0

    def _queue_bio(self, write: Write) -> None:
        self.driver.submit(self.device, write.bio, self.now)

    def deliver_response(self, index: int = 0, *, duplicate: bool = False) -> None:
        """Pass a response to the AoE driver; a ``duplicate`` stays queued."""
        frame = self.responses[index] if duplicate else self.responses.pop(index)
        self.now += 0.001
        note = "reaches the AoE driver"
        self.journal.add("network", "response", rule="K58", note=note)
        before = self.driver.unexpected
        self.driver.receive(memoryview(frame), self.nic, self.now)
        if self.driver.unexpected > before:
            self.journal.flags.add(Flag.UNEXPECTED_RSP)
            self.journal.add("AoE driver", "unexpected rsp", rule="K58")

    def retransmit(self, until: float | None = None) -> None:
        """Advance the clock and retransmit the frames whose RTO expired (K48, K52).

        Args:
            until: the new time; by default late enough for all outstanding frames.
        """
        self.now = self.now + _RTO if until is None else until
        self.journal.add(
            "AoE driver", "retransmit", rule="K52", note="no response in time"
        )
        self.driver.handle_timer(self.now)

    def fail_device(self) -> None:
        """Fail the device; clones in flight are not recalled (K55)."""
        self.journal.add("AoE driver", "downdev", rule="K55", note="device failed")
        self.driver.fail(self.device, DeviceError(str(ADDRESS), "device failed"))

    def remove_netdev(self) -> None:
        """Remove the interface while a config query waits for the tx thread (K105)."""
        self.nic.hold_tx = True
        self.driver.discover(ADDRESS)
        self.nic.remove()

    def _on_wire(self, frame: bytes) -> None:
        header = Header.unpack_from(frame)
        if header.command == Command.ATA and len(frame) > ATA_DATA:
            self._check_write(frame)
        if self._drop_frames:
            self.journal.add("network", "lost", note="does not reach the target")
            return
        response = self.peer.exchange(frame)
        if response is not None:
            self.responses.append(response)

    def _check_write(self, frame: bytes) -> None:
        lba = Registers.unpack_from(frame).lba
        write = next(
            w
            for w in self.writes
            if 0 <= (lba - w.bio.sector) * SECTOR < len(w.expected)
        )
        if write.executed:
            self.journal.flags.add(Flag.DUP_WRITE)
        write.executed += 1
        start = (lba - write.bio.sector) * SECTOR
        self._record_transmission(write, start, frame[ATA_DATA:])
