"""Update the index by module at the end of the rule documents.

A row has a module and the rules that it cites. Command lines in help texts (``aoe rule
P38``) and literals in double backquotes are examples, not citations.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aoe.common.rules import cited_numbers, compact, parse_rules
from initiator.rules import load_all_rules

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT: Final = Path(__file__).resolve().parents[1]
DOCUMENTS: Final = ("aoe/PROTOCOL.md", "initiator/KERNEL.md")
PACKAGES: Final = ("aoe", "initiator", "target")
_EXAMPLE: Final = re.compile(r"\baoe (?:check|rule)\b[^\n]*|``[^`]*``")
_BEGIN: Final = "<!-- index by module: begin -->\n"
_END: Final = "<!-- index by module: end -->"


def citing_modules() -> Iterator[tuple[str, list[str]]]:
    """Yield the path of each module that cites rules, and the rule numbers.

    Raises:
        NotFoundError: a module cites a rule that does not exist.
    """
    rules = load_all_rules()
    for package in PACKAGES:
        for path in sorted((CHECKOUT / package).rglob("*.py")):
            text = _EXAMPLE.sub("", path.read_text("utf-8"))
            numbers = cited_numbers(text, rules)
            if numbers:
                yield path.relative_to(CHECKOUT).as_posix(), numbers


def updated(document: str) -> str:
    """Return the text of a document with its index updated."""
    text = (CHECKOUT / document).read_text("utf-8")
    rules = parse_rules(text, document)
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{document}: no markers of the index by module")
    rows = ["| module | rules |", "|---|---|"]
    for path, numbers in citing_modules():
        here = [number for number in numbers if number in rules]
        if here:
            rows.append(f"| `{path}` | {compact(here, rules)} |")
    return "".join((before, begin, "\n", "\n".join(rows), "\n\n", end, after))


def main() -> None:
    """Update both indexes."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for document in DOCUMENTS:
        (CHECKOUT / document).write_text(updated(document), "utf-8")
        print(document)


if __name__ == "__main__":
    main()
