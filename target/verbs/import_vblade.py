"""``aoe-target import-vblade``: what vblade serves, as our configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from aoe.errors import AoEError, NotFoundError, UsageError

if TYPE_CHECKING:
    from aoe.address import Address

_DIRECTORY: Final = "/etc/vblade.conf.d"
_NOTES: Final = {
    "ionice": "ionice is for systemd: see IOSchedulingClass= in systemd.exec(5)"
}


@click.command("import-vblade")
@click.argument(
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=_DIRECTORY,
)
def import_vblade(directory: Path) -> None:
    """Print a TOML file that serves what Debian's vblade is told to in DIRECTORY.

    \b
    Try:  aoe-target import-vblade >aoe-target.toml
          aoe-target check aoe-target.toml

    DIRECTORY is /etc/vblade.conf.d by default. Its files, *.conf, are read and not
    run: one that does more than to set variables is left out, is named on standard
    error, and makes the exit code 1.
    """
    paths = sorted(directory.glob("*.conf"))
    if not paths:
        raise NotFoundError(
            str(directory),
            "holds no *.conf" if directory.is_dir() else "no such directory",
            "Name the one where they are: aoe-target import-vblade DIRECTORY",
        )
    problems: list[AoEError] = []
    seen: dict[tuple[Address, str], Path] = {}
    click.echo("# Made by aoe-target import-vblade.")
    for path in paths:
        click.echo(f"\n{_paragraph(path, seen, problems)}")
    for problem in problems:
        click.echo(f"aoe-target: {problem}", err=True)
    if problems:
        why = f"{len(problems)} of {len(paths)} files were left out"
        raise AoEError(str(directory), why)
    if not seen:
        raise NotFoundError(str(directory), "nothing is served from there")


def _paragraph(
    path: Path, seen: dict[tuple[Address, str], Path], problems: list[AoEError]
) -> str:
    from target.vblade import read_fragment, settings_of, to_toml

    # A comment is one line, whatever a file is called.
    name = str(path) if str(path).isprintable() else ascii(str(path))
    try:
        fragment = read_fragment(path)
        if fragment.missing:
            return f"# {name} sets no {', '.join(fragment.missing)}: vblade ignores it."
        settings = settings_of(fragment)
        place = settings.address, settings.interfaces[0]
        if place in seen:
            raise UsageError(
                str(path),
                f"{place[0]} on {place[1]} is already that of {seen[place]}",
                "Give each disk an address of its own",
            )
    except AoEError as error:
        problems.append(error)
        return f"# {name} is left out."
    seen[place] = path
    notes = [
        f"# {_NOTES.get(each, each + ' means nothing here')}."
        for each in fragment.spare
    ]
    return "\n".join([f"# From {name}", *notes, to_toml(settings)])
