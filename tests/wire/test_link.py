"""Links on veth pairs: delivery, filtering, counters and interface state changes."""

from __future__ import annotations

import ctypes
import itertools
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from aoe.errors import NotFoundError
from aoe.net import interfaces
from aoe.net.link import Link, LinkStatistics, PlainLink, RingLink
from aoe.net.netns import Namespace, Wire
from tests.frames import bring_up, frame_of, receive_all
from tests.requirements import missing, program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.netns

both_kinds = pytest.mark.parametrize("rings", [True, False], ids=["rings", "plain"])
both_kinds_both_ends = pytest.mark.parametrize(
    ("rings", "peer_rings"),
    list(itertools.product([True, False], repeat=2)),
    ids=["rings-rings", "rings-plain", "plain-rings", "plain-plain"],
)


def raw_socket(namespace: Namespace) -> socket.socket:
    """Open a raw socket for sending arbitrary frames."""
    with namespace.enter():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sender.bind(("aoe0", 0))
    return sender


@contextmanager
def flood(sender: socket.socket, frames: Sequence[bytes]) -> Iterator[None]:
    """Send the frames repeatedly from a thread."""
    stop = threading.Event()

    def run() -> None:
        for frame in itertools.cycle(frames):
            if stop.is_set():
                return
            sender.send(frame)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@both_kinds_both_ends
@pytest.mark.parametrize(
    ("mtu", "length"),
    [(1500, 36), (1500, 60), (1500, 1514), (9000, 9014), (65535, 65549)],
)
def test_frames_of_all_lengths_arrive_intact(
    make_wire: Callable[[int], Wire],
    links: Callable[..., Link],
    mtu: int,
    length: int,
    *,
    rings: bool,
    peer_rings: bool,
) -> None:
    wire = make_wire(mtu)
    target = links(wire.target, rings=rings)
    initiator = links(wire.initiator, rings=peer_rings)
    assert isinstance(target, RingLink if rings else PlainLink)
    sent = [frame_of(length, number=number) for number in range(10)]
    assert all(initiator.send(frame) for frame in sent)
    assert receive_all(target) == sent
    back = [frame_of(length, response=True, dst=Wire.initiator_mac)] * 3
    assert all(target.send(frame) for frame in back)
    assert receive_all(initiator) == back


@both_kinds_both_ends
def test_reused_slots_do_not_corrupt_frames_in_flight(
    wire: Wire, links: Callable[..., Link], *, rings: bool, peer_rings: bool
) -> None:
    target = links(wire.target, rings=rings, frames=1000)
    initiator = links(wire.initiator, rings=peer_rings, frames=32)
    sent = [frame_of(1036, number=number) for number in range(600)]
    for frame in sent:
        slot = initiator.reserve()
        assert slot is not None
        slot[: len(frame)] = frame
        initiator.commit(len(frame))
    initiator.flush()
    assert receive_all(target) == sent
    assert initiator.statistics() == LinkStatistics(sent=600)
    assert target.statistics() == LinkStatistics(received=600)


@both_kinds
def test_a_link_has_the_attributes_of_its_interface(
    make_wire: Callable[[int], Wire], links: Callable[..., Link], *, rings: bool
) -> None:
    wire = make_wire(9000)
    link = links(wire.target, rings=rings)
    interface = interfaces.find_interface("aoe0", wire.target.pid)
    assert (link.name, link.index, link.mac, link.mtu, link.up) == (
        "aoe0",
        interface.index,
        Wire.target_mac,
        9000,
        True,
    )


def test_sector_data_is_aligned_to_512_bytes(
    wire: Wire, links: Callable[..., Link]
) -> None:
    target, initiator = links(wire.target), links(wire.initiator)
    slot = initiator.reserve()
    assert slot is not None
    assert initiator.send(frame_of(1060))
    assert target.wait(1)
    frame = target.receive()
    assert frame is not None
    for memory in (slot, frame):
        data = ctypes.c_char.from_buffer(memory, 36)
        assert ctypes.addressof(data) % 512 == 0


