"""The conformance suite: our target conforms, and its state is restored."""

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
from tests.checking import EVERYTHING, MutatedExchange, check, subject_of
from tests.mutants import Mutant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initiator.check.model import Result

OTHER = bytes.fromhex("525400000001")
CONFORMING = Mutant("")


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
def test_our_target_has_no_deviation(mtu: int) -> None:
    results = check(mtu=mtu)
    assert deviations(results) == []
    assert reasons(results) == {"the target is not read-only"}
    assert len(results) == len(CHECKS)


def test_p22_our_target_has_no_deviation_with_one_sector_per_frame() -> None:
    results = check(mtu=600)
    assert deviations(results) == []


def target_with_state(state: ClientState) -> Target:
    disk = make_target().export.disk
    export = Export(Address(7, 3), disk, buffer_count=16, state=state)
    return Target(export, TARGET, 1500)


STATES = {
    "nothing": ClientState(write_cache=True),
    "a claimed target": ClientState(b"an owner\0\xff", write_cache=False),
    "a list with us in it": ClientState(mask=(OTHER, CLIENT), write_cache=True),
}


@pytest.mark.parametrize("before", STATES.values(), ids=STATES)
def test_state_and_data_are_restored(
    before: ClientState,
) -> None:
    target = target_with_state(before)
    exchange = MutatedExchange(target, CONFORMING)
    session = Session(subject_of(target, exchange), exchange, EVERYTHING)
    results = list(session.run(CHECKS))
    assert deviations(results) == []
    assert session.not_restored == {}
    assert target.export.state == before
    assert content(target) == b"".join(map(sector, range(2048)))


def content(target: Target) -> bytes:
    buffer = bytearray(target.export.disk.size)
    target.export.disk.read_into(0, memoryview(buffer))
    return bytes(buffer)


class Interrupting(MutatedExchange):
    """Raises KeyboardInterrupt at a given request, except while state is restored."""

    is_restoring = False
    last = 0

    def __call__(self, request: bytes, *, is_silence: bool) -> bytes:
        if self.request_count >= self.last and not self.is_restoring:
            raise KeyboardInterrupt
        return super().__call__(request, is_silence=is_silence)

    @contextmanager
    def restoring(self) -> Iterator[None]:
        self.is_restoring = True
        yield
        self.is_restoring = False


CHANGING = [each for each in CHECKS if each.needs]


@given(st.integers(5, 700))
@settings(max_examples=40, deadline=None)
def test_state_and_data_are_restored_after_an_interrupt(last: int) -> None:
    before = STATES["a claimed target"]
    target = target_with_state(before)
    exchange = Interrupting(target, CONFORMING)
    exchange.last = 5
    t = subject_of(target, MutatedExchange(target, CONFORMING))
    exchange.last = last
    session = Session(t, exchange, EVERYTHING, exchange.restoring)
    with pytest.raises(KeyboardInterrupt):
        list(session.run(CHANGING * 2))
    assert session.not_restored == {}
    assert target.export.state == before
    assert content(target) == b"".join(map(sector, range(2048)))


def test_a_reserved_target_keeps_its_holders() -> None:
    state = ClientState(holders=(OTHER,))
    target = target_with_state(state)
    exchange = MutatedExchange(target, CONFORMING)
    session = Session(subject_of(target, exchange), exchange, EVERYTHING)
    results = list(session.run(CHECKS))
    assert deviations(results) == []
    name = "52:54:00:00:00:01"
    assert f"the target is reserved for {name}" in reasons(results)
    assert f"the reservation of {name} is in use" in reasons(results)
    assert target.export.state.holders == (OTHER,)


def test_a_read_only_disk_skips_writes_and_has_no_deviation() -> None:
    results = check(read_only=True)
    assert deviations(results) == []
    assert verdicts(results)["writes.read_only"] is Verdict.PASSED
    assert "the target is read-only: it aborts writes" in reasons(results)


def test_missing_newer_commands_are_a_single_deviation() -> None:
    older = Mutant("", m.only(lambda a, _: a[19] in (2, 3), m.silent))
    results = check(older)
    wrong = {name for name, v in verdicts(results).items() if v is Verdict.DEVIATES}
    assert wrong == {"header.newer_commands"}


