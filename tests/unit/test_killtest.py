"""The book that scripts/killtest keeps, and what it finds wrong with a disk."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from scripts import killtest
from tests.ledger import ORIGINAL, SECTOR, Ledger, make_sector, make_sectors

SECTORS = 16


def disk_with(**sectors: bytes) -> bytes:
    """Make a disk of original sectors but for some: s5=... is the sixth."""
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
def test_the_newest_answered_write_may_be_there_or_one_in_flight(
    ledger: Ledger, number: int
) -> None:
    assert ledger.faults(disk_with(s5=make_sector(number, 5))) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (make_sector(1, 5), "sector 5: holds write 1, not write 2 or write 3"),
        (make_sector(ORIGINAL, 5), "sector 5: holds write 0, not write 2 or write 3"),
        (bytes(SECTOR), "sector 5: holds zeros, not write 2 or write 3"),
        (make_sector(2, 6), "sector 5: nothing that was ever written there"),
        (
            make_sector(2, 5)[:256] + make_sector(3, 5)[256:],
            "sector 5: nothing that was ever written there",
        ),
    ],
)
def test_what_was_answered_and_is_not_there_is_a_fault(
    ledger: Ledger, found: bytes, words: str
) -> None:
    assert ledger.faults(disk_with(s5=found)) == [words]


def test_a_flush_promises_what_was_answered_before_it_and_sync_everything(
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


def test_a_trim_leaves_zeros_and_nothing_else_does() -> None:
    book = Ledger()
    book.answer(book.send(5, 1, is_trim=True).number)
    assert book.faults(disk_with(s5=bytes(SECTOR))) == []
    assert book.faults(disk_with(s6=bytes(SECTOR))) == [
        "sector 5: holds write 0, not zeros",
        "sector 6: holds zeros, not write 0",
    ]


def test_a_sector_in_flight_is_written_by_nobody_else(ledger: Ledger) -> None:
    assert not ledger.is_free(4, 2)
    assert ledger.is_free(6, 2)
    ledger.answer(3)
    assert ledger.is_free(4, 2)


def test_the_same_seed_plans_the_same_rounds() -> None:
    def said(*words: str) -> str:
        result = CliRunner().invoke(killtest.killtest, ["--list", *words])
        assert result.exit_code == 0
        return result.output

    assert said("--seed", "7") == said("--seed", "7")
    assert said("--seed", "7") != said("--seed", "8")
    assert len(said().splitlines()) == 200
    modes = {plan.mode for plan in killtest.plans(4, 1)}
    assert modes == set(killtest.MODES)
