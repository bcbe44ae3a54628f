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

    from target.protocol.engine import Engine

EXPECTED = 17
OVERHEAD = ATA_DATA


def walk(
    target: Engine, expected: int, passes: Callable[[bytes], bool]
) -> tuple[PathMtu, list[bytes]]:
    """Measure a path that loses frames; return the result and the requests."""
    builder = RequestBuilder(target.export.address, TARGET, CLIENT)
    steps = measure(builder, expected)
    requests = []
    response = None
    try:
        while True:
            request = next(steps) if response is None else steps.send(response)
            requests.append(request)
            response = ask(target, request) if passes(request) else b""
            if not passes(response):
                response = b""
    except StopIteration as stop:
        return stop.value, requests


def no_longer_than(sectors: int) -> Callable[[bytes], bool]:
    return lambda frame: len(frame) <= OVERHEAD + sectors * SECTOR


def test_p23_a_path_without_loss_takes_three_requests() -> None:
    path, requests = walk(make_target(mtu=9000), EXPECTED, lambda _: True)
    assert path == PathMtu(EXPECTED, EXPECTED, EXPECTED)
    assert path.sectors == EXPECTED
    assert len(requests) == 3


@given(st.integers(1, 127), st.data())
def test_p23_the_exact_number_of_sectors_is_found(
    expected: int, data: st.DataObject
) -> None:
    carries = data.draw(st.integers(1, expected))
    target = make_target(mtu=65535)
    path, requests = walk(target, expected, no_longer_than(carries))
    assert path == PathMtu(expected, carries, carries)
    assert len(requests) <= 2 * 10 + 1


@given(st.integers(1, 64), st.data())
def test_p23_each_direction_is_measured(expected: int, data: st.DataObject) -> None:
    to_target, from_target = data.draw(st.tuples(*[st.integers(1, expected)] * 2))
    target = make_target(mtu=65535)
    out, back = no_longer_than(to_target), no_longer_than(from_target)
    path, _ = walk(target, expected, lambda f: (out if f[:6] == TARGET else back)(f))
    assert path == PathMtu(expected, to_target, from_target)
    assert path.sectors == min(to_target, from_target)


def test_p23_nothing_is_written() -> None:
    _, requests = walk(make_target(mtu=9000), EXPECTED, no_longer_than(5))
    assert {request[27] for request in requests} == {0xEC, 0x24}
    assert not any(request[24] & 1 for request in requests)


def test_p74_a_path_to_a_reserved_target_is_measured_in_one_direction() -> None:
    target = make_target(mtu=9000)
    ask(target, reserve(2, b"\2\0\0\0\0\7"))
    path, _ = walk(target, EXPECTED, lambda _: True)
    assert path == PathMtu(EXPECTED, EXPECTED, None)
    assert path.sectors == EXPECTED


def test_a_path_that_loses_everything_takes_two_requests() -> None:
    path, requests = walk(make_target(), 2, lambda _: False)
    assert path == PathMtu(2, -1, None)
    assert path.sectors == 0
    assert len(requests) == 2


def test_a_disk_smaller_than_a_frame_does_not_lower_the_result() -> None:
    target = make_target(MemoryDisk(bytes(3 * SECTOR)), mtu=9000)
    path, _ = walk(target, EXPECTED, lambda _: True)
    assert path == PathMtu(EXPECTED, EXPECTED, EXPECTED)


@pytest.mark.parametrize(
    ("to_target", "from_target", "verdict", "words"),
    [
        (17, 17, "ok", "carries 8.5 KiB in both directions"),
        (2, 17, "fail", "carries only 1 KiB to the target: longer frames are lost"),
        (17, 2, "fail", "carries only 1 KiB from the target: longer frames are lost"),
        (2, 0, "fail", "carries only 1 KiB to the target and no data from the target"),
        (17, None, "warn", "the other direction could not be measured"),
        (-1, None, "fail", "no response to IDENTIFY"),
    ],
)
def test_a_path_that_carries_less_than_its_ends_announce_fails(
    to_target: int, from_target: int | None, verdict: str, words: str
) -> None:
    address = make_target().export.address
    found = diagnose_path(address, "eth0", TARGET, PathMtu(17, to_target, from_target))
    assert found.subject == "e7.3"
    assert found.verdict == verdict
    assert words in found.text
    assert (found.verdict is Verdict.FAIL and to_target >= 0) == bool(found.fix)
