"""Exchanges over a link: lost frames, frames of others, an unreachable target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aoe.config import Config
from aoe.errors import AoEError
from initiator.check.model import Check, Needs, Result, Verdict
from initiator.check.runner import Session, UnreachableError, drive
from initiator.check.subject import Subject, probe
from initiator.check.suite import CHECKS
from initiator.check.wire import WireExchange
from tests.asking import CLIENT, TARGET, config_response
from tests.links import TargetLink

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT = 0.04
LONG = 3600.0


def connect(
    responses: Callable[[bytes, bytes], list[bytes]], timeout: float = SHORT
) -> tuple[TargetLink, Subject, WireExchange]:
    link = TargetLink(responses)
    config = Config(buffer_count=16, firmware=0x4019, sector_count=2, version=1)
    t = Subject(link.target.export.address, TARGET, CLIENT, 1500, config)
    return link, t, WireExchange(link, t, timeout)


def unaltered(_: bytes, response: bytes) -> list[bytes]:
    return [response]


def run_checks(t: Subject, exchange: WireExchange, *names: str) -> list[Result]:
    checks: list[Check] = [each for each in CHECKS if each.name in names]
    return list(Session(t, exchange, ~Needs.NOTHING).run(checks))


class LoseFirst:
    """Drops the first response to each request."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, request: bytes, response: bytes) -> list[bytes]:
        is_new = request not in self._seen
        self._seen.add(request)
        return [] if is_new else [response]


NAMES = (
    "header.answered",
    "header.response_flag",
    "reads.beyond_end",
    "config.set_second",
)


def test_p2_a_lost_frame_is_retransmitted_and_no_deviation() -> None:
    link, t, exchange = connect(LoseFirst())
    assert drive(probe(t), t, exchange) is None
    assert [r.verdict for r in run_checks(t, exchange, *NAMES)] == [Verdict.PASSED] * 4
    assert len(link.sent) > len(set(link.sent))


def test_silence_is_detected_without_waiting_for_the_timeout() -> None:
    link, t, exchange = connect(unaltered, LONG)
    assert exchange(t.config(address=(9, 9)), is_silence=True) == b""
    assert len(link.sent) == 2


def test_a_response_where_silence_is_expected_is_returned() -> None:
    def always_respond(request: bytes, response: bytes) -> list[bytes]:
        wrong = config_response(0)[:20] + request[20:24] + config_response(0)[24:]
        return [response or wrong]

    _, t, exchange = connect(always_respond, LONG)
    assert exchange(t.config(address=(9, 9)), is_silence=True)[16:19] == b"\0\7\3"


def test_p8_responses_of_another_target_at_the_same_mac_are_ignored() -> None:
    def from_both_targets(_: bytes, response: bytes) -> list[bytes]:
        return [response[:18] + b"\4" + response[19:], response] if response else []

    _, t, exchange = connect(from_both_targets, LONG)
    response = exchange(t.config(address=(0xFFFF, 0xFF)), is_silence=False)
    assert response[16:19] == b"\0\7\3"


def test_p9_a_response_with_a_broadcast_address_is_returned() -> None:
    def broadcast(request: bytes, response: bytes) -> list[bytes]:
        return [response[:16] + request[16:19] + response[19:]]

    _, t, exchange = connect(broadcast, LONG)
    response = exchange(t.config(address=(0xFFFF, 0xFF)), is_silence=False)
    assert response[16:19] == b"\xff\xff\xff"


def test_p10_a_response_with_an_unknown_tag_is_reported_as_such() -> None:
    tags: list[bytes] = []

    def wrong_tags(request: bytes, response: bytes) -> list[bytes]:
        """Return every other response with the wrong tag."""
        tag = request[20:24]
        tags.extend(() if tag in tags else (tag,))
        wrong = response[:20] + b"\0\0\0\1" + response[24:]
        return [response if tags.index(tag) % 2 else wrong]

    _, t, exchange = connect(wrong_tags)
    (result,) = run_checks(t, exchange, "header.answered")
    assert result.verdict is Verdict.DEVIATES
    assert f"tag is 00000001, not {tags[0].hex()}" in result.why[2]


def test_a_target_that_crashes_in_a_check_is_reported_and_not_used_again() -> None:
    class Crashing:
        crashed = False

        def __call__(self, request: bytes, response: bytes) -> list[bytes]:
            self.crashed |= bool(request[14] & 8)
            return [] if self.crashed else [response]

    link, t, exchange = connect(Crashing())
    results = run_checks(
        t, exchange, "header.answered", "header.response_flag", "reads.read"
    )
    verdicts = [result.verdict for result in results]
    assert verdicts == [Verdict.PASSED, Verdict.DEVIATES, Verdict.SKIPPED]
    assert results[1].why[0].startswith("e7.3: no response to any request after: ")
    assert results[2].why == ("the target is unreachable",)
    with pytest.raises(UnreachableError):
        exchange(t.config(), is_silence=False)
    assert link.sent


def test_an_interface_that_accepts_no_frames_is_reported() -> None:
    link, t, exchange = connect(unaltered)
    link.reserve = lambda: None  # type: ignore[method-assign] # no slot, ever
    with pytest.raises(AoEError, match="aoe0: accepts no frames"):
        exchange(t.config(), is_silence=False)
