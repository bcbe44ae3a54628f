"""Parse the hand-written part of a man page, a file in ``scripts/manpages.d``.

Its layout is that of ``Page.prose``: sections under headings in capitals,
paragraphs separated by empty lines, indented blocks, and tagged paragraphs. The
generated part of a page is merged into its sections.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final

from scripts.roff import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from scripts.roff import Page

DIRECTORY: Final = CHECKOUT / "scripts/manpages.d"
_TAIL: Final = ("EXIT STATUS", "ENVIRONMENT", "FILES", "NOTES", "EXAMPLES", "SEE ALSO")
"""The last sections of a page, in the order of man-pages(7)."""


class Prose:
    """The sections of one file.

    Args:
        text: the contents of the file.
    """

    def __init__(self, text: str) -> None:
        self._sections: dict[str, list[str]] = {}
        paragraphs: list[str] = []
        for paragraph in text.strip("\n").split("\n\n"):
            if is_heading(paragraph):
                paragraphs = self._sections.setdefault(paragraph, [])
            else:
                paragraphs.append(paragraph)

    def headings(self) -> list[str]:
        """Return the headings of all sections, in the order of the file."""
        return list(self._sections)

    def paragraphs(self, heading: str) -> list[str]:
        """Return the paragraphs of a section; empty if there is no such section."""
        return self._sections.get(heading, [])

    def text(self, heading: str) -> str:
        """Return a section in the layout of ``Page.prose``."""
        return "\n\n".join(self.paragraphs(heading))

    def tags(self, heading: str) -> dict[str, str]:
        """Return the tagged paragraphs of a section: text by tag."""
        return dict(map(_split_tag, filter(is_tagged, self.paragraphs(heading))))

    def untagged(self, heading: str) -> str:
        """Return the other paragraphs of a section, in the layout of ``Page.prose``."""
        rest = (each for each in self.paragraphs(heading) if not is_tagged(each))
        return "\n\n".join(rest)

    def middle(self, merged: Iterable[str]) -> list[str]:
        """Return the headings between the ``merged`` sections and the tail."""
        skipped = {*merged, *_TAIL}
        return [heading for heading in self._sections if heading not in skipped]

    def tail(self, generated: Collection[str] = ()) -> list[str]:
        """Return the last sections that the file has or that are ``generated``."""
        return [each for each in _TAIL if each in self._sections or each in generated]


def read_prose(file_name: str) -> Prose:
    """Read the hand-written part of a page, for example ``aoe-copy.1``.

    Raises:
        LookupError: the file does not exist.
    """
    path = DIRECTORY / f"{file_name}.txt"
    if not path.exists():
        raise LookupError(f"{path}: missing: every command needs a man page")
    return Prose(path.read_text("utf-8"))


def add_section(page: Page, prose: Prose, heading: str) -> None:
    """Add a section of the file to a page."""
    page.heading(heading)
    page.prose(prose.text(heading))


def is_heading(paragraph: str) -> bool:
    """Return True for a heading: one line in capitals."""
    return "\n" not in paragraph and paragraph.isupper() and paragraph[0] != " "


def is_block(paragraph: str) -> bool:
    """Return True for a block of unfilled lines."""
    return paragraph.startswith(" ")


def is_tagged(paragraph: str) -> bool:
    """Return True for a tag with its text, the indented lines below it."""
    first, _, rest = paragraph.partition("\n")
    return not is_block(first) and rest.startswith(" ")


def _split_tag(paragraph: str) -> tuple[str, str]:
    tag, _, text = paragraph.partition("\n")
    return tag, " ".join(inspect.cleandoc(text).split())
