"""Raw Ethernet: AoE frames on and off one interface, through AF_PACKET sockets.

Frames travel through two rings of slots that the kernel and we have in common, so
that a batch of frames costs one system call and no copy of ours (``RingLink``).
Where rings are not to be had, ``PlainLink`` does the same with a call for each frame.

See packet(7).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import mmap
import os
import select
import socket
import struct
import time
from abc import abstractmethod
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.errors import AccessError, NotFoundError, from_os_error
from aoe.header import ETH_P_AOE, ETHERNET_LENGTH, FRAME_MINIMUM
from aoe.net.base import Link, LinkStatistics
from aoe.net.bpf import INSTRUCTION_LENGTH, build_filter
from aoe.net.netdevice import IFF_UP, SIOCGIFFLAGS, LinkFacts, ask, look_up, mtu_now
from aoe.net.rings import RESERVE, Rings, RingShape

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

# linux/if_packet.h
_SOL_PACKET: Final = 263
_PACKET_ADD_MEMBERSHIP: Final = 1
_PACKET_MR_PROMISC: Final = 1
_PACKET_RX_RING: Final = 5
_PACKET_STATISTICS: Final = 6
_PACKET_VERSION: Final = 10
_PACKET_RESERVE: Final = 12
_PACKET_TX_RING: Final = 13
_PACKET_LOSS: Final = 14
_PACKET_TX_HAS_OFF: Final = 19
_PACKET_QDISC_BYPASS: Final = 20
_PACKET_IGNORE_OUTGOING: Final = 23
_TPACKET_V2: Final = 1

# linux/sockios.h, net/if.h, net/if_arp.h, asm/socket.h
_SIOCGIFNAME: Final = 0x8910
_SO_ATTACH_FILTER: Final = 26
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33

_QUEUE_FULL: Final = (errno.ENOBUFS, errno.EAGAIN)
_DOWN_INTERVAL: Final = 0.2
"""Seconds between looks at an interface that is down: its removal wakes nobody."""
_IDLE_LOOKS: Final = 64
_SEND_TRIES: Final = 20
_SEND_PAUSE: Final = 0.000_5
"""Seconds between tries when the interface's queue is full."""


def open_link(
    name: str,
    *,
    frames: int = 256,
    rings: bool | None = None,
    responses: bool | None = None,
    qdisc: bool = True,
    others: bool = False,
) -> Link:
    """Open an interface for AoE frames.

    Frames for other machines, which a promiscuous interface sees, and frames of VLANs
    that have no interface here are not received (P24), nor are our own.

    Args:
        name: the interface.
        frames: receive buffers wanted. Rings round it up to whole blocks, and give
            fewer, but 32, where it would take more than 16 MiB.
        rings: True insists on packet rings, False does without, None tries them.
        responses: True receives only frames with the R flag, False only those
            without (P7), None both.
        qdisc: send through the interface's queueing discipline, where tc works and
            tcpdump sees outgoing frames; False goes past it.
        others: make the interface promiscuous, and receive frames for other machines
            and of such VLANs after all.

    Raises:
        NotFoundError: no such interface.
        AccessError: raw sockets need CAP_NET_RAW.
        UsageError: not an Ethernet interface.
        AoEError: the interface is down, or rings were insisted on and refused.
    """
    facts = look_up(name)
    wishes = _Wishes(responses, qdisc, others)
    if rings is not False:
        try:
            return RingLink(facts, frames, wishes)
        except OSError as error:
            if rings:
                fix = "Try it without packet rings"
                raise from_os_error(name, error, fix) from error
    try:
        return PlainLink(facts, frames, wishes)
    except OSError as error:
        raise from_os_error(name, error) from error


