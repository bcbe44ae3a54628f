"""The rule documents are well-formed, citations resolve, and rules are tested."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aoe.common.rules import (
    NUMBER,
    Span,
    citations,
    cited_numbers,
    compact,
    expand,
    load_protocol_rules,
    parse_rules,
    parse_spans,
)
from aoe.errors import NotFoundError, UsageError
from initiator.rules import load_all_rules, load_kernel_rules
from scripts.rule_index import DOCUMENTS, updated

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDERS = ("aoe", "initiator", "target", "tests", "scripts")
FILES = sorted(
    str(path.relative_to(CHECKOUT))
    for path in (
        *CHECKOUT.glob("*.md"),
        *CHECKOUT.glob(".github/**/*.md"),
        *(path for name in FOLDERS for path in (CHECKOUT / name).rglob("*.*")),
    )
    if path.suffix in (".py", ".md")
)
RULES = load_all_rules()
# Concatenated, so that this file does not cite it.
UNKNOWN = "P" + "999"
IN_A_NAME = re.compile(r"(?<![a-z0-9])([pk]\d+[a-d]?)(?![a-z0-9])")
IN_AN_ID = re.compile(r"(?:[pk]\d+[a-d]? )+(?=\w)")
A_RANGE = re.compile(rf"{NUMBER.pattern}(?:-|\s+to\s+){NUMBER.pattern}")


# --- the documents --------------------------------------------------------------------


def test_both_documents_are_parsed() -> None:
    assert {number[0] for number in load_protocol_rules()} == {"P"}
    assert {number[0] for number in load_kernel_rules()} == {"K"}
    assert len(RULES) == len(load_protocol_rules()) + len(load_kernel_rules()) > 200
    assert RULES["P61"].title == "Empty mask list"
    assert RULES["P61"].section == "Command 2: MAC Mask List"
    assert RULES["P61"].statement.startswith("An empty list admits every client.")
    assert RULES["P61"].source.startswith("Kaitai paraphrase; AoEr11, section 3.3")
    assert (RULES["K57a"].document, RULES["K57a"].anchor) == (
        "initiator/KERNEL.md",
        "k57a",
    )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_titles_of_rules_are_unique(document: str) -> None:
    titles = Counter(rule.title for rule in RULES.values() if rule.document == document)
    assert [title for title, count in titles.items() if count > 1] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_index_by_module_is_up_to_date(document: str) -> None:
    text = (CHECKOUT / document).read_text("utf-8")
    assert updated(document) == text, "run scripts/rule_index"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_index_by_topic_has_every_rule(document: str) -> None:
    text = (CHECKOUT / document).read_text("utf-8")
    (index,) = re.findall(r"\n## Index by (?:topic|command)\n((?:(?!## ).*\n)+)", text)
    mine = [number for number in RULES if RULES[number].document == document]
    assert set(mine) - set(cited_numbers(index, RULES)) == set()


GOOD = """\
# Rules

## One section

### P1

**A title.** A statement.

- with a list

Source: a book,
page 2.

### P2

**Another
title.** More.

Source: remembered.

Not tested: history.

## Index

