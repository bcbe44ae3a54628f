"""Send scapy packets as requests, and match the responses."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from scapy.layers.l2 import Dot1Q, Ether

from aoe.address import MAC_BROADCAST, format_mac
from aoe.errors import UsageError
from aoe.header import ETH_P_AOE, ETHERNET_LENGTH, FRAME_MINIMUM
from aoe.layers import AoE, pad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scapy.packet import Packet

    from aoe.net.link import Link

_POLL_INTERVAL: Final = 0.01
"""Seconds between checks of several links, and of a full send queue."""


def build_frames(
    packet: Packet, mac: bytes, next_tag: Callable[[], int]
) -> Iterator[bytes]:
    """Yield the frames that a packet stands for, padded to 60 bytes (P19).

    As in scapy, a packet with lists or ranges of values stands for several frames, and
    each random value is drawn for each frame. Fields that are set are sent unchanged.

    Args:
        packet: begins with ``Ether`` or with ``AoE``; it is not modified.
        mac: the source address unless set. The destination is broadcast unless set.
        next_tag: returns the tag of a frame unless set.

    Raises:
        UsageError: the packet is not an AoE frame.
    """
    frame = packet.copy() if isinstance(packet, Ether) else Ether() / packet
    if "src" not in frame.fields:
        frame.src = format_mac(mac)
    if "dst" not in frame.fields:
        frame.dst = format_mac(MAC_BROADCAST)
    header = frame.getlayer(AoE)
    has_tag = header is None or "tag" in header.fields
    for each in frame:
        if not has_tag:
            each[AoE].tag = next_tag()
        _check_ethertype(each)
        yield pad(bytes(each))


def _check_ethertype(frame: Packet) -> None:
    *_, last = (each for each in frame.iterpayloads() if isinstance(each, _TYPED))
    if last.type != ETH_P_AOE:
        raise UsageError(
            frame.summary(), "not an AoE frame", "Begin it with AoE() or Ether()/AoE()"
        )


_TYPED: Final = (Ether, Dot1Q)
"""Layers with an EtherType."""


class Exchange:
    """Requests on some links, and the responses to them.

    Args:
        links: the links; a packet is sent on each.
        next_tag: returns a tag that no other request has.
    """

    def __init__(self, links: Sequence[Link], next_tag: Callable[[], int]) -> None:
        self._links = links
        self._next_tag = next_tag
        self._requests: dict[bytes, list[Packet]] = {}
        """The AoE headers of the requests, by command and tag."""

    def responses(self, packet: Packet, timeout: float) -> Iterator[Packet]:
        """Send a packet, and yield the responses until the timeout.

        A response has command and tag (P10), shelf and slot (P8) of a request. Its
        ``time`` and ``sniffed_on`` are set.

        Args:
            packet: as in ``build_frames``.
            timeout: seconds after the last frame was sent.

        Raises:
            UsageError: not an AoE frame, or longer than the MTU allows.
            NotFoundError: the interface was removed.
        """
        early: list[Packet] = []
        for link in self._links:
            for frame in build_frames(packet, link.mac, self._next_tag):
                self._send(link, frame)
                early += self._received()
        yield from early
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            yield from self._received()
            # wait() covers one link.
            one = len(self._links) == 1
            self._links[0].wait(left if one else min(left, _POLL_INTERVAL))

    def _send(self, link: Link, frame: bytes) -> None:
        limit = max(ETHERNET_LENGTH + link.mtu, FRAME_MINIMUM)
        if len(frame) > limit:
            why = f"a frame of {len(frame)} bytes exceeds the MTU of {link.mtu}"
            raise UsageError(link.name, why, f"Send at most {limit} bytes")
        header = Ether(frame).getlayer(AoE)
        if header is not None:
            self._requests.setdefault(header.hashret(), []).append(header)
        while not link.send(frame):
            link.wait(_POLL_INTERVAL)

    def _received(self) -> Iterator[Packet]:
        for link in self._links:
            while (frame := link.receive()) is not None:
                response = Ether(bytes(frame))
                if self._is_answer(response.getlayer(AoE)):
                    response.time = time.time()
                    response.sniffed_on = link.name
                    yield response

    def _is_answer(self, header: Packet | None) -> bool:
        if header is None:
            return False
        requests = self._requests.get(header.hashret(), ())
        return any(header.answers(request) for request in requests)
