from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target.filters.stack import with_filters
from target.filters.target import QUEUE_LIMIT, FilteredTarget
from tests import asking
from tests.asking import SECTORS, ata, ata_response, config, frame, make_target, sector
from tests.filtering import FilterRig, ask, ask_all, due_responses, run_until_idle

if TYPE_CHECKING:
    from collections.abc import Sequence

READ, WRITE, FLUSH, IDENTIFY = 0x24, 0x34, 0xEA, 0xEC


def read(lba: int = 0) -> bytes:
    return ata(READ, lba)


def write(lba: int, data: bytes) -> bytes:
    return ata(WRITE, lba, aflags=0x41, data=data)


def plain(request: bytes) -> bytes:
    return asking.ask(make_target(), request)


@pytest.mark.parametrize("direction", ["in", "out", "both"])
def test_dropped_frame_is_not_answered(direction: str) -> None:
    target = FilterRig(f"drop:count=1,direction={direction}").target()
    assert ask_all(target, read()) == []
    assert ask_all(target, read()) == [plain(read())]
    assert target.next_timeout() is None


def test_dropped_request_is_not_executed_but_dropped_response_is() -> None:
    data = b"\x77" * 512
    for direction, stored in (("in", sector(5)), ("out", data)):
        target = FilterRig(f"drop:on=write,direction={direction}").target()
        assert ask_all(target, write(5, data)) == []
        assert ask(target, read(5))[36:] == stored


@pytest.mark.parametrize(
    ("on", "opcodes"),
    [
        ("read", {0x20, 0x24, 0x25, 0xC8, 0x40, 0x42}),
        ("write", {0x30, 0x34, 0x35, 0xCA, 0x3D}),
        ("flush", {0xE7, 0xEA}),
        ("discard", {0x06}),
        ("all", set(range(256))),
    ],
)
def test_on_selects_by_opcode(on: str, opcodes: set[int]) -> None:
    target = FilterRig(f"drop:on={on}").target()
    dropped = {op for op in range(256) if not ask_all(target, ata(op))}
    assert dropped == opcodes
    # A query config request matches none of them.
    assert bool(ask(target, config(0))) == (on != "all")


def test_duplicated_response_is_sent_twice_and_executed_once() -> None:
    target = FilterRig("duplicate:direction=out").target()
    assert ask_all(target, read(7)) == [plain(read(7))] * 2
    assert target.target.statistics().reads == 1


def test_duplicated_request_is_executed_twice() -> None:
    target = FilterRig("duplicate:direction=in").target()
    assert ask_all(target, read(7)) == [plain(read(7))] * 2
    assert target.target.statistics().reads == 2


def test_duplicates_multiply() -> None:
    target = FilterRig("duplicate", "duplicate:direction=out").target()
    assert ask_all(target, read(7)) == [plain(read(7))] * 8


def test_request_with_delayed_response_is_executed_at_once() -> None:
    target = FilterRig("delay:seconds=50ms,on=write").target()
    request = write(5, b"\x77" * 512)
    assert ask_all(target, request, 1.0) == []
    assert ask(target, read(5), 1.0)[36:] == b"\x77" * 512
    assert target.next_timeout() == 1.05
    assert due_responses(target, 1.04) == []
    assert due_responses(target, 1.05) == [plain(request)]
    assert target.next_timeout() is None


def test_delayed_request_is_executed_when_due() -> None:
    target = FilterRig("delay:seconds=0.05,on=write,direction=in").target()
    request = write(5, b"\x77" * 512)
    assert ask_all(target, request, 1.0) == []
    assert ask(target, read(5), 1.04)[36:] == sector(5)
    assert due_responses(target, 1.06) == [plain(request)]
    assert ask(target, read(5), 1.06)[36:] == b"\x77" * 512


def test_direction_both_delays_twice() -> None:
    target = FilterRig("delay:seconds=1,direction=both").target()
    ask(target, read())
    assert run_until_idle(target) == [(2.0, plain(read()))]


def test_delayed_frames_keep_their_order() -> None:
    target = FilterRig("delay:seconds=1").target()
    requests = [read(lba) for lba in range(100)]
    for number, request in enumerate(requests):
        assert ask_all(target, request, number // 10 / 100) == []
    sent = run_until_idle(target)
    assert [response for _, response in sent] == [
        plain(request) for request in requests
    ]
    assert [now for now, _ in sent] == [1 + number // 10 / 100 for number in range(100)]


@pytest.mark.parametrize("direction", ["in", "out"])
def test_reordered_frame_is_sent_after_the_next_one(direction: str) -> None:
    target = FilterRig(f"reorder:direction={direction}").target()
    sent = [ask_all(target, read(lba)) for lba in range(5)]
    first, second, third, fourth, _ = (plain(read(lba)) for lba in range(5))
    assert sent == [[], [second, first], [], [fourth, third], []]


def test_reordered_frame_without_a_next_one_is_sent_after_hold() -> None:
    target = FilterRig("reorder:hold=20ms,direction=out").target()
    assert ask_all(target, read(), 1.0) == []
    assert run_until_idle(target) == [(1.02, plain(read()))]


def bits_between(a: bytes, b: bytes) -> int:
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))