def hold_name(name: str) -> int | None:
    """Hold a name in the caller's network namespace, as only one process can.

    Returns:
        A file descriptor; the name is free again when it is closed, or its process
        ends. None if somebody holds it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as holder:
        try:
            holder.bind(f"\0{name}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return None
        return holder.detach()


class _Wishes(NamedTuple):
    # As open_link has them.
    responses: bool | None
    qdisc: bool
    others: bool


class _PacketLink(Link):
    """What both kinds have in common: the socket, its filter and its troubles."""

    def __init__(self, facts: LinkFacts, wishes: _Wishes) -> None:
        self.name, self.index, self.mac, self.mtu = facts
        self.up = True
        self._gone = False
        self._idle = 0
        self._received = self._dropped = self._truncated = 0
        self._sent = self._unsent = 0
        self._capacity = max(ETHERNET_LENGTH + self.mtu, FRAME_MINIMUM)
        # Without a protocol the socket receives nothing, until bind() names one: by
        # then the filter is there and nothing else can have slipped in.
        try:
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0
            )
        except PermissionError as error:
            raise AccessError(
                self.name,
                "raw sockets need CAP_NET_RAW",
                "Run as root, grant it by systemd (AmbientCapabilities=CAP_NET_RAW), "
                "or try it root-free inside: unshare -Urn",
            ) from error
        with _closed_on_error(self):
            responses, qdisc, others = wishes
            _attach_filter(
                self._socket, build_filter(responses=responses, others=others)
            )
            if others:
                _become_promiscuous(self._socket, self.index)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, int(not qdisc))
            with contextlib.suppress(OSError):
                self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def wait(self, timeout: float | None) -> bool:
        """Wait until a frame is there; see ``Link.wait``."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self._has_frame():
            left = max(0.0, end - time.monotonic())
            if not self.up:
                left = min(left, _DOWN_INTERVAL)
            self._poll.poll(None if left == math.inf else math.ceil(left * 1000))
            if self._has_frame():
                return True
            self._look_at_interface()
            if time.monotonic() >= end:
                return False
        return True

    def statistics(self) -> LinkStatistics:
        """Return the counters, the kernel's included."""
        if self._socket.fileno() >= 0:
            # The kernel starts again from zero at each reading.
            counts = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            packets, drops = struct.unpack("=II", counts)
            self._received += packets - drops
            self._dropped += drops
        return LinkStatistics(
            self._received, self._sent, self._dropped, self._truncated, self._unsent
        )

    def close(self) -> None:
        """Close the socket."""
        self.statistics()
        self._socket.close()

    @abstractmethod
    def _has_frame(self) -> bool:
        """Tell whether a frame waits, and give back the one that was handed out."""

    def _look_at_interface(self) -> None:
        # Reading the error clears it; until then every poll returns at once.
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not error and self.up and not self._gone:
            return
        flags = None
        while flags is None:
            try:
                # It may have another name by now.
                request = struct.pack("=16xi20x", self.index)
                answer = fcntl.ioctl(self._socket, _SIOCGIFNAME, request)
            except OSError as problem:
                self._gone = True
                raise NotFoundError(self.name, "interface is gone") from problem
            name = os.fsdecode(answer[:16].rstrip(b"\0"))
            # And another one since, in which case we look once more.
            with contextlib.suppress(OSError):
                flags = ask(self._socket, name, SIOCGIFFLAGS, "16xH22x")
        self.up = bool(flags & IFF_UP)

    def _bind(self) -> None:
        try:
            self._socket.bind((self.name, ETH_P_AOE))
        except OSError as error:
            raise from_os_error(self.name, error) from error
        # An interface that went down meanwhile has left its error in the socket.
        self._look_at_interface()


class RingLink(Rings, _PacketLink):
    """Frames through packet rings. Opened by ``open_link``."""

    def __init__(self, facts: LinkFacts, frames: int, wishes: _Wishes) -> None:
        super().__init__(facts, wishes)
        with _closed_on_error(self):
            self._map(RingShape.for_frames(ETHERNET_LENGTH + self.mtu, frames))
            _enlarge_buffers(self._socket, frames, self._capacity)
            self._bind()

    @property
    def rings(self) -> Rings:
        """Return the link itself."""
        return self

    def _map(self, shape: RingShape) -> None:
        for option, value in (
            (_PACKET_VERSION, _TPACKET_V2),
            (_PACKET_RESERVE, RESERVE),
            (_PACKET_TX_HAS_OFF, 1),
            # A frame that the kernel refuses is skipped, or the ring would stop at it.
            (_PACKET_LOSS, 1),
            (_PACKET_RX_RING, shape.request()),
            (_PACKET_TX_RING, shape.request()),
        ):
            self._socket.setsockopt(_SOL_PACKET, option, value)
        self._memory = mmap.mmap(self._socket.fileno(), 2 * shape.length)
        whole = memoryview(self._memory)
        self._map_both(whole, shape, self._capacity)

    def _empty(self) -> None:
        self._idle += 1
        if not self.up or not self._idle % _IDLE_LOOKS:
            self._look_at_interface()

    def _has_frame(self) -> bool:
        self.flush()
        return super()._has_frame()

    def flush(self) -> None:
        """Hand all committed frames to the kernel, in one call."""
        if not self._tx_pending:
            return
        try:
            taken = self._socket.send(b"", socket.MSG_DONTWAIT)
        except OSError as error:
            self._insist(error)
            return
        if taken == self._tx_bytes:
            self._sent += self._tx_pending
            self._tx_pending = self._tx_bytes = 0
        else:
            self._insist(None)

    def _insist(self, error: OSError | None) -> None:
        # Some frames were not taken: the interface is down or its queue full; or they
        # were thrown away as too long, since somebody made the MTU smaller.
        before = self._tx_pending
        for _ in range(_SEND_TRIES):
            self._settle(ETHERNET_LENGTH + mtu_now(self._socket, self.name, self.mtu))
            if error is not None and error.errno not in _QUEUE_FULL:
                self._withdraw()
                self._look_at_interface()
                return
            if not self._tx_pending:
                return
            time.sleep(_SEND_PAUSE)
            error = None
            try:
                self._socket.send(b"", socket.MSG_DONTWAIT)
            except OSError as another:
                error = another
        if self._tx_pending == before:
            # Not even the first will go: a veth's other end is down, say, or its MTU
            # too small. Those behind it shall not wait for that.
            self._withdraw()

    def close(self) -> None:
        """Give back the rings and close the socket."""
        super().close()
        if not hasattr(self, "_memory"):
            return
        self._rx_slots.clear()
        self._tx_slots.clear()
        self.arrivals.clear()
        self.departures.clear()
        self._rx_status.release()
        self._tx_status.release()
        self.memory.release()
        # A frame that somebody still looks at keeps the memory, as it must.
        with contextlib.suppress(BufferError):
            self._memory.close()


