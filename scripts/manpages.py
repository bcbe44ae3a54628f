"""Write the manual pages, from the commands and what they read, into a directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from initiator.cli.main import cli as aoe
from scripts.man_commands import add_examples, command_page
from scripts.man_config import config_page
from scripts.man_prose import (
    add_initiator_sections,
    add_target_sections,
    protocol_page,
)
from target.cli.main import cli as aoe_target

if TYPE_CHECKING:
    from scripts.roff import Page


def pages() -> list[Page]:
    """Make all pages."""
    return [_aoe_page(), _target_page(), config_page(), protocol_page()]


def _aoe_page() -> Page:
    page = command_page(aoe, "aoe", 1)
    add_initiator_sections(page)
    add_examples(page, aoe, "aoe")
    page.heading("SEE ALSO")
    page.text("aoe(7), aoe-target(8)")
    return page


def _target_page() -> Page:
    page = command_page(aoe_target, "aoe-target", 8)
    add_target_sections(page)
    add_examples(page, aoe_target, "aoe-target")
    page.heading("SEE ALSO")
    page.text("aoe(1), aoe-target.toml(5), aoe(7)")
    return page


def main() -> None:
    """Write them where the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="made if it is missing")
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    for page in pages():
        path = directory / page.file_name
        path.write_text(str(page), "ascii")
        print(path)


if __name__ == "__main__":
    main()