def test_corrupt_response_has_one_flipped_bit_after_the_ethernet_header() -> None:
    target = FilterRig("corrupt:where=wire,seed=3").target()
    good = plain(read(8))
    for _ in range(50):
        (response,) = ask_all(target, read(8))
        assert response[:14] == good[:14]
        assert bits_between(response, good) == 1


def test_corrupt_data_changes_only_disk_data() -> None:
    target = FilterRig("corrupt:where=wire,what=data,direction=both,count=20").target()
    for request in (config(0), ata(FLUSH, count=0), frame(9, bytes(600))):
        assert ask(target, request) == plain(request)
    for _ in range(20):
        response = ask(target, read(8))
        assert response[:36] == plain(read(8))[:36]
        assert bits_between(response, plain(read(8))) == 1
    assert ask(target, read(8)) == plain(read(8))


def test_corrupted_request_is_written_to_the_disk() -> None:
    target = FilterRig("corrupt:where=wire,what=data,direction=in").target()
    data = b"\x5a" * 1024
    assert ask(target, ata(WRITE, 4, 2, aflags=0x41, data=data))[27] == 0x40
    assert bits_between(ask(target, ata(READ, 4, 2))[36:], data) == 1


@given(st.integers(0, 2**32), st.binary(max_size=600))
@settings(max_examples=300, deadline=None)
def test_corrupted_request_does_not_raise(seed: int, tail: bytes) -> None:
    target = FilterRig(f"corrupt:where=wire,direction=both,seed={seed}").target()
    for request in (read(), config(3, tail), frame(2, tail), frame(3, tail), tail):
        ask_all(target, request)


def test_log_has_a_key_value_line_for_each_frame() -> None:
    rig = FilterRig("log")
    target = rig.target()
    ask(target, read(8))
    ask(target, config(3, b"a b"))
    there, back = (
        "from=52:54:00:c1:1e:47 to=52:54:00:7a:26:e7",
        "from=52:54:00:7a:26:e7 to=52:54:00:c1:1e:47",
    )
    tag, quoted = "tag 0x11223344", '\\"a b\\"'
    assert rig.lines == [
        f'wire=in {there} length=36 frame="READ EXT e7.3 lba 8 x1 {tag}"',
        (
            f"wire=out {back} length=548 "
            f'frame="response ok e7.3 lba 8 x0, 512 bytes {tag}"'
        ),
        f'wire=in {there} length=35 frame="set config string {quoted} e7.3 {tag}"',
        (
            f'wire=out {back} length=60 frame="config e7.3 buffers 16 x2 '
            f'firmware 0x4019 string {quoted} {tag}"'
        ),
    ]


def test_first_filter_is_nearest_to_the_wire_in_both_directions() -> None:
    # The log has the request that the next filter drops, and no response.
    rig = FilterRig("log", "drop:direction=in")
    ask(rig.target(), read())
    assert [line.split()[0] for line in rig.lines] == ["wire=in"]
    rig = FilterRig("drop:direction=out", "log")
    ask(rig.target(), read())
    assert [line.split()[0] for line in rig.lines] == ["wire=in", "wire=out"]


def test_frames_to_other_addresses_bypass_the_filters_p8() -> None:
    rig = FilterRig("log")
    target = rig.target()
    for request in (frame(1, bytes(8), slot=4), frame(1, bytes(8), shelf=8), b"short"):
        assert ask_all(target, request) == []
    assert rig.lines == []
    assert target.target.statistics().dropped == {"other_address": 2, "short": 1}


@pytest.mark.parametrize(("shelf", "slot"), [(0xFFFF, 3), (7, 0xFF), (0xFFFF, 0xFF)])
def test_broadcast_requests_are_filtered_p9(shelf: int, slot: int) -> None:
    target = FilterRig("drop:direction=in").target()
    assert ask_all(target, frame(1, bytes(8), shelf=shelf, slot=slot)) == []
    assert target.target.statistics().requests == 0


def test_queue_is_limited() -> None:
    target = FilterRig("delay:seconds=1").target()
    for number in range(QUEUE_LIMIT + 5):
        ask(target, ata(0xE5, count=0, tag=number))
    assert target.queue_drops == 5
    tags = [
        int.from_bytes(response[20:24], "big") for _, response in run_until_idle(target)
    ]
    assert tags == list(range(QUEUE_LIMIT))


