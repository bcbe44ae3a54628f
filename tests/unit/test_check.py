"""The conformance suite: what it says of our target, and that it leaves no trace."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aoe.address import Address
from aoe.errors import UsageError
from initiator.check.model import Needs, Verdict
from initiator.check.runner import Session
from initiator.check.suite import CHECKS, choose, parse_rules
from target.protocol.exports import ClientState, Export
from target.protocol.target import Target
from tests import mutants as m
from tests.asking import CLIENT, TARGET, make_target, sector
from tests.checking import EVERYTHING, Between, check, subject_of
from tests.mutants import Mutant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initiator.check.model import Result

OTHER = bytes.fromhex("525400000001")
HONEST = Mutant("")


def verdicts(results: list[Result]) -> dict[str, Verdict]:
    return {result.check.name: result.verdict for result in results}


def deviations(results: list[Result]) -> list[str]:
    return [
        f"{result.check.name}: {'; '.join(result.why)}"
        for result in results
        if result.verdict is Verdict.DEVIATES
    ]


def reasons(results: list[Result]) -> set[str]:
    return {why for r in results if r.verdict is Verdict.SKIPPED for why in r.why}


@pytest.mark.parametrize("mtu", [1500, 9000])
def test_our_target_deviates_in_nothing(mtu: int) -> None:
    results = check(mtu=mtu)
    assert deviations(results) == []
    assert reasons(results) == {"it is not read-only"}
    assert len(results) == len(CHECKS)


def test_p22_nor_where_a_frame_has_room_for_one_sector() -> None:
    results = check(mtu=600)
    assert deviations(results) == []


def kept_target(state: ClientState) -> Target:
    disk = make_target().export.disk
    export = Export(Address(7, 3), disk, buffer_count=16, state=state)
    return Target(export, TARGET, 1500)


STATES = {
    "nothing": ClientState(write_cache=True),
    "a claimed target": ClientState(b"an owner\0\xff", write_cache=False),
    "a list with us in it": ClientState(mask=(OTHER, CLIENT), write_cache=True),
}


@pytest.mark.parametrize("before", STATES.values(), ids=STATES)
def test_what_clients_have_set_and_written_is_left_as_it_was(
    before: ClientState,
) -> None:
    target = kept_target(before)
    between = Between(target, HONEST)
    session = Session(subject_of(target, between), between, EVERYTHING)
    results = list(session.run(CHECKS))
    assert deviations(results) == []
    assert session.not_restored == {}
    assert target.export.state == before
    assert content(target) == b"".join(map(sector, range(2048)))


def content(target: Target) -> bytes:
    buffer = bytearray(target.export.disk.size)
    target.export.disk.read_into(0, memoryview(buffer))
    return bytes(buffer)


class Impatient(Between):
    """Somebody presses Ctrl-C at a certain request, but not while we restore."""

    is_held = False
    last = 0

    def __call__(self, request: bytes, *, is_silence: bool) -> bytes:
        if self.asked >= self.last and not self.is_held:
            raise KeyboardInterrupt
        return super().__call__(request, is_silence=is_silence)

    @contextmanager
    def held(self) -> Iterator[None]:
        self.is_held = True
        yield
        self.is_held = False


CHANGING = [each for each in CHECKS if each.needs]


@given(st.integers(5, 700))
@settings(max_examples=40, deadline=None)
def test_an_interrupt_at_any_moment_leaves_no_trace(moment: int) -> None:
    before = STATES["a claimed target"]
    target = kept_target(before)
    between = Impatient(target, HONEST)
    between.last = 5
    t = subject_of(target, Between(target, HONEST))
    between.last = moment
    session = Session(t, between, EVERYTHING, between.held)
    with pytest.raises(KeyboardInterrupt):
        list(session.run(CHANGING * 2))
    assert session.not_restored == {}
    assert target.export.state == before
    assert content(target) == b"".join(map(sector, range(2048)))


def test_a_target_that_is_reserved_keeps_its_holders() -> None:
    state = ClientState(holders=(OTHER,))
    target = kept_target(state)
    between = Between(target, HONEST)
    session = Session(subject_of(target, between), between, EVERYTHING)
    results = list(session.run(CHECKS))
    assert deviations(results) == []
    name = "52:54:00:00:00:01"
    assert f"it is reserved for {name}" in reasons(results)
    assert f"it is reserved for {name}, who may rely on it" in reasons(results)
    assert target.export.state.holders == (OTHER,)


def test_a_read_only_disk_is_told_and_keeps_the_rule() -> None:
    results = check(read_only=True)
    assert deviations(results) == []
    assert verdicts(results)["writes.read_only"] is Verdict.HOLDS
    assert "it is read-only: it aborts writes" in reasons(results)


def test_an_older_target_is_not_blamed_for_each_newer_command() -> None:
    older = Mutant("", m.only(lambda a, _: a[19] in (2, 3), m.silent))
    results = check(older)
    wrong = {name for name, v in verdicts(results).items() if v is Verdict.DEVIATES}
    assert wrong == {"header.newer_commands"}


def test_without_identify_nothing_is_tried_on_the_disk() -> None:
    results = check(Mutant("", m.only(m.opcode(0xEC), m.silent)))
    assert verdicts(results)["identify.identify"] is Verdict.DEVIATES
    assert verdicts(results)["reads.read"] is Verdict.SKIPPED
    assert verdicts(results)["writes.write"] is Verdict.SKIPPED


@pytest.mark.parametrize("sectors", [b"\0" * 8, b"\xff" * 8])
def test_a_size_that_no_disk_has_is_not_gone_by(sectors: bytes) -> None:
    def told(_: bytes, response: bytes) -> bytes:
        return (
            response[:236] + sectors + response[244:]
            if len(response) > 60
            else response
        )

    results = verdicts(check(Mutant("", m.only(m.opcode(0xEC), told))))
    assert results["identify.size"] is Verdict.DEVIATES
    assert results["reads.beyond_end"] is Verdict.SKIPPED


def test_p61_replies_to_others_that_nobody_hears_are_no_deviation() -> None:
    deaf = Mutant("", m.only(lambda a, _: a[6] == 2, m.silent))
    results = verdicts(check(deaf))
    assert (
        results["masks.unlisted_client"]
        is results["masks.self_exclusion"]
        is Verdict.SKIPPED
    )


def test_what_is_not_allowed_is_skipped_and_says_what_it_needs() -> None:
    results = check(allowed=Needs.DISK)
    assert reasons(results) >= {
        "needs --claim",
        "needs --hazardous",
        "needs --claim --hazardous",
    }
    assert verdicts(results)["writes.write"] is Verdict.HOLDS


def test_a_deviation_says_what_was_asked_expected_and_got() -> None:
    results = check(Mutant("", m.only(m.opcode(0xE7), m.put(27, 0xE7))))
    (result,) = [r for r in results if r.check.name == "identify.flush"]
    told = "reply failed e7.3 lba 0 x0: device busy (status 0xe7, error 0x00)"
    assert result.why == (
        "asked FLUSH e7.3",
        "expected success",
        f"got 60 bytes: {told} (status is e7, not 40)",
    )
    assert result.request[27] == result.got[27] == 0xE7
    tag = result.request[20:24].hex()
    head = f"{CLIENT.hex()}{TARGET.hex()}88a2180000070300{tag}"
    assert result.expected == f"{head}......40............0000"


def test_what_cannot_be_restored_is_told() -> None:
    stuck = Mutant("", rewrite=m.asked(lambda r: m.ccmd(4)(r, b""), m.cut_at_zero))
    target = kept_target(STATES["a claimed target"])
    between = Between(target, stuck)
    session = Session(subject_of(target, between), between, EVERYTHING)
    results = list(session.run(CHECKS))
    assert list(session.not_restored) == ["config string"]
    assert "config string could not be restored before" in reasons(results)


@given(st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_no_reply_is_so_bad_that_the_suite_breaks_down(seed: int) -> None:
    chance = random.Random(seed)

    def garble(_: bytes, response: bytes) -> bytes:
        if not response or chance.random() < 0.5:
            return response
        cut = bytearray(response[: chance.randint(24, len(response))])
        for place in chance.choices(range(14, len(cut)), k=chance.randint(0, 3)):
            cut[place] = chance.randrange(256)
        return bytes(cut)

    assert len(check(Mutant("", garble))) == len(CHECKS)


def test_titles_and_names_are_not_mixed_up() -> None:
    assert len({each.name for each in CHECKS}) == len(CHECKS)
    assert len({each.title for each in CHECKS}) == len(CHECKS)
    assert [each.title for each in CHECKS if len(each.title) > 72] == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("P19", {19}),
        ("p38, 52", {38, 52}),
        ("P61-P63,P1", {1, 61, 62, 63}),
        ("77-79", {77, 78, 79}),
    ],
)
def test_rules_are_chosen_by_number_and_range(text: str, numbers: set[int]) -> None:
    assert parse_rules(text) == numbers
    assert choose(parse_rules(text)) == tuple(
        each for each in CHECKS if numbers & set(each.rules)
    )


@pytest.mark.parametrize("text", ["", "P", "Q1", "P1-", "P1--2"])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a rule"):
        parse_rules(text)


def test_a_rule_that_nothing_checks_is_refused() -> None:
    with pytest.raises(UsageError, match="P24: no check is about it"):
        choose(frozenset({24}))
