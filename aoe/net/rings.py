"""Packet rings (TPACKET_V2): slots of memory shared with the kernel, one frame each.

::

    slot   0        32             476                        512
           +--------+--------------+--------------------------+------------ - -
           | header | address, gap | Ethernet and AoE header  | sector data
           +--------+--------------+--------------------------+------------ - -

    receive ring   kernel produces: tpacket_rcv()   -> USER          -> RxRing consumes
    send ring      TxRing produces: SEND_REQUEST    -> tpacket_snd() -> AVAILABLE

Sector data is aligned to 512 bytes in both rings, so that a disk reads and writes it in
place, with O_DIRECT too.

The first word of a slot, ``tp_status``, gives its owner. Transfer of ownership needs
acquire and release ordering: the new owner must see all writes of the old one.
tpacket_rcv() has an smp_mb() before it stores the word, __packet_get_status() an
smp_rmb() before it loads it. Here, every access is an aligned load or store of its own,
in program order: the interpreter does not reorder bytecodes, and the C compiler cannot
reorder across the calls between them. x86 keeps that order (TSO): each load is an
acquire and each store a release. So it is enough to load ``tp_status`` before the rest
of a slot, and to store it last. A CPU with weaker ordering (arm64) needs barriers that
Python does not offer.

See linux/if_packet.h, net/packet/af_packet.c (tpacket_rcv, tpacket_snd, packet_poll)
and Documentation/networking/packet_mmap.rst.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple, Self

from aoe.header import ETHERNET_LENGTH

DATA_OFFSET: Final = 512
"""Bytes from the start of a slot to the sector data of a frame at FRAME_OFFSET."""
FRAME_OFFSET: Final = DATA_OFFSET - 36
"""Bytes from the start of a slot to its frame.

Always in the send ring. In the receive ring, if the link-layer header has 14 bytes
(skb_network_offset); ``tp_mac`` is authoritative.
"""
RX_RESERVE: Final = FRAME_OFFSET - (80 - ETHERNET_LENGTH)
"""PACKET_RESERVE, bytes: headroom that moves a received frame to FRAME_OFFSET.

