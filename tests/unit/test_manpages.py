"""The manual says all that the commands and the configuration file know."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import click
import msgspec
import pytest

from initiator.cli.main import cli as aoe
from scripts.man_commands import options_of, read_help, walk
from scripts.man_config import EXAMPLE
from scripts.manpages import pages
from scripts.roff import Page, escape
from target.cli.main import cli as aoe_target
from target.config.toml import Document, Export, load_settings
from target.filters.settings import FILTERS

if TYPE_CHECKING:
    from pathlib import Path

PAGES = {page.file_name: page for page in pages()}
COMMANDS = {"aoe.1": (aoe, "aoe"), "aoe-target.8": (aoe_target, "aoe-target")}
every_page = pytest.mark.parametrize("name", PAGES)
every_command = pytest.mark.parametrize(
    ("name", "ctx"),
    [
        pytest.param(name, ctx, id=ctx.command_path)
        for name, (cli, program) in COMMANDS.items()
        for ctx in list(walk(cli, program))[1:]
    ],
)


def run(*command: str, text: str) -> str:
    if not shutil.which(command[0]):
        pytest.skip("apt install mandoc groff-base")
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def plain(text: str) -> str:
    """Take bold and underlined out, and the second space between sentences."""
    return re.sub(r"(?<=\.)  (?=\S)", " ", re.sub(r".\x08", "", text))


@cache
def shown(name: str) -> str:
    """Return a page as ``man`` shows it, without its looks."""
    return plain(run("mandoc", "-Tutf8", "-Owidth=1000", text=str(PAGES[name])))


def part(name: str, heading: str) -> str:
    """Return what is shown below a heading of the second order, its line included."""
    parts = re.split(r"^(?=   \S|\S)", shown(name), flags=re.MULTILINE)
    (found,) = (
        each
        for each in parts
        if re.match(rf"   {re.escape(heading)}( [^a-z]|\n)", each)
    )
    return found


def test_there_are_four_pages() -> None:
    assert set(PAGES) == {"aoe.1", "aoe-target.8", "aoe-target.toml.5", "aoe.7"}


@every_page
def test_mandoc_finds_nothing(name: str) -> None:
    assert run("mandoc", "-Tlint", "-Wwarning", text=str(PAGES[name])) == ""


@every_page
def test_groff_finds_nothing(name: str) -> None:
    assert run("groff", "-man", "-ww", "-z", "-Tutf8", text=str(PAGES[name])) == ""


@every_page
def test_pages_are_named_where_others_say_see_also(name: str) -> None:
    said = shown(name)
    for other in set(re.findall(r"\baoe[\w.-]*\(\d\)", said)):
        title, section = other[:-1].split("(")
        assert f"{title}.{section}" in PAGES


@every_command
def test_every_command_and_option_is_in_its_page(name: str, ctx: click.Context) -> None:
    text = part(name, ctx.command_path)
    said = read_help(ctx.command)
    assert said.summary in text
    for parameter in ctx.command.params:
        if isinstance(parameter, click.Option):
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert re.search(rf"^ +(\S+, )?{option}[, \n]", text, re.MULTILINE)
    for names, words in options_of(ctx):
        assert names in text
        assert words.split("  [")[0] in text
    for example in said.examples:
        assert example in shown(name)


def test_every_key_of_the_file_is_in_its_page() -> None:
    text = shown("aoe-target.toml.5")
    for struct in (Document, Export):
        for key in struct.__struct_fields__:
            assert re.search(rf"^ +{key} = |\[\[?{key}\]", text, re.MULTILINE), key


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_and_key_of_it_is_in_the_page(name: str) -> None:
    text = part("aoe-target.toml.5", f'name = "{name}"')
    for field in msgspec.structs.fields(FILTERS[name]):
        assert re.search(rf"\b{field.name}\b", text)


def test_a_default_that_differs_is_told() -> None:
    shared = part("aoe-target.toml.5", "Keys of delay, drop, duplicate and reorder")
    assert 'Requests, replies or both. Default: "both".' in shared
    assert 'direction = "out"' in part("aoe-target.toml.5", 'name = "delay"')
    assert "direction, on" in part("aoe-target.toml.5", 'name = "drop"')


def test_the_example_of_the_file_is_one(tmp_path: Path) -> None:
    path = tmp_path / "aoe-target.toml"
    path.write_text(EXAMPLE)
    settings = load_settings(path)
    assert [str(export.address) for export in settings.exports] == ["e0.0", "e0.1"]
    said = shown("aoe-target.toml.5")
    assert all(line in said for line in EXAMPLE.splitlines())


def test_what_means_something_to_roff_is_shown_as_it_is() -> None:
    page = Page("odd", 1, "a page")
    page.heading("DESCRIPTION")
    lines = [".SH is no heading", "'neither", r"C:\n", '"a" `b` ^c ~d --e', "µ"]
    page.block(*lines)
    text = str(page)
    assert run("mandoc", "-Tlint", "-Wwarning", text=text) == ""
    body = plain(run("mandoc", "-Tutf8", text=text)).split("DESCRIPTION")[1]
    assert [line.strip() for line in body.splitlines()[1 : len(lines) + 1]] == lines


def test_prose_has_headings_tags_and_blocks() -> None:
    page = Page("odd", 1, "a page")
    page.prose(
        "A HEADING\n\nSome words with --option.\n\nTAG\n    Meaning.\n\n    as is"
    )
    head, body = str(page).split('.SH "A HEADING"\n')
    assert ".SH" in head
    assert body == (
        "Some words with \\fB\\-\\-option\\fR.\n.TP\n\\fBTAG\\fR\nMeaning.\n"
        ".PP\n.RS 4\n.EX\nas is\n.EE\n.RE\n"
    )


def test_a_page_has_the_date_that_a_build_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1580601600")
    assert f'.TH {escape("X")} 1 "2020-02-02" "pyaoe ' in str(Page("x", 1, "a page"))