def test_checks_of_the_disk_are_skipped_without_identify() -> None:
    results = check(Mutant("", m.only(m.opcode(0xEC), m.silent)))
    assert verdicts(results)["identify.identify"] is Verdict.DEVIATES
    assert verdicts(results)["reads.read"] is Verdict.SKIPPED
    assert verdicts(results)["writes.write"] is Verdict.SKIPPED


@pytest.mark.parametrize("sectors", [b"\0" * 8, b"\xff" * 8])
def test_checks_that_need_the_size_are_skipped_if_it_is_impossible(
    sectors: bytes,
) -> None:
    def with_sectors(_: bytes, response: bytes) -> bytes:
        return (
            response[:236] + sectors + response[244:]
            if len(response) > 60
            else response
        )

    results = verdicts(check(Mutant("", m.only(m.opcode(0xEC), with_sectors))))
    assert results["identify.size"] is Verdict.DEVIATES
    assert results["reads.beyond_end"] is Verdict.SKIPPED


def test_p61_checks_of_other_clients_are_skipped_without_their_responses() -> None:
    deaf = Mutant("", m.only(lambda a, _: a[6] == 2, m.silent))
    results = verdicts(check(deaf))
    assert (
        results["masks.unlisted_client"]
        is results["masks.self_exclusion"]
        is Verdict.SKIPPED
    )


def test_a_check_that_is_not_allowed_is_skipped_with_the_option_it_needs() -> None:
    results = check(allowed=Needs.DISK)
    assert reasons(results) >= {
        "needs --claim",
        "needs --hazardous",
        "needs --claim --hazardous",
    }
    assert verdicts(results)["writes.write"] is Verdict.PASSED


def test_a_deviation_has_request_expected_and_actual_response() -> None:
    results = check(Mutant("", m.only(m.opcode(0xE7), m.put_bytes(27, 0xE7))))
    (result,) = [r for r in results if r.check.name == "identify.flush"]
    described = "response failed e7.3 lba 0 x0: device busy (status 0xe7, error 0x00)"
    assert result.why == (
        "request FLUSH e7.3",
        "expected success",
        f"got 60 bytes: {described} (status is e7, not 40)",
    )
    assert result.request[27] == result.got[27] == 0xE7
    tag = result.request[20:24].hex()
    head = f"{CLIENT.hex()}{TARGET.hex()}88a2180000070300{tag}"
    assert result.expected == f"{head}......40............0000"


def test_state_that_cannot_be_restored_is_reported() -> None:
    stuck = Mutant(
        "", rewrite=m.only_requests(lambda r: m.ccmd(4)(r, b""), m.cut_at_nul)
    )
    target = target_with_state(STATES["a claimed target"])
    exchange = MutatedExchange(target, stuck)
    session = Session(subject_of(target, exchange), exchange, EVERYTHING)
    results = list(session.run(CHECKS))
    assert list(session.not_restored) == ["config string"]
    assert "config string could not be restored after another check" in reasons(results)


@given(st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_the_suite_survives_malformed_responses(seed: int) -> None:
    chance = random.Random(seed)

    def garble(_: bytes, response: bytes) -> bytes:
        if not response or chance.random() < 0.5:
            return response
        cut = bytearray(response[: chance.randint(24, len(response))])
        for place in chance.choices(range(14, len(cut)), k=chance.randint(0, 3)):
            cut[place] = chance.randrange(256)
        return bytes(cut)

    assert len(check(Mutant("", garble))) == len(CHECKS)


def test_titles_and_names_are_unique() -> None:
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
def test_rules_are_selected_by_number_and_range(text: str, numbers: set[int]) -> None:
    assert parse_rules(text) == numbers
    assert choose(parse_rules(text)) == tuple(
        each for each in CHECKS if numbers & set(each.rules)
    )


@pytest.mark.parametrize("text", ["", "P", "Q1", "P1-", "P1--2"])
def test_text_that_is_not_a_rule_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match="not a rule"):
        parse_rules(text)


def test_a_rule_without_a_check_is_rejected() -> None:
    with pytest.raises(UsageError, match="P24: no check tests it"):
        choose(frozenset({24}))
