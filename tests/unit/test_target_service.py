from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from aoe.address import Address
from aoe.common.process.signals import handling
from aoe.errors import AoEError, BusyError, UsageError
from target.disks.memory import MemoryDisk
from target.protocol.exports import Export
from target.server.ports import Port
from target.server.probe import probe
from target.server.service import Service, describe_target, signals
from tests.asking import ata, config, config_response, frame, response_frame
from tests.filtering import FilterRig
from tests.links import QueueLink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def link() -> Iterator[QueueLink]:
    with QueueLink() as opened:
        yield opened


def export(shelf: int, slot: int) -> Export:
    return Export(
        Address(shelf, slot),
        MemoryDisk(1 << 20),
        buffer_count=16,
        firmware_number=0x4019,
    )


def at(response: bytes, shelf: int, slot: int) -> bytes:
    return response[:16] + shelf.to_bytes(2, "big") + bytes((slot,)) + response[19:]


def test_frames_are_passed_to_the_addressed_target(link: QueueLink) -> None:
    port = Port(link, [export(7, 3), export(7, 4), export(8, 3)])
    for shelf, slot in ((7, 4), (8, 3), (7, 3)):
        link.deliver(frame(1, bytes(8), shelf=shelf, slot=slot))
    assert port.serve(0.0)
    assert link.sent == [
        at(config_response(0), shelf, slot) for shelf, slot in ((7, 4), (8, 3), (7, 3))
    ]
    assert not port.serve(0.0)


@pytest.mark.parametrize(
    ("shelf", "slot", "answering"),
    [
        (0xFFFF, 0xFF, [(7, 3), (7, 4), (8, 3)]),
        (7, 0xFF, [(7, 3), (7, 4)]),
        (0xFFFF, 3, [(7, 3), (8, 3)]),
        (9, 0xFF, []),
    ],
)
def test_broadcast_is_answered_by_each_matching_target_p9(
    link: QueueLink, shelf: int, slot: int, answering: list[tuple[int, int]]
) -> None:
    port = Port(link, [export(7, 3), export(7, 4), export(8, 3)])
    link.deliver(frame(1, bytes(8), shelf=shelf, slot=slot))
    port.serve(0.0)
    assert link.sent == [at(config_response(0), *address) for address in answering]


def test_unmatched_frames_are_counted(link: QueueLink) -> None:
    port = Port(link, [export(7, 3)])
    link.deliver(frame(1, bytes(8), shelf=9), b"", b"\xff" * 20, config(0)[:18])
    port.serve(0.0)
    assert link.sent == []
    assert port.unmatched == 4


def test_batch_is_flushed_once(link: QueueLink) -> None:
    port = Port(link, [export(7, 3)])
    link.deliver(*[config(0)] * 5)
    port.serve(0.0)
    assert link.flushes == [5]


def test_frames_stay_in_the_ring_while_the_send_ring_is_full(link: QueueLink) -> None:
    # No request is executed without a response.
    port = Port(link, [export(7, 3)])
    link.deliver(*[ata(0x24, lba=n) for n in range(20)])
    port.serve(0.0)
    assert len(link.sent) == 8
    assert port.targets[0].statistics().reads == 8
    while port.serve(0.0):
        pass
    assert [response[28] for response in link.sent] == list(range(20))


def test_targets_announce_themselves_p48(link: QueueLink) -> None:
    Port(link, [export(7, 3), export(7, 4)]).announce()
    assert [sent[:6] for sent in link.sent] == [b"\xff" * 6] * 2
    assert [sent[16:24] for sent in link.sent] == [
        b"\0\x07\x03\x01\0\0\0\0",
        b"\0\x07\x04\x01\0\0\0\0",
    ]


def test_interface_with_too_small_mtu_is_refused() -> None:
    with QueueLink(mtu=500) as link, pytest.raises(UsageError) as caught:
        Port(link, [export(7, 3)])
    assert str(caught.value) == (
        "eth0: an MTU of 500 has no room for a sector. "
        "Raise it with: ip link set eth0 mtu 1500"
    )


