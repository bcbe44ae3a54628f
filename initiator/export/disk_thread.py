"""A disk that any thread may use: its host takes turns in a thread of its own."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias

from aoe.errors import AoEError
from initiator.export.frontend import DiskKeeper

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from initiator.disk.disk import Disk
    from initiator.disk.read_modify_write import Done

    Start: TypeAlias = Callable[[Done], None]


class DiskThread:
    """Runs a disk's host; its methods block the thread that calls them, and no other.

    Operations of several threads are under way at the same time. Offsets and lengths
    are bytes, as the disk takes them.

    A target that is silent is waited for as long as ``Options.deadsecs`` says. One that
    was given up and answers again is used again.

    Args:
        disk: nobody else uses its host while the thread runs.
        report: takes a line for the user, when it goes down and when it is back.
    """

    def __init__(self, disk: Disk, report: Callable[[str], None]) -> None:
        self.disk = disk
        self._keeper = DiskKeeper(disk, report)
        self._calls: deque[tuple[Start, Future[None]]] = deque()
        self._pending: set[Future[None]] = set()
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
        self._wait(lambda done: self.disk.start_read(offset, [buffer], done))
        return buffer

    def write(self, offset: int, data: bytes) -> None:
        """Write ``data``; raises as ``Disk.write``."""
        self._wait(lambda done: self.disk.start_write(offset, [data], done))

    def trim(self, offset: int, length: int) -> None:
        """Let go of ``length`` bytes; raises as ``Disk.trim``."""
        self._wait(lambda done: self.disk.start_trim(offset, length, done))

    def flush(self) -> None:
        """Make all writes durable that have returned; raises as ``Disk.flush``."""
        self._wait(self.disk.start_flush)

    def start(self) -> None:
        """Begin to take turns."""
        self.disk.host.watch(self._wakeup, lambda _: self._drain())
        self._thread.start()

    def close(self) -> None:
        """Take no more turns; what is under way fails. Safe to call twice."""
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

    # --- the callers' side ------------------------------------------------------------

    def _wait(self, start: Start) -> None:
        future: Future[None] = Future()
        with self._lock:
            if self._stopping:
                raise self._closed()
            self._calls.append((start, future))
            os.eventfd_write(self._wakeup, 1)
        future.result()

    def _closed(self) -> AoEError:
        return AoEError(str(self.disk.address), "is let go")

    # --- the thread's side ------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                while self._calls:
                    self._begin(*self._calls.popleft())
                self._keeper.keep(lambda: self._stopping or bool(self._calls))
        finally:
            with self._lock:
                self._stopping = True
            self._pending.update(future for _, future in self._calls)
            for future in self._pending:
                future.set_exception(self._closed())

    def _begin(self, start: Start, future: Future[None]) -> None:
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
