"""What the chapter on the lab says of its cases is what comes of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from initiator.lab.cases import Case, run_case

README = Path(__file__).parents[2] / "initiator/README.md"
CLAIMS = re.findall(
    r"aoe lab explain (\S+/\S+)\s+# ([\w-]+)(?:, (.*))?", README.read_text("utf-8")
)


def test_the_chapter_has_cases_of_every_option() -> None:
    policies = {case.split("/")[0] for case, _, _ in CLAIMS}
    assert policies >= {"none@2.6.21", "none@6.1", "a", "b", "b+", "c", "c+", "d"}
    assert policies >= {"e", "f"}


@pytest.mark.parametrize(("case", "outcome", "aside"), CLAIMS)
def test_the_chapter_tells_the_truth(case: str, outcome: str, aside: str) -> None:
    result = run_case(Case.parse(case))
    assert result.outcome == outcome
    checks = {
        "3072 bytes wasted": result.costs["wasted"] == 3072,
        "4096 bytes copied": result.costs["copied"] >= 4096,
        "a page held": result.costs["held"] == 4096,
        "reuse put off": result.costs["quarantined"] == 1,
        "with a warning": "WARN" in result.flags,
    }
    assert not aside or checks[aside]
