"""A modelled machine: memory, NIC, owners of bios, and a block driver over a network.

``World`` (``initiator.lab.world``) is a machine with the AoE driver, ``TcpWorld``
(``initiator.lab.tcp_world``) one with a driver over TCP. A machine is driven step by
step: submit a bio, transmit or hold a clone, deliver a response, expire the timer, fail
the device, free the buffer, reallocate its memory. The scripts of
``initiator.lab.cases`` do so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aoe.ata import SECTOR
from initiator.driver.bio import Bio, Op
from initiator.lab.kernel.journal import Fault, Flag, Journal
from initiator.lab.kernel.kernels import KERNELS, Rules
from initiator.lab.kernel.memory import PAGE_SIZE, Memory
from initiator.lab.kernel.nic import ModelledNic, Nic
from initiator.lab.kernel.skbuff import SkbOps
from initiator.lab.kernel.submitters import Buffer, Submitter, Submitters, join_buffers

if TYPE_CHECKING:
    from initiator.lab.kernel.policy import Policy
    from initiator.lab.kernel.skbuff import Clone

SUBMITTED: Final = 0x51
REWRITTEN: Final = 0x77
NEW_OWNER: Final = "new owner"
_REALLOCATED: Final = 0xEE


@dataclass(slots=True, eq=False)
class Write:
    """A write bio and its buffer.

    Args:
        number: sequence number, from 0.
        buffer: the memory.
        bio: the bio.
        expected: the contents at submission.
        completed: the driver has ended the bio. bi_end_io runs now, or later if the
            policy defers it.
        ended: bi_end_io has run.
        executed: number of its frames that were transmitted.
    """

    number: int
    buffer: Buffer
    bio: Bio
    expected: bytes
    completed: bool = False
    ended: bool = False
    executed: int = 0


class Machine(ABC):
    """A machine under one policy, with one NIC and one block driver.

    Args:
        policy: the page-count policy.
        nic: the kind of NIC.
        driver: name of the block driver in the journal.
        rules: page handling of the kernel, if not the default of the policy.
        pages: number of pages of memory.
        keep_entries: record all events, not only faults.
        redzone: bytes in front of slab objects.
        fragment_rule: the rule by which references of fragments are dropped.

    Attributes:
        free_in_end_io: the owner frees its memory in bi_end_io.
        rewrite_in_end_io: the owner writes new content in bi_end_io.
    """

    def __init__(
        self,
        policy: Policy,
        nic: Nic,
        *,
        driver: str,
        rules: Rules | None = None,
        pages: int = 16,
        keep_entries: bool = True,
        redzone: int = 0,
        fragment_rule: str = "K143",
    ) -> None:
        self.policy = policy
        self.name = driver
        self.journal = Journal(keep_entries=keep_entries)
        self.memory = Memory(pages, rules or KERNELS[policy.kernel], self.journal)
        self.ops = SkbOps(self.memory, fragment_rule, self._end_deferred, driver)
        self.accounting = policy.page_hooks(self.ops)
        self.submitters = Submitters(self.memory, policy, redzone)
        self.nic = ModelledNic(nic, self.ops, self._on_wire)
        self.accounting.clones_in_flight = self.nic.clones
        self.writes: list[Write] = []
        self.realloc_buffers: list[Buffer] = []
        self.responses: list[bytes] = []
        self.free_in_end_io = False
        self.rewrite_in_end_io = False
        self._drop_frames = False

    @property
    def now(self) -> float:
        """The simulated time, in seconds."""
        return self.journal.now

    @now.setter
    def now(self, time: float) -> None:
        self.journal.now = time

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
        self._queue_bio(write)
        return write

    def _end_io(self, bio: Bio) -> None:
        """Run bi_end_io, unless the policy defers it."""
        write = next(each for each in self.writes if each.bio is bio)
        if write.completed:
            note = f"bio {write.number} has already ended"
            self.journal.bug(self.name, "bi_end_io", None, "K115", note)
        write.completed = True
        if self.accounting.must_wait(write.bio):
            note = f"bio {write.number}: clones still refer to its pages"
            self.journal.add(
                self.name, "defer bi_end_io", rule="K169", note=note, bio=write.number
            )
            return
        self._run_end_io(write)

    def _end_deferred(self) -> None:
        """Run the bi_end_io that was deferred, after a clone has been released."""
        waiting = [w for w in self.writes if w.completed and not w.ended]
        for write in waiting:
            if not self.accounting.must_wait(write.bio):
                self.accounting.bio_ends(write.bio)
                self._run_end_io(write)

    def _run_end_io(self, write: Write) -> None:
        write.ended = True
        bio = write.bio
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
        if self.rewrite_in_end_io:
            self.rewrite(write)

    def _record_transmission(
        self, write: Write, start: int, payload: bytes, *, dropped: bool = False
    ) -> None:
        """Compare transmitted bytes from ``start`` of a write with those submitted.

        They do no harm if they are ``dropped`` by the receiver (K167).
        """
        is_same = payload == write.expected[start : start + len(payload)]
        if write.ended and write.bio.error is not None and not dropped:
            self.journal.flags.add(Flag.GHOST_WRITE)
        rule = "K73"
        if dropped:
            rule = "K167"
        elif write.ended:
            rule = "K81" if write.bio.error is not None else "K80"
        elif not is_same:
            rule = "K120"
        self.journal.add(
            "network",
            "transmit",
            rule=rule,
            note=f"{len(payload)} bytes of bio {write.number}"
            + ("" if is_same else f": {payload[:4].hex()}..., not those submitted")
            + (": a duplicate, dropped by the receiver" if dropped else ""),
            fault=None if is_same or dropped else Fault.WRONG_BYTES,
            bio=write.number,
            clone=self.nic.sent[-1].number,
        )

    def transmit_lost(self, clone: Clone) -> None:
        """Transmit a clone that is lost on the wire."""
        self._drop_frames = True
        self.nic.transmit(clone)
        self._drop_frames = False

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
        """Remove the interface."""
        self.nic.remove()

    def rewrite_when_ended(self, write: Write) -> None:
        """Write new content once bi_end_io has run: now, or if it is deferred, then."""
        if write.ended:
            self.rewrite(write)
        else:
            self.rewrite_in_end_io = True

    def rewrite(self, write: Write) -> None:
        """Write new content into a buffer that its owner still holds."""
        write.buffer.fill(REWRITTEN)
        note = f"new content in the buffer of bio {write.number}"
        self.journal.add(write.buffer.owner, "rewrite", note=note)

    # --- the block driver ---------------------------------------------------------

    @abstractmethod
    def _queue_bio(self, write: Write) -> None:
        """Pass a bio to the block driver."""

    @abstractmethod
    def deliver_response(self, index: int = 0, *, duplicate: bool = False) -> None:
        """Pass a response to the driver; a ``duplicate`` stays queued."""

    @abstractmethod
    def retransmit(self) -> None:
        """Let the time pass until what was not answered is sent again."""

    @abstractmethod
    def fail_device(self) -> None:
        """Fail the device; clones in flight are not recalled (K55)."""

    @abstractmethod
    def _on_wire(self, frame: bytes) -> None:
        """Pass a transmitted frame to the target."""

    # --- the end -----------------------------------------------------------------

    def finish(self) -> None:
        """Drain the NIC, deliver all responses, free all memory, find leaks (K116)."""
        self._drain()
        for write in self.writes:
            if not write.ended:
                self.journal.add(
                    self.name,
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

    def _drain(self) -> None:
        self.nic.drain()
        while self.responses:
            self.deliver_response()

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
