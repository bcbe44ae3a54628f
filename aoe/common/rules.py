"""Rules from the Markdown documents of a package: parse, select, find citations.

A document has sections (``## Discovery``) and in them rules. A rule is a heading with
its number (``### P61``), a first paragraph that begins with its title in bold and a
full stop, more Markdown, and a last paragraph that begins with ``Source:``. A paragraph
``Not tested:`` may follow it, with the reason why no test can cite the rule. Rules are
in ascending order; sections at the end may hold none.

Documents are package data and are read when a rule is first needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from aoe.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Rules: TypeAlias = "Mapping[str, Rule]"

_NUMBER: Final = r"(?<!\w)(?:P\d+|K\d+[a-d]?)(?!\w)"
NUMBER: Final = re.compile(_NUMBER)
"""The number of one rule in any text."""
_CITATION: Final = re.compile(rf"({_NUMBER})(?:(?:-|\s+to\s+)({_NUMBER}))?")
_SPAN: Final = re.compile(
    r"([PK])(\d{1,6}[a-d]?)(?:-([PK]?)(\d{1,6}[a-d]?))?", re.ASCII | re.IGNORECASE
)
_HEADING: Final = re.compile(r"^(##|###) (.+)$", re.MULTILINE)
_TITLE: Final = re.compile(r"\*\*(.+?)\.\*\*\s*", re.DOTALL)
_SOURCE: Final = "Source: "
_UNTESTED: Final = "Not tested: "


@dataclass(frozen=True, slots=True)
class Rule:
    """One numbered rule.

    Args:
        number: as it is cited, ``P61`` or ``K57a``.
        title: a few words, without Markdown.
        statement: what the rule says, in Markdown, without the title.
        source: how it is known, one paragraph.
        section: the heading above it.
        document: path of the document in the repository.
        untested: why no test cites it, or "".
    """

    number: str
    title: str
    statement: str
    source: str
    section: str
    document: str
    untested: str = ""

    @property
    def anchor(self) -> str:
        """The fragment that links to the rule, as GitHub derives it from a heading."""
        return self.number.lower()


# --- documents ------------------------------------------------------------------------


def parse_rules(text: str, document: str) -> dict[str, Rule]:
    """Parse the rules of a document, in its order.

    Raises:
        ValueError: a rule has no title, statement or source, or is out of order.
    """
    rules: dict[str, Rule] = {}
    section = ""
    last = ("", 0, "")
    _, *parts = _HEADING.split(text)
    for level, heading, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if level == "##":
            section = heading
            continue
        if not NUMBER.fullmatch(heading):
            raise ValueError(f"{document}: {heading}: not the number of a rule")
        if _order(heading) <= last:
            raise ValueError(f"{document}: {heading}: out of order")
        last = _order(heading)
        rules[heading] = _parse_rule(heading, body, section, document)
    return rules


def _parse_rule(number: str, body: str, section: str, document: str) -> Rule:
    paragraphs = re.split(r"\n\s*\n", body.strip())
    untested = _pop(paragraphs, _UNTESTED)
    source = _pop(paragraphs, _SOURCE)
    statement = "\n\n".join(paragraphs)
    match = _TITLE.match(statement)
    title = " ".join(match[1].split()) if match else ""
    statement = statement[match.end() :] if match else statement
    for part, name in (
        (title, "title in bold"),
        (statement, "statement"),
        (source, "source in the last paragraph"),
    ):
        if not part:
            raise ValueError(f"{document}: {number}: no {name}")
    return Rule(number, title, statement, source, section, document, untested)


def _pop(paragraphs: list[str], label: str) -> str:
    """Remove the last paragraph if it has this label, and return it without."""
    if not paragraphs[-1].startswith(label):
        return ""
    return " ".join(paragraphs.pop().removeprefix(label).split())


def _order(number: str) -> tuple[str, int, str]:
    digits = number[1:].rstrip("abcd")
    return number[0], int(digits), number[1 + len(digits) :]


@cache
def load_rules(package: str, name: str) -> Rules:
    """Return the rules of a document among the data of a package.

    Raises:
        ValueError: as for ``parse_rules``.
    """
    from importlib.resources import files

    text = files(package).joinpath(name).read_text("utf-8")
    return MappingProxyType(parse_rules(text, f"{package}/{name}"))


def load_protocol_rules() -> Rules:
    """Return the P rules, those of ATA over Ethernet."""
    return load_rules("aoe", "PROTOCOL.md")


@cache
def repository_url() -> str:
    """Return the URL of the repository from the package's metadata, "" if unknown."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = metadata("pyaoe").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    named = dict(url.split(", ", 1) for url in urls)
    return str(named.get("Source", "")).rstrip("/")


def rule_url(rule: Rule) -> str:
    """Return the URL of a rule in the repository, "" if that is unknown."""
    base = repository_url()
    return f"{base}/blob/main/{rule.document}#{rule.anchor}" if base else ""


# --- citations ------------------------------------------------------------------------


class Span(NamedTuple):
    """One rule, or all from a first to a last one in the order of their document."""

    first: str
    last: str

    def __str__(self) -> str:
        return self.first if self.first == self.last else f"{self.first}-{self.last}"


def citations(text: str) -> Iterator[Span]:
    """Yield the rules that a text cites: ``P61``, ``P61-P70``, ``P61 to P70``."""
    for match in _CITATION.finditer(text):
        first, last = match[1], match[2] or match[1]
        if first[0] == last[0]:
            yield Span(first, last)
        else:
            yield from (Span(first, first), Span(last, last))


def cited_numbers(text: str, rules: Rules) -> list[str]:
    """Return the numbers that a text cites, ranges expanded, in document order.

    Raises:
        NotFoundError: one of them is not among the rules.
    """
    found = {n for span in citations(text) for n in expand(span, rules)}
    return [number for number in rules if number in found]


def parse_spans(text: str) -> tuple[Span, ...]:
    """Parse ``P61``, ``k75``, ``P61-P70``, ``P61-70``, or several between commas.

    Raises:
        UsageError: none of these, or a range that ends before it begins.
    """
    return tuple(_parse_span(part.strip()) for part in text.split(","))


def _parse_span(text: str) -> Span:
    match = _SPAN.fullmatch(text)
    if match is not None:
        kind, number, other, end = match.groups()
        first = kind.upper() + number.lower()
        last = (other or kind).upper() + end.lower() if end else first
        if first[0] == last[0] and _order(first) <= _order(last):
            return Span(first, last)
    raise UsageError(text, "not a rule", "Write P61, K75 or P61-P70")


def expand(span: Span, rules: Rules) -> list[str]:
    """Return the numbers of a span, in document order.

    Raises:
        NotFoundError: an end of the span is not among the rules.
    """
    for number in span:
        if number not in rules:
            raise NotFoundError(number, "no such rule", "List them: aoe rule")
    numbers = list(rules)
    return numbers[numbers.index(span.first) : numbers.index(span.last) + 1]


def compact(numbers: Iterable[str], rules: Rules) -> str:
    """Return numbers as text; three or more neighbours become a range."""
    chosen = set(numbers)
    runs: list[list[str]] = [[]]
    for number in rules:
        run = runs[-1]
        if run and (number not in chosen or number[0] != run[0][0]):
            runs.append([])
        if number in chosen:
            runs[-1].append(number)
    return ", ".join(
        f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs if run
    )