class PlainLink(_PacketLink):
    """Frames with a system call each. Opened by ``open_link``."""

    def __init__(self, facts: LinkFacts, frames: int, wishes: _Wishes) -> None:
        super().__init__(facts, wishes)
        self._in = memoryview(bytearray(self._capacity))
        self._out = memoryview(bytearray(self._capacity))
        self._reserved = False
        self._waiting = -1
        with _closed_on_error(self):
            _enlarge_buffers(self._socket, frames, self._capacity)
            self._bind()

    def receive(self) -> memoryview | None:
        """Return the next frame; see ``Link.receive``."""
        length = self._waiting if self._waiting >= 0 else self._take()
        self._waiting = -1
        return self._in[:length] if length >= 0 else None

    def _take(self) -> int:
        while True:
            try:
                length = self._socket.recv_into(self._in, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                if not self.up:
                    self._look_at_interface()
                return -1
            except OSError:
                self.up = False
                self._look_at_interface()
                return -1
            if length <= self._capacity:
                return length
            self._truncated += 1

    def _has_frame(self) -> bool:
        if self._waiting < 0:
            self._waiting = self._take()
        return self._waiting >= 0

    def reserve(self) -> memoryview | None:
        """Return the memory that every frame is sent from."""
        self._reserved = True
        return self._out

    def commit(self, length: int) -> None:
        """Send a frame; see ``Link.commit``."""
        if not self._reserved or not ETHERNET_LENGTH <= length <= self._capacity:
            raise ValueError(f"no frame of {length} bytes was reserved")
        self._reserved = False
        for _ in range(_SEND_TRIES):
            try:
                self._socket.send(self._out[:length])
            except OSError as error:
                if error.errno in _QUEUE_FULL:
                    time.sleep(_SEND_PAUSE)
                    continue
                self._unsent += 1
                if error.errno != errno.EMSGSIZE:
                    self._look_at_interface()
            else:
                self._sent += 1
            return
        self._unsent += 1

    def flush(self) -> None:
        """Do nothing: ``commit`` has sent every frame."""


def _attach_filter(packet_socket: socket.socket, program: bytes) -> None:
    code = array("B", program)
    address, _ = code.buffer_info()
    packet_socket.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("HP", len(code) // INSTRUCTION_LENGTH, address),
    )


def _become_promiscuous(packet_socket: socket.socket, index: int) -> None:
    membership = struct.pack("=iHH8x", index, _PACKET_MR_PROMISC, 0)
    packet_socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)


def _enlarge_buffers(packet_socket: socket.socket, frames: int, length: int) -> None:
    # The kernel counts its own overhead for each frame too.
    wanted = min(max(frames * (length + 2048), 1 << 20), 32 << 20)
    for force, option in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        try:
            packet_socket.setsockopt(socket.SOL_SOCKET, force, wanted)
        except PermissionError:
            packet_socket.setsockopt(socket.SOL_SOCKET, option, wanted)


@contextlib.contextmanager
def _closed_on_error(link: Link) -> Iterator[None]:
    try:
        yield
    except BaseException:
        link.close()
        raise
