"""The outcomes that the README and aoe-lab(1) state are those of the lab."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from initiator.cli.main import cli
from initiator.lab.cases import Case, run_case
from initiator.lab.kernel.policy import MATRIX_POLICIES

CHECKOUT = Path(__file__).parents[2]
CLAIM = re.compile(r"aoe lab explain (\S+/\S+)\s+# ([\w-]+)(?:, (.*))?")
README = (CHECKOUT / "initiator/lab/README.md").read_text("utf-8")
PAGE = (CHECKOUT / "scripts/manpages.d/aoe-lab.1.txt").read_text("utf-8")
ROW = re.compile(r"\| (.+) \| `aoe (lab .+?)` \| (.+) \|")
STATEMENTS = ROW.findall(README)
CLAIMS = sorted({*CLAIM.findall(README), *CLAIM.findall(PAGE)})


def test_the_page_has_cases_of_every_policy() -> None:
    policies = {case.split("/")[0] for case, _, _ in CLAIM.findall(PAGE)}
    assert policies >= set(MATRIX_POLICIES)


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


def test_the_statements_of_2007_have_commands() -> None:
    text = " ".join(statement for statement, _, _ in STATEMENTS)
    for quoted in (
        "might cause memory leaks",
        "although it won't, because the caller hasn't run bi_end_io yet",
        "don't give the page back to the page allocator",
        "a bit costly",
        "references tend to be rather short-term",
        "slab debug alignment issues",
        "document and enforce",
    ):
        assert f'"{quoted}"' in text


@pytest.mark.parametrize(("statement", "command", "shown"), STATEMENTS)
def test_a_statement_of_2007_is_shown_by_its_command(
    statement: str, command: str, shown: str
) -> None:
    assert statement
    done = CliRunner().invoke(cli, command.split())
    assert done.exit_code == 0
    output = " ".join(done.stdout.split())
    quoted = [text for text in re.findall(r"`([^`]+)`", shown) if text != "bi_end_io"]
    assert quoted
    for text in quoted:
        assert text in output
