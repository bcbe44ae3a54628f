"""Links on real interfaces: AoE frames through AF_PACKET sockets.

``RingLink`` shares two packet rings with the kernel: it sends a batch of frames in one
system call and copies nothing in user space. ``PlainLink`` makes a system call per
frame; it is the fallback where rings cannot be allocated.

See packet(7).
"""

from __future__ import annotations

import contextlib
import errno
import math
import select
import socket
import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Final, Protocol

from aoe.errors import AccessError, NotFoundError, from_os_error
from aoe.header import ETHERNET_LENGTH, FRAME_MINIMUM
from aoe.net.base import Link, LinkStatistics
from aoe.net.netdevice import (
    IFF_UP,
    SIOCGIFFLAGS,
    LinkInfo,
    current_mtu,
    get_ifreq,
    get_link_info,
)
from aoe.net.packet_socket import PacketSocket, SocketOptions
from aoe.net.rings import RingGeometry, Rings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Link",
    "LinkStatistics",
    "PlainLink",
    "RingLink",
    "hold_name",
    "open_link",
]

_QUEUE_FULL: Final = (errno.ENOBUFS, errno.EAGAIN)
_DOWN_INTERVAL: Final = 0.2
"""Seconds between checks of an interface that is down; its removal wakes no poll(2)."""
_EMPTY_CHECKS: Final = 64
"""Reads from an empty receive ring between two checks of the interface."""
_SEND_TRIES: Final = 20
_SEND_PAUSE: Final = 0.000_5
"""Seconds between attempts to send while the interface's queue is full."""


def open_link(
    name: str,
    *,
    frames: int = 256,
    rings: bool | None = None,
    responses: bool | None = None,
    qdisc: bool = True,
    promiscuous: bool = False,
) -> Link:
    """Open an interface for AoE frames.

    The link does not receive its own frames, nor frames for other hosts (which a
    promiscuous interface sees), nor frames of VLANs that have no interface here (P24).

    Args:
        name: the interface, by its name or an alternative name.
        frames: number of receive buffers. Rings round it up to complete blocks, to at
            least 32, and limit it to 16 MiB.
        rings: True requires packet rings, False does not use them, None falls back to
            a system call for each frame.
        responses: True receives only frames with the R flag, False only those
            without (P7), None both.
        qdisc: send through the interface's queueing discipline, where tc works and
            tcpdump sees outgoing frames; False bypasses it.
        promiscuous: enable promiscuous mode, and receive frames for other hosts and of
            VLANs without an interface too.

    Raises:
        NotFoundError: no such interface.
        AccessError: raw sockets need CAP_NET_RAW.
        UsageError: not an Ethernet interface.
        AoEError: the interface is down, or rings are required and not available.
    """
    info = get_link_info(name)
    options = SocketOptions(responses, qdisc, promiscuous)
    if rings is not False:
        try:
            return RingLink(info, frames, options)
        except OSError as error:
            if rings:
                fix = "Try it without packet rings"
                raise from_os_error(name, error, fix) from error
    try:
        return PlainLink(info, frames, options)
    except OSError as error:
        raise from_os_error(name, error) from error


