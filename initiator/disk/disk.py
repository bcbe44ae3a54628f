"""A blocking interface to an AoE device, at byte granularity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from aoe.address import Address
from aoe.ata import SECTOR
from aoe.errors import AccessError, AoEError, UsageError
from aoe.identify import discard_zeroes_data
from initiator.disk.read_modify_write import ReadModifyWriteView
from initiator.driver.aoedev import State
from initiator.driver.bio import Bio, Op, bio_for
from initiator.io.host import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aoe.buffers import WriteBuffer
    from aoe.identify import Identity
    from initiator.disk.read_modify_write import Done
    from initiator.driver.options import Options


class Disk:
    """A disk: one AoE device with blocking operations; offsets and lengths in bytes.

    >>> with Disk.open("e0.0", "eth0") as disk:
    ...     disk.write(1000, b"any byte, any length")
    ...     disk.writev(2048, [b"two ", b"buffers"])
    ...     disk.flush()
    ...     disk.read(1000, 8), disk.read(2048, 10), len(disk) == disk.size
    (b'any byte', b'two buffer', True)

    When a write returns, the target has answered it; when ``flush`` returns, the target
    has confirmed that it is on stable storage. Writes that do not begin and end at
    sector boundaries (512 bytes) are read-modify-write under sector locks, atomic with
    regard to other operations of the same ``Disk``, but not to those of other hosts or
    other ``Disk`` objects.

    Args:
        host: runs the driver; several disks may share it.
        address: the device.
        timeout: seconds to wait until the device is up.
        read_only: reject writes, even if the target accepts them.

    Raises:
        NotFoundError: the device does not respond.
        DeviceError: it rejects IDENTIFY.
    """

    def __init__(
        self,
        host: Host,
        address: Address,
        timeout: float = 3.0,
        *,
        read_only: bool = False,
    ) -> None:
        self.host = host
        self.address = address
        self._is_read_only = read_only
        self._device = host.find(address, timeout)
        self._owns_host = False
        self._callbacks: list[Callable[[], None]] = []
        self._view = ReadModifyWriteView(self.submit_bio)
        host.driver.open(self._device)

    @classmethod
    def open(
        cls,
        address: Address | str,
        *interfaces: str,
        timeout: float = 3.0,
        options: Options | None = None,
        read_only: bool = False,
    ) -> Self:
        """Open a disk on these interfaces, with a new host.

        Raises:
            AoEError: as the class, and as ``aoe.net.link.open_link``.
        """
        if isinstance(address, str):
            address = Address.parse(address)
        host = Host.on(*interfaces, options=options)
        try:
            disk = cls(host, address, timeout, read_only=read_only)
        except BaseException:
            host.close()
            raise
        disk._owns_host = True
        return disk

    @property
    def size(self) -> int:
        """Size in bytes, as last reported by the target; see ``on_resize``."""
        return self._device.ssize * SECTOR

    def __len__(self) -> int:
        return self.size

    @property
    def identity(self) -> Identity:
        """The disk's IDENTIFY data.

        Raises:
            AoEError: the device has not been identified yet.
        """
        identity = self._device.identity
        if identity is None:
            raise AoEError(str(self.address), "not identified")
        return identity

    @property
    def read_only(self) -> bool:
        """True if it was opened read-only, or the target rejected the last write.

        AoE has no other indication (P40): a disk that has not been written to may be
        read-only although this is False.
        """
        return self._is_read_only or self._device.read_only is True

    @property
    def can_trim(self) -> bool:
        """Whether the disk supports TRIM."""
        return self._device.trim_blocks > 0

    @property
    def discard_zeroes_data(self) -> bool:
        """Whether trimmed sectors always read as zeroes."""
        return self.can_trim and discard_zeroes_data(self._device.ident)

    @property
    def frame_size(self) -> int:
        """Data bytes per frame that all paths can carry."""
        return self._device.maxbcnt

    @property
    def retransmits(self) -> int:
        """Number of frames retransmitted since the device was found."""
        return self._device.retransmits

    def on_resize(self, callback: Callable[[int], None]) -> None:
        """Call ``callback(size)`` from ``Host.run_once`` whenever the size changes.

        The target has to announce the change. Operations beyond a new end fail.
        """

        def notify() -> None:
            callback(self.size)

        self._callbacks.append(notify)
        self._device.on_resize.append(notify)

    # --- asynchronous operations on whole sectors -----------------------------------

    def submit(
        self,
        op: Op,
        offset: int,
        buffer: WriteBuffer | bytes,
        end_io: Callable[[Bio], None],
        *,
        fua: bool = False,
    ) -> None:
        """Start an operation; ``end_io`` is called with its bio on completion.

        Frames are sent and received, and ``end_io`` is called, by ``Host.run_once``.
        The buffer must not be changed until then.

        Args:
            op: the operation; not DISCARD, which has no buffer.
            offset: in bytes.
            buffer: the data to write, or the buffer to read into.
            end_io: called once; ``bio.error`` is the error or None.
            fua: the data of a write must be on stable storage on completion.

        Raises:
            UsageError: not whole sectors, or beyond the end of the disk.
        """
        bio = bio_for(op, offset // SECTOR, buffer, end_io, fua=fua)
        self._check(offset, bio.size)
        self.submit_bio(bio)

    def _check(self, offset: int, length: int) -> None:
        if offset % SECTOR or length % SECTOR:
            raise UsageError(
                str(self.address),
                f"{length} bytes at {offset} are not whole sectors of {SECTOR} bytes",
            )
        self._check_end(offset, length)

    def _check_end(self, offset: int, length: int) -> None:
        if self._device.state is not State.UP:
            raise self._device.down_error
        if offset < 0 or length < 0 or offset + length > self.size:
            raise UsageError(
                str(self.address),
                f"{length} bytes at {offset} reach beyond the disk's {self.size} bytes",
            )

    def submit_bio(self, bio: Bio) -> None:
        """Start a bio, new or reused after its end.

        An invalid bio ends with an error before this returns.
        """
        if self._is_read_only and bio.op in (Op.WRITE, Op.DISCARD):
            bio.error = AccessError(str(self.address), "opened read-only")
            bio.end_io(bio)
        else:
            self.host.submit(self._device, bio)

    # --- asynchronous operations at any byte ------------------------------------------

    def start_read(
        self, offset: int, buffers: Sequence[WriteBuffer], done: Done
    ) -> None:
        """Start ``readv``; ``done`` is called with the error or None.

        Raises:
            UsageError: beyond the end of the disk.
        """
        self._check_end(offset, sum(memoryview(each).nbytes for each in buffers))
        self._view.readv(offset, buffers, done)

    def start_write(
        self,
        offset: int,
        pieces: Sequence[WriteBuffer | bytes],
        done: Done,
        *,
        fua: bool = False,
    ) -> None:
        """Start ``writev``, as ``start_read``."""
        self._check_end(offset, sum(memoryview(each).nbytes for each in pieces))
        self._view.writev(offset, pieces, done, fua=fua)

    def start_trim(self, offset: int, length: int, done: Done) -> None:
        """Start ``trim``, as ``start_read``."""
        self._check(offset, length)
        self._view.trim(offset, length, done)

    def start_flush(self, done: Done) -> None:
        """Start ``flush``, as ``start_read``."""
        self._view.flush(done)

    # --- blocking operations ----------------------------------------------------------

    def _run(self, start: Callable[[Done], None]) -> None:
        errors: list[AoEError | None] = []
        start(errors.append)
        self.host.run_until(lambda: bool(errors))
        if errors[0] is not None:
            raise errors[0]

    def readv(self, offset: int, buffers: Sequence[WriteBuffer]) -> None:
        """Fill ``buffers`` in order from ``offset``.

        Raises:
            UsageError: beyond the end of the disk.
            DeviceError: the target reported an error.
            BusyError: the disk is reserved for another host.
            NotFoundError: no response for ``Options.deadsecs``.
        """
        self._run(lambda done: self.start_read(offset, buffers, done))

    def read_into(self, offset: int, buffer: WriteBuffer) -> None:
        """Fill ``buffer`` from ``offset``; raises as ``readv``."""
        self.readv(offset, [buffer])

    def read(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes from ``offset``; raises as ``readv``."""
        buffer = bytearray(length)
        self.readv(offset, [buffer])
        return bytes(buffer)

    def writev(
        self,
        offset: int,
        pieces: Sequence[WriteBuffer | bytes],
        *,
        fua: bool = False,
    ) -> None:
        """Write ``pieces`` in order at ``offset``.

        Args:
            offset: in bytes.
            pieces: the data.
            fua: return when the data is on stable storage.

        Raises:
            AccessError: the disk is read-only.
            AoEError: as ``readv``; with ``fua`` as ``flush``, too.
        """
        self._run(lambda done: self.start_write(offset, pieces, done, fua=fua))

    def write(
        self, offset: int, data: WriteBuffer | bytes, *, fua: bool = False
    ) -> None:
        """Write ``data`` at ``offset``; raises as ``writev``."""
        self.writev(offset, [data], fua=fua)

    def trim(self, offset: int, length: int) -> None:
        """Discard whole sectors (TRIM).

        What they read as afterwards depends on the disk, see ``discard_zeroes_data``.

        Raises:
            UnsupportedError: the disk does not support TRIM.
            AoEError: as ``writev``, and if it is not whole sectors.
        """
        self._run(lambda done: self.start_trim(offset, length, done))

    def flush(self) -> None:
        """Make all writes that have returned durable (ATA FLUSH CACHE).

        Raises:
            UnsupportedError: the target does not support the command.
            DeviceError: the target reported an error.
            NotFoundError: no response for ``Options.deadsecs``.
        """
        self._run(self.start_flush)

    def close(self) -> None:
        """Close the device, and the host if ``open`` created it."""
        for notify in self._callbacks:
            self._device.on_resize.remove(notify)
        self._callbacks.clear()
        self.host.driver.close(self._device)
        if self._owns_host:
            self.host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
