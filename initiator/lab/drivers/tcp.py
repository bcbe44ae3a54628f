"""TCP as block drivers see it: a socket that copies bytes or refers to pages.

A page that is passed without copying has a reference from then until its bytes are
acknowledged and the last clone of the packet is freed (K161). The receiver drops what
it has already received (K167).
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from initiator.driver.bio import BioVec
from initiator.driver.skbuff import Skb
from initiator.lab.drivers.models import Passing
from initiator.lab.kernel.journal import Flag
from initiator.lab.kernel.memory import PAGE_SIZE, Page
from initiator.lab.kernel.nic import Nic
from initiator.lab.kernel.policy import sendpage_ok

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.lab.drivers.models import DriverModel
    from initiator.lab.kernel.nic import ModelledNic
    from initiator.lab.kernel.skbuff import Clone, SkbOps

_HEADER: Final = Struct(">IHH")


class Packet(NamedTuple):
    """A packet on the wire.

    Args:
        seq: sequence number of its first byte.
        write: number of the write that the bytes belong to.
        offset: where they begin in the write.
        payload: the bytes.
    """

    seq: int
    write: int
    offset: int
    payload: bytes

    @classmethod
    def parse(cls, frame: bytes) -> Packet:
        """Parse what a NIC has transmitted."""
        seq, write, offset = _HEADER.unpack_from(frame)
        return cls(seq, write, offset, frame[_HEADER.size :])


class Vec(NamedTuple):
    """A bio_vec of one or more contiguous pages.

    Args:
        pages: the pages.
        parts: the part of each page.
    """

    pages: list[Page]
    parts: list[BioVec]


def bio_vecs(
    parts: Sequence[tuple[Page, int, int]], *, page_by_page: bool
) -> Iterator[Vec]:
    """Yield bio_vecs: contiguous pages are merged, unless ``page_by_page`` is set."""
    merged: list[Vec] = []
    for page, offset, length in parts:
        part = BioVec(page, offset, length)
        if merged and offset == 0 and not page_by_page:
            last, end = merged[-1].pages[-1], merged[-1].parts[-1]
            if (last.pfn + 1, end.offset + end.length) == (page.pfn, PAGE_SIZE):
                merged[-1].pages.append(page)
                merged[-1].parts.append(part)
                continue
        merged.append(Vec([page], [part]))
    yield from merged


class Socket:
    """The sending side of a connection: write queue and retransmission.

    Args:
        model: the driver that owns the socket.
        ops: skb operations, on the memory whose pages are counted.
        nic: the NIC.

    Attributes:
        queue: packets that are not acknowledged yet, with their sequence numbers.
    """

    def __init__(self, model: DriverModel, ops: SkbOps, nic: ModelledNic) -> None:
        self.model = model
        self.queue: dict[int, Skb] = {}
        self._ops = ops
        self._nic = nic
        self._journal = ops.memory.journal
        self._next = 0

    def send(self, write: int, parts: Sequence[tuple[Page, int, int]]) -> bool:
        """Send the bytes of a bio; return False if the socket refuses a page (EIO)."""
        offset = 0
        for vec in bio_vecs(parts, page_by_page=self.model.page_by_page):
            if not self._send_vec(write, offset, vec):
                return False
            offset += sum(part.length for part in vec.parts)
        return True

    def _send_vec(self, write: int, offset: int, vec: Vec) -> bool:
        passing = self.model.choose(vec.pages)
        if self.model.copies_without_sg and self._nic.kind is Nic.NOSG:
            passing = Passing.SENDMSG
        match passing:
            case Passing.SENDMSG:
                self._sendmsg(write, offset, vec)
            case Passing.SENDPAGE:
                self._sendpage(write, offset, vec)
            case Passing.SPLICE:
                return self._splice(write, offset, vec)
        return True

    def _sendmsg(self, write: int, offset: int, vec: Vec) -> None:
        """Copy the bytes into memory of the socket (``tcp_sendmsg``)."""
        data = b"".join(bytes(p.data[o : o + n]) for p, o, n in vec.parts)
        self._journal.costs.copied += len(data)
        self._journal.flags.add(Flag.COPIED)
        self._journal.add(
            self.model.actor,
            "sendmsg",
            page=vec.pages[0].pfn,
            count=vec.pages[0].compound_head.count,
            rule=self.model.rule,
            note=f"{len(data)} bytes copied",
            bio=write,
        )
        self._transmit(write, offset, data, [])

    def _sendpage(self, write: int, offset: int, vec: Vec) -> None:
        """Refer to the pages, with a reference to the first (``do_tcp_sendpages``)."""
        self._get(write, vec.pages[0], "sendpage")
        self._transmit(write, offset, b"", [self._as_fragment(vec)])

    def _splice(self, write: int, offset: int, vec: Vec) -> bool:
        """Refer to each page that passes the test (``skb_splice_from_iter``, K165)."""
        for page, part in zip(vec.pages, vec.parts, strict=True):
            if not sendpage_ok(page):
                self._journal.flags.add(Flag.WARN)
                self._journal.add(
                    "network",
                    "skb_splice_from_iter",
                    page=page.pfn,
                    count=page.compound_head.count,
                    rule="K165",
                    note="WARN_ON_ONCE(!sendpage_ok(page)): EIO",
                    bio=write,
                )
                return False
            self._get(write, page, "splice")
            self._transmit(write, offset, b"", [part])
            offset += part.length
        return True

    def _get(self, write: int, page: Page, action: str) -> None:
        self._ops.memory.get_page(page, "network", "K161")
        self._journal.add(
            self.model.actor,
            action,
            page=page.pfn,
            count=page.compound_head.count,
            rule=self.model.rule,
            note="not copied: TCP has a reference",
            bio=write,
        )

    def _as_fragment(self, vec: Vec) -> BioVec:
        """Return one fragment for a bio_vec; its page is the first, whose count it has.

        A fragment of several pages needs contents beyond its page, so it gets a page of
        its own, a tail of the first.
        """
        page, offset, length = vec.parts[0]
        if len(vec.pages) == 1:
            return BioVec(page, offset, length)
        first = vec.pages[0]
        start = first.pfn * PAGE_SIZE
        end = start + len(vec.pages) * PAGE_SIZE
        whole = Page(first.pfn, self._ops.memory.arena[start:end])
        whole.head = first.compound_head
        return BioVec(whole, offset, sum(part.length for part in vec.parts))

    def _transmit(
        self, write: int, offset: int, data: bytes, frags: list[BioVec]
    ) -> None:
        skb = Skb()
        skb.head = bytearray(_HEADER.pack(self._next, write, offset) + data)
        skb.frags = frags
        skb.owns_frags = True
        self.queue[self._next] = skb
        self._next += len(data) + sum(frag.length for frag in frags)
        self._nic.xmit(skb)

    # --- acknowledgement and retransmission ---------------------------------------

    def acknowledge(self, until: int) -> None:
        """Free what is acknowledged (``tcp_clean_rtx_queue``, K161)."""
        done = [seq for seq in self.queue if seq < until]
        note = f"acknowledged: {len(done)} packet(s) leave the write queue"
        if done:
            self._journal.add("network", "tcp_clean_rtx_queue", rule="K161", note=note)
        for seq in done:
            self._ops.release_data(self.queue.pop(seq))

    def retransmit(self) -> None:
        """Send what is not acknowledged again (``tcp_retransmit_skb``, K167, K168)."""
        for seq, skb in list(self.queue.items()):
            queued = [c for c in self._nic.clones() if _seq_of(c) == seq]
            if queued and self.model.skips_queued:
                note = f"clone {queued[0].number} is still queued: not sent again"
                self._journal.add(
                    "network", "tcp_retransmit_skb", rule="K168", note=note
                )
                for clone in queued:
                    if clone in self._nic.qdisc:
                        self._nic.validate(clone)
                continue
            self._journal.add(
                "network", "tcp_retransmit_skb", rule="K167", note="no acknowledgement"
            )
            self._nic.xmit(skb)

    def close(self) -> None:
        """Free the write queue, after a reset (``tcp_write_queue_purge``, K161)."""
        for skb in self.queue.values():
            self._ops.release_data(skb)
        self.queue.clear()


def _seq_of(clone: Clone) -> int:
    head = clone.skb.head if clone.skb is not None else clone.head
    return Packet.parse(bytes(head)).seq


class Receiver:
    """The receiving side of a connection; it accepts each byte once, in order (K167).

    Attributes:
        next: sequence number of the next byte.
    """

    def __init__(self) -> None:
        self.next = 0
        self._early: dict[int, Packet] = {}

    def is_duplicate(self, packet: Packet) -> bool:
        """Return True if the bytes have been received before."""
        return packet.seq < self.next or packet.seq in self._early

    def receive(self, packet: Packet) -> Iterator[Packet]:
        """Yield the packets that are in order now; nothing for a duplicate."""
        if self.is_duplicate(packet):
            return
        self._early[packet.seq] = packet
        while self.next in self._early:
            found = self._early.pop(self.next)
            self.next += len(found.payload)
            yield found
