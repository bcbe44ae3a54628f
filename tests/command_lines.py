"""Command lines in documentation: taken apart, and parsed by click without running."""

from __future__ import annotations

import re
import shlex

import click

from initiator.cli.main import cli as aoe
from target.cli.main import cli as aoe_target

CLIS = {"aoe": aoe, "aoe-target": aoe_target}
_OPERATORS = "|>&;"


def stages(line: str) -> list[list[str]]:
    """Return the commands of a line, without redirections and a remark at the end."""
    line = re.sub(r" {2,}\(.*\)$", "", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word.startswith(("|", "&", ";")):
            found.append([])
        else:
            found[-1].append(word)
    commands = [stage[: stage.index(">")] if ">" in stage else stage for stage in found]
    return [command for command in commands if command]


def ours(line: str) -> list[list[str]]:
    """Return those commands of a line that are ours."""
    return [stage for stage in stages(line) if stage[0] in CLIS]


def parse(words: list[str]) -> None:
    """Have click parse a command line, down to the last subcommand, and run nothing."""
    name, *rest = words
    command: click.Command | None = CLIS[name]
    ctx = None
    while isinstance(command, click.Group):
        ctx = click.Context(command, info_name=name, parent=ctx)
        name, command, rest = command.resolve_command(ctx, rest)  # type: ignore[assignment] # no name without a command
    assert command is not None
    command.make_context(name, rest, parent=ctx)