def hold_name(name: str) -> int | None:
    """Acquire a name in the caller's network namespace (an abstract socket address).

    Returns:
        A file descriptor that holds the name until it is closed or the process exits.
        None if another process holds the name.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as holder:
        try:
            holder.bind(f"\0{name}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return None
        return holder.detach()


class PacketLink(Link):
    """Base class of both links: the packet socket and the state of the interface.

    Args:
        info: the interface.
        options: options of the packet socket.

    Raises:
        AccessError: raw sockets need CAP_NET_RAW.
        OSError: the kernel refused the socket.
    """

    def __init__(self, info: LinkInfo, options: SocketOptions) -> None:
        self.name, self.index, self.mac, self.mtu = info
        self.up = True
        self._is_gone = False
        self._received = self._dropped = 0
        self._capacity = max(ETHERNET_LENGTH + self.mtu, FRAME_MINIMUM)
        """Bytes of the longest frame."""
        try:
            self._socket = PacketSocket()
        except PermissionError as error:
            raise AccessError(
                self.name,
                "raw sockets need CAP_NET_RAW",
                "Run as root, grant it by systemd (AmbientCapabilities=CAP_NET_RAW), "
                "or try it in a user namespace: unshare -Urn",
            ) from error
        with _closed_on_error(self._socket):
            self._socket.configure(self.index, options)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def fileno(self) -> int:
        """Return the file descriptor of the socket."""
        return self._socket.fileno()

    def wait(self, timeout: float | None) -> bool:
        """Wait for a frame; see ``Link.wait``."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self._has_frame():
            left = max(0.0, end - time.monotonic())
            if not self.up:
                left = min(left, _DOWN_INTERVAL)
            self._poll.poll(None if left == math.inf else math.ceil(left * 1000))
            if self._has_frame():
                return True
            self._check_interface()
            if time.monotonic() >= end:
                return False
        return True

    def statistics(self) -> LinkStatistics:
        """Return the counters, including those of the kernel."""
        self._read_counters()
        kernel = LinkStatistics(received=self._received, dropped=self._dropped)
        return kernel + self._own_statistics()

    def close(self) -> None:
        """Close the socket."""
        self._read_counters()
        self._socket.close()

    @abstractmethod
    def _has_frame(self) -> bool:
        """Release the last received frame; return True if there is another."""

    @abstractmethod
    def _own_statistics(self) -> LinkStatistics:
        """Return the counters that the kernel lacks: sent, truncated and unsent."""

    def _read_counters(self) -> None:
        if self._socket.fileno() >= 0:
            received, dropped = self._socket.take_counters()
            self._received += received
            self._dropped += dropped

    def _check_interface(self) -> None:
        """Update ``up`` after a socket error, or while the interface is down.

        Raises:
            NotFoundError: the interface was removed.
        """
        if not self._socket.take_error() and self.up and not self._is_gone:
            return
        flags = None
        while flags is None:
            try:
                # The interface may have been renamed since it was opened.
                name = self._socket.interface_name(self.index)
            except OSError as error:
                self._is_gone = True
                raise NotFoundError(self.name, "interface is gone") from error
            # If it was renamed after that call too, look up the name again.
            with contextlib.suppress(OSError):
                flags = get_ifreq(self._socket, name, SIOCGIFFLAGS, "16xH22x")
        self.up = bool(flags & IFF_UP)

    def _bind(self) -> None:
        try:
            self._socket.bind_interface(self.index)
        except OSError as error:
            raise from_os_error(self.name, error) from error
        # The interface may have gone down since get_link_info(): check SO_ERROR.
        self._check_interface()


class RingLink(PacketLink):
    """A link with packet rings. Opened by ``open_link``.

    Args:
        info: the interface.
        frames: number of receive buffers.
        options: options of the packet socket.

    Raises:
        AccessError: raw sockets need CAP_NET_RAW.
        AoEError: the interface is down.
        OSError: the kernel refused the rings.
    """

    def __init__(self, info: LinkInfo, frames: int, options: SocketOptions) -> None:
        super().__init__(info, options)
        self._empty_count = 0
        geometry = RingGeometry.for_frames(ETHERNET_LENGTH + self.mtu, frames)
        with _closed_on_error(self._socket):
            self._mapping = self._socket.map_rings(geometry)
            self._rings = Rings(memoryview(self._mapping), geometry, self._capacity)
        self._rx, self._tx = self._rings.rx, self._rings.tx
        with _closed_on_error(self):
            self._socket.enlarge_buffers(frames, self._capacity)
            self._bind()

    @property
    def rings(self) -> Rings:
        """Return the rings."""
        return self._rings

    def receive(self) -> memoryview | None:
        """Return the next frame; see ``Link.receive``."""
        frame = self._rx.consume()
        if frame is None:
            # The removal of an interface that is down may not wake poll(2).
            self._empty_count += 1
            if not self.up or not self._empty_count % _EMPTY_CHECKS:
                self._check_interface()
        return frame

    def reserve(self) -> memoryview | None:
        """Return memory for the next frame; see ``Link.reserve``."""
        slot = self._tx.reserve()
        if slot is None:
            self.flush()
            slot = self._tx.reserve()
        return slot

    def commit(self, length: int) -> None:
        """Queue the reserved frame; see ``Link.commit``."""
        self._tx.commit(length)

    def flush(self) -> None:
        """Send all committed frames in one system call; see ``Link.flush``."""
        tx = self._tx
        if not tx.pending:
            return
        try:
            taken = self._socket.send(b"", socket.MSG_DONTWAIT)
        except OSError as error:
            self._retry_flush(error)
            return
        if taken == tx.pending_bytes:
            tx.complete()
        else:
            self._retry_flush(None)

    def _retry_flush(self, error: OSError | None) -> None:
        # The kernel has not taken all frames: the interface is down, its queue is full,
        # or frames were discarded as too long because its MTU was lowered.
        tx = self._tx
        before = tx.pending
        for _ in range(_SEND_TRIES):
            tx.reclaim(ETHERNET_LENGTH + self._current_mtu())
            if error is not None and error.errno not in _QUEUE_FULL:
                tx.withdraw()
                self._check_interface()
                return
            if not tx.pending:
                return
            time.sleep(_SEND_PAUSE)
            error = None
            try:
                self._socket.send(b"", socket.MSG_DONTWAIT)
            except OSError as another:
                error = another
        if tx.pending == before:
            # The kernel refused even the first frame, for example because the peer of a
            # veth is down or has a smaller MTU. Do not hold up the frames after it.
            tx.withdraw()

    def _current_mtu(self) -> int:
        with contextlib.suppress(OSError):
            name = self._socket.interface_name(self.index)
            return current_mtu(self._socket, name, self.mtu)
        return self.mtu

    def _has_frame(self) -> bool:
        self.flush()
        # packet_poll() reports a slot that is still held as readable.
        self._rx.release()
        return self._rx.has_frame()

    def _own_statistics(self) -> LinkStatistics:
        return LinkStatistics(
            sent=self._tx.sent, truncated=self._rx.truncated, unsent=self._tx.unsent
        )

    def close(self) -> None:
        """Close the socket and unmap the rings."""
        super().close()
        self._rings.close()
        # A frame that the caller still holds keeps the memory mapped.
        with contextlib.suppress(BufferError):
            self._mapping.close()


