"""scripts/mutants: which mutants it makes and what it reports."""

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


def test_every_get_and_put_of_three_modules_has_a_mutant() -> None:
    call = re.compile(r"\.(get_page|put_page|page_ref_inc|page_ref_dec)\(")
    for name in ("lab/kernel/policy", "lab/kernel/slab", "lab/kernel/skbuff"):
        path = f"initiator/{name}.py"
        lines = (mutants.CHECKOUT / path).read_text().splitlines()
        calls = {n for n, line in enumerate(lines, 1) if call.search(line)}
        assert calls
        removed = {m.line for m in mutants.all_mutants() if m.path == path}
        assert calls <= removed


def test_each_check_for_references_to_an_object_has_a_mutant() -> None:
    texts = [m.text for m in mutants.all_mutants()]
    assert sum("_is_referenced" in text for text in texts) == 3


def test_a_mutant_differs_from_its_module_in_one_statement() -> None:
    for mutant in mutants.all_mutants():
        original = ast.parse((mutants.CHECKOUT / mutant.path).read_text())
        mutated = ast.parse(mutant.source)
        before, after = (
            ast.unparse(original).split("\n"),
            ast.unparse(mutated).split("\n"),
        )
        assert len(after) == len(before)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_a_call_over_several_lines_is_removed_completely() -> None:
    source = "def f(self):\n    self.put_page(\n        1,\n    )\n    return 2\n"
    (mutant,) = mutants.mutants("initiator/lab/kernel/slab.py", source)
    assert mutant.source == "def f(self):\n    pass\n    return 2\n"
    assert (mutant.line, mutant.function) == (2, "f")


def test_the_test_that_kills_a_mutant_is_named(
    tmp_path: Path,
) -> None:
    killing = ONE_TEST.format("linearizing_gets_copies_and_puts_every_fragment")
    passing = ONE_TEST.format("a_frame_without_payload_is_linear")
    mutant = find(GET)
    mutants.copy_checkout(tmp_path)
    killer = mutants.run_mutant(mutant, tmp_path, [killing]).killer
    assert killer == killing.removeprefix("tests/unit/")
    assert mutants.run_mutant(mutant, tmp_path, [passing]).killer == ""
    original = (mutants.CHECKOUT / mutant.path).read_text()
    assert (tmp_path / mutant.path).read_text() == original


@pytest.mark.parametrize(("killer", "code"), [("test_x", 0), ("", 1)])
def test_a_surviving_mutant_is_a_failure(
    killer: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_mutants(
        chosen: list[mutants.Mutant], *_: object
    ) -> Iterator[mutants.Verdict]:
        for mutant in chosen:
            yield mutants.Verdict(mutant, killer, 1.0)

    monkeypatch.setattr(mutants, "run_mutants", run_mutants)
    assert mutants.main([]) == code
    assert ("SURVIVES" in capsys.readouterr().out) is (code == 1)


def test_mutants_are_not_run_if_a_test_fails_without_them() -> None:
    with pytest.raises(SystemExit, match="Fix it first"):
        mutants.main(["-j1", "-k", "linearize", "tests/unit/no_such_test.py"])
