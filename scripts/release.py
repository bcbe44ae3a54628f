"""Prepare a release: set the version in pyproject.toml and date its changelog section.

Nothing is committed, tagged or uploaded. The commands for that are printed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[1]
VERSION: Final = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+)?")
_UNRELEASED: Final = re.compile(r"(?ms)^## \[Unreleased\]\n(.*?)(?=^## \[)")
_LINK: Final = re.compile(r"(?m)^\[Unreleased\]: (\S+)/compare/(\S+)\.\.\.HEAD$")


def set_version(pyproject: str, version: str) -> str:
    """Return the text of pyproject.toml with another version.

    Raises:
        ValueError: there is not exactly one line with a version.
    """
    line = f'version = "{version}"'
    text, count = re.subn(r'(?m)^version = "[^"]*"$', line, pyproject)
    if count != 1:
        raise ValueError(f'pyproject.toml: {count} lines of the form version = "..."')
    return text


def date_section(changelog: str, version: str, day: date) -> str:
    """Return the changelog with its Unreleased entries under a version and a date.

    Raises:
        ValueError: there is nothing to release, the version has a section already, or
            the link of Unreleased is missing.
    """
    section, link = _UNRELEASED.search(changelog), _LINK.search(changelog)
    if section is None or not section[1].strip():
        raise ValueError("CHANGELOG.md: no entries under [Unreleased]. Add them first")
    if link is None:
        raise ValueError("CHANGELOG.md: no link [Unreleased]: .../compare/TAG...HEAD")
    if f"\n## [{version}]" in changelog:
        raise ValueError(f"CHANGELOG.md: {version} is released already")
    heading = f"## [Unreleased]\n\n## [{version}] - {day.isoformat()}\n{section[1]}"
    repository, before = link.groups()
    links = (
        f"[Unreleased]: {repository}/compare/v{version}...HEAD\n"
        f"[{version}]: {repository}/compare/{before}...v{version}"
    )
    text = changelog.replace(section[0], heading, 1)
    return text.replace(link[0], links, 1)


def main() -> None:
    """Write both files and print the commands that follow."""
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    parser.add_argument("version", help="such as 0.2.0 or 0.3.0rc1")
    arguments = parser.parse_args()
    version: str = arguments.version
    if VERSION.fullmatch(version) is None:
        sys.exit(f"release: {version}: not a version. Write it as in 0.2.0 or 0.3.0rc1")
    pyproject, changelog = CHECKOUT / "pyproject.toml", CHECKOUT / "CHANGELOG.md"
    today = datetime.now(tz=UTC).date()
    try:
        dated = date_section(changelog.read_text("utf-8"), version, today)
        text = set_version(pyproject.read_text("utf-8"), version)
    except ValueError as error:
        sys.exit(f"release: {error}")
    if tomllib.loads(text)["project"]["version"] != version:
        sys.exit("release: pyproject.toml: version is not in [project]. Move it there")
    pyproject.write_text(text, "utf-8")
    changelog.write_text(dated, "utf-8")
    print(f"pyproject.toml and CHANGELOG.md are at {version}. Check and publish:")
    print("  git diff && ./scripts/test")
    print(f"  git commit -am 'Release {version}' -m 'WHY NOW'")
    print(f"  git tag -a v{version} -m 'pyaoe {version}'")
    print(f"  git push --atomic origin HEAD v{version}")


if __name__ == "__main__":
    main()
