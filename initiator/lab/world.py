"""A modelled machine and its target: memory, AoE driver, NIC, owners, wire.

A world is driven step by step: submit a bio, transmit or hold a clone, deliver a
response, expire the timer, fail the device, free the buffer, reallocate its memory.
The scripts of ``initiator.lab.cases`` and the explorer
(``initiator.lab.explorer.explore``) drive it. Its AoE driver is pyaoe's own driver with
the options of Linux 6.1, without its fast path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, SECTOR, Registers
from aoe.errors import DeviceError
from aoe.header import Command, Header
from initiator.driver.bio import Bio, Op
from initiator.driver.driver import Driver
from initiator.driver.options import Options
from initiator.lab.kernel.journal import Fault, Flag, Journal
from initiator.lab.kernel.kernels import KERNELS, Rules
from initiator.lab.kernel.memory import PAGE_SIZE, Memory
from initiator.lab.kernel.nic import ModelledNic, Nic
from initiator.lab.kernel.policy import PageAccounting, Policy
from initiator.lab.kernel.skbuff import SkbOps
from initiator.lab.kernel.submitters import Buffer, Submitter, Submitters, join_buffers
from initiator.lab.peer import ADDRESS, MemoryPeer, Peer

if TYPE_CHECKING:
    from initiator.driver.aoedev import AoeDev
    from initiator.lab.kernel.skbuff import Clone

SUBMITTED: Final = 0x51
REWRITTEN: Final = 0x77
NEW_OWNER: Final = "new owner"
_REALLOCATED: Final = 0xEE
_RTO: Final = 20.0
"""Longer than the kernel driver's first timeout of 16.5 s (K47)."""


@dataclass(slots=True, eq=False)
class Write:
    """A write bio and its buffer.

    Args:
        number: sequence number, from 0.
        buffer: the memory.
        bio: the bio.
        expected: the contents at submission.
        ended: bi_end_io has run.
        executed: number of its frames that were transmitted.
    """

    number: int
    buffer: Buffer
    bio: Bio
    expected: bytes
    ended: bool = False
    executed: int = 0


