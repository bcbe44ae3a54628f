"""Clones of skbs: borrowed fragments, linearizing, private heads, packet sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aoe.header import Header
from initiator.driver.aoedev import SKBPOOL_LIMIT
from initiator.driver.bio import BioVec
from initiator.driver.skbuff import Skb
from initiator.lab.kernel.kernels import RULES_2_6_21, RULES_6_1, Rules
from initiator.lab.kernel.memory import PAGE_SIZE, Page
from initiator.lab.kernel.nic import ModelledNic, Nic
from initiator.lab.kernel.skbuff import SkbOps
from initiator.lab.kernel.submitters import SUBMITTERS
from tests.worlds import (
    counts,
    disk,
    faults,
    first,
    make_memory,
    make_world,
    page_of,
    submit,
)

if TYPE_CHECKING:
    from initiator.lab.world import World

HEAD = bytes(36)


class Net:
    """An skb with fragments in the two pages of a block, and a NIC that sends it."""

    def __init__(self, nic: Nic = Nic.SG, rules: Rules = RULES_6_1) -> None:
        self.memory = make_memory(rules)
        self.ops = SkbOps(self.memory)
        self.wire: list[bytes] = []
        self.nic = ModelledNic(nic, self.ops, self.wire.append)
        self.head, self.tail = self.memory.alloc_pages(1, "owner")
        self.head.data[:] = b"h" * PAGE_SIZE
        self.tail.data[:] = b"t" * PAGE_SIZE
        self.skb = Skb()
        self.skb.frags = [BioVec(self.head, 0, 512), BioVec(self.tail, 8, 1024)]

    @property
    def counts(self) -> tuple[int, int]:
        return self.head.count, self.tail.count

    def counts_of(self, page: Page) -> list[int | None]:
        return counts(self.memory.journal, page)


FRAME = HEAD + b"h" * 512 + b"t" * 1024


# --- clones ---------------------------------------------------------------------------


def test_k73_a_clone_shares_head_and_fragments_without_a_get() -> None:
    net = Net()
    clone = net.ops.clone(net.skb)
    assert net.skb.dataref == 2
    assert clone.payload_pages is net.skb.frags
    assert bytes(clone) == FRAME
    assert net.counts == (1, 0)


def test_k74_a_scatter_gather_nic_changes_no_page_count() -> None:
    net = Net(Nic.SG)
    net.nic.xmit(net.skb)
    assert net.wire == [FRAME]
    assert net.skb.dataref == 1
    assert (net.counts_of(net.head), net.counts_of(net.tail)) == ([], [])
    assert first(net.memory.journal, "kfree_skb").rule == "K74"


def test_k75_linearizing_gets_copies_and_puts_every_fragment() -> None:
    net = Net(Nic.NOSG)
    clone = net.ops.clone(net.skb)
    net.ops.linearize(clone)
    assert net.counts_of(net.head) == [2, 1]
    assert net.counts_of(net.tail) == [1, 0]
    assert faults(net.memory.journal) == [("premature-free", net.tail.pfn)]
    assert net.skb.dataref == 1
    assert net.memory.journal.costs.copied == 1536
    net.head.data[:] = net.tail.data[:] = bytes(PAGE_SIZE)
    assert bytes(clone) == FRAME


def test_k75_linearizing_a_linear_clone_does_nothing() -> None:
    net = Net(Nic.NOSG)
    clone = net.ops.clone(net.skb)
    net.ops.linearize(clone)
    before = len(net.memory.journal.entries)
    net.ops.linearize(clone)
    assert len(net.memory.journal.entries) == before


def test_k75_a_frame_without_payload_is_linear() -> None:
    net = Net(Nic.NOSG)
    net.nic.xmit(Skb())
    assert net.wire == [HEAD]
    assert net.memory.journal.costs.copied == 0


def test_k76_a_private_head_holds_references_until_the_frame_is_freed() -> None:
    net = Net(Nic.COW)
    net.nic.hold_completion = True
    net.nic.xmit(net.skb)
    assert net.wire == [FRAME]
    assert net.counts == (2, 1)
    assert net.skb.dataref == 1
    assert not faults(net.memory.journal)
    net.nic.drain()
    assert net.counts_of(net.head) == [2, 1]
    assert net.counts_of(net.tail) == [1, 0]
    assert faults(net.memory.journal) == [("premature-free", net.tail.pfn)]


def test_k76_a_private_head_keeps_its_header_but_reads_current_contents() -> None:
    net = Net(Nic.COW)
    net.nic.hold_ring = True
    net.nic.xmit(net.skb)
    net.skb.head[:] = b"x" * 36
    net.head.data[:] = b"y" * PAGE_SIZE
    net.nic.drain()
    assert net.wire == [HEAD + b"y" * 512 + b"t" * 1024]


def test_k76_a_clone_gets_a_private_head_once() -> None:
    net = Net(Nic.COW, RULES_2_6_21)
    net.nic.hold_completion = True
    net.nic.xmit(net.skb)
    assert net.counts == (2, 1)


@pytest.mark.parametrize(("rules", "copied"), [(RULES_2_6_21, 1536), (RULES_6_1, 0)])
def test_k77_2_6_21_linearizes_before_the_qdisc_and_6_1_behind_it(
    rules: Rules, copied: int
) -> None:
    """K114: a queue before and a queue after validation."""
    net = Net(Nic.NOSG, rules)
    net.nic.hold_qdisc = True
    net.nic.xmit(net.skb)
    assert net.memory.journal.costs.copied == copied
    net.nic.drain()
    assert net.memory.journal.costs.copied == 1536


def test_k53_a_clone_in_the_qdisc_gets_the_header_of_the_retransmission() -> None:
    net = Net(Nic.SG)
    net.nic.hold_qdisc = True
    net.nic.xmit(net.skb)
    net.skb.head[:] = b"2" * 36
    net.nic.xmit(net.skb)
    net.nic.drain()
    assert net.wire == [b"2" * 36 + FRAME[36:]] * 2


def test_k72_pages_are_read_when_the_nic_transmits() -> None:
    """K113: bytes are read at serialization."""
    net = Net(Nic.SG)
    net.nic.hold_ring = True
    net.nic.xmit(net.skb)
    net.tail.data[:] = b"z" * PAGE_SIZE
    net.nic.drain()
    assert net.wire == [HEAD + b"h" * 512 + b"z" * 1024]


# --- fragments that own references ----------------------------------------------------


def test_k102_the_last_sharer_drops_references_owned_by_fragments() -> None:
    """K143."""
    net = Net()
    net.memory.get_page(net.head, "AoE driver", "K102")
    net.skb.frags = net.skb.frags[:1]
    net.skb.owns_frags = True
    clone = net.ops.clone(net.skb)
    net.ops.release_data(net.skb)
    assert net.head.count == 2
    net.ops.free(clone)
    assert net.counts_of(net.head) == [2, 1]
    assert net.skb.frags == []


@pytest.mark.parametrize("nic", [Nic.NOSG, Nic.COW])
def test_k102_owned_references_survive_unsharing_of_a_clone(nic: Nic) -> None:
    net = Net(nic)
    net.memory.get_page(net.head, "AoE driver", "K102")
    net.skb.frags = net.skb.frags[:1]
    net.skb.owns_frags = True
    net.nic.hold_qdisc = True
    net.nic.xmit(net.skb)
    net.ops.release_data(net.skb)
    assert net.head.count == 2
    net.nic.drain()
    assert net.counts_of(net.head) == [2, 3, 2, 1]
    assert net.wire == [HEAD + b"h" * 512]


def test_k82_releasing_borrowed_fragments_puts_no_page() -> None:
    net = Net()
    net.ops.release_data(net.skb)
    assert net.skb.dataref == 0
    assert net.skb.frags != []
    assert net.counts == (1, 0)


# --- packet sockets -------------------------------------------------------------------


def tapped_world(policy: str, nic: Nic) -> World:
    """Return a world whose write has ended before a packet socket has read it."""
    world = make_world(policy, nic)
    world.nic.taps = 1
    world.free_in_end_io = True
    submit(world, "pagecache")
    world.deliver_response()
    assert world.writes[0].ended
    return world


def test_k83_a_packet_sockets_clone_borrows_the_same_fragments() -> None:
    net = Net()
    net.nic.taps = 2
    net.nic.xmit(net.skb)
    assert net.skb.dataref == 3
    assert net.counts == (1, 0)
    assert [net.nic.read_tap(clone) for clone in net.nic.tapped[:]] == [FRAME] * 2
    assert net.skb.dataref == 1
    assert net.counts_of(net.head) == []


def test_k83_a_slow_packet_socket_reads_the_current_contents() -> None:
    world = tapped_world("none@6.1", Nic.SG)
    (clone,) = world.nic.tapped
    world.reallocate(SUBMITTERS["pagecache"])
    assert world.nic.read_tap(clone)[36:] == b"\xee" * PAGE_SIZE
    world.finish()
    assert not faults(world.journal)


def test_k83_a_packet_socket_reads_the_submitted_bytes_of_a_linearized_clone() -> None:
    world = tapped_world("none@6.1", Nic.NOSG)
    (clone,) = world.nic.tapped
    world.reallocate(SUBMITTERS["pagecache"])
    assert world.nic.read_tap(clone)[36:] == b"\x51" * PAGE_SIZE


@pytest.mark.parametrize(
    ("policy", "nic"), [("none@6.1", Nic.COW), ("e", Nic.SG), ("e", Nic.COW)]
)
def test_k83_references_last_until_the_packet_socket_has_read(
    policy: str, nic: Nic
) -> None:
    world = tapped_world(policy, nic)
    (clone,) = world.nic.tapped
    page = page_of(world.writes[0])
    assert not page.free
    world.reallocate(SUBMITTERS["pagecache"])
    assert world.nic.read_tap(clone)[36:] == b"\x51" * PAGE_SIZE
    assert page.free
    world.finish()
    assert not faults(world.journal)


def test_k83_finish_frees_tapped_clones() -> None:
    world = tapped_world("none@6.1", Nic.SG)
    world.finish()
    assert world.nic.tapped == []


# --- the driver's own skbs ------------------------------------------------------------


def stale_world() -> World:
    """Return a world whose write has ended while a clone of it is in the qdisc."""
    world = make_world("none@6.1", Nic.SG)
    world.nic.hold_qdisc = True
    submit(world, "pagecache")
    world.nic.hold_qdisc = False
    world.retransmit()
    world.deliver_response()
    assert world.writes[0].ended
    return world


def test_k43_k82_reusing_a_frame_does_not_change_a_queued_clone() -> None:
    world = stale_world()
    (stale,) = world.nic.qdisc
    before = bytes(stale)
    submit(world, "pagecache")
    assert bytes(stale) == before
    world.deliver_response()
    assert world.writes[1].ended
    world.nic.drain()
    world.finish()
    assert not faults(world.journal)
    assert disk(world, 2 * PAGE_SIZE) == b"\x51" * PAGE_SIZE + b"\x52" * PAGE_SIZE


def write_and_complete(world: World) -> None:
    write = submit(world, "pagecache")
    world.deliver_response(len(world.responses) - 1)
    assert write.ended


def test_k43_the_skb_pooled_longest_is_reused_after_its_clones_are_freed() -> None:
    world = stale_world()
    device, (stale,) = world.device, world.nic.qdisc
    parked = stale.skb
    write_and_complete(world)
    assert list(device.skbpool) == [parked]
    world.nic.validate(stale)
    world.nic.hold_completion = True
    write_and_complete(world)
    # An skb is taken from the pool only if the frame's own skb is still shared.
    assert list(device.skbpool) == [parked]
    busy = device.targets[0].ffree[-1].skb
    write_and_complete(world)
    assert list(device.skbpool) == [busy]
    assert device.targets[0].ffree[-1].skb is parked


def test_k82_resetting_the_fragment_table_puts_no_page() -> None:
    world = make_world("none@6.1", Nic.SG)
    write = submit(world, "pagecache")
    page = page_of(write)
    world.deliver_response()
    submit(world, "pagecache")
    world.deliver_response()
    assert counts(world.journal, page) == []


def test_k7_k43_k44_with_256_pooled_skbs_there_is_no_frame_until_clones_are_freed() -> (
    None
):
    """KICKME alone does not resume the work then: the next bio does."""
    world = make_world("none@6.1", Nic.SG)
    device = world.device
    for _ in range(SKBPOOL_LIMIT):
        skb = Skb()
        skb.dataref = 2
        device.skbpool.append(skb)
    frame = device.targets[0].ffree[-1]
    frame.skb.dataref = 2
    waiting = submit(world, "pagecache")
    assert not world.responses
    assert device.targets[0].ffree[-1] is frame
    assert len(device.skbpool) == SKBPOOL_LIMIT
    device.skbpool[0].dataref = 1
    assert device.status == "up,kickme"
    world.driver.handle_timer(device.next_tick or 0)
    assert (device.status, device.kicked) == ("up", 1)
    assert not world.responses
    submit(world, "pagecache")
    world.deliver_response()
    assert waiting.ended
    assert len(device.skbpool) == SKBPOOL_LIMIT


def test_k52_a_retransmission_has_a_new_tag_and_the_same_payload() -> None:
    world = make_world("none@6.1", Nic.SG)
    world.nic.hold_qdisc = True
    submit(world, "pagecache")
    (clone,) = world.nic.qdisc
    tag = Header.unpack_from(bytes(clone)).tag
    world.retransmit()
    again = world.nic.qdisc[1]
    assert Header.unpack_from(bytes(again)).tag != tag
    assert bytes(clone) == bytes(again)
    assert again.payload_pages is clone.payload_pages