class PlainLink(PacketLink):
    """A link that makes a system call per frame. Opened by ``open_link``.

    Args:
        info: the interface.
        frames: number of receive buffers.
        options: options of the packet socket.

    Raises:
        AccessError: raw sockets need CAP_NET_RAW.
        AoEError: the interface is down.
    """

    def __init__(self, info: LinkInfo, frames: int, options: SocketOptions) -> None:
        super().__init__(info, options)
        self._rx_buffer = memoryview(bytearray(self._capacity))
        self._tx_buffer = memoryview(bytearray(self._capacity))
        self._is_reserved = False
        self._next_length = -1
        """Length of the buffered frame that ``receive`` has not returned; or -1."""
        self._truncated = self._sent = self._unsent = 0
        with _closed_on_error(self):
            self._socket.enlarge_buffers(frames, self._capacity)
            self._bind()

    def receive(self) -> memoryview | None:
        """Return the next frame; see ``Link.receive``."""
        length = self._next_length if self._next_length >= 0 else self._read()
        self._next_length = -1
        return self._rx_buffer[:length] if length >= 0 else None

    def _read(self) -> int:
        # Read a frame into the buffer; return its length, or -1 if there is none.
        while True:
            try:
                length = self._socket.recv_into(self._rx_buffer, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                if not self.up:
                    self._check_interface()
                return -1
            except OSError:
                # recv(2) has cleared SO_ERROR; force the check.
                self.up = False
                self._check_interface()
                return -1
            if length <= self._capacity:
                return length
            self._truncated += 1

    def _has_frame(self) -> bool:
        if self._next_length < 0:
            self._next_length = self._read()
        return self._next_length >= 0

    def reserve(self) -> memoryview | None:
        """Return the send buffer; see ``Link.reserve``."""
        self._is_reserved = True
        return self._tx_buffer

    def commit(self, length: int) -> None:
        """Send a frame; see ``Link.commit``."""
        if not self._is_reserved or not ETHERNET_LENGTH <= length <= self._capacity:
            raise ValueError(f"no frame of {length} bytes was reserved")
        self._is_reserved = False
        for _ in range(_SEND_TRIES):
            try:
                self._socket.send(self._tx_buffer[:length])
            except OSError as error:
                if error.errno in _QUEUE_FULL:
                    time.sleep(_SEND_PAUSE)
                    continue
                self._unsent += 1
                if error.errno != errno.EMSGSIZE:
                    self._check_interface()
            else:
                self._sent += 1
            return
        self._unsent += 1

    def flush(self) -> None:
        """Do nothing; ``commit`` sends each frame."""

    def _own_statistics(self) -> LinkStatistics:
        return LinkStatistics(
            sent=self._sent, truncated=self._truncated, unsent=self._unsent
        )


class _Closeable(Protocol):
    def close(self) -> None: ...


@contextlib.contextmanager
def _closed_on_error(opened: _Closeable) -> Iterator[None]:
    try:
        yield
    except BaseException:
        opened.close()
        raise