Without it, tpacket_rcv() puts the network header, which follows the Ethernet header, at
offset 80.
"""

TPACKET2_HEADER: Final = Struct("=IIIHH")
"""Start of ``struct tpacket2_hdr``: tp_status, tp_len (bytes on the wire), tp_snaplen
(bytes in the slot), tp_mac and tp_net (offsets of the frame and its network header)."""
TP_STATUS_KERNEL: Final = 0
"""Receive ring: the kernel owns the slot."""
TP_STATUS_USER: Final = 1
"""Receive ring: the bit is set if the slot holds a frame for user space."""
TP_STATUS_AVAILABLE: Final = 0
"""Send ring: user space owns the slot."""
TP_STATUS_SEND_REQUEST: Final = 1
"""Send ring: the slot holds a frame that the kernel has not processed yet."""
TP_STATUS_SENDING: Final = 2
"""Send ring: an skb still refers to the slot."""
_KERNEL_OWNS_TX: Final = TP_STATUS_SEND_REQUEST | TP_STATUS_SENDING

_ALIGNMENT: Final = 512
_VLAN_TAG: Final = 4
_SLOTS_MINIMUM: Final = 32
_MEMORY_LIMIT: Final = 16 << 20
_BLOCK_MINIMUM: Final = 64 << 10
_DATA_LENGTHS_LIMIT: Final = 32
"""Lengths of sector data for which a ring caches memoryviews."""


class RingGeometry(NamedTuple):
    """Division of a ring into blocks and slots (``struct tpacket_req``).

    Args:
        block_size: bytes of a block, a power of two and at least a page.
        block_count: blocks in the ring.
        slot_size: bytes of a slot. Slots do not cross blocks; the rest of a block is
            unused.
        slot_count: slots in the ring.
    """

    block_size: int
    block_count: int
    slot_size: int
    slot_count: int

    @classmethod
    def for_frames(cls, length: int, count: int) -> Self:
        """Return a geometry for at least ``count`` frames of ``length`` bytes.

        The ring takes at most 16 MiB, except that it has at least 32 slots.
        """
        slot = -(-(FRAME_OFFSET + length + _VLAN_TAG) // _ALIGNMENT) * _ALIGNMENT
        block = _BLOCK_MINIMUM
        while block % slot > block // 16 or block < slot:
            block *= 2
        per_block = block // slot
        fewest = -(-_SLOTS_MINIMUM // per_block)
        most = max(fewest, _MEMORY_LIMIT // block)
        blocks = min(max(-(-count // per_block), fewest), most)
        return cls(block, blocks, slot, blocks * per_block)

    @property
    def size(self) -> int:
        """Bytes of the whole ring."""
        return self.block_size * self.block_count

    def request(self) -> bytes:
        """Return the ``struct tpacket_req`` for PACKET_RX_RING and PACKET_TX_RING."""
        return Struct("=IIII").pack(*self)

    def slot_offsets(self, base: int) -> list[int]:
        """Return the byte offset of each slot, in a ring that starts at ``base``."""
        per_block = self.block_size // self.slot_size
        blocks = range(base, base + self.size, self.block_size)
        slots = range(0, per_block * self.slot_size, self.slot_size)
        return [block + slot for block in blocks for slot in slots]


class SlotTable:
    """Offsets of the slots of one ring, for code that accesses them directly.

    Args:
        memory: the mapping, in bytes.
        base: byte offset of the ring in the mapping.
        geometry: geometry of the ring.
        capacity: length of the longest frame, in bytes.

    Attributes:
        count: slots in the ring.
        offsets: byte offset of each slot, all of them twice: a batch of up to ``count``
            slots from any index is contiguous in this list.
        status: the mapping, in words of four bytes.
        words: index in ``status`` of each slot's ``tp_status``; ``tp_len`` follows.
    """

    def __init__(
        self, memory: memoryview, base: int, geometry: RingGeometry, capacity: int
    ) -> None:
        offsets = geometry.slot_offsets(base)
        self.count = len(offsets)
        self.offsets = [*offsets, *offsets]
        self.status = memory.cast("I")
        self.words = [offset // 4 for offset in offsets]
        self._memory = memory
        self._data_capacity = capacity - (DATA_OFFSET - FRAME_OFFSET)
        self._data_views: dict[int, dict[int, list[memoryview]]] = {}

    def data_views(self, length: int) -> dict[int, list[memoryview]] | None:
        """Return views of the sector data in each slot, by the slot's byte offset.

        Each view is in its own list, as ``preadv`` and ``pwritev`` expect. The views
        are cached for up to 32 lengths.

        Args:
            length: bytes of sector data.

        Returns:
            None if the data does not fit in a frame, or if the cache is full.
        """
        views = self._data_views.get(length)
        if views is None and length <= self._data_capacity:
            if len(self._data_views) == _DATA_LENGTHS_LIMIT:
                return None
            memory = self._memory
            views = {
                offset: [memory[offset + DATA_OFFSET : offset + DATA_OFFSET + length]]
                for offset in self.offsets[: self.count]
            }
            self._data_views[length] = views
        return views

    def close(self) -> None:
        """Release the views of the mapping."""
        self._data_views.clear()
        self.status.release()


class RxRing:
    """The receive ring: the kernel produces frames, user space consumes them in order.

    At most one slot is held: that of the last frame returned by ``consume``.

    Args:
        memory: the mapping, in bytes.
        base: byte offset of the ring in the mapping.
        geometry: geometry of the ring.
        capacity: length of the longest frame, in bytes.

    Attributes:
        slots: the slots of the ring.
        consumer: index of the held slot, or of the next one if none is held.
        truncated: frames that were skipped because they were longer than a slot.
    """

    def __init__(
        self, memory: memoryview, base: int, geometry: RingGeometry, capacity: int
    ) -> None:
        self.slots = SlotTable(memory, base, geometry, capacity)
        self.consumer = 0
        self.truncated = 0
        self._is_held = False
        self._last = self.slots.count - 1
        self._status, self._words = self.slots.status, self.slots.words
        self._views = [
            memory[offset : offset + geometry.slot_size]
            for offset in self.slots.offsets[: self.slots.count]
        ]

    def has_frame(self) -> bool:
        """Return True if there is a frame to consume. Changes no state."""
        position = self.consumer + self._is_held
        word = self._words[position if position <= self._last else 0]
        return bool(self._status[word] & TP_STATUS_USER)

    def consume(self) -> memoryview | None:
        """Release the held slot, and return the next frame; None if the ring is empty.

        The slot of the returned frame is held. Truncated frames are skipped.
        """
        status, words = self._status, self._words
        position = self.consumer
        while True:
            if self._is_held:
                # The release store: nothing of the slot is accessed after it.
                status[words[position]] = TP_STATUS_KERNEL
                self.consumer = position = position + 1 if position < self._last else 0
                self._is_held = False
            # The acquire load: the rest of the slot is read after it.
            if not status[words[position]] & TP_STATUS_USER:
                return None
            self._is_held = True
            view = self._views[position]
            _, length, stored, start, _ = TPACKET2_HEADER.unpack_from(view)
            if stored == length:
                return view[start : start + length]
            self.truncated += 1

    def release(self) -> None:
        """Return the held slot, if any, to the kernel."""
        if self._is_held:
            position = self.consumer
            self._status[self._words[position]] = TP_STATUS_KERNEL
            self.consumer = position + 1 if position < self._last else 0
            self._is_held = False

    def begin_batch(self) -> int:
        """Release the held slot, and return the index of the next one.

        The caller then consumes frames through ``slots``: it checks ``tp_status`` of
        each slot, and stores TP_STATUS_KERNEL there when it is done with the frame.
        """
        self.release()
        return self.consumer

    def end_batch(self, frames: int) -> None:
        """Advance past the slots that were released since ``begin_batch``."""
        self.consumer = (self.consumer + frames) % self.slots.count

    def close(self) -> None:
        """Release the views of the mapping. The counter stays."""
        self._views.clear()
        self.slots.close()


class TxRing:
    """The send ring: user space produces frames, send(2) has the kernel send them.

    A frame is pending from ``commit`` until the kernel is known to have taken it.

    Args:
        memory: the mapping, in bytes.
        base: byte offset of the ring in the mapping.
        geometry: geometry of the ring.
        capacity: length of the longest frame, in bytes.

    Attributes:
        slots: the slots of the ring.
        producer: index of the slot of the next frame.
        pending: frames that are pending: the last ones before ``producer``.
        pending_bytes: their total length, which send(2) returns if it took all of them.
        sent: frames that the kernel has taken.
        unsent: frames that were committed and lost.
    """

    def __init__(
        self, memory: memoryview, base: int, geometry: RingGeometry, capacity: int
    ) -> None:
        self.slots = SlotTable(memory, base, geometry, capacity)
        self.producer = 0
        self.pending = self.pending_bytes = 0
        self.sent = self.unsent = 0
        self._reserved = -1
        """Index of the slot that ``reserve`` has returned; -1 if there is none."""
        self._capacity = capacity
        self._last = self.slots.count - 1
        self._status, self._words = self.slots.status, self.slots.words
        offsets = self.slots.offsets[: self.slots.count]
        for offset in offsets:
            # With PACKET_TX_HAS_OFF, tpacket_snd() finds the frame by tp_mac.
            TPACKET2_HEADER.pack_into(
                memory, offset, TP_STATUS_AVAILABLE, 0, 0, FRAME_OFFSET, 0
            )
        starts = [offset + FRAME_OFFSET for offset in offsets]
        self._views = [memory[start : start + capacity] for start in starts]

    def reserve(self) -> memoryview | None:
        """Return memory for the next frame; None while the kernel owns its slot.

        Calling it again without ``commit`` returns the same memory.
        """
        reserved = self._reserved
        if reserved < 0:
            reserved = self.producer
            if self._status[self._words[reserved]] & _KERNEL_OWNS_TX:
                return None
            self._reserved = reserved
        return self._views[reserved]

    def commit(self, length: int) -> None:
        """Make the first ``length`` bytes of the reserved memory a pending frame.

        Raises:
            ValueError: nothing is reserved, or no frame has such a length.
        """
        reserved = self._reserved
        if reserved < 0 or not ETHERNET_LENGTH <= length <= self._capacity:
            raise ValueError(f"no frame of {length} bytes was reserved")
        position = self.producer
        if reserved != position:
            # Frames before it were withdrawn while it was being filled.
            self._views[position][:length] = self._views[reserved][:length]
        word = self._words[position]
        self._status[word + 1] = length
        # The release store: frame and length are in place before it.
        self._status[word] = TP_STATUS_SEND_REQUEST
        self.producer = position + 1 if position < self._last else 0
        self._reserved = -1
        self.pending += 1
        self.pending_bytes += length

    def complete(self) -> None:
        """Count all pending frames as sent."""
        self.sent += self.pending
        self.pending = self.pending_bytes = 0

    def reclaim(self, limit: int) -> None:
        """Count the pending frames that the kernel has taken.

        Args:
            limit: bytes of the longest frame that the interface takes. Longer ones were
                discarded (PACKET_LOSS) and count as unsent.
        """
        for word in self._pending_words():
            if self._status[word] & _KERNEL_OWNS_TX == TP_STATUS_SEND_REQUEST:
                return
            length = self._status[word + 1]
            self.pending -= 1
            self.pending_bytes -= length
            if length > limit:
                self.unsent += 1
            else:
                self.sent += 1

    def withdraw(self) -> None:
        """Withdraw all pending frames, so that they are not sent later when stale."""
        for word in self._pending_words():
            self._status[word] = TP_STATUS_AVAILABLE
        self.producer = (self.producer - self.pending) % self.slots.count
        self.unsent += self.pending
        self.pending = self.pending_bytes = 0

    def _pending_words(self) -> list[int]:
        first = self.producer - self.pending
        return [
            self._words[(first + step) % self.slots.count]
            for step in range(self.pending)
        ]

    def begin_batch(self) -> int:
        """Cancel the reservation, and return the index of the next slot.

        The caller then produces frames through ``slots``: it checks that ``tp_status``
        is TP_STATUS_AVAILABLE, and stores TP_STATUS_SEND_REQUEST there last.
        """
        self._reserved = -1
        return self.producer

    def end_batch(self, frames: int, length: int) -> None:
        """Advance past the frames that were produced since ``begin_batch``.

        Args:
            frames: number of frames.
            length: their total length in bytes.
        """
        self.producer = (self.producer + frames) % self.slots.count
        self.pending += frames
        self.pending_bytes += length

    def close(self) -> None:
        """Release the views of the mapping. The counters stay."""
        self._views.clear()
        self.slots.close()


class Rings:
    """Both rings of an interface in one mapping: the receive ring comes first.

    Args:
        memory: the mapping, in bytes; at least twice the geometry's size.
        geometry: geometry of each ring.
        capacity: length of the longest frame, in bytes.

    Attributes:
        memory: the mapping, in bytes.
        status: the mapping, in words of four bytes.
        rx: the receive ring.
        tx: the send ring.
    """

    def __init__(
        self, memory: memoryview, geometry: RingGeometry, capacity: int
    ) -> None:
        self.memory = memory
        self.rx = RxRing(memory, 0, geometry, capacity)
        self.tx = TxRing(memory, geometry.size, geometry, capacity)
        self.status = self.rx.slots.status

    def close(self) -> None:
        """Release all views of the mapping except frames that a caller still holds."""
        self.rx.close()
        self.tx.close()
        self.memory.release()
