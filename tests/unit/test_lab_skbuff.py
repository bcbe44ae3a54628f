"""Clones, and what becomes of the pages that their fragments borrow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aoe.header import Header
from initiator.driver.aoedev import SKBPOOL_LIMIT
from initiator.driver.bio import BioVec
from initiator.driver.skbuff import Skb
from initiator.lab.kernel.memory import PAGE_SIZE, RULES_2_6_21, RULES_6_1, Page, Rules
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
    """An skb over the two pages of a block, and a card that sends it."""

    def __init__(self, nic: Nic = Nic.SG, rules: Rules = RULES_6_1) -> None:
        self.memory = make_memory(rules)
        self.ops = SkbOps(self.memory)
        self.wire: list[bytes] = []
        self.nic = ModelledNic(nic, self.ops, self.wire.append)
        self.head, self.tail = self.memory.alloc_pages(1, "driver")
        self.head.data[:] = b"h" * PAGE_SIZE
        self.tail.data[:] = b"t" * PAGE_SIZE
        self.skb = Skb()
        self.skb.frags = [BioVec(self.head, 0, 512), BioVec(self.tail, 8, 1024)]

    @property
    def counts(self) -> tuple[int, int]:
        return self.head.count, self.tail.count

    def moved(self, page: Page) -> list[int | None]:
        return counts(self.memory.journal, page)


FRAME = HEAD + b"h" * 512 + b"t" * 1024


# --- clones ---------------------------------------------------------------------------


def test_k73_a_clone_shares_head_and_fragments_and_counts_no_page() -> None:
    net = Net()
    clone = net.ops.clone(net.skb)
    assert net.skb.dataref == 2
    assert clone.payload_pages is net.skb.frags
    assert bytes(clone) == FRAME
    assert net.counts == (1, 0)


def test_k74_a_scatter_gather_card_touches_no_page() -> None:
    net = Net(Nic.SG)
    net.nic.xmit(net.skb)
    assert net.wire == [FRAME]
    assert net.skb.dataref == 1
    assert (net.moved(net.head), net.moved(net.tail)) == ([], [])
    assert first(net.memory.journal, "kfree_skb").rule == "K74"


def test_k75_linearising_gets_copies_and_puts_every_fragment() -> None:
    net = Net(Nic.NOSG)
    clone = net.ops.clone(net.skb)
    net.ops.linearize(clone)
    assert net.moved(net.head) == [2, 1]
    assert net.moved(net.tail) == [1, 0]
    assert faults(net.memory.journal) == [("premature-free", net.tail.pfn)]
    assert net.skb.dataref == 1
    assert net.memory.journal.costs.copied == 1536
    net.head.data[:] = net.tail.data[:] = bytes(PAGE_SIZE)
    assert bytes(clone) == FRAME


def test_k75_what_is_linear_already_is_left_alone() -> None:
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
    assert net.moved(net.head) == [2, 1]
    assert net.moved(net.tail) == [1, 0]
    assert faults(net.memory.journal) == [("premature-free", net.tail.pfn)]


def test_k76_a_private_head_keeps_its_header_but_not_its_contents() -> None:
    net = Net(Nic.COW)
    net.nic.hold_ring = True
    net.nic.xmit(net.skb)
    net.skb.head[:] = b"x" * 36
    net.head.data[:] = b"y" * PAGE_SIZE
    net.nic.drain()
    assert net.wire == [HEAD + b"y" * 512 + b"t" * 1024]


def test_k76_a_head_is_made_private_once() -> None:
    net = Net(Nic.COW, RULES_2_6_21)
    net.nic.hold_completion = True
    net.nic.xmit(net.skb)
    assert net.counts == (2, 1)


@pytest.mark.parametrize(("rules", "copied"), [(RULES_2_6_21, 1536), (RULES_6_1, 0)])
def test_k77_2_6_21_linearises_before_the_queue_and_6_1_behind_it(
    rules: Rules, copied: int
) -> None:
    net = Net(Nic.NOSG, rules)
    net.nic.hold_qdisc = True
    net.nic.xmit(net.skb)
    assert net.memory.journal.costs.copied == copied
    net.nic.drain()
    assert net.memory.journal.costs.copied == 1536


def test_k53_a_clone_in_the_queue_leaves_with_the_header_of_the_retransmission() -> (
    None
):
    net = Net(Nic.SG)
    net.nic.hold_qdisc = True
    net.nic.xmit(net.skb)
    net.skb.head[:] = b"2" * 36
    net.nic.xmit(net.skb)
    net.nic.drain()
    assert net.wire == [b"2" * 36 + FRAME[36:]] * 2


def test_k72_bytes_are_read_when_the_card_sends_them() -> None:
    net = Net(Nic.SG)
    net.nic.hold_ring = True
    net.nic.xmit(net.skb)
    net.tail.data[:] = b"z" * PAGE_SIZE
    net.nic.drain()
    assert net.wire == [HEAD + b"h" * 512 + b"z" * 1024]


# --- fragments that own references ----------------------------------------------------


def test_k102_references_that_fragments_own_go_with_the_last_sharer() -> None:
    net = Net()
    net.memory.get_page(net.head, "AoE", "K102")
    net.skb.frags = net.skb.frags[:1]
    net.skb.owns_frags = True
    clone = net.ops.clone(net.skb)
    net.ops.release_data(net.skb)
    assert net.head.count == 2
    net.ops.free(clone)
    assert net.moved(net.head) == [2, 1]
    assert net.skb.frags == []


@pytest.mark.parametrize("nic", [Nic.NOSG, Nic.COW])
def test_k102_they_survive_the_clones_independence(nic: Nic) -> None:
    net = Net(nic)
    net.memory.get_page(net.head, "AoE", "K102")
    net.skb.frags = net.skb.frags[:1]
    net.skb.owns_frags = True
    net.nic.hold_qdisc = True
    net.nic.xmit(net.skb)
    net.ops.release_data(net.skb)
    assert net.head.count == 2
    net.nic.drain()
    assert net.moved(net.head) == [2, 3, 2, 1]
    assert net.wire == [HEAD + b"h" * 512]


def test_k82_a_borrowing_driver_never_puts_a_page() -> None:
    net = Net()
    net.ops.release_data(net.skb)
    assert net.skb.dataref == 0
    assert net.skb.frags != []
    assert net.counts == (1, 0)


# --- sniffers -------------------------------------------------------------------------


def tapped_world(policy: str, nic: Nic) -> World:
    """Return a world whose one write has ended; a sniffer has not read it yet."""
    world = make_world(policy, nic)
    world.nic.taps = 1
    world.free_in_end_io = True
    submit(world, "pagecache")
    world.deliver_response()
    assert world.writes[0].ended
    return world


def test_k83_a_sniffers_clone_borrows_the_same_fragments() -> None:
    net = Net()
    net.nic.taps = 2
    net.nic.xmit(net.skb)
    assert net.skb.dataref == 3
    assert net.counts == (1, 0)
    assert [net.nic.read_tap(clone) for clone in net.nic.tapped[:]] == [FRAME] * 2
    assert net.skb.dataref == 1
    assert net.moved(net.head) == []


def test_k83_a_slow_sniffer_reads_what_the_page_holds_by_then() -> None:
    world = tapped_world("none@6.1", Nic.SG)
    (clone,) = world.nic.tapped
    world.reallocate(SUBMITTERS["pagecache"])
    assert world.nic.read_tap(clone)[36:] == b"\xee" * PAGE_SIZE
    world.finish()
    assert not faults(world.journal)


def test_k83_a_sniffer_behind_linearisation_is_safe() -> None:
    world = tapped_world("none@6.1", Nic.NOSG)
    (clone,) = world.nic.tapped
    world.reallocate(SUBMITTERS["pagecache"])
    assert world.nic.read_tap(clone)[36:] == b"\x51" * PAGE_SIZE


@pytest.mark.parametrize(
    ("policy", "nic"), [("none@6.1", Nic.COW), ("e", Nic.SG), ("e", Nic.COW)]
)
def test_k83_references_last_as_long_as_the_sniffer(policy: str, nic: Nic) -> None:
    world = tapped_world(policy, nic)
    (clone,) = world.nic.tapped
    page = page_of(world.writes[0])
    assert not page.free
    world.reallocate(SUBMITTERS["pagecache"])
    assert world.nic.read_tap(clone)[36:] == b"\x51" * PAGE_SIZE
    assert page.free
    world.finish()
    assert not faults(world.journal)


def test_k83_the_end_lets_sniffers_go() -> None:
    world = tapped_world("none@6.1", Nic.SG)
    world.finish()
    assert world.nic.tapped == []


# --- the driver's own skbs ------------------------------------------------------------


def stale_world() -> World:
    """Return a world in which a write has ended while a clone of it is queued."""
    world = make_world("none@6.1", Nic.SG)
    world.nic.hold_qdisc = True
    submit(world, "pagecache")
    world.nic.hold_qdisc = False
    world.retransmit()
    world.deliver_response()
    assert world.writes[0].ended
    return world


def test_k43_k82_a_frame_used_again_leaves_a_queued_clone_alone() -> None:
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


def write_and_answer(world: World) -> None:
    write = submit(world, "pagecache")
    world.deliver_response(len(world.responses) - 1)
    assert write.ended


def test_k43_the_skb_parked_longest_is_used_once_its_clones_are_gone() -> None:
    world = stale_world()
    device, (stale,) = world.device, world.nic.qdisc
    parked = stale.skb
    write_and_answer(world)
    assert list(device.skbpool) == [parked]
    world.nic.validate(stale)
    world.nic.hold_completion = True
    write_and_answer(world)
    # Only when the frame's own skb is wanted elsewhere is one taken from the pool.
    assert list(device.skbpool) == [parked]
    busy = device.targets[0].ffree[-1].skb
    write_and_answer(world)
    assert list(device.skbpool) == [busy]
    assert device.targets[0].ffree[-1].skb is parked


def test_k82_scrubbing_the_fragments_puts_no_page() -> None:
    world = make_world("none@6.1", Nic.SG)
    write = submit(world, "pagecache")
    page = page_of(write)
    world.deliver_response()
    submit(world, "pagecache")
    world.deliver_response()
    assert counts(world.journal, page) == []


def test_k7_k43_k44_past_256_parked_skbs_there_is_no_frame_until_clones_go() -> None:
    """Then it takes another bio to start the work: the timer's kick goes nowhere."""
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
