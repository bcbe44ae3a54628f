"""How the suite asks over a link: lost frames, strangers' frames, a dead target."""

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
from tests.asking import CLIENT, TARGET, settings
from tests.links import TargetLink

if TYPE_CHECKING:
    from collections.abc import Callable

SOON = 0.04
NEVER = 3600.0


def plugged(
    replies: Callable[[bytes, bytes], list[bytes]], patience: float = SOON
) -> tuple[TargetLink, Subject, WireExchange]:
    link = TargetLink(replies)
    config = Config(buffer_count=16, firmware=0x4019, sector_count=2, version=1)
    t = Subject(link.target.export.address, TARGET, CLIENT, 1500, config)
    return link, t, WireExchange(link, t, patience)


def faithful(_: bytes, response: bytes) -> list[bytes]:
    return [response]


def play(t: Subject, asker: WireExchange, *names: str) -> list[Result]:
    checks: list[Check] = [each for each in CHECKS if each.name in names]
    return list(Session(t, asker, ~Needs.NOTHING).run(checks))


class Losing:
    """Loses whatever has not been asked before: the first of each request."""

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


def test_p2_what_is_lost_is_asked_again_and_no_deviation() -> None:
    link, t, asker = plugged(Losing())
    assert drive(probe(t), t, asker) is None
    assert [r.verdict for r in play(t, asker, *NAMES)] == [Verdict.HOLDS] * 4
    assert len(link.sent) > len(set(link.sent))


def test_silence_is_not_waited_for() -> None:
    link, t, asker = plugged(faithful, NEVER)
    assert asker(t.config(address=(9, 9)), is_silence=True) == b""
    assert len(link.sent) == 2


def test_an_answer_where_silence_is_due_is_heard() -> None:
    def both(request: bytes, response: bytes) -> list[bytes]:
        wrong = settings(0)[:20] + request[20:24] + settings(0)[24:]
        return [response or wrong]

    _, t, asker = plugged(both, NEVER)
    assert asker(t.config(address=(9, 9)), is_silence=True)[16:19] == b"\0\7\3"


def test_p8_another_target_at_the_same_mac_is_not_taken_for_this_one() -> None:
    def two(_: bytes, response: bytes) -> list[bytes]:
        return [response[:18] + b"\4" + response[19:], response] if response else []

    _, t, asker = plugged(two, NEVER)
    response = asker(t.config(address=(0xFFFF, 0xFF)), is_silence=False)
    assert response[16:19] == b"\0\7\3"


def test_p9_a_broadcast_address_in_a_reply_is_this_targets_fault() -> None:
    def everybody(request: bytes, response: bytes) -> list[bytes]:
        return [response[:16] + request[16:19] + response[19:]]

    _, t, asker = plugged(everybody, NEVER)
    response = asker(t.config(address=(0xFFFF, 0xFF)), is_silence=False)
    assert response[16:19] == b"\xff\xff\xff"


def test_p10_a_tag_that_nobody_sent_is_judged_when_nothing_else_comes() -> None:
    def mixed_up(request: bytes, response: bytes) -> list[bytes]:
        wrong = response[:20] + b"\0\0\0\1" + response[24:]
        return [response if request[23] % 2 else wrong]

    _, t, asker = plugged(mixed_up)
    (result,) = play(t, asker, "header.answered")
    assert result.verdict is Verdict.DEVIATES
    assert "tag is 00000001, not 80000000" in result.why[2]


def test_a_target_that_dies_of_a_check_is_told_and_asked_no_more() -> None:
    class Frail:
        is_dead = False

        def __call__(self, request: bytes, response: bytes) -> list[bytes]:
            self.is_dead |= bool(request[14] & 8)
            return [] if self.is_dead else [response]

    link, t, asker = plugged(Frail())
    results = play(t, asker, "header.answered", "header.response_flag", "reads.read")
    verdicts = [result.verdict for result in results]
    assert verdicts == [Verdict.HOLDS, Verdict.DEVIATES, Verdict.SKIPPED]
    assert results[1].why[0].startswith("e7.3: answers nothing any more after: ")
    assert results[2].why == ("the target answers nothing any more",)
    with pytest.raises(UnreachableError):
        asker(t.config(), is_silence=False)
    assert link.sent


def test_an_interface_that_takes_nothing_is_named() -> None:
    link, t, asker = plugged(faithful)
    link.reserve = lambda: None  # type: ignore[method-assign] # no slot, ever
    with pytest.raises(AoEError, match="aoe0: takes no frames"):
        asker(t.config(), is_silence=False)
