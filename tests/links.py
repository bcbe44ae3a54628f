"""Links without an interface: in-memory queues, rings and a target."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING

from aoe.errors import NotFoundError
from aoe.net.base import Link, LinkStatistics
from aoe.net.rings import (
    FRAME_OFFSET,
    TP_STATUS_SEND_REQUEST,
    TP_STATUS_USER,
    TPACKET2_HEADER,
    RingGeometry,
    Rings,
)
from tests.asking import CLIENT, TARGET, ask, make_target

if TYPE_CHECKING:
    from collections.abc import Callable


class QueueLink(Link):
    """A link between two queues; ``slots`` limits the frames committed per flush."""

    def __init__(self, slots: int = 8, mtu: int = 1500) -> None:
        self.name, self.index, self.mac, self.mtu = "eth0", 2, TARGET, mtu
        self.up = True
        self.incoming: deque[bytes] = deque()
        self.sent: list[bytes] = []
        self.flushes: list[int] = []
        self.on_send: Callable[[bytes], bytes | None] = lambda _: None
        self.is_gone = self.is_closed = False
        self._slots = slots
        self._committed: list[bytes] = []
        self._slot = memoryview(bytearray(b"\xdb" * (14 + mtu)))
        self._readable, self._writable = os.pipe()

    def fileno(self) -> int:
        return self._readable

    def deliver(self, *frames: bytes) -> None:
        self.incoming.extend(frames)
        os.write(self._writable, b"\0" * len(frames))

    def receive(self) -> memoryview | None:
        if self.is_gone:
            raise NotFoundError(self.name, "interface is gone")
        if not self.incoming:
            return None
        os.read(self._readable, 1)
        return memoryview(self.incoming.popleft())

    def reserve(self) -> memoryview | None:
        return self._slot if len(self._committed) < self._slots else None

    def commit(self, length: int) -> None:
        self._committed.append(bytes(self._slot[:length]))

    def flush(self) -> None:
        if self._committed:
            self.flushes.append(len(self._committed))
        for committed in self._committed:
            self.sent.append(committed)
            if response := self.on_send(committed):
                self.deliver(response)
        self._committed.clear()

    def wait(self, timeout: float | None) -> bool:
        del timeout
        return bool(self.incoming)

    def statistics(self) -> LinkStatistics:
        return LinkStatistics(sent=len(self.sent))

    def close(self) -> None:
        if not self.is_closed:
            os.close(self._readable)
            os.close(self._writable)
        self.is_closed = True


class MemoryRingLink(Link):
    """Packet rings in memory with a fake kernel, which runs at each flush."""

    def __init__(self, mtu: int = 1500, slots: int = 32) -> None:
        self.name, self.index, self.mac, self.mtu = "eth0", 2, TARGET, mtu
        self.up = True
        self.incoming: deque[bytes] = deque()
        self.sent: list[bytes] = []
        self._geometry = RingGeometry.for_frames(14 + mtu, slots)
        memory = memoryview(bytearray(b"\xdb" * (2 * self._geometry.size)))
        for start in self._geometry.slot_offsets(0):
            memory[start : start + 4] = bytes(4)
        self._capacity = max(14 + mtu, 60)
        self._rings = Rings(memory, self._geometry, self._capacity)
        self._kernel_producer = self._kernel_consumer = 0

    @property
    def rings(self) -> Rings | None:
        return self._rings

    def deliver(self, *frames: bytes) -> None:
        self.incoming.extend(frames)
        self._fill()

    def _fill(self) -> None:
        memory, slots = self._rings.memory, self._rings.rx.slots
        while self.incoming:
            start = slots.offsets[self._kernel_producer % slots.count]
            if memory[start]:
                return
            frame = self.incoming.popleft()
            at = start + FRAME_OFFSET
            stored = min(len(frame), self._geometry.slot_size - FRAME_OFFSET)
            memory[at : at + stored] = frame[:stored]
            TPACKET2_HEADER.pack_into(
                memory,
                start,
                *(TP_STATUS_USER, len(frame), stored, FRAME_OFFSET, FRAME_OFFSET + 14),
            )
            self._kernel_producer += 1

    def receive(self) -> memoryview | None:
        return self._rings.rx.consume()

    def reserve(self) -> memoryview | None:
        slot = self._rings.tx.reserve()
        if slot is None:
            self.flush()
            slot = self._rings.tx.reserve()
        return slot

    def commit(self, length: int) -> None:
        self._rings.tx.commit(length)

    def flush(self) -> None:
        memory, tx = self._rings.memory, self._rings.tx
        for _ in range(tx.pending):
            start = tx.slots.offsets[self._kernel_consumer % tx.slots.count]
            status, length, _, at, _ = TPACKET2_HEADER.unpack_from(memory, start)
            assert (status, at) == (TP_STATUS_SEND_REQUEST, FRAME_OFFSET)
            self.sent.append(bytes(memory[start + at : start + at + length]))
            memory[start : start + 4] = bytes(4)
            self._kernel_consumer += 1
        tx.reclaim(self._capacity)
        assert (tx.pending, tx.pending_bytes) == (0, 0)
        self._fill()

    def fileno(self) -> int:
        return -1

    def wait(self, timeout: float | None) -> bool:
        del timeout
        return self._rings.rx.has_frame()

    def statistics(self) -> LinkStatistics:
        return LinkStatistics(sent=len(self.sent), truncated=self._rings.rx.truncated)

    def close(self) -> None:
        self._rings.close()


class TargetLink(Link):
    """A link to a target in memory, with fault injection.

    Args:
        responses: returns the frames to receive, given a request and its response.
    """

    name, index, mac, mtu, up = "aoe0", 1, CLIENT, 1500, True

    def __init__(self, responses: Callable[[bytes, bytes], list[bytes]]) -> None:
        self.target = make_target()
        self.sent: list[bytes] = []
        self._responses = responses
        self._incoming: deque[bytes] = deque()
        self._slot = bytearray(1514)

    def fileno(self) -> int:
        return -1

    def receive(self) -> memoryview | None:
        return memoryview(self._incoming.popleft()) if self._incoming else None

    def reserve(self) -> memoryview | None:
        return memoryview(self._slot)

    def commit(self, length: int) -> None:
        request = bytes(self._slot[:length])
        self.sent.append(request)
        response = ask(self.target, request)
        self._incoming.extend(
            each for each in self._responses(request, response) if each
        )

    def flush(self) -> None:
        pass

    def wait(self, timeout: float | None) -> bool:
        if not self._incoming:
            time.sleep(min(timeout or 0.0, 0.001))
        return bool(self._incoming)

    def statistics(self) -> LinkStatistics:
        return LinkStatistics()

    def close(self) -> None:
        pass
