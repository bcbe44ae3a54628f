"""``aoe rule``: print the rules that code, tests and reports cite."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Final

import click

from aoe.common.commandline import Parsed, json_option, print_json
from aoe.common.rules import expand, parse_spans
from aoe.errors import NotFoundError
from initiator.cli.complete import complete_rule
from initiator.rules import load_all_rules, rule_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aoe.common.rules import Rule, Span

_INDENT: Final = "    "
_WIDTH: Final = 88
"""Columns of the documents."""
_ITEM: Final = re.compile(r"- |\d+\. ")


@click.command()
@click.argument(
    "rules",
    type=Parsed("rules", parse_spans),
    nargs=-1,
    metavar="[RULE]...",
    shell_complete=complete_rule,
)
@click.option(
    "--find",
    "word",
    metavar="TEXT",
    help="List the rules that contain a text, in title or statement.",
)
@json_option
def rule(
    *, rules: tuple[tuple[Span, ...], ...], word: str | None, as_json: bool
) -> None:
    """Print rules of the protocol (P) and of the Linux driver (K).

    \b
    Try:  aoe rule P61 K75
          aoe rule P61-P70
          aoe rule --find "config string"
          aoe rule

    Code, tests, aoe check and aoe lab cite these rules by number. Without RULE all
    numbers and titles are listed. Upper and lower case are the same.
    """
    chosen = _select(itertools.chain.from_iterable(rules))
    if word is not None:
        chosen = [each for each in chosen if _contains(each, word)]
        if not chosen:
            raise NotFoundError(word, "in no rule", "List them: aoe rule")
    if as_json:
        print_json("rule", rules=list(map(rule_record, chosen)))
    elif rules and word is None:
        _print(chosen)
    else:
        _print_list(chosen)


def _select(spans: Iterable[Span]) -> list[Rule]:
    """Return the rules of some spans, each once; all of them without a span.

    Raises:
        NotFoundError: a span names a rule that does not exist.
    """
    rules = load_all_rules()
    numbers = dict.fromkeys(n for span in spans for n in expand(span, rules))
    return [rules[number] for number in numbers or rules]


def _contains(each: Rule, word: str) -> bool:
    text = " ".join(f"{each.title} {each.statement}".split())
    return word.casefold() in text.casefold()


def _print(chosen: Iterable[Rule]) -> None:
    width = _WIDTH
    if sys.stdout.isatty():
        width = min(width, shutil.get_terminal_size().columns)
    for index, each in enumerate(chosen):
        click.secho(f"{chr(10) if index else ''}{each.number} {each.title}", bold=True)
        for block in _blocks(each):
            click.echo(textwrap.indent(_fill(block, width), _INDENT))


def _blocks(each: Rule) -> Iterator[str]:
    """Yield the paragraphs of a rule, with the blank lines between them."""
    for paragraph in each.statement.split("\n\n"):
        yield f"{paragraph}\n"
    yield f"Source: {each.source}"
    yield f"Document: {each.document}#{each.anchor}"


def _fill(block: str, width: int) -> str:
    """Fill a paragraph or the items of a list again; a table stays as it is."""
    if block.startswith("|"):
        return block
    items = re.split(rf"\n(?={_ITEM.pattern})", block)
    filled = "\n".join(_fill_item(item, width - len(_INDENT)) for item in items)
    return filled + "\n" * block.endswith("\n")


def _fill_item(item: str, width: int) -> str:
    marker = _ITEM.match(item)
    return textwrap.fill(
        " ".join(item.split()),
        max(width, 1),
        subsequent_indent=" " * len(marker[0]) if marker else "",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _print_list(chosen: Iterable[Rule]) -> None:
    for section, group in itertools.groupby(chosen, lambda each: each.section):
        click.secho(section, bold=True)
        for each in group:
            click.echo(f"  {each.number:<6} {each.title}")
