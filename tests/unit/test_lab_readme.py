"""The outcomes that the README and aoe-lab(1) state are those of the lab."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from initiator.lab.cases import Case, run_case

CHECKOUT = Path(__file__).parents[2]
CLAIM = re.compile(r"aoe lab explain (\S+/\S+)\s+# ([\w-]+)(?:, (.*))?")
README = (CHECKOUT / "initiator/lab/README.md").read_text("utf-8")
PAGE = (CHECKOUT / "scripts/manpages.d/aoe-lab.1.txt").read_text("utf-8")
CLAIMS = sorted({*CLAIM.findall(README), *CLAIM.findall(PAGE)})


def test_the_page_has_cases_of_every_policy() -> None:
    policies = {case.split("/")[0] for case, _, _ in CLAIM.findall(PAGE)}
    assert policies >= {"none@2.6.21", "none@6.1", "a", "b", "b+", "c", "c+", "d"}
    assert policies >= {"e", "f"}


@pytest.mark.parametrize(("case", "outcome", "aside"), CLAIMS)
def test_a_stated_outcome_is_that_of_the_lab(
    case: str, outcome: str, aside: str
) -> None:
    result = run_case(Case.parse(case))
    assert result.outcome == outcome
    checks = {
        "3072 bytes wasted": result.costs["wasted"] == 3072,
        "8192 bytes copied": result.costs["copied"] == 8192,
        "4096 bytes held": result.costs["held"] == 4096,
        "1 object deferred": result.costs["deferred"] == 1,
        "with a warning": "WARN" in result.flags,
    }
    assert not aside or checks[aside]
