from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe.ata import ATA_DATA, SECTOR
from aoe.common.doctor.findings import Verdict
from initiator.client.path_mtu import PathMtu, diagnose_path, measure
from initiator.client.requests import RequestBuilder
from target.disks.memory import MemoryDisk
from tests.asking import CLIENT, TARGET, ask, make_target, reserve

if TYPE_CHECKING:
    from collections.abc import Callable

    from target.protocol.target import Target

WANTED = 17
OVERHEAD = ATA_DATA


def walk(
    target: Target, wanted: int, passes: Callable[[bytes], bool]
) -> tuple[PathMtu, list[bytes]]:
    """Measure a path that lets some frames through; return what was asked, too."""
    asking = RequestBuilder(target.export.address, TARGET, CLIENT)
    steps = measure(asking, wanted)
    requests = []
    reply = None
    try:
        while True:
            request = next(steps) if reply is None else steps.send(reply)
            requests.append(request)
            reply = ask(target, request) if passes(request) else b""
            if not passes(reply):
                reply = b""
    except StopIteration as stop:
        return stop.value, requests


def no_longer_than(sectors: int) -> Callable[[bytes], bool]:
    return lambda frame: len(frame) <= OVERHEAD + sectors * SECTOR


def test_p23_a_good_path_takes_three_requests() -> None:
    path, requests = walk(make_target(mtu=9000), WANTED, lambda _: True)
    assert path == PathMtu(WANTED, WANTED, WANTED)
    assert path.sectors == WANTED
    assert len(requests) == 3


@given(st.integers(1, 127), st.data())
def test_p23_what_a_path_carries_is_found_exactly(
    wanted: int, data: st.DataObject
) -> None:
    carries = data.draw(st.integers(1, wanted))
    target = make_target(mtu=65535)
    path, requests = walk(target, wanted, no_longer_than(carries))
    assert path == PathMtu(wanted, carries, carries)
    assert len(requests) <= 2 * 10 + 1


@given(st.integers(1, 64), st.data())
def test_p23_each_way_is_measured_by_itself(wanted: int, data: st.DataObject) -> None:
    there, back = data.draw(st.tuples(*[st.integers(1, wanted)] * 2))
    target = make_target(mtu=65535)
    away, home = no_longer_than(there), no_longer_than(back)
    path, _ = walk(target, wanted, lambda f: (away if f[:6] == TARGET else home)(f))
    assert path == PathMtu(wanted, there, back)
    assert path.sectors == min(there, back)


def test_p23_nothing_is_written() -> None:
    _, requests = walk(make_target(mtu=9000), WANTED, no_longer_than(5))
    assert {request[27] for request in requests} == {0xEC, 0x24}
    assert not any(request[24] & 1 for request in requests)


def test_p74_a_reserved_target_tells_one_way_only() -> None:
    target = make_target(mtu=9000)
    ask(target, reserve(2, b"\2\0\0\0\0\7"))
    path, _ = walk(target, WANTED, lambda _: True)
    assert path == PathMtu(WANTED, WANTED, None)
    assert path.sectors == WANTED


def test_a_dead_end_is_noticed_after_two_sizes() -> None:
    path, requests = walk(make_target(), 2, lambda _: False)
    assert path == PathMtu(2, -1, None)
    assert path.sectors == 0
    assert len(requests) == 2


def test_a_disk_smaller_than_a_frame_tells_nothing_against_the_path() -> None:
    target = make_target(MemoryDisk(bytes(3 * SECTOR)), mtu=9000)
    path, _ = walk(target, WANTED, lambda _: True)
    assert path == PathMtu(WANTED, WANTED, WANTED)


@pytest.mark.parametrize(
    ("there", "back", "verdict", "words"),
    [
        (17, 17, "ok", "carries 8.5 KiB both ways"),
        (2, 17, "fail", "carries only 1 KiB there: longer ones get lost"),
        (17, 2, "fail", "carries only 1 KiB back: longer ones get lost"),
        (2, 0, "fail", "carries only 1 KiB there and no data back"),
        (17, None, "warn", "the way back could not be tried"),
        (-1, None, "fail", "no answer to IDENTIFY"),
    ],
)
def test_a_path_that_carries_less_than_its_ends_send_fails(
    there: int, back: int | None, verdict: str, words: str
) -> None:
    address = make_target().export.address
    found = diagnose_path(address, "eth0", TARGET, PathMtu(17, there, back))
    assert found.subject == "e7.3"
    assert found.verdict == verdict
    assert words in found.text
    assert (found.verdict is Verdict.FAIL and there >= 0) == bool(found.fix)
