from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from initiator.driver.bio import Op, bio_for
from initiator.driver.skbuff import Skb
from initiator.io.link_device import LinkDevice

if TYPE_CHECKING:
    from aoe.net.link import Link


class Ring:
    """A send ring with stale data in its slots."""

    name = "eth0"
    mac = b"\2\0\0\0\0\1"
    mtu = 9000

    def __init__(self, slots: int, *, drains: bool = True) -> None:
        self.sent: list[bytes] = []
        self.flushes = 0
        self._slots = self._free = slots
        self._drains = drains
        self._memory = bytearray(b"\xee" * 10_000)

    def reserve(self) -> memoryview | None:
        return memoryview(self._memory) if self._free else None

    def commit(self, length: int) -> None:
        self._free -= 1
        self.sent.append(bytes(self._memory[:length]))

    def flush(self) -> None:
        self.flushes += 1
        if self._drains:
            self._free = self._slots


def device_on(ring: Ring) -> LinkDevice:
    return LinkDevice(cast("Link", ring))


@pytest.mark.parametrize("length", [32, 36])
def test_p19_a_short_frame_is_padded_with_zeroes(length: int) -> None:
    ring = Ring(1)
    skb = Skb(length)
    skb.head[:] = b"h" * length
    device_on(ring).xmit(skb)
    assert ring.sent == [b"h" * length + bytes(60 - length)]


def test_a_write_is_sent_as_head_and_fragments() -> None:
    ring = Ring(1)
    skb = Skb()
    for byte in b"ab":
        skb.frags += bio_for(Op.WRITE, 0, bytes([byte]) * 512, lambda _: None).vecs
    device_on(ring).xmit(skb)
    assert ring.sent == [bytes(36) + b"a" * 512 + b"b" * 512]


def test_a_full_ring_is_flushed_and_retried() -> None:
    ring = Ring(1)
    device = device_on(ring)
    device.xmit(Skb())
    device.xmit(Skb())
    assert (len(ring.sent), ring.flushes, device.tx_dropped) == (2, 1, 0)


def test_a_frame_without_a_slot_is_dropped_and_counted() -> None:
    ring = Ring(0, drains=False)
    device = device_on(ring)
    device.xmit(Skb())
    assert (ring.sent, device.tx_dropped) == ([], 1)
