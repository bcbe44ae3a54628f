"""A disk that any thread may use: the host takes its turns in a thread of its own."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

from aoe.errors import AoEError, from_os_error
from initiator.aoedev import State
from initiator.unaligned import ByteView

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from aoe.buffers import WriteBuffer
    from initiator.bio import Bio
    from initiator.device import Disk

    Start = Callable[[Callable[[AoEError | None], None]], None]

_ASK_INTERVAL: Final = 1.0
"""Seconds between questions to a device that is down: nobody tells us it is back."""


class DiskThread:
    """Runs a disk's host; its methods block the thread that calls them, no other.

    Operations of several threads are under way at the same time. Offsets and lengths
    are bytes, of any value; what is no whole sector is read, changed and written.

    A target that is silent is waited for as long as ``Options.deadsecs`` says. One that
    was given up and answers again is used again.

    Args:
        disk: nobody else may use its host while the thread runs.
        ended: called in the thread when it ends by itself, as no interface is left.
    """

    def __init__(self, disk: Disk, ended: Callable[[], None] = lambda: None) -> None:
        self.disk = disk
        self.error: AoEError | None = None
        self._ended = ended
        self._host = disk.host
        self._device = disk.host.driver.devices[disk.address]
        self._view = ByteView(self._submit)
        self._calls: deque[tuple[Start, Future[None]]] = deque()
        self._pending: set[Future[None]] = set()
        self._asked = 0.0
        self._stopping = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.disk.size

    def read(self, offset: int, length: int) -> bytearray:
        """Read ``length`` bytes; raises as ``Disk.read``."""
        buffer = bytearray(length)
        self._wait(lambda done: self._view.read(offset, buffer, done))
        return buffer

    def write(self, offset: int, data: WriteBuffer | bytes) -> None:
        """Write ``data``; raises as ``Disk.write``."""
        self._wait(lambda done: self._view.write(offset, data, done))

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write ``length`` zeroes; raises as ``Disk.write``."""
        self._wait(lambda done: self._view.write_zeroes(offset, length, done))

    def flush(self) -> None:
        """Make all writes durable that have returned; raises as ``Disk.flush``."""
        self._wait(self._view.flush)

    def start(self) -> None:
        """Begin to take turns."""
        self._host.watch(self._wakeup, lambda _: self._drain())
        self._thread.start()

    def close(self) -> None:
        """Take no more turns; what is under way fails. Safe to call twice."""
        with self._lock:
            self._stopping = True
        if self._thread.is_alive():
            os.eventfd_write(self._wakeup, 1)
            self._thread.join()
        if self._wakeup >= 0:
            self._host.unwatch(self._wakeup)
            os.close(self._wakeup)
            self._wakeup = -1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the callers' side --------------------------------------------------------

    def _wait(self, start: Start) -> None:
        future: Future[None] = Future()
        with self._lock:
            if self._stopping:
                raise self._closed()
            self._calls.append((start, future))
            os.eventfd_write(self._wakeup, 1)
        future.result()

    def _closed(self) -> AoEError:
        return self.error or AoEError(str(self.disk.address), "is let go")

    # --- the thread's side --------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                while self._calls:
                    self._begin(*self._calls.popleft())
                self._host.turn(self._ask_if_down())
        except AoEError as error:
            self.error = error
        except OSError as error:
            self.error = from_os_error(str(self.disk.address), error)
        with self._lock:
            self._stopping = True
        self._pending.update(future for _, future in self._calls)
        for future in self._pending:
            future.set_exception(self._closed())
        if self.error is not None:
            self._ended()

    def _begin(self, start: Start, future: Future[None]) -> None:
        def done(error: AoEError | None) -> None:
            self._pending.discard(future)
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self._pending.add(future)
        start(done)

    def _submit(self, bio: Bio) -> None:
        self._host.driver.submit(self._device, bio, self._host.now())

    def _drain(self) -> None:
        os.eventfd_read(self._wakeup)

    def _ask_if_down(self) -> float | None:
        """Ask a device that is down; return how long the next turn may wait."""
        if self._device.state is State.UP:
            return None
        now = time.monotonic()
        if now >= self._asked + _ASK_INTERVAL:
            self._asked = now
            self._host.driver.discover(self.disk.address)
        return _ASK_INTERVAL