def test_delayed_response_larger_than_a_reduced_mtu_is_dropped_p19() -> None:
    target = FilterRig("delay:seconds=1").target()
    ask(target, ata(READ, 0, 2))
    ask(target, read(1))
    slot = memoryview(bytearray(14 + 600))
    assert target.handle_due(slot, 1.0) == len(plain(read(1)))
    assert target.handle_due(slot, 1.0) == 0
    assert target.queue_drops == 1


def test_count_is_shared_by_the_interfaces_of_an_export() -> None:
    rig = FilterRig("drop:count=1,direction=in")
    here, there = rig.target(), rig.target()
    assert ask_all(here, read()) == []
    assert ask_all(there, read()) == [plain(read())]


def test_target_without_wire_filters_is_not_wrapped() -> None:
    target = make_target()
    assert with_filters(target) is target
    target.export.filters = FilterRig("error", "corrupt", "readonly").filters
    assert with_filters(target) is target
    target.export.filters = FilterRig("error", "delay").filters
    behind = with_filters(target)
    assert isinstance(behind, FilteredTarget)
    assert behind.target is target
    assert behind.export is target.export


def request_of(number: int, tag: int) -> bytes:
    """Make a request without side effects, so that the response is always the same."""
    rng = Random(number)
    lba = rng.randrange(SECTORS + 2)
    choice = (
        ata(READ, lba, tag=tag),
        ata(WRITE, lba, aflags=0x41, data=sector(lba), tag=tag),
        ata(FLUSH, count=0, tag=tag),
        ata(IDENTIFY, tag=tag),
        frame(1, bytes(8), tag=tag),
        frame(9, bytes(50), tag=tag),
        frame(1, bytes(8), tag=tag, shelf=0xFFFF),
        frame(1, bytes(8), tag=tag, slot=4),
    )
    return rng.choice(choice)


CHANCES = st.sampled_from(["", ",probability=0.5", ",count=2", ",after=3", ",on=write"])
WAYS = st.sampled_from(["in", "out", "both"])
FAITHFUL = st.builds(
    "{}:direction={},seed={}{}".format,
    st.sampled_from(["drop", "duplicate", "reorder", "delay"]),
    WAYS,
    st.integers(0, 99),
    CHANCES,
)


def play(target: FilteredTarget, requests: Sequence[bytes]) -> list[bytes]:
    """Send a request every 30 ms, and advance the clock until no frame is queued."""
    sent = []
    for number, request in enumerate(requests):
        now = number * 0.03
        sent += due_responses(target, now)
        sent += ask_all(target, request, now)
    return sent + [response for _, response in run_until_idle(target)]


@settings(max_examples=400, deadline=None)
@given(st.lists(FAITHFUL, max_size=4), st.lists(st.integers(0, 2**32), max_size=12))
def test_filters_do_not_invent_frames(filters: list[str], numbers: list[int]) -> None:
    requests = [request_of(number, tag) for tag, number in enumerate(numbers)]
    expected = [plain(request) for request in requests]
    rig = FilterRig(*filters)
    sent = play(rig.target(), requests)

    assert set(sent) <= set(expected) - {b""}
    names = {text.partition(":")[0] for text in filters}
    if "duplicate" not in names:
        assert len(sent) == len(set(sent))
    if "drop" not in names:
        assert set(sent) == set(expected) - {b""}
    if not names & {"delay", "reorder"}:
        tags = [response[20:24] for response in sent]
        assert tags == sorted(tags)


ANY = st.builds(
    "{}{}".format,
    st.sampled_from(
        [
            *("drop:", "duplicate:", "reorder:", "delay:", "error:", "corrupt:"),
            *("corrupt:on=write,", "corrupt:where=wire,direction=both,"),
        ]
    ),
    st.sampled_from(["file=/nowhere", "probability=0", f"after={10**9}"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ANY, max_size=5), st.lists(st.integers(0, 2**32), max_size=8))
def test_disabled_filters_change_nothing(
    filters: list[str], numbers: list[int]
) -> None:
    target = FilterRig(*filters, "readonly:file=/nowhere").target()
    for tag, number in enumerate(numbers):
        request = request_of(number, tag)
        assert ask(target, request) == plain(request)
        assert target.next_timeout() is None


def test_delayed_response_of_a_failed_write_reports_the_error_p41() -> None:
    target = FilterRig("delay:seconds=1,direction=in", "error:on=write").target()
    ask(target, write(5, bytes(512)))
    failed = ata_response(0x61, 0x04, count=1, lba=5, aflags=0x41)
    assert run_until_idle(target) == [(1.0, failed)]