class World:
    """A machine under one policy, with one NIC and one target.

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
        self.policy = policy
        self.journal = Journal(keep_entries=keep_entries)
        self.memory = Memory(pages, rules or KERNELS[policy.kernel], self.journal)
        rule = "K147" if policy.aoe_gets_fragments else "K143"
        self.ops = SkbOps(self.memory, rule)
        self.accounting = PageAccounting(policy, self.ops)
        self.submitters = Submitters(self.memory, policy, redzone)
        self.driver = Driver(Options.kernel(), self.accounting)
        self.nic = ModelledNic(nic, self.ops, self._on_wire)
        if nic_mac is not None:
            self.nic.mac = nic_mac
        self.peer: Peer = peer or MemoryPeer()
        self.writes: list[Write] = []
        self.realloc_buffers: list[Buffer] = []
        self.responses: list[bytes] = []
        self.free_in_end_io = False
        self._drop_frames = False
        self._bring_up()

    @property
    def now(self) -> float:
        """The simulated time, in seconds."""
        return self.journal.now

    @now.setter
    def now(self, time: float) -> None:
        self.journal.now = time

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

    # --- steps --------------------------------------------------------------------

    def submit(self, submitter: Submitter, buffers: int = 1) -> Write:
        """Allocate and fill buffers, and submit a bio that writes them."""
        buffer = join_buffers(
            [self.submitters.allocate(submitter) for _ in range(buffers)]
        )
        number = len(self.writes)
        self.journal.costs.wasted += buffer.wasted
        buffer.fill(SUBMITTED + number)
        write = Write(number, buffer, Bio(Op.WRITE, 0, self._end_io), buffer.contents())
        if self.writes:
            last = self.writes[-1]
            used = max(len(last.expected), PAGE_SIZE)
            write.bio.sector = last.bio.sector + used // SECTOR
        for page, offset, length in buffer.pieces:
            self.accounting.add_page(write.bio, page, length, offset, buffer.owner)
        self.writes.append(write)
        self.journal.add(buffer.owner, "submit_bio", note=f"bio {number}", bio=number)
        self.driver.submit(self.device, write.bio, self.now)
        return write

    def _end_io(self, bio: Bio) -> None:
        write = next(each for each in self.writes if each.bio is bio)
        if write.ended:
            note = f"bio {write.number} has already ended"
            self.journal.bug("AoE driver", "bi_end_io", None, "K115", note)
        write.ended = True
        if bio.error is not None:
            self.journal.flags.add(Flag.EIO)
        self.journal.add(
            write.buffer.owner,
            "bi_end_io",
            rule="K81" if bio.error else "K78",
            note=f"bio {write.number}: {bio.error or 'written'}",
            bio=write.number,
        )
        self.accounting.end_io(bio, write.buffer.owner)
        if self.free_in_end_io:
            self.free_buffer(write)

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

    def transmit_lost(self, clone: Clone) -> None:
        """Transmit a clone that is lost on the wire."""
        self._drop_frames = True
        self.nic.transmit(clone)
        self._drop_frames = False

    def fail_device(self) -> None:
        """Fail the device; clones in flight are not recalled (K55)."""
        self.journal.add("AoE driver", "downdev", rule="K55", note="device failed")
        self.driver.fail(self.device, DeviceError(str(ADDRESS), "device failed"))

    def free_buffer(self, write: Write) -> None:
        """Free a write's buffer on behalf of its owner."""
        write.buffer.release()
        for page, _, _ in write.buffer.pieces:
            head = page.compound_head
            if not head.free and head.owner is None and head.count > 0:
                self.journal.costs.held += PAGE_SIZE

    def reallocate(self, submitter: Submitter) -> None:
        """Allocate memory of the same kind for a new owner, and fill it."""
        buffer = self.submitters.allocate(submitter, NEW_OWNER)
        buffer.fill(_REALLOCATED)
        for page in self.memory.pages:
            if page.owner == NEW_OWNER:
                page.data[:] = bytes([_REALLOCATED]) * PAGE_SIZE
        self.realloc_buffers.append(buffer)

    def shrink_slabs(self) -> None:
        """Return empty slabs to the page allocator, as memory reclaim does (K111)."""
        note = "empty slabs go back to the page allocator"
        self.journal.add("slab", "kmem_cache_shrink", rule="K111", note=note)
        self.submitters.reclaim()

    def remove_netdev(self) -> None:
        """Remove the interface while a config query waits for the tx thread (K105)."""
        self.nic.hold_tx = True
        self.driver.discover(ADDRESS)
        self.nic.remove()

    def rewrite(self, write: Write) -> None:
        """Write new content into a buffer that its owner still holds."""
        write.buffer.fill(REWRITTEN)
        note = f"new content in the buffer of bio {write.number}"
        self.journal.add(write.buffer.owner, "rewrite", note=note)

    # --- the wire -----------------------------------------------------------------

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
        start = (lba - write.bio.sector) * SECTOR
        payload = frame[ATA_DATA:]
        is_same = payload == write.expected[start : start + len(payload)]
        if write.executed:
            self.journal.flags.add(Flag.DUP_WRITE)
        if write.ended and write.bio.error is not None:
            self.journal.flags.add(Flag.GHOST_WRITE)
        write.executed += 1
        rule = "K73"
        if write.ended:
            rule = "K81" if write.bio.error is not None else "K80"
        elif not is_same:
            rule = "K120"
        self.journal.add(
            "network",
            "transmit",
            rule=rule,
            note=f"{len(payload)} bytes of bio {write.number}"
            + ("" if is_same else f": {payload[:4].hex()}..., not those submitted"),
            fault=None if is_same else Fault.WRONG_BYTES,
            bio=write.number,
            clone=self.nic.sent[-1].number,
        )

    # --- the end -----------------------------------------------------------------

    def finish(self) -> None:
        """Drain the NIC, deliver all responses, free all memory, find leaks (K116)."""
        self.nic.drain()
        while self.responses:
            self.deliver_response()
        for write in self.writes:
            if not write.ended:
                self.journal.add(
                    "AoE driver",
                    "bio never ended",
                    rule="K63",
                    note=f"bio {write.number}",
                    fault=Fault.BUG,
                )
            self.free_buffer(write)
        for buffer in self.realloc_buffers:
            buffer.release()
        self.submitters.free_neighbours()
        self.submitters.reclaim()
        self._find_leaks()

    def _find_leaks(self) -> None:
        for page in self.memory.pages:
            if not page.free and not page.kept_out:
                self.journal.add(
                    "page allocator",
                    "leak",
                    page=page.pfn,
                    count=page.count,
                    rule="K116",
                    note="has no owner and is not free",
                    fault=Fault.LEAK,
                )
