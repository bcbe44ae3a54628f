"""AF_PACKET sockets: their options, filter, buffers, rings and counters.

See packet(7), linux/if_packet.h and net/packet/af_packet.c.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import struct
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.header import ETH_P_AOE
from aoe.net.bpf import INSTRUCTION_LENGTH, build_filter
from aoe.net.rings import RX_RESERVE

if TYPE_CHECKING:
    from aoe.net.rings import RingGeometry

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

# linux/sockios.h, asm/socket.h
_SIOCGIFNAME: Final = 0x8910
_SO_ATTACH_FILTER: Final = 26
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33

_SOCKADDR_LL: Final = struct.Struct("=HHiHBB8x")
"""struct sockaddr_ll: family, protocol (big-endian), interface index, type of hardware,
type of packet, length of the address."""
_SKB_OVERHEAD: Final = 2048
"""Bytes that the kernel accounts per frame in a socket buffer, besides its data."""
_BUFFER_MINIMUM: Final = 1 << 20
_BUFFER_MAXIMUM: Final = 32 << 20


class SocketOptions(NamedTuple):
    """Options of a packet socket.

    Args:
        responses: True receives only frames with the R flag, False only those without
            (P7), None both.
        qdisc: send through the interface's queueing discipline; False bypasses it.
        promiscuous: enable promiscuous mode, and receive frames for other hosts and of
            VLANs that have no interface.
    """

    responses: bool | None
    qdisc: bool
    promiscuous: bool


class PacketSocket(socket.socket):
    """A raw, non-blocking socket for AoE frames.

    It is created with protocol 0 and receives nothing until ``bind_interface`` sets the
    protocol. The filter is attached before that, so that no other frame is queued.

    Raises:
        PermissionError: CAP_NET_RAW is missing.
    """

    def __init__(self) -> None:
        super().__init__(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)

    def configure(self, index: int, options: SocketOptions) -> None:
        """Set the options, before the socket is bound.

        Args:
            index: the interface.
            options: options of the socket.

        Raises:
            OSError: the kernel refused an option.
        """
        self._attach_filter(
            build_filter(responses=options.responses, promiscuous=options.promiscuous)
        )
        if options.promiscuous:
            membership = struct.pack("=iHH8x", index, _PACKET_MR_PROMISC, 0)
            self.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
        self.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, int(not options.qdisc))
        with contextlib.suppress(OSError):
            # Since Linux 4.20; the filter discards our own frames in any case.
            self.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)

    def _attach_filter(self, program: bytes) -> None:
        # struct sock_fprog: the kernel copies the program from the address.
        code = array("B", program)
        address, _ = code.buffer_info()
        self.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("HP", len(code) // INSTRUCTION_LENGTH, address),
        )

    def enlarge_buffers(self, frames: int, length: int) -> None:
        """Make the socket buffers large enough for ``frames`` of ``length`` bytes.

        From 1 to 32 MiB; without CAP_NET_ADMIN, net.core.rmem_max and wmem_max limit
        them further.
        """
        wanted = frames * (length + _SKB_OVERHEAD)
        wanted = min(max(wanted, _BUFFER_MINIMUM), _BUFFER_MAXIMUM)
        for force, option in (
            (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            try:
                self.setsockopt(socket.SOL_SOCKET, force, wanted)
            except PermissionError:
                self.setsockopt(socket.SOL_SOCKET, option, wanted)

    def map_rings(self, geometry: RingGeometry) -> mmap.mmap:
        """Return the mapping of a receive ring and a send ring, in this order.

        Raises:
            OSError: out of memory, or the kernel does not support packet rings.
        """
        for option, value in (
            (_PACKET_VERSION, _TPACKET_V2),
            (_PACKET_RESERVE, RX_RESERVE),
            (_PACKET_TX_HAS_OFF, 1),
            # Discard a frame that is refused: by default tpacket_snd() stops at it.
            (_PACKET_LOSS, 1),
            (_PACKET_RX_RING, geometry.request()),
            (_PACKET_TX_RING, geometry.request()),
        ):
            self.setsockopt(_SOL_PACKET, option, value)
        return mmap.mmap(self.fileno(), 2 * geometry.size)

    def bind_interface(self, index: int) -> None:
        """Start receiving AoE frames from an interface.

        By its index: ``socket.bind`` takes a name, which it cuts after 15 bytes.

        Raises:
            OSError: the interface does not exist, or is down.
        """
        # Imported here because it is slow.
        import ctypes

        address = _SOCKADDR_LL.pack(
            socket.AF_PACKET, socket.htons(ETH_P_AOE), index, 0, 0, 0
        )
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.bind(self.fileno(), address, len(address)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def interface_name(self, index: int) -> str:
        """Return the current name of an interface (SIOCGIFNAME).

        Raises:
            OSError: the interface does not exist.
        """
        request = struct.pack("=16xi20x", index)
        result = fcntl.ioctl(self, _SIOCGIFNAME, request)
        return os.fsdecode(result[:16].rstrip(b"\0"))

    def take_error(self) -> int:
        """Return and clear the pending error (SO_ERROR), which makes poll(2) return."""
        return self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def take_counters(self) -> tuple[int, int]:
        """Return and reset the numbers of frames received and dropped."""
        counters = self.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        # struct tpacket_stats: tp_packets counts the dropped frames too.
        packets, drops = struct.unpack("=II", counters)
        return packets - drops, drops
