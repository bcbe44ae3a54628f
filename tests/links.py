"""Links without an interface: in-memory queues, rings and a target."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import TYPE_CHECKING

from aoe.errors import NotFoundError
from aoe.net.base import Link, LinkStatistics
from aoe.net.rings import FRAME, SEND_REQUEST, SLOT_HEADER, USER, Rings, RingShape
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


class MemoryRings(Rings, Link):
    """Packet rings in memory with a fake kernel, which runs at each flush."""

    def __init__(self, mtu: int = 1500, slots: int = 32) -> None:
        self.name, self.index, self.mac, self.mtu, self.up = (
            "eth0",
            2,
            TARGET,
            mtu,
            True,
        )
        self.incoming: deque[bytes] = deque()
        self.sent: list[bytes] = []
        self._shape = RingShape.for_frames(14 + mtu, slots)
        whole = memoryview(bytearray(b"\xdb" * (2 * self._shape.length)))
        for start in self._shape.offsets(0):
            whole[start : start + 4] = bytes(4)
        self._map_both(whole, self._shape, max(14 + mtu, 60))
        self._rx_slot = self._tx_slot = 0

    @property
    def rings(self) -> Rings:
        return self

    def deliver(self, *frames: bytes) -> None:
        self.incoming.extend(frames)
        self._fill()

    def _fill(self) -> None:
        starts = self.arrivals.starts
        while self.incoming:
            start = starts[self._rx_slot % self._shape.slots]
            if self.memory[start]:
                return
            frame = self.incoming.popleft()
            begin = start + FRAME
            stored = min(len(frame), self._shape.slot - FRAME)
            self.memory[begin : begin + stored] = frame[:stored]
            SLOT_HEADER.pack_into(
                self.memory, start, USER, len(frame), stored, FRAME, FRAME + 14
            )
            self._rx_slot += 1

    def flush(self) -> None:
        while self._tx_pending:
            start = self.departures.starts[self._tx_slot % self._shape.slots]
            status, length, _, at, _ = SLOT_HEADER.unpack_from(self.memory, start)
            assert (status, at) == (SEND_REQUEST, FRAME)
            self.sent.append(bytes(self.memory[start + at : start + at + length]))
            self.memory[start : start + 4] = bytes(4)
            self._tx_slot += 1
            self._tx_pending -= 1
            self._tx_bytes -= length
        assert self._tx_bytes == 0
        self._fill()

    def fileno(self) -> int:
        return -1

    def wait(self, timeout: float | None) -> bool:
        del timeout
        return self.arrived()

    def statistics(self) -> LinkStatistics:
        return LinkStatistics(sent=len(self.sent), truncated=self._truncated)

    def close(self) -> None:
        self.arrivals.clear()
        self.departures.clear()


class TargetLink(Link):
    """A link to a target in memory, with fault injection.

    Args:
        replies: returns the frames to receive, given a request and its reply.
    """

    name, index, mac, mtu, up = "aoe0", 1, CLIENT, 1500, True

    def __init__(self, replies: Callable[[bytes, bytes], list[bytes]]) -> None:
        self.target = make_target()
        self.sent: list[bytes] = []
        self._replies = replies
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
        reply = ask(self.target, request)
        self._incoming.extend(each for each in self._replies(request, reply) if each)

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
