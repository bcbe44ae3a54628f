"""``aoe-target import-vblade``: convert the configuration of vblade to TOML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from aoe.errors import AoEError, NotFoundError, UsageError

if TYPE_CHECKING:
    from target.config.settings import ExportSettings

_DIRECTORY: Final = "/etc/vblade.conf.d"
_TITLE: Final = """\
# Converted from the configuration of vblade. Save it as /etc/aoe-target.toml, then:
#
#   aoe-target check /etc/aoe-target.toml      reports problems
#   systemctl disable --now vblade             stops vblade
#   systemctl enable --now aoe-target          starts aoe-target
"""
_NOTES: Final = {
    "ionice": "ionice: use IOSchedulingClass= of the systemd unit, systemd.exec(5)."
}


@click.command("import-vblade")
@click.argument(
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=_DIRECTORY,
)
def import_vblade(directory: Path) -> None:
    """Convert the configuration of vblade to a TOML file.

    \b
    Try:  aoe-target import-vblade >aoe-target.toml
          aoe-target check aoe-target.toml

    Reads the *.conf files of DIRECTORY, by default /etc/vblade.conf.d as on Debian, and
    prints the result. The files are parsed, not executed: a file that does more than
    set variables is skipped, reported on standard error, and the exit code is 1. Files
    that differ only in the interface become one disk on all of these interfaces.
    """
    paths = sorted(directory.glob("*.conf"))
    if not paths:
        raise NotFoundError(
            str(directory),
            "has no *.conf files" if directory.is_dir() else "no such directory",
            "Give the right one: aoe-target import-vblade DIRECTORY",
        )
    problems: list[AoEError] = []
    paragraphs: list[_Paragraph] = []
    for path in paths:
        try:
            _add(paragraphs, _read(path))
        except AoEError as error:
            problems.append(error)
            paragraphs.append(_Paragraph([f"Skipped: {_name(path)}"]))
    click.echo(_TITLE)
    click.echo("\n\n".join(map(str, paragraphs)))
    for problem in problems:
        click.echo(f"aoe-target: {problem}", err=True)
    if problems:
        why = f"{len(problems)} of {len(paths)} files were skipped"
        raise AoEError(str(directory), why)
    if not any(paragraph.settings for paragraph in paragraphs):
        raise NotFoundError(str(directory), "its files define no disk")


@dataclass(slots=True)
class _Paragraph:
    # A disk with its comments, and the file that defines it on each interface; or
    # comments alone, about a file that defines no disk.
    comments: list[str]
    settings: ExportSettings | None = None
    sources: dict[str, Path] = field(default_factory=dict)

    def __str__(self) -> str:
        from target.config.vblade import to_toml

        lines = [f"# {comment}" for comment in self.comments]
        return "\n".join(lines + ([to_toml(self.settings)] if self.settings else []))


def _name(path: Path) -> str:
    # A newline in a file name would end the comment.
    return str(path) if str(path).isprintable() else ascii(str(path))


def _read(path: Path) -> _Paragraph:
    from target.config.vblade import read_fragment, to_settings

    fragment = read_fragment(path)
    if fragment.missing:
        missing = ", ".join(fragment.missing)
        return _Paragraph([f"{_name(path)} has no {missing}: vblade ignores it."])
    settings = to_settings(fragment)
    notes = [
        _NOTES.get(each, f"{each}: has no equivalent, ignored.")
        for each in fragment.ignored
    ]
    sources = {settings.interfaces[0]: path}
    return _Paragraph([f"From {_name(path)}", *notes], settings, sources)


def _add(paragraphs: list[_Paragraph], new: _Paragraph) -> None:
    from msgspec.structs import replace

    for old in paragraphs:
        if not (old.settings and new.settings):
            continue
        if old.settings.address != new.settings.address:
            continue
        for name in old.sources.keys() & new.sources.keys():
            raise UsageError(
                str(new.sources[name]),
                f"{new.settings.address} on {name} is already used by "
                f"{old.sources[name]}",
                "Give each disk an address of its own",
            )
        # vblade has a process per interface. Two exports of one disk would conflict
        # over its lock, so that one export must have all interfaces.
        names = old.settings.interfaces + new.settings.interfaces
        both = replace(old.settings, interfaces=names)
        if both == replace(new.settings, interfaces=names):
            old.settings = both
            old.sources |= new.sources
            old.comments += new.comments
            return
    paragraphs.append(new)
