"""Write the man pages of commands, configuration file and protocol to a directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import click

from initiator.cli.main import SECTIONS
from initiator.cli.main import cli as aoe
from scripts.man_commands import children, command_page, overview_page
from scripts.man_config import config_page
from scripts.man_topics import protocol_page, service_page
from target.cli.main import cli as aoe_target

if TYPE_CHECKING:
    from scripts.roff import Page


def pages() -> list[Page]:
    """Return all pages."""
    return [
        overview_page(aoe, "aoe", 1, SECTIONS),
        *_command_pages(aoe, "aoe", 1),
        overview_page(aoe_target, "aoe-target", 8, {"": aoe_target.commands}),
        *_command_pages(aoe_target, "aoe-target", 8),
        service_page(),
        config_page(),
        protocol_page(),
    ]


def _command_pages(cli: click.Command, program: str, section: int) -> list[Page]:
    root = click.Context(cli, info_name=program)
    return [command_page(ctx, section) for ctx in children(root)]


def main() -> None:
    """Write the pages to the directory on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="created if it does not exist")
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    for page in pages():
        path = directory / page.file_name
        path.write_text(str(page), "ascii")
        print(path)


if __name__ == "__main__":
    main()
