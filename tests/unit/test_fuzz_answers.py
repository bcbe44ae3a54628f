"""A short run of scripts/fuzz_answers, and defects that it must detect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from initiator.driver import responses
from initiator.driver.aoedev import AoeDev
from scripts import fuzz_answers
from tests.answer_fuzz import AnswerFuzz

if TYPE_CHECKING:
    import pytest

    from initiator.driver.structs import Frame

FRAMES = 30_000


def test_no_response_breaks_a_rule() -> None:
    fuzz = AnswerFuzz(seed=3)
    assert fuzz_answers.run(fuzz, FRAMES) == ""
    assert fuzz.frames == FRAMES
    assert fuzz.verdicts.keys() == {"ignored", "done", "failed", "unsupported"}
    assert fuzz.ended.keys() == {"succeeded", "failed", "rejected"}
    assert min(fuzz.ended["succeeded"], fuzz.ended["failed"]) > FRAMES / 100
    driver = fuzz.world.driver
    assert min(driver.unexpected, driver.foreign, driver.runts) > FRAMES / 100
    assert len(fuzz.world.device.targets) == 2


def test_detects_a_driver_that_accepts_responses_of_other_targets() -> None:
    fuzz = AnswerFuzz(seed=3, check_responses=False)
    assert "AssertionError" in fuzz_answers.run(fuzz, FRAMES)


def test_detects_a_driver_that_accepts_short_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(responses, "is_runt", lambda *_: False)
    assert "AssertionError" in fuzz_answers.run(AnswerFuzz(seed=3), FRAMES)


def test_detects_a_driver_that_accepts_stale_responses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For example a response to an earlier read of the same frame object."""
    match = AoeDev.match

    def matches_loosely(d: AoeDev, tag: int, now: float) -> Frame | None:
        tags = [each for each in d.factive if each & 0xF == tag & 0xF]
        return match(d, tags[0] if tags else tag, now)

    monkeypatch.setattr(AoeDev, "match", matches_loosely)
    assert "AssertionError" in fuzz_answers.run(AnswerFuzz(seed=3), FRAMES)


def test_command_prints_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz_answers.main(["--frames", "500", "--seed", "4"]) == 0
    output = capsys.readouterr().out
    assert "500 frames, seed 4, no rule broken" in output
