"""What the commands say of themselves: all of it, in the same words, and it is true."""

from __future__ import annotations

import re

import click
import pytest

from scripts.man_commands import options_of, read_help, walk
from tests.command_lines import CLIS, ours, parse

CONTEXTS = [ctx for program, cli in CLIS.items() for ctx in walk(cli, program)]
EXAMPLES = [line for ctx in CONTEXTS for line in read_help(ctx.command).examples]
SAME_EVERYWHERE = (
    *("--control", "--deadsecs", "--interface", "--json", "--pad", "--pcap", "--pid"),
    *("--timeout", "--timing", "--policy", "--nic"),
)
MEANT_OTHERWISE = {
    ("aoe lab run", "--interface"),
    ("aoe-target serve", "--control"),
}
every_command = pytest.mark.parametrize(
    "ctx", CONTEXTS, ids=[ctx.command_path for ctx in CONTEXTS]
)


@every_command
def test_a_command_begins_with_one_sentence_and_something_to_try(
    ctx: click.Context,
) -> None:
    first, second = str(ctx.command.help).strip().split("\n\n")[:2]
    assert re.fullmatch(r"[A-Z][^.\n]*\.", first)
    assert re.match(r"\s*\x08\s*Try:  aoe", second)


@pytest.mark.parametrize("line", EXAMPLES)
def test_what_there_is_to_try_is_understood(line: str) -> None:
    found = ours(line)
    assert found
    for stage in found:
        parse(stage)


@pytest.mark.parametrize(
    "line", ["aoe discovr", "aoe discover --al", "aoe ping", "x | aoe copy e0.0 | y"]
)
def test_what_is_wrong_to_try_would_be_noticed(line: str) -> None:
    (found,) = ours(line)
    with pytest.raises(click.UsageError):
        parse(found)


@every_command
def test_every_option_says_what_it_does(ctx: click.Context) -> None:
    for names, text in options_of(ctx):
        assert re.match(r"[A-Z]", text), names
        assert re.search(r"\.($|  \[)", text), names


def test_the_options_of_serve_stand_under_headings() -> None:
    (ctx,) = (each for each in CONTEXTS if each.command_path == "aoe-target serve")
    sections = re.split(r"^(\S.*):$", ctx.get_help(), flags=re.MULTILINE)[1:]
    titles, bodies = sections[::2], sections[1::2]
    assert len(titles) == len(set(titles)) > 3
    assert all(body.startswith("\n  -") for body in bodies)
    listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", ctx.get_help(), re.MULTILINE)
    options = [each for each in ctx.command.get_params(ctx) if each.opts[0][:1] == "-"]
    assert listed == [each.opts[-1] for each in options]


@every_command
def test_the_list_of_commands_is_not_cut_short(ctx: click.Context) -> None:
    if isinstance(ctx.command, click.Group):
        page = click.Context(ctx.command, info_name=ctx.info_name, terminal_width=78)
        listed = page.get_help().partition("Show this message")[2]
        assert listed
        assert "..." not in listed


@pytest.mark.parametrize("name", SAME_EVERYWHERE)
def test_an_option_is_told_in_the_same_words_everywhere(name: str) -> None:
    told = {
        parameter.help
        for ctx in CONTEXTS
        for parameter in ctx.command.params
        if isinstance(parameter, click.Option)
        and name in parameter.opts
        and (ctx.command_path, name) not in MEANT_OTHERWISE
    }
    assert len(told) == 1
