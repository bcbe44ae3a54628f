"""An AoE device as programs like it: a disk to read and write at any byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from aoe.address import Address
from aoe.ata import SECTOR
from aoe.errors import AccessError, AoEError, UsageError
from aoe.identify import discard_zeroes_data
from initiator.disk.read_modify_write import ReadModifyWriteView
from initiator.driver.bio import Bio, Op, bio_for
from initiator.io.host import Host

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aoe.buffers import WriteBuffer
    from aoe.identify import Identity
    from initiator.disk.read_modify_write import Done
    from initiator.driver.options import Options


class Disk:
    """A blocking view of one device; offsets and lengths in bytes.

    >>> with Disk.open("e0.0", "eth0") as disk:
    ...     disk.write(1000, b"any byte, any length")
    ...     disk.writev(2048, [b"one ", b"behind the other"])
    ...     disk.flush()
    ...     disk.read(1000, 8), disk.read(2048, 10), len(disk) == disk.size
    (b'any byte', b'one behind', True)

    A write that returns was answered by the target; after ``flush`` returns it is on
    stable storage, as far as the target keeps its word. Whole sectors of 512 bytes are
    written as they are; of others the rest is read first, and of two operations of one
    ``Disk`` none undoes what the other did. Other hosts, and other ``Disk`` objects, do
    not know of it.

    Args:
        host: runs the driver; several disks may share it.
        address: a device to find on it.
        timeout: seconds to look for it.
        read_only: refuse to write, whatever the target allows.

    Raises:
        NotFoundError: no such device answers.
        DeviceError: it refuses IDENTIFY.
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
        self._is_protected = read_only
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
        """Open a disk with a host of its own on these interfaces.

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
        """Bytes, as the target last said; it may change (``on_resize``)."""
        return self._device.ssize * SECTOR

    def __len__(self) -> int:
        return self.size

    @property
    def identity(self) -> Identity:
        """What the disk says of itself.

        Raises:
            AoEError: it has not said so yet.
        """
        identity = self._device.identity
        if identity is None:
            raise AoEError(str(self.address), "not identified")
        return identity

    @property
    def read_only(self) -> bool:
        """It was opened so, or the target refused the last write.

        AoE tells in no other way (P40): a disk that nobody has written to yet may be
        read-only all the same.
        """
        return self._is_protected or self._device.read_only is True

    @property
    def can_trim(self) -> bool:
        """The disk has TRIM."""
        return self._device.trim_blocks > 0

    @property
    def discard_zeroes_data(self) -> bool:
        """What was trimmed reads as zeroes, every time."""
        return self.can_trim and discard_zeroes_data(self._device.ident)

    @property
    def frame_size(self) -> int:
        """Bytes of data that one frame carries on all paths."""
        return self._device.maxbcnt

    @property
    def retransmits(self) -> int:
        """Frames that were sent again since the device was found."""
        return self._device.retransmits

    def on_resize(self, callback: Callable[[int], None]) -> None:
        """Have ``callback(size)`` called in a turn of the host when the size changes.

        The target has to announce it; what lies beyond a new end fails from then on.
        """

        def tell() -> None:
            callback(self.size)

        self._callbacks.append(tell)
        self._device.on_resize.append(tell)

    # --- operations of whole sectors that are waited for elsewhere -------------------

    def submit(
        self,
        op: Op,
        offset: int,
        buffer: WriteBuffer | bytes,
        end_io: Callable[[Bio], None],
        *,
        fua: bool = False,
    ) -> None:
        """Start an operation; ``end_io`` is called with its bio when it is done.

        Frames move, and ``end_io`` runs, while the host takes turns. The buffer must
        stay as it is until then.

        Args:
            op: what to do, but not a DISCARD, which has no buffer.
            offset: where, in bytes.
            buffer: what to write, or where to read to.
            end_io: called once; ``bio.error`` says how it went.
            fua: what a write wrote is on stable storage when it ends.

        Raises:
            UsageError: not whole sectors, or not on the disk.
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
        if offset < 0 or length < 0 or offset + length > self.size:
            raise UsageError(
                str(self.address),
                f"{length} bytes at {offset} reach beyond the disk's {self.size} bytes",
            )

    def submit_bio(self, bio: Bio) -> None:
        """Start what a bio says: a new one, or one that has ended, used again.

        What cannot be done ends it with an error, before this returns.
        """
        if self._is_protected and bio.op in (Op.WRITE, Op.DISCARD):
            bio.error = AccessError(str(self.address), "opened read-only")
            bio.end_io(bio)
        else:
            self.host.submit(self._device, bio)

    # --- operations at any byte -------------------------------------------------------

    def start_read(
        self, offset: int, buffers: Sequence[WriteBuffer], done: Done
    ) -> None:
        """Start what ``readv`` does; ``done`` is told what went wrong, or None.

        Raises:
            UsageError: not on the disk.
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
        """Start what ``writev`` does; as ``start_read``."""
        self._check_end(offset, sum(memoryview(each).nbytes for each in pieces))
        self._view.writev(offset, pieces, done, fua=fua)

    def start_trim(self, offset: int, length: int, done: Done) -> None:
        """Start what ``trim`` does; as ``start_read``."""
        self._check(offset, length)
        self._view.trim(offset, length, done)

    def start_flush(self, done: Done) -> None:
        """Start what ``flush`` does; as ``start_read``."""
        self._view.flush(done)

    # --- the same, returning when they are done ---------------------------------------

    def _run(self, start: Callable[[Done], None]) -> None:
        errors: list[AoEError | None] = []
        start(errors.append)
        self.host.run_until(lambda: bool(errors))
        if errors[0] is not None:
            raise errors[0]

    def readv(self, offset: int, buffers: Sequence[WriteBuffer]) -> None:
        """Fill ``buffers``, one behind the other, from ``offset`` on.

        Raises:
            UsageError: not on the disk.
            DeviceError: the target failed it.
            BusyError: another host has reserved the disk.
            NotFoundError: no answer for ``Options.deadsecs``.
        """
        self._run(lambda done: self.start_read(offset, buffers, done))

    def read_into(self, offset: int, buffer: WriteBuffer) -> None:
        """Fill ``buffer`` from ``offset`` on; raises as ``readv``."""
        self.readv(offset, [buffer])

    def read(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes from ``offset`` on; raises as ``readv``."""
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
        """Write ``pieces``, one behind the other, from ``offset`` on.

        Args:
            offset: where, in bytes.
            pieces: what.
            fua: return when it is on stable storage.

        Raises:
            AccessError: the disk is read-only.
            AoEError: as ``readv``; with ``fua`` as ``flush``, too.
        """
        self._run(lambda done: self.start_write(offset, pieces, done, fua=fua))

    def write(
        self, offset: int, data: WriteBuffer | bytes, *, fua: bool = False
    ) -> None:
        """Write ``data`` from ``offset`` on; as ``writev``."""
        self.writev(offset, [data], fua=fua)

    def trim(self, offset: int, length: int) -> None:
        """Say that whole sectors are not wanted any more.

        What they read as afterwards is the disk's affair.

        Raises:
            UnsupportedError: it has no TRIM.
            AoEError: as ``write``, and for what is not whole sectors.
        """
        self._run(lambda done: self.start_trim(offset, length, done))

    def flush(self) -> None:
        """Make all writes that have returned durable, by ATA FLUSH CACHE.

        Raises:
            UnsupportedError: the target does not know the command.
            DeviceError: the target failed it.
            NotFoundError: no answer for ``Options.deadsecs``.
        """
        self._run(self.start_flush)

    def close(self) -> None:
        """Let the device go, and the host if the disk opened it."""
        for tell in self._callbacks:
            self._device.on_resize.remove(tell)
        self._callbacks.clear()
        self.host.driver.close(self._device)
        if self._owns_host:
            self.host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
