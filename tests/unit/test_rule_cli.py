"""``aoe rule``, and lazy loading of the rule documents."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner, Result

from aoe.common import rules as rules_module
from initiator.cli.commands.rule import rule
from initiator.cli.main import cli
from initiator.rules import load_all_rules
from tests.programs import AOE

UNKNOWN = "P" + "999"
RULES = load_all_rules()


def aoe(*words: str) -> Result:
    return CliRunner().invoke(cli, ["rule", *words])


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [*AOE, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def headings(output: str) -> list[str]:
    return [line for line in output.splitlines() if line[:1] in ("P", "K")]


def test_rule_is_printed_with_heading_statement_and_source() -> None:
    done = aoe("P61")
    assert done.exit_code == 0
    heading, *body = done.stdout.splitlines()
    assert heading == "P61 Empty mask list"
    assert all(not line or line.startswith("    ") for line in body)
    text = " ".join(done.stdout.split())
    assert " ".join(RULES["P61"].statement.split()) in text
    assert f"Source: {RULES['P61'].source}" in text
    assert "aoe/PROTOCOL.md#p61" in text


def test_rules_are_printed_in_command_line_order() -> None:
    done = aoe("k75", "P61", "K57A", "P61")
    assert headings(done.stdout) == [
        "K75 Linearizing",
        "P61 Empty mask list",
        "K57a Probe",
    ]


def test_range_includes_all_rules_between_its_ends() -> None:
    names = [line.split()[0] for line in headings(aoe("K57-k58", "P1-2,P5").stdout)]
    assert names == ["K57", "K57a", "K57b", "K58", "P1", "P2", "P5"]


@pytest.mark.parametrize("number", RULES)
def test_every_rule_is_printed_in_88_columns(number: str) -> None:
    done = aoe(number)
    assert done.exit_code == 0
    long = [line for line in done.stdout.splitlines() if len(line) > 88]
    assert all("|" in line for line in long)
    assert "`" not in done.stdout.splitlines()[0]


def test_list_items_have_a_hanging_indent() -> None:
    lines = aoe("K13").stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    2. "))
    assert lines[start + 1].startswith("       space")


@pytest.mark.parametrize("words", [[UNKNOWN], ["P61", UNKNOWN], [f"P61-{UNKNOWN}"]])
def test_unknown_rule_exits_3_with_a_fix(words: list[str]) -> None:
    done = run("rule", *words)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"aoe: {UNKNOWN}: no such rule. List them: aoe rule\n"


@pytest.mark.parametrize("word", ["61", "X1", "P61-K75", "P63-" + "P61"])
def test_invalid_number_exits_2_with_a_fix(word: str) -> None:
    done = run("rule", word)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{word}: not a rule. Write P61, K75 or P61-P70" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_arguments_all_rules_are_listed() -> None:
    lines = aoe().stdout.splitlines()
    listed = [line.split(maxsplit=1) for line in lines if line.startswith("  ")]
    assert listed == [[rule.number, rule.title] for rule in RULES.values()]
    assert "Command 2: MAC Mask List" in lines


def test_find_lists_rules_that_contain_the_text() -> None:
    done = aoe("--find", "Private Head")
    numbers = [line.split()[0] for line in done.stdout.splitlines() if line[0] == " "]
    assert "K76" in numbers
    assert "K75" not in numbers
    narrowed = aoe("K70-K79", "--find", "private head").stdout
    assert "K76" in narrowed
    assert "K108a" not in narrowed
    assert run("rule", "--find", "flying carpet").returncode == 3


def test_json_has_every_field_of_a_rule() -> None:
    report = json.loads(aoe("K57a", "P61", "--json").stdout)
    assert (report["schema_version"], report["command"]) == (1, "rule")
    probe, empty = report["rules"]
    assert probe["number"] == "K57a"
    assert empty == {
        "number": "P61",
        "title": "Empty mask list",
        "statement": RULES["P61"].statement,
        "source": RULES["P61"].source,
        "section": "Command 2: MAC Mask List",
        "document": "aoe/PROTOCOL.md",
        "url": rules_module.rule_url(RULES["P61"]) or None,
    }
    assert len(json.loads(aoe("--json").stdout)["rules"]) == len(RULES)


def test_json_has_a_url_if_the_repository_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = "https://example.org/pyaoe"
    monkeypatch.setattr(rules_module, "repository_url", lambda: base)
    (record,) = json.loads(aoe("K75", "--json").stdout)["rules"]
    assert record["url"] == f"{base}/blob/main/initiator/KERNEL.md#k75"


def test_check_list_has_the_text_of_the_rules_of_its_checks() -> None:
    done = CliRunner().invoke(cli, ["check", "--list", "--json", "--only", "P61-P63"])
    report = json.loads(done.stdout)
    about = {name for check in report["checks"] for name in check["rules"]}
    assert {"P61", "P62", "P63"} <= about
    assert [each["number"] for each in report["rules"]] == [
        n for n in RULES if n in about
    ]
    for each in report["rules"]:
        rule = RULES[each["number"]]
        assert (each["title"], each["statement"]) == (rule.title, rule.statement)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("K57", ["K57", "K57a", "K57b"]), ("k57a", ["k57a"]), ("x", [])],
)
def test_completion_offers_numbers_with_titles(typed: str, offered: list[str]) -> None:
    (parameter,) = (each for each in rule.params if each.name == "rules")
    with rule.make_context("rule", []) as ctx:
        items = parameter.shell_complete(ctx, typed)
    assert [item.value for item in items] == offered
    titles = {item.help for item in items}
    assert titles == {RULES[f"K{number[1:]}"].title for number in offered}


@pytest.mark.parametrize("words", [["--help"], ["rule", "--help"], ["check", "--list"]])
def test_documents_are_not_read_before_a_rule_is_needed(words: list[str]) -> None:
    probe = (
        "import sys; from click.testing import CliRunner;"
        "from initiator.cli.main import cli;"
        f"code = CliRunner().invoke(cli, {words}).exit_code;"
        "rules = sys.modules.get('aoe.common.rules');"
        "print(code, rules.load_rules.cache_info().currsize if rules else 0)"
    )
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "0 0\n"