@both_kinds
def test_reserving_twice_returns_the_same_memory(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    link = links(wire.initiator, rings=rings)
    first, second = link.reserve(), link.reserve()
    assert first is not None
    assert second is not None
    assert len(first) >= 1514
    first[0] = 77
    second[1] = 78
    assert bytes(first[:2]) == bytes(second[:2]) == b"MN"


@both_kinds
@pytest.mark.parametrize("length", [0, 13, 1515])
def test_invalid_frame_lengths_are_refused(
    wire: Wire, links: Callable[..., Link], length: int, *, rings: bool
) -> None:
    link = links(wire.initiator, rings=rings)
    link.reserve()
    with pytest.raises(ValueError, match=f"no frame of {length} bytes"):
        link.commit(length)


@both_kinds
def test_committing_without_reserving_is_refused(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    link = links(wire.initiator, rings=rings)
    with pytest.raises(ValueError, match="was reserved"):
        link.commit(60)


@both_kinds
def test_other_frames_are_not_received_even_while_opening(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    foreign = frame_of(100)[:12] + b"\x08\x00" + bytes(86)
    wrong = frame_of(100)
    wanted = frame_of(100, response=True)
    with raw_socket(wire.initiator) as sender, flood(sender, [foreign, wrong, wanted]):
        for _ in range(20):
            link = links(wire.target, rings=rings, responses=True)
            assert link.wait(5)
            frames = [frame for _ in range(5) if (frame := link.receive()) is not None]
            assert {bytes(frame) for frame in frames} == {wanted}
            frames.clear()
            link.close()


@both_kinds
@pytest.mark.parametrize("responses", [True, False, None])
def test_only_the_wanted_direction_is_received(
    wire: Wire, links: Callable[..., Link], *, rings: bool, responses: bool | None
) -> None:
    target = links(wire.target, rings=rings, responses=responses)
    initiator = links(wire.initiator)
    request, response = frame_of(60), frame_of(60, response=True)
    assert initiator.send(request)
    assert initiator.send(response)
    wanted = {True: [response], False: [request], None: [request, response]}
    assert receive_all(target) == wanted[responses]


@both_kinds
def test_own_frames_are_not_received(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    link, neighbour = (links(wire.initiator, rings=rings) for _ in range(2))
    assert link.send(frame_of(60, dst=b"\xff" * 6))
    assert receive_all(link, 0.05) == receive_all(neighbour, 0.05) == []


@both_kinds
def test_p24_frames_of_other_vlans_are_not_received(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    target = links(wire.target, rings=rings)
    plain, broadcast = frame_of(100), frame_of(100, dst=b"\xff" * 6)
    with raw_socket(wire.initiator) as sender:
        for frame in (plain, broadcast):
            sender.send(frame[:12] + b"\x81\x00\x00\x05" + frame[12:])
        sender.send(plain)
    assert receive_all(target) == [plain]


@both_kinds
def test_frames_for_other_hosts_are_not_received(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    wire.target.run(["ip", "link", "set", "aoe0", "promisc", "on"], check=True)
    target = links(wire.target, rings=rings)
    initiator = links(wire.initiator)
    broadcast = frame_of(60, dst=b"\xff" * 6)
    assert initiator.send(frame_of(60, dst=bytes.fromhex("525400ae0009")))
    assert initiator.send(broadcast)
    assert receive_all(target) == [broadcast]


@both_kinds
def test_promiscuous_links_receive_frames_for_other_hosts(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    target = links(wire.target, rings=rings, promiscuous=True)
    initiator = links(wire.initiator)
    other = frame_of(60, dst=bytes.fromhex("525400ae0009"))
    assert initiator.send(other)
    assert receive_all(target) == [other]
    shown = wire.target.run(
        ["ip", "-details", "link", "show", "aoe0"], capture_output=True, text=True
    )
    assert "promiscuity 1 " in shown.stdout


@both_kinds
def test_frames_dropped_by_full_buffers_are_counted(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    target = links(wire.target, rings=rings, frames=32)
    initiator = links(wire.initiator)
    for number in range(5000):
        assert initiator.send(frame_of(60, number=number))
    frames = receive_all(target)
    counters = target.statistics()
    assert counters.dropped > 0
    assert counters.received == len(frames)
    assert counters.received + counters.dropped == 5000
    assert initiator.send(frame_of(60))
    assert receive_all(target) == [frame_of(60)]
    assert target.statistics().received == len(frames) + 1


@pytest.mark.parametrize("frames", [32, 256, 1000])
def test_the_requested_number_of_frames_is_buffered(
    wire: Wire, links: Callable[..., Link], frames: int
) -> None:
    target, initiator = links(wire.target, frames=frames), links(wire.initiator)
    for number in range(frames):
        assert initiator.send(frame_of(1514, number=number))
    assert len(receive_all(target)) == frames
    assert target.statistics().dropped == 0


@both_kinds
def test_truncated_frames_are_counted_and_not_returned(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    target = links(wire.target, rings=rings)
    for namespace in (wire.target, wire.initiator):
        interfaces.set_mtu("aoe0", 9000, namespace.pid)
    initiator = links(wire.initiator)
    assert initiator.send(frame_of(5000))
    assert initiator.send(frame_of(60))
    assert receive_all(target) == [frame_of(60)]
    assert target.statistics().truncated == 1


@both_kinds
def test_frames_too_long_after_the_mtu_was_lowered_are_counted(
    make_wire: Callable[[int], Wire], links: Callable[..., Link], *, rings: bool
) -> None:
    wire = make_wire(9000)
    target = links(wire.target)
    initiator = links(wire.initiator, rings=rings)
    interfaces.set_mtu("aoe0", 1500, wire.initiator.pid)
    for length in (60, 5000, 1514):
        assert initiator.send(frame_of(length))
    assert receive_all(target) == [frame_of(60), frame_of(1514)]
    assert initiator.statistics() == LinkStatistics(sent=2, unsent=1)


@both_kinds
def test_a_frame_refused_by_the_peer_does_not_block_others(
    make_wire: Callable[[tuple[int, int]], Wire],
    links: Callable[..., Link],
    *,
    rings: bool,
) -> None:
    """A veth refuses frames that exceed the MTU of its peer."""
    wire = make_wire((1500, 9000))
    target = links(wire.target)
    initiator = links(wire.initiator, rings=rings)
    initiator.send(frame_of(9000))
    initiator.send(frame_of(60))
    initiator.flush()
    assert receive_all(target) == [frame_of(60)]


@both_kinds
def test_a_link_works_after_down_and_up(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    target = links(wire.target, rings=rings)
    initiator = links(wire.initiator)
    interfaces.set_down("aoe0", wire.target.pid)
    assert not target.wait(0.05)
    assert target.receive() is None
    assert not target.up
    for _ in range(1000):
        assert target.send(frame_of(60, response=True))
    assert target.statistics() == LinkStatistics(unsent=1000)

    bring_up(wire, "aoe0", wire.target)
    assert initiator.send(frame_of(60))
    assert receive_all(target) == [frame_of(60)]
    assert target.up
    fresh = frame_of(60, response=True, dst=Wire.initiator_mac, number=1)
    assert target.send(fresh)
    assert receive_all(initiator) == [fresh]


def test_a_reserved_frame_survives_withdrawal_of_earlier_frames(
    wire: Wire, links: Callable[..., Link]
) -> None:
    target, initiator = links(wire.target), links(wire.initiator)
    first, second = frame_of(60, number=1), frame_of(60, number=2)
    interfaces.set_down("aoe0", wire.initiator.pid)
    slot = initiator.reserve()
    assert slot is not None
    slot[:60] = first
    initiator.commit(60)
    slot = initiator.reserve()
    assert slot is not None
    slot[:60] = second
    initiator.flush()
    bring_up(wire, "aoe0", wire.initiator)
    initiator.commit(60)
    initiator.flush()
    assert receive_all(target) == [second]
    assert initiator.statistics() == LinkStatistics(sent=1, unsent=1)


@both_kinds
@pytest.mark.parametrize("down_before", [True, False])
def test_wait_ends_when_the_interface_is_removed(
    wire: Wire, links: Callable[..., Link], *, rings: bool, down_before: bool
) -> None:
    target = links(wire.target, rings=rings)
    if down_before:
        interfaces.set_down("aoe0", wire.target.pid)
        assert not target.wait(0.05)
    remover = threading.Timer(0.1, interfaces.remove, ("aoe0", wire.initiator.pid))
    remover.start()
    start = time.monotonic()
    with pytest.raises(NotFoundError) as caught:
        target.wait(30)
    remover.join()
    assert str(caught.value) == "aoe0: interface is gone"
    assert time.monotonic() - start < 5


@both_kinds
@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda link: link.send(frame_of(60)), id="send"),
        pytest.param(lambda link: link.wait(0.1), id="wait"),
        pytest.param(lambda link: [link.receive() for _ in range(100)], id="receive"),
    ],
)
def test_using_a_removed_interface_is_an_error(
    wire: Wire,
    links: Callable[..., Link],
    use: Callable[[Link], object],
    *,
    rings: bool,
) -> None:
    target = links(wire.target, rings=rings)
    interfaces.remove("aoe0", wire.target.pid)
    with pytest.raises(NotFoundError, match=r"^aoe0: interface is gone$"):
        use(target)


@both_kinds
def test_receive_detects_removal_of_an_interface_that_is_down(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    target = links(wire.target, rings=rings)
    interfaces.set_down("aoe0", wire.target.pid)
    assert not target.wait(0)
    interfaces.remove("aoe0", wire.target.pid)
    with pytest.raises(NotFoundError, match="interface is gone"):
        target.receive()


@both_kinds
def test_wait_sends_committed_frames(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    target, initiator = links(wire.target), links(wire.initiator, rings=rings)
    slot = initiator.reserve()
    assert slot is not None
    slot[:60] = frame_of(60)
    initiator.commit(60)
    assert not initiator.wait(0.05)
    assert receive_all(target) == [frame_of(60)]


@both_kinds
def test_a_renamed_interface_keeps_working(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    target, initiator = links(wire.target, rings=rings), links(wire.initiator)
    interfaces.set_down("aoe0", wire.target.pid)
    wire.target.run(["ip", "link", "set", "aoe0", "name", "disk0"], check=True)
    bring_up(wire, "disk0", wire.target)
    assert initiator.send(frame_of(60))
    assert receive_all(target) == [frame_of(60)]


@both_kinds
def test_frames_lost_to_a_full_queue_are_counted(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    queue = program("tc") + " qdisc add dev aoe0 root tbf rate 5mbps burst 3k limit 6k"
    if wire.initiator.run(queue.split(), stderr=subprocess.DEVNULL).returncode:
        missing("token bucket filter", "modprobe sch_tbf")
    target = links(wire.target, frames=1000)
    initiator = links(wire.initiator, rings=rings)
    for number in range(100):
        slot = initiator.reserve()
        assert slot is not None
        slot[:1060] = frame_of(1060, number=number)
        initiator.commit(1060)
    initiator.flush()
    received = receive_all(target)
    initiator.flush()
    received += receive_all(target)
    counters = initiator.statistics()
    assert counters.sent + counters.unsent == 100
    assert counters.sent == len(received)
    assert counters.sent > 90


@both_kinds
def test_wait_honours_its_timeout(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    link = links(wire.target, rings=rings)
    start = time.monotonic()
    assert not link.wait(0)
    assert not link.wait(0.2)
    assert 0.2 <= time.monotonic() - start < 2


@both_kinds
def test_a_link_can_be_closed_while_a_frame_is_referenced(
    wire: Wire, links: Callable[..., Link], *, rings: bool
) -> None:
    target, initiator = links(wire.target, rings=rings), links(wire.initiator)
    assert initiator.send(frame_of(60))
    assert target.wait(1)
    frame = target.receive()
    assert frame is not None
    target.close()
    target.close()
    assert bytes(frame) == frame_of(60)
    assert target.statistics().received == 1
    again = links(wire.target, rings=rings)
    assert initiator.send(frame_of(60))
    assert receive_all(again) == [frame_of(60)]
