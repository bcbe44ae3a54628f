"""The check of the lab's tests, scripts/mutants, checked itself."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from scripts import mutants

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ONE_TEST = "tests/unit/test_lab_skbuff.py::test_k75_{}"
GET = "skbuff.py.*linearize.*get_page"


def find(pattern: str) -> mutants.Mutant:
    (found,) = (m for m in mutants.all_mutants() if re.search(pattern, str(m)))
    return found


def test_every_get_and_put_of_the_three_modules_is_a_mutant() -> None:
    call = re.compile(r"\.(get_page|put_page|page_ref_inc|page_ref_dec)\(")
    for name in ("lab/kernel/policy", "lab/kernel/slab", "lab/kernel/skbuff"):
        path = f"initiator/{name}.py"
        lines = (mutants.CHECKOUT / path).read_text().splitlines()
        calls = {n for n, line in enumerate(lines, 1) if call.search(line)}
        assert calls
        left_out = {m.line for m in mutants.all_mutants() if m.path == path}
        assert calls <= left_out


def test_so_are_both_looks_at_who_refers_to_an_object() -> None:
    texts = [m.text for m in mutants.all_mutants()]
    assert sum("_is_referenced" in text for text in texts) == 2


def test_a_mutant_is_its_module_but_for_one_statement() -> None:
    for mutant in mutants.all_mutants():
        whole = ast.parse((mutants.CHECKOUT / mutant.path).read_text())
        mutated = ast.parse(mutant.source)
        before, after = ast.unparse(whole).split("\n"), ast.unparse(mutated).split("\n")
        assert len(after) == len(before)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_a_call_over_several_lines_is_left_out_whole() -> None:
    source = "def f(self):\n    self.put_page(\n        1,\n    )\n    return 2\n"
    (mutant,) = mutants.mutants("initiator/lab/kernel/slab.py", source)
    assert mutant.source == "def f(self):\n    pass\n    return 2\n"
    assert (mutant.line, mutant.function) == (2, "f")


def test_a_test_that_sees_the_difference_is_named_and_a_blind_one_is_not(
    tmp_path: Path,
) -> None:
    sees = ONE_TEST.format("linearising_gets_copies_and_puts_every_fragment")
    blind = ONE_TEST.format("a_frame_without_payload_is_linear")
    mutant = find(GET)
    mutants.copy_checkout(tmp_path)
    killer = mutants.judge(mutant, tmp_path, [sees]).killer
    assert killer == sees.removeprefix("tests/unit/")
    assert mutants.judge(mutant, tmp_path, [blind]).killer == ""
    whole = (mutants.CHECKOUT / mutant.path).read_text()
    assert (tmp_path / mutant.path).read_text() == whole


@pytest.mark.parametrize(("killer", "code"), [("test_x", 0), ("", 1)])
def test_a_survivor_is_failure(
    killer: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def judge_all(
        chosen: list[mutants.Mutant], *_: object
    ) -> Iterator[mutants.Verdict]:
        for mutant in chosen:
            yield mutants.Verdict(mutant, killer, 1.0)

    monkeypatch.setattr(mutants, "judge_all", judge_all)
    assert mutants.main([]) == code
    assert ("SURVIVES" in capsys.readouterr().out) is (code == 1)


def test_nothing_is_judged_while_a_test_fails_anyway() -> None:
    with pytest.raises(SystemExit, match="Repair that first"):
        mutants.main(["-j1", "-k", "linearise", "tests/unit/no_such_test.py"])