| topic | rules |
"""


def test_document_is_parsed_into_rules() -> None:
    one, two = parse_rules(GOOD, "X.md").values()
    assert (one.number, one.title, one.section) == ("P1", "A title", "One section")
    assert one.statement == "A statement.\n\n- with a list"
    assert (one.source, one.untested) == ("a book, page 2.", "")
    assert (two.title, two.statement) == ("Another title", "More.")
    assert (two.source, two.untested) == ("remembered.", "history.")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("**A title.**", "A title.", "X.md: P1: no title in bold"),
        ("**Another\ntitle.** More.", "**Another.**", "X.md: P2: no statement"),
        ("Source: a", "From a", "X.md: P1: no source in the last paragraph"),
        ("page 2.", "\nMore.", "X.md: P1: no source in the last paragraph"),
        ("### P2", "### P1", "X.md: P1: out of order"),
        ("### P2", "### Second", "X.md: Second: not the number of a rule"),
    ],
)
def test_malformed_document_is_refused(old: str, new: str, error: str) -> None:
    assert old in GOOD
    with pytest.raises(ValueError, match=f"^{re.escape(error)}$"):
        parse_rules(GOOD.replace(old, new), "X.md")


# --- citations ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(P1, K57a)", ["P1", "K57a"]),
        ("K48-K50 and P1 to P3.", ["K48-K50", "P1-P3"]),
        ("P1 to\n    P3", ["P1-P3"]),
        ("P19's K75: K10-P3", ["P19", "K75", "K10", "P3"]),
        ('struct.pack("P16x"), 4K, MTU_P1, K8s, k75, #k75', []),
    ],
)
def test_citations_are_found_in_text(text: str, found: list[str]) -> None:
    assert list(map(str, citations(text))) == found


def test_range_includes_all_rules_between_its_ends() -> None:
    span = Span("K57", "K58")
    assert expand(span, RULES) == ["K57", "K57a", "K57b", "K58"]
    assert compact(expand(span, RULES), RULES) == "K57-K58"
    assert compact(["K70", "K68", "K1", "K2", "P83"], RULES) == "P83, K1, K2, K68, K70"
    assert cited_numbers("K2, K1-K3", RULES) == ["K1", "K2", "K3"]
    with pytest.raises(NotFoundError):
        cited_numbers(UNKNOWN, RULES)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("p61", ["P61"]),
        ("K57A", ["K57a"]),
        ("P61-P63,k75", ["P61-P63", "K75"]),
        ("P61-63", ["P61-P63"]),
    ],
)
def test_spans_are_parsed_in_either_case(text: str, spans: list[str]) -> None:
    assert list(map(str, parse_spans(text))) == spans


@pytest.mark.parametrize(
    "text",
    ["", "61", "P", "P61-", "P61-K75", "P63-" + "P61", "X1", "P61 P62"],
)
def test_other_text_is_refused_as_a_span(text: str) -> None:
    with pytest.raises(UsageError, match="not a rule"):
        parse_spans(text)


@pytest.mark.parametrize("path", FILES)
def test_every_citation_resolves(path: str) -> None:
    text = (CHECKOUT / path).read_text("utf-8")
    unresolved = [
        str(span)
        for span in citations(text)
        if not {*span} <= RULES.keys() or not expand(span, RULES)
    ]
    assert unresolved == []
    old_names = ("kernel" + "-path.md", "aoe" + "-protocol.md")
    assert [name for name in old_names if name in text] == []


# --- tests ----------------------------------------------------------------------------


def cited_by_tests() -> Iterator[str]:
    """Yield the rules that the name, docstring or a comment of a test cites.

    A range does not count: it names a topic, not rules that are all tested.
    """
    for path in (CHECKOUT / "tests").rglob("test_*.py"):
        source = path.read_text("utf-8")
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.FunctionDef(name=name) if name.startswith("test_"):
                    for number in IN_A_NAME.findall(name):
                        yield upper(number)
                    text = ast.get_source_segment(source, node) or ""
                    comments = re.findall(r"#.*", text)
                    text = "\n".join([ast.get_docstring(node) or "", *comments])
                    yield from NUMBER.findall(A_RANGE.sub("", text))
                case ast.Constant(value=str(text)) if match := IN_AN_ID.match(text):
                    yield from map(upper, match[0].split())


def upper(number: str) -> str:
    return number[0].upper() + number[1:]


def test_every_rule_is_cited_by_a_test_or_has_a_reason() -> None:
    tested = set(cited_by_tests())
    untested = {number for number, rule in RULES.items() if rule.untested}
    assert RULES.keys() - tested == untested


def test_every_driver_rule_has_a_unit_test_named_after_it() -> None:
    names = [
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    tested = {upper(number) for name in names for number in IN_A_NAME.findall(name)}
    driver = {n for n in expand(Span("K1", "K64"), RULES) if not RULES[n].untested}
    assert driver - tested == set()


def wire_tests() -> list[str]:
    """Return the names of all tests that send real frames, parameters included."""
    options = ["--collect-only", "-q", "-m", "netns", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "tests/wire"]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (line.partition("::") for line in done.stdout.splitlines())
    return [name for _, separator, name in lines if separator]


def test_every_wire_rule_has_a_wire_test_named_after_it() -> None:
    tested = {upper(n) for name in wire_tests() for n in IN_A_NAME.findall(name)}
    wire = {
        number
        for number, rule in load_protocol_rules().items()
        if rule.section != "IDENTIFY DEVICE data"
    }
    assert len(wire) == 79
    assert wire - tested == set()


def test_lines_of_the_documents_have_at_most_88_characters() -> None:
    for document in DOCUMENTS:
        for line in (CHECKOUT / document).read_text("utf-8").splitlines():
            assert line.startswith(("|", "<!--")) or len(line) <= 88, textwrap.shorten(
                line, 60
            )
