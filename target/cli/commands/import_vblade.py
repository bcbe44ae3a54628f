"""``aoe-target import-vblade``: what vblade serves, as our configuration file."""

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
# What vblade serves, by aoe-target import-vblade. Kept as /etc/aoe-target.toml:
#
#   aoe-target check /etc/aoe-target.toml      says what is wrong with it, if anything
#   systemctl disable --now vblade             stops vblade
#   systemctl enable --now aoe-target
"""
_NOTES: Final = {
    "ionice": "ionice is for systemd: see IOSchedulingClass= in systemd.exec(5)."
}


@click.command("import-vblade")
@click.argument(
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=_DIRECTORY,
)
def import_vblade(directory: Path) -> None:
    """Print what vblade serves as a TOML file.

    \b
    Try:  aoe-target import-vblade >aoe-target.toml
          aoe-target check aoe-target.toml

    DIRECTORY is /etc/vblade.conf.d, where Debian has it, if not given. Its files,
    *.conf, are read and not run: one that does more than to set variables is left out,
    is named on standard error, and makes the exit code 1. Files that differ in nothing
    but the interface become one disk on all of them.
    """
    paths = sorted(directory.glob("*.conf"))
    if not paths:
        raise NotFoundError(
            str(directory),
            "holds no *.conf" if directory.is_dir() else "no such directory",
            "Name the one where they are: aoe-target import-vblade DIRECTORY",
        )
    problems: list[AoEError] = []
    paragraphs: list[_Paragraph] = []
    for path in paths:
        try:
            _add(paragraphs, _read(path))
        except AoEError as error:
            problems.append(error)
            paragraphs.append(_Paragraph([f"{_name(path)} is left out."]))
    click.echo(_TITLE)
    click.echo("\n\n".join(map(str, paragraphs)))
    for problem in problems:
        click.echo(f"aoe-target: {problem}", err=True)
    if problems:
        why = f"{len(problems)} of {len(paths)} files were left out"
        raise AoEError(str(directory), why)
    if not any(paragraph.settings for paragraph in paragraphs):
        raise NotFoundError(str(directory), "nothing is served from there")


@dataclass(slots=True)
class _Paragraph:
    # Comments; what they are about, if it is a disk; by interface whose disk that is.
    comments: list[str]
    settings: ExportSettings | None = None
    sources: dict[str, Path] = field(default_factory=dict)

    def __str__(self) -> str:
        from target.config.vblade import to_toml

        said = [f"# {comment}" for comment in self.comments]
        return "\n".join(said + ([to_toml(self.settings)] if self.settings else []))


def _name(path: Path) -> str:
    # A comment is one line, whatever a file is called.
    return str(path) if str(path).isprintable() else ascii(str(path))


def _read(path: Path) -> _Paragraph:
    from target.config.vblade import read_fragment, to_settings

    fragment = read_fragment(path)
    if fragment.missing:
        missing = ", ".join(fragment.missing)
        return _Paragraph([f"{_name(path)} sets no {missing}: vblade ignores it."])
    settings = to_settings(fragment)
    notes = [
        _NOTES.get(each, f"{each} means nothing here.") for each in fragment.ignored
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
                f"{new.settings.address} on {name} is already that of "
                f"{old.sources[name]}",
                "Give each disk an address of its own",
            )
        # vblade has a process for each interface; one of ours holds the disk's lock.
        names = old.settings.interfaces + new.settings.interfaces
        both = replace(old.settings, interfaces=names)
        if both == replace(new.settings, interfaces=names):
            old.settings = both
            old.sources |= new.sources
            old.comments += new.comments
            return
    paragraphs.append(new)
