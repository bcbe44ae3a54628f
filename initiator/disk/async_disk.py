"""An AoE device for asyncio: many operations at once, in the event loop's thread."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

from aoe.address import Address
from initiator.disk.disk import Disk
from initiator.driver.aoedev import State
from initiator.io.host import Host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from aoe.buffers import WriteBuffer
    from aoe.errors import AoEError
    from initiator.disk.read_modify_write import Done
    from initiator.driver.options import Options

_TICK = 0.05
"""Most seconds between turns while frames are out: a host that takes none for longer
thinks that it was away, and gives them more time."""
_IDLE = 0.2
"""And while none are: interfaces may come and go."""


class Pump:
    """Lets a host take turns whenever the event loop has something for it.

    Args:
        host: nobody else lets it take turns meanwhile.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._filenos: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._waiting: set[asyncio.Future[AoEError | None]] = set()
        self.kick()

    def kick(self) -> None:
        """Have a turn taken soon: there is something to send."""
        if self._soon is None and self.failure is None:
            self._soon = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        try:
            self.host.run_once(0)
        except BaseException as error:  # noqa: BLE001 - goes to whoever waits
            self._fail(error)
            return
        self._follow(self.host.filenos())
        due = self.host.driver.next_timeout()
        wait = _IDLE
        if due is not None:
            wait = min(_TICK, max(0.0, due - self.host.now()))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(wait, self._turn)

    def _follow(self, filenos: set[int]) -> None:
        for gone in self._filenos - filenos:
            self._loop.remove_reader(gone)
        for new in filenos - self._filenos:
            self._loop.add_reader(new, self._turn)
        self._filenos = filenos

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self.stop()
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)

    async def run(self, start: Callable[[Done], None]) -> None:
        """Start an operation, wait until it is done, and raise what went wrong.

        One that is cancelled is carried out all the same: AoE cannot call frames back.
        """
        if self.failure is not None:
            raise self.failure
        future: asyncio.Future[AoEError | None] = self._loop.create_future()

        def done(error: AoEError | None) -> None:
            if not future.done():
                future.set_result(error)

        start(done)
        self.kick()
        self._waiting.add(future)
        try:
            error = await future
        finally:
            self._waiting.discard(future)
        if error is not None:
            raise error

    async def find(self, address: Address, timeout: float) -> None:  # noqa: ASYNC109 - the target's time, not the caller's
        """Discover a device and wait until it is up; as ``Host.find``."""
        driver = self.host.driver
        deadline = time.monotonic() + timeout
        patience = 0.05
        asked = float("-inf")
        while True:
            d = driver.devices.get(address)
            if d is not None and d.state is State.UP:
                return
            now = time.monotonic()
            if self.failure is not None:
                raise self.failure
            if now > deadline:
                raise self.host.not_found(address, timeout)
            if now > asked + patience:
                asked, patience = now, 2 * patience
                driver.discover(address)
                self.kick()
            await asyncio.sleep(0.005)

    def stop(self) -> None:
        """Take no more turns."""
        self._follow(set())
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()


class AsyncDisk:
    """A view of one device for coroutines; offsets and lengths in bytes.

    >>> async def main() -> None:
    ...     async with AsyncDisk.open("e0.0", "eth0") as disk:
    ...         await disk.write(1000, b"any byte, any length")
    ...         halves = disk.read(1000, 4), disk.read(1004, 5)
    ...         print(await asyncio.gather(*halves))
    >>> asyncio.run(main())
    [b'any ', b'byte,']

    As many operations as one likes run at once, in any order, but for writes that have
    sectors in common. A buffer stays as it is until its operation has ended, also if
    the coroutine that waits for it is cancelled.

    Args:
        disk: what to view; only this view may be used from now on.
        pump: lets its host take turns.
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
        """Open a disk with a host of its own on these interfaces.

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
        """Bytes, as the target last said."""
        return self.disk.size

    def __len__(self) -> int:
        return self.disk.size

    async def readv(self, offset: int, buffers: Sequence[WriteBuffer]) -> None:
        """Fill ``buffers``, one behind the other; raises as ``Disk.readv``."""
        start = self.disk.start_read
        await self._pump.run(lambda done: start(offset, buffers, done))

    async def read_into(self, offset: int, buffer: WriteBuffer) -> None:
        """Fill ``buffer`` from ``offset`` on; raises as ``Disk.readv``."""
        await self.readv(offset, [buffer])

    async def read(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes from ``offset`` on; raises as ``Disk.readv``."""
        buffer = bytearray(length)
        await self.readv(offset, [buffer])
        return bytes(buffer)

    async def writev(
        self, offset: int, pieces: Sequence[WriteBuffer | bytes], *, fua: bool = False
    ) -> None:
        """Write ``pieces``, one behind the other; as ``Disk.writev``."""
        start = self.disk.start_write
        await self._pump.run(lambda done: start(offset, pieces, done, fua=fua))

    async def write(
        self, offset: int, data: WriteBuffer | bytes, *, fua: bool = False
    ) -> None:
        """Write ``data`` from ``offset`` on; as ``Disk.writev``."""
        await self.writev(offset, [data], fua=fua)

    async def trim(self, offset: int, length: int) -> None:
        """Say that whole sectors are not wanted any more; as ``Disk.trim``."""
        start = self.disk.start_trim
        await self._pump.run(lambda done: start(offset, length, done))

    async def flush(self) -> None:
        """Make all writes that have returned durable; as ``Disk.flush``."""
        await self._pump.run(self.disk.start_flush)
