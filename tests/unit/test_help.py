"""The help of all commands: form, examples, and equal texts of shared options."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import click
import pytest

from aoe.common.commandline import run
from scripts.man_commands import options_of, read_help, walk
from tests.command_lines import CLIS, ours, parse

CONTEXTS = [ctx for program, cli in CLIS.items() for ctx in walk(cli, program)]
EXAMPLES = [line for ctx in CONTEXTS for line in read_help(ctx.command).examples]
SHARED_OPTIONS = (
    *("--control", "--deadsecs", "--interface", "--json", "--pad", "--pcap", "--pid"),
    *("--timeout", "--timing", "--policy", "--nic"),
)
OTHER_MEANING = {
    ("aoe lab run", "--interface"),
    ("aoe-target serve", "--control"),
}
GROUPS = [ctx for ctx in CONTEXTS if isinstance(ctx.command, click.Group)]
every_command = pytest.mark.parametrize(
    "ctx", CONTEXTS, ids=[ctx.command_path for ctx in CONTEXTS]
)
every_group = pytest.mark.parametrize(
    "ctx", GROUPS, ids=[ctx.command_path for ctx in GROUPS]
)


@every_command
def test_help_begins_with_one_sentence_and_an_example(
    ctx: click.Context,
) -> None:
    first, second = str(ctx.command.help).strip().split("\n\n")[:2]
    assert re.fullmatch(r"[A-Z][^.\n]*\.", first)
    assert re.match(r"\s*\x08\s*Try:  aoe", second)


@every_group
def test_a_group_without_a_command_prints_its_help_as_a_usage_error(
    ctx: click.Context,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program, *words = ctx.command_path.split()
    outcomes = []
    for rest in (["--help"], []):
        monkeypatch.setattr(sys, "argv", [program, *words, *rest])
        with pytest.raises(SystemExit) as end:
            run(CLIS[program], program)
        outcomes.append((end.value.code, *capsys.readouterr()))
    text = outcomes[0][1]
    assert text.startswith(f"Usage: {ctx.command_path} ")
    assert outcomes == [(0, text, ""), (2, "", text)]


@pytest.mark.parametrize(
    "words", [("initiator",), ("initiator", "copy"), ("target",), ("target", "serve")]
)
def test_help_imports_no_slow_module(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words, "--help"],
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert f"{words[0]}.cli.main" in imported
    assert imported & {"scapy", "pyroute2", "rich", "msgspec", "logging"} == set()


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_are_accepted_by_the_parser(line: str) -> None:
    found = ours(line)
    assert found
    for stage in found:
        parse(stage)


@pytest.mark.parametrize(
    "line", ["aoe discovr", "aoe discover --al", "aoe ping", "x | aoe copy e0.0 | y"]
)
def test_a_wrong_example_is_rejected_by_the_parser(line: str) -> None:
    (found,) = ours(line)
    with pytest.raises(click.UsageError):
        parse(found)


@every_command
def test_every_option_has_a_description_that_ends_with_a_full_stop(
    ctx: click.Context,
) -> None:
    for names, text in options_of(ctx):
        assert re.match(r"[A-Z]", text), names
        assert re.search(r"\.($|  \[)", text), names


def test_the_options_of_serve_are_listed_in_sections() -> None:
    (ctx,) = (each for each in CONTEXTS if each.command_path == "aoe-target serve")
    sections = re.split(r"^(\S.*):$", ctx.get_help(), flags=re.MULTILINE)[1:]
    titles, bodies = sections[::2], sections[1::2]
    assert len(titles) == len(set(titles)) > 3
    assert all(body.startswith("\n  -") for body in bodies)
    listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", ctx.get_help(), re.MULTILINE)
    options = [each for each in ctx.command.get_params(ctx) if each.opts[0][:1] == "-"]
    assert listed == [each.opts[-1] for each in options]


@every_command
def test_summaries_in_the_list_of_commands_are_not_truncated(
    ctx: click.Context,
) -> None:
    if isinstance(ctx.command, click.Group):
        page = click.Context(ctx.command, info_name=ctx.info_name, terminal_width=78)
        listed = page.get_help().partition("Show this message")[2]
        assert listed
        assert "..." not in listed


@pytest.mark.parametrize("name", SHARED_OPTIONS)
def test_a_shared_option_has_the_same_description_in_all_commands(name: str) -> None:
    descriptions = {
        parameter.help
        for ctx in CONTEXTS
        for parameter in ctx.command.params
        if isinstance(parameter, click.Option)
        and name in parameter.opts
        and (ctx.command_path, name) not in OTHER_MEANING
    }
    assert len(descriptions) == 1
