"""The ledger of scripts/killtest, and the faults that it finds."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from scripts import killtest
from scripts.killtest_crash import FRONT_ENDS, crash_plans
from tests.crash_ledger import CrashLedger
from tests.ledger import ORIGINAL, SECTOR, Ledger, make_sector, make_sectors

SECTORS = 16


def disk_with(**sectors: bytes) -> bytes:
    """Return a disk of original sectors, except those given: s5=... is sector 5."""
    parts = [make_sector(ORIGINAL, lba) for lba in range(SECTORS)]
    for name, raw in sectors.items():
        parts[int(name[1:])] = raw
    return b"".join(parts)


@pytest.fixture
def ledger() -> Ledger:
    """Enter three writes to sector 5: one flushed, one answered, one in flight."""
    book = Ledger()
    for _ in range(2):
        book.answer(book.send(5, 1).number)
    book.flushed(1)
    book.send(5, 1)
    return book


@pytest.mark.parametrize("number", [2, 3])
def test_newest_acknowledged_write_or_one_in_flight_is_no_fault(
    ledger: Ledger, number: int
) -> None:
    assert ledger.faults(disk_with(s5=make_sector(number, 5))) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (make_sector(1, 5), "sector 5: holds write 1, not write 2 or write 3"),
        (make_sector(ORIGINAL, 5), "sector 5: holds write 0, not write 2 or write 3"),
        (bytes(SECTOR), "sector 5: holds zeros, not write 2 or write 3"),
        (make_sector(2, 6), "sector 5: not from a write to this sector"),
        (
            make_sector(2, 5)[:256] + make_sector(3, 5)[256:],
            "sector 5: not from a write to this sector",
        ),
    ],
)
def test_missing_acknowledged_write_is_a_fault(
    ledger: Ledger, found: bytes, words: str
) -> None:
    assert ledger.faults(disk_with(s5=found)) == [words]


def test_durable_are_writes_before_a_flush_and_with_sync_all(
    ledger: Ledger,
) -> None:
    assert (len(ledger.answered), ledger.promised) == (2, 1)
    book = Ledger(is_sync=True)
    book.answer(book.send(0, 2).number)
    assert book.promised == 1
    assert book.faults(disk_with()) == [
        "sector 0: holds write 0, not write 1",
        "sector 1: holds write 0, not write 1",
    ]
    whole = make_sectors(1, 0, 2)
    assert book.faults(disk_with(s0=whole[:SECTOR], s1=whole[SECTOR:])) == []


def test_only_trimmed_sectors_may_be_zero() -> None:
    book = Ledger()
    book.answer(book.send(5, 1, is_trim=True).number)
    assert book.faults(disk_with(s5=bytes(SECTOR))) == []
    assert book.faults(disk_with(s6=bytes(SECTOR))) == [
        "sector 5: holds write 0, not zeros",
        "sector 6: holds zeros, not write 0",
    ]


def test_sectors_in_flight_are_not_free(ledger: Ledger) -> None:
    assert not ledger.is_free(4, 2)
    assert ledger.is_free(6, 2)
    ledger.answer(3)
    assert ledger.is_free(4, 2)


@pytest.fixture
def crashes() -> CrashLedger:
    """Enter three writes to sector 5: one flushed, one answered, one in flight."""
    book = CrashLedger()
    for _ in range(2):
        book.answer(book.send(5, 1))
    book.flushed(1)
    book.send(5, 1)
    return book


@pytest.mark.parametrize("number", [1, 2, 3])
def test_after_a_crash_a_flushed_write_or_a_later_one_is_no_fault(
    crashes: CrashLedger, number: int
) -> None:
    assert crashes.faults(disk_with(s5=make_sector(number, 5))) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (make_sector(ORIGINAL, 5), "holds write 0, although write 1 was flushed"),
        (make_sector(9, 5), "holds 9, which was not written"),
        (bytes(SECTOR), "holds None, which was not written"),
        (make_sector(2, 6), "not from a write to this sector"),
    ],
)
def test_after_a_crash_a_flushed_write_that_is_gone_is_a_fault(
    crashes: CrashLedger, found: bytes, words: str
) -> None:
    assert crashes.faults(disk_with(s5=found)) == [f"sector 5: {words}"]


def test_failed_flush_forgives_what_was_answered_before(crashes: CrashLedger) -> None:
    crashes.flush_failed()
    crashes.flushed(crashes.answered)
    assert crashes.promised == {5: 1}
    crashes.answer(3)
    crashes.flushed(crashes.answered)
    assert crashes.promised == {5: 3}
    assert (crashes.flushes, crashes.failures) == (3, 1)


def test_crashes_alternate_between_the_front_ends() -> None:
    plans = list(crash_plans(6, 1))
    assert plans == list(crash_plans(6, 1)) != list(crash_plans(6, 2))
    assert [plan.front_end for plan in plans] == [*FRONT_ENDS, *FRONT_ENDS]


def test_same_seed_gives_the_same_plans() -> None:
    def plans(*words: str) -> str:
        result = CliRunner().invoke(killtest.killtest, ["--list", *words])
        assert result.exit_code == 0
        return result.output

    assert plans("--seed", "7") == plans("--seed", "7")
    assert plans("--seed", "7") != plans("--seed", "8")
    assert len(plans().splitlines()) == 200
    modes = {plan.mode for plan in killtest.plans(4, 1)}
    assert modes == set(killtest.MODES)
