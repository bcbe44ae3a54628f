"""README says nothing that is not there: commands, options, files, tests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from initiator.cli.main import cli as aoe
from target.cli.main import cli as aoe_target
from tests.requirements import LIBRARIES, PACKAGES

CHECKOUT = Path(__file__).parents[2]
PLACES = [".", "aoe", "target", "initiator", "initiator/lab", "scripts"]
DOCUMENTS = [
    *(CHECKOUT / "tests/tutorials").glob("*.md"),
    *(CHECKOUT / place / "README.md" for place in PLACES),
]
README = (CHECKOUT / "README.md").read_text()
CLIS = {"aoe": aoe, "aoe-target": aoe_target}
ROW = re.compile(
    r"^\| [^|\n]+ \|(?: [^|\n]+ \|){3} `(tests/[^`]+)::(test_\w+)` \|$", re.MULTILINE
)


def first_commands(text: str) -> set[str]:
    """Find what stands in code and begins with one of our commands."""
    code = re.findall(r"`(aoe(?:-target)? [^`\n]+)`", text)
    code += re.findall(r"^(?:    |[$#] )(aoe(?:-target)? [^\n]+)$", text, re.MULTILINE)
    return set(code)


def without_remark(line: str) -> list[str]:
    line = re.sub(r" {2,}.*$", "", line.replace("…", "").rstrip("\\"))
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>&;")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word[0] in "|>&;":
            break
        words.append(word)
    return words


def check(words: list[str]) -> None:
    """See to it that a command and its options are there; arguments may be wanting."""
    name, *rest = words
    command: click.Command | None = CLIS[name]
    while isinstance(command, click.Group) and rest:
        name, *rest = rest
        if name.startswith("--"):
            [option] = [each for each in command.params if name in each.opts]
            assert isinstance(option, click.Option)
            rest = rest[not option.is_flag :]
            continue
        command = command.commands.get(name.partition("|")[0])
        assert command is not None, name
    assert command is not None
    known = {o for each in command.params for o in (*each.opts, *each.secondary_opts)}
    asked = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert asked <= {*known, "--help", "--version"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(CHECKOUT)))
def test_every_command_that_is_shown_is_there(path: Path) -> None:
    for line in first_commands(path.read_text()):
        check(without_remark(line))


def test_commands_are_found_in_readme() -> None:
    found = first_commands(README)
    assert "aoe check e0.0" in found
    assert "aoe-target serve e0.0 eth0 disk.img --create 1G" in found
    assert len(found) > 20


@pytest.mark.parametrize("line", ["aoe chek e0.0", "aoe stat e0.0 --jsn"])
def test_a_command_that_is_not_there_would_be_noticed(line: str) -> None:
    with pytest.raises(AssertionError):
        check(without_remark(line))


def test_every_row_of_the_comparison_names_a_test() -> None:
    tests = ROW.findall(README)
    tables = README.partition("## Comparison")[2].partition("\n## ")[0]
    rows = [row for row in tables.splitlines() if row.startswith("| ")]
    assert len(tests) == len(rows) - 2
    for path, name in tests:
        assert f"\ndef {name}(" in (CHECKOUT / path).read_text(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(CHECKOUT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        name, _, heading = link.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), link
        assert not heading or heading in headings(linked), link


@pytest.mark.parametrize("folder", ["aoe", "target", "initiator"])
def test_a_folders_readme_names_all_that_is_in_it(folder: str) -> None:
    inside = [
        path for path in (CHECKOUT / folder).iterdir() if path.name[0] not in "_."
    ]
    names = [f"{path.name}/" if path.is_dir() else path.name for path in inside]
    names = [name for name in names if name.endswith((".py", "/"))]
    text = (CHECKOUT / folder / "README.md").read_text()
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_scripts_readme_names_each_of_them() -> None:
    names = [path.name for path in (CHECKOUT / "scripts").iterdir() if not path.suffix]
    names = [name for name in names if name[0] not in "_."]
    text = (CHECKOUT / "scripts/README.md").read_text()
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("folder", ["aoe", "target", "initiator"])
def test_a_folders_readme_names_nothing_that_is_gone(folder: str) -> None:
    text = (CHECKOUT / folder / "README.md").read_text()
    rows = "".join(re.findall(r"^\| `.*\n", text, re.MULTILINE))
    there = {path.name for path in (CHECKOUT / folder).rglob("*.py")}
    named = re.findall(r"`(?:\w+/)*(\w+\.py)`", rows)
    assert named
    assert [name for name in named if name not in there] == []


def headings(path: Path) -> set[str]:
    """Return the names under which GitHub finds the headings of a document."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}


def test_readme_can_be_read_in_ten_minutes() -> None:
    assert README.count("\n") <= 350


def test_its_packages_are_those_that_tests_need() -> None:
    (listed,) = re.findall(r"^    apt install (.*(?:\n {8}.*)*)", README, re.MULTILINE)
    essential = {"util-linux"}
    needed = {*PACKAGES.values(), *LIBRARIES.values()} - essential
    assert listed.replace("\\", "").split() == sorted(needed)
