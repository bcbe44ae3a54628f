"""Packet rings: slots of memory that the kernel and we hand frames to and fro in.

::

    slot   0        32             476                        512
           +--------+--------------+--------------------------+------------ - -
           | header | address, gap | Ethernet and AoE header  | sector data
           +--------+--------------+--------------------------+------------ - -

Sector data lies on a multiple of 512 bytes of memory, received or to be sent, so that
a disk may read and write it where it is, with O_DIRECT too. The first word of the
header says whose the slot is. TPACKET_V2 of linux/if_packet.h; the other side is
tpacket_rcv() and tpacket_snd() in net/packet/af_packet.c.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from aoe.header import ETHERNET_LENGTH

if TYPE_CHECKING:
    from collections.abc import Sequence

RESERVE: Final = 512 - 36 - (80 - ETHERNET_LENGTH)
"""Bytes that the kernel is asked to leave in front of each received frame.

On its own it puts what follows the Ethernet header at offset 80.
"""

FRAME: Final = 512 - 36
"""Where a frame begins in its slot, bytes: received ones but for rare exceptions."""
DATA: Final = 512
"""Where its sector data begins then."""
_ALIGNMENT: Final = 512
_VLAN_TAG: Final = 4
_SLOTS_MINIMUM: Final = 32
_MEMORY_LIMIT: Final = 16 << 20
_BLOCK_MINIMUM: Final = 64 << 10

SLOT_HEADER: Final = Struct("=IIIHH")
"""Status, length on the wire, length in the slot, offset of the frame, of its data."""
KERNEL: Final = 0
"""The status of a slot to receive in, when it is the kernel's."""
USER: Final = 1
"""A bit of its status when it holds a frame for us."""
AVAILABLE: Final = 0
"""The status of a slot to send from, when it is ours."""
SEND_REQUEST: Final = 1
"""Its status when it holds a frame for the kernel."""
IN_FLIGHT: Final = 1 | 2
"""Bits of its status that say that it is not ours yet."""
_LENGTHS_LIMIT: Final = 32
"""How many lengths of data a ring has views of."""


