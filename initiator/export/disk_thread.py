"""A thread-safe disk: its host's event loop runs in a thread of its own."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias

from aoe.errors import AoEError
from initiator.export.frontend import DiskRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from initiator.disk.disk import Disk
    from initiator.disk.read_modify_write import Done

    Start: TypeAlias = Callable[[Done], None]


class DiskThread:
    """Blocking reads and writes of a disk from any thread.

    Operations of different threads are outstanding at the same time. Offsets and
    lengths are in bytes.

    An operation fails when the target has not responded for ``Options.deadsecs``. The
    disk is usable again once the target responds.

    Args:
        disk: the disk; only this thread may use its host while it runs.
        report: called with a line for the user when the disk goes down or up.
    """

    def __init__(self, disk: Disk, report: Callable[[str], None]) -> None:
        self.disk = disk
        self._runner = DiskRunner(disk, report)
        self._calls: deque[tuple[Start, Future[None]]] = deque()
        self._pending: set[Future[None]] = set()
        self._stopping = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return self.disk.size

    def read(self, offset: int, length: int) -> bytearray:
        """Read ``length`` bytes; raises as ``Disk.read``."""
        buffer = bytearray(length)
        self._wait(lambda done: self.disk.start_read(offset, [buffer], done))
        return buffer

    def write(self, offset: int, data: bytes) -> None:
        """Write ``data``; raises as ``Disk.write``."""
        self._wait(lambda done: self.disk.start_write(offset, [data], done))

    def trim(self, offset: int, length: int) -> None:
        """Trim ``length`` bytes; raises as ``Disk.trim``."""
        self._wait(lambda done: self.disk.start_trim(offset, length, done))

    def flush(self) -> None:
        """Make all completed writes durable; raises as ``Disk.flush``."""
        self._wait(self.disk.start_flush)

    def start(self) -> None:
        """Start the thread."""
        self.disk.host.watch(self._wakeup, lambda _: self._drain())
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; outstanding operations fail. Safe to call twice."""
        with self._lock:
            self._stopping = True
            if self._wakeup < 0:
                return
            os.eventfd_write(self._wakeup, 1)
        if self._thread.is_alive():
            self._thread.join()
        self.disk.host.unwatch(self._wakeup)
        os.close(self._wakeup)
        self._wakeup = -1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- called by other threads ------------------------------------------------------

    def _wait(self, start: Start) -> None:
        future: Future[None] = Future()
        with self._lock:
            if self._stopping:
                raise self._closed()
            self._calls.append((start, future))
            os.eventfd_write(self._wakeup, 1)
        future.result()

    def _closed(self) -> AoEError:
        return AoEError(str(self.disk.address), "is closed")

    # --- the disk's thread ------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                while self._calls:
                    self._start(*self._calls.popleft())
                self._runner.run_until(lambda: self._stopping or bool(self._calls))
        finally:
            with self._lock:
                self._stopping = True
            self._pending.update(future for _, future in self._calls)
            for future in self._pending:
                future.set_exception(self._closed())

    def _start(self, start: Start, future: Future[None]) -> None:
        def done(error: AoEError | None) -> None:
            self._pending.discard(future)
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self._pending.add(future)
        try:
            start(done)
        except AoEError as error:
            done(error)

    def _drain(self) -> None:
        os.eventfd_read(self._wakeup)
