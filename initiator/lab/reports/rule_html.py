"""Rules as HTML: their Markdown, and links from each citation to the rule.

A citation links to the rule on the same page if that is there, or else to the document
in the repository if its URL is known. The Markdown of the documents has paragraphs,
lists, tables and code spans.
"""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING, Final

from aoe.common.rules import NUMBER, cited_numbers, rule_url
from initiator.rules import load_all_rules

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from aoe.common.rules import Rule

_ITEM: Final = re.compile(r"(?:^|\n)(- |\d+\. )")


class RuleLinks:
    """The rules of a page, and links to them.

    Args:
        named: numbers that the page cites. The rules that these cite are on the page,
            too; what is cited there may be elsewhere.
    """

    def __init__(self, named: Collection[str]) -> None:
        self._rules = load_all_rules()
        self.named = [number for number in self._rules if number in named]
        cited = " ".join(self._rules[number].statement for number in self.named)
        self.further = [
            number
            for number in cited_numbers(cited, self._rules)
            if number not in self.named
        ]
        self._here = {*self.named, *self.further}

    def link(self, text: str) -> str:
        """Return plain text as HTML in which each citation of a rule is a link."""
        return NUMBER.sub(lambda match: self._anchor(match[0]), escape(text))

    def describe(self, number: str) -> str:
        """Return number and title of a rule as a link, or "" if there is no rule."""
        rule = self._rules.get(number)
        return f"{self._anchor(number)} {escape(rule.title)}" if rule else ""

    def _anchor(self, number: str) -> str:
        rule = self._rules.get(number)
        if rule is None:
            return number
        href = f"#{rule.anchor}" if number in self._here else rule_url(rule)
        if not href:
            return number
        return f'<a href="{href}" title="{escape(rule.title)}">{number}</a>'

    def articles(self, numbers: Iterable[str]) -> Iterator[str]:
        """Yield the full text of rules, each with an anchor."""
        for number in numbers:
            yield self._article(self._rules[number])

    def _article(self, rule: Rule) -> str:
        url = rule_url(rule)
        document = f"{rule.document}, {rule.section}"
        where = f'<a href="{url}">{escape(document)}</a>' if url else escape(document)
        source = f"Source: {self._inline(rule.source)}<br/>{where}"
        return "\n".join(
            (
                f'<article class="rule" id="{rule.anchor}">',
                f"<h3>{rule.number} {escape(rule.title)}</h3>",
                *(self._block(text) for text in rule.statement.split("\n\n")),
                f'<p class="source">{source}</p>',
                "</article>",
            )
        )

    def _block(self, text: str) -> str:
        if text.startswith("|"):
            return self._table(text)
        _, *items = _ITEM.split(text)
        if not items or not _ITEM.match(text):
            return f"<p>{self._inline(text)}</p>"
        kind = "ul" if items[0] == "- " else "ol"
        lines = (f"<li>{self._inline(item)}</li>" for item in items[1::2])
        return f"<{kind}>{''.join(lines)}</{kind}>"

    def _table(self, text: str) -> str:
        heading, _, *rows = (line.strip("|").split("|") for line in text.splitlines())
        lines = [self._row(heading, "th"), *map(self._row, rows)]
        return f"<table>{''.join(lines)}</table>"

    def _row(self, cells: Iterable[str], kind: str = "td") -> str:
        inside = (f"<{kind}>{self._inline(cell.strip())}</{kind}>" for cell in cells)
        return f"<tr>{''.join(inside)}</tr>"

    def _inline(self, text: str) -> str:
        parts = text.split("`")
        parts[::2] = map(self.link, parts[::2])
        parts[1::2] = (f"<code>{escape(code)}</code>" for code in parts[1::2])
        return "".join(parts)