@pytest.fixture
def running(link: QueueLink) -> Iterator[Service]:
    service = Service([Port(link, [export(7, 3)])])
    thread = threading.Thread(target=service.run)
    thread.start()
    yield service
    service.stop()
    thread.join(5)
    assert not thread.is_alive()
    service.close()


def has_sent(link: QueueLink, count: int) -> bool:
    return len(link.sent) == count


def wait_for(condition: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(500):
        if condition():
            return
        done.wait(0.01)
    pytest.fail("nothing happened for five seconds")


@pytest.mark.usefixtures("running")
def test_service_wakes_up_for_frames(link: QueueLink) -> None:
    for n in range(1, 4):
        link.deliver(ata(0xE5, count=0))
        wait_for(partial(has_sent, link, n))
    assert link.sent[0] == response_frame(0, bytes((0x40, 0, 0xFF, 0x40)) + bytes(8))


def test_idle_service_logs_statistics_on_request(
    running: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aoe-target")
    running.request_statistics()
    wait_for(lambda: "eth0: 0 received" in caplog.text)
    assert "e7.3 on eth0: 0 requests" in caplog.text


def test_stopped_service_answers_received_frames(link: QueueLink) -> None:
    service = Service([Port(link, [export(7, 3)])])
    link.deliver(config(0))
    service.stop()
    service.run()
    assert link.sent == [config_response(0)]
    service.close()


def test_first_signal_stops_the_service_and_second_one_kills_it(
    link: QueueLink,
) -> None:
    service = Service([Port(link, [export(7, 3)])])
    before = signal.getsignal(signal.SIGTERM)
    # The test run may ignore it, as a background job of a script.
    handling_interrupts = handling(signal.default_int_handler, [signal.SIGINT])
    with handling_interrupts, signals(service):
        # Without the signal it would wait forever.
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        service.run()
        for number in (signal.SIGTERM, signal.SIGINT):
            assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before
    service.close()


def test_service_survives_the_loss_of_its_interfaces(
    running: Service, link: QueueLink, caplog: pytest.LogCaptureFixture
) -> None:
    link.is_gone = True
    link.deliver(config(0))
    wait_for(lambda: running.ports[0].state == "gone")
    assert caplog.messages == [
        "eth0: interface is gone, waiting for it to reappear",
    ]
    assert running.call(lambda: 7) == 7


def test_exception_of_a_call_is_raised_in_the_caller(running: Service) -> None:
    def fail() -> None:
        raise UsageError("this", "is wrong")

    with pytest.raises(UsageError, match="this: is wrong"):
        running.call(fail)


def test_call_after_the_end_is_refused(link: QueueLink) -> None:
    service = Service([Port(link, [export(7, 3)])])
    service.stop()
    service.run()
    with pytest.raises(AoEError, match="is ending"):
        service.call(lambda: None)
    service.close()


class Alarm:
    """A timer that fires once."""

    def __init__(self, when: float) -> None:
        self.when: float | None = when
        self.rang = threading.Event()

    def next_timeout(self) -> float | None:
        return self.when

    def tick(self, now: float) -> None:
        assert self.when is not None
        assert now >= self.when
        self.when = None
        self.rang.set()


def test_timers_run_in_an_idle_service(running: Service) -> None:
    alarm = Alarm(time.monotonic() + 0.05)
    running.call(lambda: running.timers.append(alarm))
    assert alarm.rang.wait(10)


def test_probe_queries_three_times_and_accepts_no_response(
    link: QueueLink,
) -> None:
    probe(link, [Address(7, 3)])
    assert len(link.sent) == 3
    assert {sent[:6] for sent in link.sent} == {b"\xff" * 6}
    assert link.sent[0][12:] == (config(0)[12:20] + b"\x80\0\0\0").ljust(48, b"\0")


def test_probe_finds_the_target_of_an_address(link: QueueLink) -> None:
    other = bytes.fromhex("525400000009")
    link.on_send = lambda _: b"\xff" * 6 + other + config_response(0)[12:]
    with pytest.raises(BusyError) as caught:
        probe(link, [Address(7, 3)])
    assert str(caught.value) == (
        "e7.3: already served on eth0 by 52:54:00:00:00:09. "
        "Choose another address. With --force, clients mix up both disks"
    )


def test_probe_ignores_other_addresses_and_requests(
    link: QueueLink,
) -> None:
    link.deliver(at(config_response(0), 7, 4), config(0), b"", b"\0" * 60)
    probe(link, [Address(7, 3)])
    assert len(link.sent) == 3


def test_statistics_are_logged_in_one_line(link: QueueLink) -> None:
    port = Port(link, [export(7, 3)])
    requests = [
        ata(0x24, count=2),
        ata(0x34, aflags=0x41, data=bytes(512)),
        ata(0x24, lba=1 << 40),
        config(1, b"other"),
    ]
    link.deliver(*requests)
    port.serve(0.0)
    assert describe_target(port.targets[0].statistics()) == (
        "4 requests, 1 reads (1 KiB), 1 writes (512 bytes), 0 flushes, "
        "errors: not_found 1, dropped: config_differs 1"
    )


def behind(*filters: str) -> Export:
    served = export(7, 3)
    served.filters = FilterRig(*filters).filters
    return served


def test_port_sends_delayed_responses_when_they_are_due(link: QueueLink) -> None:
    port = Port(link, [behind("delay:seconds=2"), export(7, 4)])
    assert port.next_timeout() is None
    link.deliver(config(0), frame(1, bytes(8), slot=4))
    port.serve(1.0)
    assert link.sent == [at(config_response(0), 7, 4)]
    assert port.next_timeout() == 3.0
    assert not port.serve(2.9)
    assert not port.serve(3.0)
    assert link.sent[1:] == [config_response(0)]


def test_broadcast_passes_the_filters_of_each_target_p9(link: QueueLink) -> None:
    port = Port(link, [behind("drop:direction=out"), export(7, 4)])
    link.deliver(frame(1, bytes(8), shelf=0xFFFF, slot=0xFF))
    port.serve(0.0)
    assert link.sent == [at(config_response(0), 7, 4)]
    assert port.targets[0].statistics().requests == 1


def test_due_responses_stay_queued_while_the_send_ring_is_full() -> None:
    with QueueLink(slots=2) as link:
        port = Port(link, [behind("duplicate:direction=out")])
        link.deliver(config(0), config(0))
        for _ in range(3):
            port.serve(0.0)
        assert link.sent == [config_response(0)] * 4
        assert max(link.flushes) == 2
        assert port.next_timeout() is None


def test_service_wakes_up_for_delayed_responses(link: QueueLink) -> None:
    service = Service([Port(link, [behind("delay:seconds=0.05")])])
    link.on_send = lambda _: service.stop()
    link.deliver(config(0))
    # Without the delayed response it would wait forever.
    service.run()
    service.close()
    assert link.sent == [config_response(0)]


def test_statistics_have_the_trigger_counts_of_filters(
    link: QueueLink, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aoe-target")
    service = Service([Port(link, [behind("drop:on=read"), export(7, 4)])])
    link.deliver(ata(0x24), ata(0x24), config(0))
    service.ports[0].serve(0.0)
    service.log_statistics()
    service.close()
    assert caplog.messages[-1] == "e7.3: filter drop:on=read triggered 2 times"


def test_delayed_frames_are_dropped_with_the_link(link: QueueLink) -> None:
    # A delayed write that is executed later would overwrite newer data.
    port = Port(link, [behind("delay:seconds=2,direction=in", "reorder")])
    link.deliver(config(0), config(0))
    port.serve(0.0)
    assert port.next_timeout() == 2.0
    port.detach_link("gone")
    assert port.next_timeout() is None
    assert port.targets[0].statistics().requests == 0


def test_export_with_filters_can_be_removed(link: QueueLink) -> None:
    port = Port(link, [behind("delay"), export(7, 4)])
    target = port.target(Address(7, 3))
    assert target is port.targets[0]
    link.deliver(config(0))
    port.serve(0.0)
    port.remove(Address(7, 3))
    assert port.target(Address(7, 3)) is None
    assert [each.export.address for each in port.targets] == [Address(7, 4)]
    assert port.next_timeout() is None
