"""An AoE device as programs like it: a disk to read and write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from aoe.address import Address
from aoe.ata import SECTOR
from aoe.errors import AoEError, UsageError
from initiator.bio import Bio, Op, bio_for
from initiator.host import Host

if TYPE_CHECKING:
    from collections.abc import Callable

    from aoe.buffers import WriteBuffer
    from aoe.identify import Identity
    from initiator.options import Options


class Disk:
    """A blocking view of one device; offsets and lengths in bytes.

    They are multiples of 512. A write that returns was answered by the target; after
    ``flush`` returns it is on stable storage, as far as the target keeps its word.

        with Disk.open("e0.0", "eth0") as disk:
            disk.write(0, b"hello".ljust(512))
            disk.flush()
            print(disk.read(0, 512))

    Args:
        host: runs the driver; several disks may share it.
        address: a device to find on it.
        timeout: seconds to look for it.

    Raises:
        NotFoundError: no such device answers.
        DeviceError: it refuses IDENTIFY.
    """

    def __init__(self, host: Host, address: Address, timeout: float = 3.0) -> None:
        self.host = host
        self.address = address
        self._device = host.find(address, timeout)
        self._owns_host = False
        host.driver.open(self._device)

    @classmethod
    def open(
        cls,
        address: Address | str,
        *interfaces: str,
        timeout: float = 3.0,
        options: Options | None = None,
    ) -> Self:
        """Open a disk with a host of its own on these interfaces.

        Raises:
            AoEError: as the class, and as ``aoe.link.open_link``.
        """
        if isinstance(address, str):
            address = Address.parse(address)
        host = Host.on(*interfaces, options=options)
        try:
            disk = cls(host, address, timeout)
        except BaseException:
            host.close()
            raise
        disk._owns_host = True
        return disk

    @property
    def size(self) -> int:
        """Bytes."""
        return self._device.ssize * SECTOR

    @property
    def identity(self) -> Identity:
        """What the disk says of itself."""
        identity = self._device.identity
        if identity is None:
            raise AoEError(str(self.address), "not identified")
        return identity

    @property
    def frame_size(self) -> int:
        """Bytes of data that one frame carries on all paths."""
        return self._device.maxbcnt

    @property
    def retransmits(self) -> int:
        """Frames that were sent again since the device was found."""
        return self._device.retransmits

    def submit(
        self,
        op: Op,
        offset: int,
        buffer: WriteBuffer | bytes,
        end_io: Callable[[Bio], None],
    ) -> None:
        """Start an operation; ``end_io`` is called with its bio when it is done.

        Frames move, and ``end_io`` runs, while the host takes turns. The buffer must
        stay as it is until then.

        Raises:
            UsageError: not whole sectors, or not on the disk.
        """
        length = len(buffer)
        if offset % SECTOR or length % SECTOR:
            raise UsageError(
                str(self.address),
                f"{length} bytes at {offset} are not whole sectors of {SECTOR} bytes",
            )
        if offset < 0 or offset + length > self.size:
            raise UsageError(
                str(self.address),
                f"{length} bytes at {offset} reach beyond the disk's {self.size} bytes",
            )
        bio = bio_for(op, offset // SECTOR, buffer, end_io)
        self.host.driver.submit(self._device, bio, self.host.now())

    def _run(self, op: Op, offset: int, buffer: WriteBuffer | bytes) -> None:
        ended: list[Bio] = []
        self.submit(op, offset, buffer, ended.append)
        self.host.run_until(lambda: bool(ended))
        if ended[0].error is not None:
            raise ended[0].error

    def read_into(self, offset: int, buffer: WriteBuffer) -> None:
        """Fill ``buffer`` from ``offset`` on.

        Raises:
            UsageError: not whole sectors, or not on the disk.
            DeviceError: the target failed it.
            NotFoundError: no answer for ``Options.deadsecs``.
        """
        self._run(Op.READ, offset, buffer)

    def read(self, offset: int, length: int) -> bytes:
        """Read ``length`` bytes from ``offset`` on; raises as ``read_into``."""
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def write(self, offset: int, data: WriteBuffer | bytes) -> None:
        """Write ``data`` from ``offset`` on; raises as ``read_into``."""
        self._run(Op.WRITE, offset, data)

    def flush(self) -> None:
        """Make all writes that have returned durable, by ATA FLUSH CACHE.

        Raises:
            UnsupportedError: the target does not know the command.
            DeviceError: the target failed it.
            NotFoundError: no answer for ``Options.deadsecs``.
        """
        self._run(Op.FLUSH, 0, b"")

    def close(self) -> None:
        """Let the device go, and the host if the disk opened it."""
        self.host.driver.close(self._device)
        if self._owns_host:
            self.host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