class RingShape(NamedTuple):
    """How a ring is cut: into blocks, and these into slots.

    Args:
        block: bytes of a block, a power of two.
        blocks: how many.
        slot: bytes of a slot.
        slots: how many in all; what is left over at a block's end stays unused.
    """

    block: int
    blocks: int
    slot: int
    slots: int

    @classmethod
    def for_frames(cls, length: int, count: int) -> Self:
        """Cut a ring for at least ``count`` frames of ``length`` bytes.

        No more than 16 MiB are taken, but enough for 32 frames.
        """
        slot = -(-(FRAME + length + _VLAN_TAG) // _ALIGNMENT) * _ALIGNMENT
        block = _BLOCK_MINIMUM
        while block % slot > block // 16 or block < slot:
            block *= 2
        each = block // slot
        fewest = -(-_SLOTS_MINIMUM // each)
        most = max(fewest, _MEMORY_LIMIT // block)
        blocks = min(max(-(-count // each), fewest), most)
        return cls(block, blocks, slot, blocks * each)

    @property
    def length(self) -> int:
        """Bytes of the whole ring."""
        return self.block * self.blocks

    def request(self) -> bytes:
        """Build the ``struct tpacket_req`` that asks the kernel for it."""
        return Struct("=IIII").pack(*self)

    def offsets(self, base: int) -> list[int]:
        """Return where the slots begin, in a ring that begins at ``base``."""
        each = self.block // self.slot
        return [
            base + index // each * self.block + index % each * self.slot
            for index in range(self.slots)
        ]


class ReceiveRing:
    """The kernel fills slots, in order; we empty them, in order."""

    _truncated = 0

    def _map_receive(self, whole: memoryview, base: int, shape: RingShape) -> None:
        offsets = shape.offsets(base)
        self._rx_status = whole.cast("I")
        self._rx_words = [offset // 4 for offset in offsets]
        self._rx_slots = [whole[offset : offset + shape.slot] for offset in offsets]
        self._rx_last = shape.slots - 1
        self._rx = 0
        self._rx_held = False

    def _empty(self) -> None:
        """Do what is to be done when no frame was found."""

    def receive(self) -> memoryview | None:
        """Return the next frame, None when none waits; see ``Link.receive``."""
        while True:
            position = self._rx
            if self._rx_held:
                self._rx_status[self._rx_words[position]] = KERNEL
                position = position + 1 if position < self._rx_last else 0
                self._rx = position
                self._rx_held = False
            if not self._rx_status[self._rx_words[position]] & USER:
                self._empty()
                return None
            self._rx_held = True
            slot = self._rx_slots[position]
            _, length, stored, start, _ = SLOT_HEADER.unpack_from(slot)
            if stored == length:
                return slot[start : start + length]
            self._truncated += 1

    def _give_back(self) -> None:
        """Let the kernel have the slot of the frame that was handed out, if one was."""
        if self._rx_held:
            self._rx_status[self._rx_words[self._rx]] = KERNEL
            self._rx = self._rx + 1 if self._rx < self._rx_last else 0
            self._rx_held = False

    def _has_frame(self) -> bool:
        self._give_back()
        return bool(self._rx_status[self._rx_words[self._rx]] & USER)


class SendRing:
    """We fill slots, in order; the kernel sends them in that order when it is told."""

    _sent = 0
    _unsent = 0

    def _map_send(
        self, whole: memoryview, base: int, shape: RingShape, capacity: int
    ) -> None:
        offsets = shape.offsets(base)
        for offset in offsets:
            SLOT_HEADER.pack_into(whole, offset, AVAILABLE, 0, 0, FRAME, 0)
        starts = [offset + FRAME for offset in offsets]
        self._capacity = capacity
        self._tx_status = whole.cast("I")
        self._tx_words = [offset // 4 for offset in offsets]
        self._tx_slots = [whole[start : start + capacity] for start in starts]
        self._tx_last = shape.slots - 1
        self._tx = 0
        self._tx_reserved = -1
        self._tx_pending = 0
        """Frames committed that the kernel is not known to have taken, the last ones
        before ``_tx``, and their bytes."""
        self._tx_bytes = 0

    def flush(self) -> None:
        """Tell the kernel."""
        raise NotImplementedError

    def reserve(self) -> memoryview | None:
        """Return memory for the next frame; see ``Link.reserve``."""
        reserved = self._tx_reserved
        if reserved < 0:
            reserved = self._tx
            if self._tx_status[self._tx_words[reserved]] & IN_FLIGHT:
                self.flush()
                reserved = self._tx
                if self._tx_status[self._tx_words[reserved]] & IN_FLIGHT:
                    return None
            self._tx_reserved = reserved
        return self._tx_slots[reserved]

    def commit(self, length: int) -> None:
        """Make the reserved memory a frame; see ``Link.commit``."""
        reserved = self._tx_reserved
        if reserved < 0 or not ETHERNET_LENGTH <= length <= self._capacity:
            raise ValueError(f"no frame of {length} bytes was reserved")
        position = self._tx
        if reserved != position:
            # Frames before it were withdrawn while it was being filled.
            self._tx_slots[position][:length] = self._tx_slots[reserved][:length]
        word = self._tx_words[position]
        self._tx_status[word + 1] = length
        self._tx_status[word] = SEND_REQUEST
        self._tx = position + 1 if position < self._tx_last else 0
        self._tx_reserved = -1
        self._tx_pending += 1
        self._tx_bytes += length

    def _pending(self) -> list[int]:
        first = self._tx - self._tx_pending
        return [
            self._tx_words[(first + step) % len(self._tx_words)]
            for step in range(self._tx_pending)
        ]

    def _settle(self, limit: int) -> None:
        """Count what the kernel took; what is longer than ``limit`` it threw away."""
        for word in self._pending():
            length = self._tx_status[word + 1]
            if self._tx_status[word] & IN_FLIGHT == SEND_REQUEST:
                return
            self._tx_pending -= 1
            self._tx_bytes -= length
            if length > limit:
                self._unsent += 1
            else:
                self._sent += 1

    def _withdraw(self) -> None:
        """Take back what the kernel has not taken: it would go out when outdated."""
        for word in self._pending():
            self._tx_status[word] = AVAILABLE
        self._tx = (self._tx - self._tx_pending) % len(self._tx_words)
        self._unsent += self._tx_pending
        self._tx_pending = self._tx_bytes = 0


class Slots:
    """The slots of one ring, for those who go from one to the next by themselves.

    Args:
        memory: what they are in.
        starts: where they begin, bytes.
        capacity: bytes of a frame that fit one.
    """

    def __init__(
        self, memory: memoryview, starts: Sequence[int], capacity: int
    ) -> None:
        self.starts = [*starts, *starts]
        """Where they begin, twice over: from any of them on, all follow."""
        self._starts = starts
        self._memory = memory
        self._room = capacity - (DATA - FRAME)
        self._views: dict[int, dict[int, list[memoryview]]] = {}

    def data(self, length: int) -> dict[int, list[memoryview]] | None:
        """Return the memory for sector data of each slot, by where the slot begins.

        It stands in a list, as ``preadv`` and its like want it.

        Args:
            length: bytes of data; they are kept for 32 lengths at most, for each takes
                some memory.

        Returns:
            None if it does not fit, or is a length too many.
        """
        views = self._views.get(length)
        if views is None and length <= self._room:
            if len(self._views) == _LENGTHS_LIMIT:
                return None
            memory = self._memory
            views = {
                start: [memory[start + DATA : start + DATA + length]]
                for start in self._starts
            }
            self._views[length] = views
        return views

    def clear(self) -> None:
        """Let go of the memory."""
        self._views.clear()


class Rings(ReceiveRing, SendRing):
    """Both rings of an interface, open to those who take a batch of frames at one go.

    ``begin`` tells where the next frame is looked for and put; ``emptied`` and
    ``filled`` are told how far one got. What ``receive`` and ``commit`` do is up to the
    caller in between.
    """

    def _map_both(self, whole: memoryview, shape: RingShape, capacity: int) -> None:
        self._map_receive(whole, 0, shape)
        self._map_send(whole, shape.length, shape, capacity)
        self.memory = whole
        """All slots of both rings, in bytes."""
        self.status = self._rx_status
        """The same in words of four bytes."""
        self.slots = shape.slots
        """How many each ring has."""
        self.arrivals = Slots(whole, shape.offsets(0), capacity)
        self.departures = Slots(whole, shape.offsets(shape.length), capacity)

    def begin(self) -> tuple[int, int]:
        """Return the numbers of the next slots to receive in and to send from.

        Memory that was handed out before is given back.
        """
        self._give_back()
        self._tx_reserved = -1
        return self._rx, self._tx

    def emptied(self, frames: int) -> None:
        """Note how many frames were received since ``begin``.

        Their slots are the kernel's again.
        """
        self._rx = (self._rx + frames) % len(self._rx_words)

    def filled(self, frames: int, length: int) -> None:
        """Note how many frames were put since ``begin``, and their bytes in all."""
        self._tx = (self._tx + frames) % len(self._tx_words)
        self._tx_pending += frames
        self._tx_bytes += length

    def arrived(self) -> bool:
        """Tell whether a frame waits, and do nothing else."""
        position = self._rx + self._rx_held
        word = self._rx_words[position if position <= self._rx_last else 0]
        return bool(self.status[word] & USER)
