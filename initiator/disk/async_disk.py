"""An asyncio interface to an AoE device, in the event loop's thread."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

from aoe.address import Address
from initiator.disk.disk import Disk
from initiator.io.host import Host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from aoe.buffers import WriteBuffer
    from aoe.errors import AoEError
    from initiator.disk.read_modify_write import Done
    from initiator.driver.options import Options

_TICK = 0.05
"""Maximum seconds between calls of ``Host.run_once`` while frames are outstanding. The
host's clock leaves out longer gaps, so that frames would expire late."""
_IDLE = 0.2
"""The same while no frames are outstanding; ``run_once`` also checks the interfaces."""


class Pump:
    """Runs a host from an event loop: on received frames, timeouts and new requests.

    Args:
        host: the host. Only the pump may call its ``run_once``.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._filenos: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._scheduled: asyncio.Handle | None = None
        self._futures: set[asyncio.Future[AoEError | None]] = set()
        self.schedule()

    def schedule(self) -> None:
        """Schedule a call of ``run_once``, to send new requests."""
        if self._scheduled is None and self.failure is None:
            self._scheduled = self._loop.call_soon(self._run_once)

    def _run_once(self) -> None:
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        try:
            self.host.run_once(0)
        except BaseException as error:  # noqa: BLE001 - is raised by the operations
            self._fail(error)
            return
        self._update_readers(self.host.filenos())
        due = self.host.driver.next_timeout()
        wait = _IDLE
        if due is not None:
            wait = min(_TICK, max(0.0, due - self.host.now()))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(wait, self._run_once)

    def _update_readers(self, filenos: set[int]) -> None:
        for gone in self._filenos - filenos:
            self._loop.remove_reader(gone)
        for new in filenos - self._filenos:
            self._loop.add_reader(new, self._run_once)
        self._filenos = filenos

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self.stop()
        for future in self._futures:
            if not future.done():
                future.set_exception(error)

    async def run(self, start: Callable[[Done], None]) -> None:
        """Start an operation and wait until it is done; raise its error.

        If the coroutine is cancelled, the operation continues: frames that were sent
        cannot be recalled.
        """
        if self.failure is not None:
            raise self.failure
        future: asyncio.Future[AoEError | None] = self._loop.create_future()

        def done(error: AoEError | None) -> None:
            if not future.done():
                future.set_result(error)

        start(done)
        self.schedule()
        self._futures.add(future)
        try:
            error = await future
        finally:
            self._futures.discard(future)
        if error is not None:
            raise error

    async def find(self, address: Address, timeout: float) -> None:  # noqa: ASYNC109 - the target's time, not the caller's
        """Query a device and wait until it is up, as ``Host.find``."""
        driver = self.host.driver
        deadline = time.monotonic() + timeout
        interval = 0.05
        queried_at = float("-inf")
        self.host.begin_search(address)
        while not self.host.is_settled(address):
            now = time.monotonic()
            if self.failure is not None:
                raise self.failure
            if now > deadline:
                raise self.host.not_found(address, timeout)
            if now > queried_at + interval:
                queried_at, interval = now, 2 * interval
                driver.discover(address)
                self.schedule()
            await asyncio.sleep(0.005)

    def stop(self) -> None:
        """Remove the pump's callbacks from the event loop."""
        self._update_readers(set())
        for handle in (self._scheduled, self._timer):
            if handle is not None:
                handle.cancel()


class AsyncDisk:
    """A disk for coroutines; offsets and lengths in bytes.

    >>> async def main() -> None:
    ...     async with AsyncDisk.open("e0.0", "eth0") as disk:
    ...         await disk.write(1000, b"any byte, any length")
    ...         halves = disk.read(1000, 4), disk.read(1004, 5)
    ...         print(await asyncio.gather(*halves))
    >>> asyncio.run(main())
    [b'any ', b'byte,']

    Any number of operations may be outstanding. They are executed in any order, except
    overlapping writes. A buffer must not be changed until its operation has ended, even
    if the coroutine that awaits it is cancelled.

    Args:
        disk: the disk, which must not be used directly any more.
        pump: runs its host.
    """

    def __init__(self, disk: Disk, pump: Pump) -> None:
        self.disk = disk
        self._pump = pump

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        address: Address | str,
        *interfaces: str,
        timeout: float = 3.0,  # noqa: ASYNC109 - the target's time, not the caller's
        options: Options | None = None,
        read_only: bool = False,
    ) -> AsyncIterator[Self]:
        """Open a disk on these interfaces, with a new host.

        Raises:
            AoEError: as ``Disk.open``.
        """
        if isinstance(address, str):
            address = Address.parse(address)
        with Host.on(*interfaces, options=options) as host:
            pump = Pump(host)
            try:
                await pump.find(address, timeout)
                with Disk(host, address, timeout, read_only=read_only) as disk:
                    yield cls(disk, pump)
            finally:
                pump.stop()

    @property
    def size(self) -> int:
        """Size in bytes, as last reported by the target."""
        return self.disk.size

    def __len__(self) -> int:
        return self.disk.size

    async def readv(self, offset: int, buffers: Sequence[WriteBuffer]) -> None:
        """Fill ``buffers`` in order from ``offset``; raises as ``Disk.readv``."""
        start = self.disk.start_read
        await self._pump.run(lambda done: start(offset, buffers, done))

    async def read_into(self, offset: int, buffer: WriteBuffer) -> None:
        """Fill ``buffer`` from ``offset``; raises as ``Disk.readv``."""
        await self.readv(offset, [buffer])

    async def read(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes from ``offset``; raises as ``Disk.readv``."""
        buffer = bytearray(length)
        await self.readv(offset, [buffer])
        return bytes(buffer)

    async def writev(
        self, offset: int, pieces: Sequence[WriteBuffer | bytes], *, fua: bool = False
    ) -> None:
        """Write ``pieces`` in order at ``offset``; raises as ``Disk.writev``."""
        start = self.disk.start_write
        await self._pump.run(lambda done: start(offset, pieces, done, fua=fua))

    async def write(
        self, offset: int, data: WriteBuffer | bytes, *, fua: bool = False
    ) -> None:
        """Write ``data`` at ``offset``; raises as ``Disk.writev``."""
        await self.writev(offset, [data], fua=fua)

    async def trim(self, offset: int, length: int) -> None:
        """Discard whole sectors (TRIM); raises as ``Disk.trim``."""
        start = self.disk.start_trim
        await self._pump.run(lambda done: start(offset, length, done))

    async def flush(self) -> None:
        """Make all writes that have returned durable; raises as ``Disk.flush``."""
        await self._pump.run(self.disk.start_flush)
