"""Shell completion shared by both commands: the scripts, interfaces and files.

click generates the scripts and determines the parameter to complete; the functions here
return the candidates. Completion runs while a user types, so that it prints no errors,
uses short timeouts and returns nothing for what it cannot look up.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import click

from aoe.net.netdevice import interface_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from click.shell_completion import CompletionItem

_SCRIPT_PATHS: Final = {
    "bash": "~/.local/share/bash-completion/completions/{}",
    "zsh": '"${{fpath[1]}}/_{}"',
    "fish": "~/.config/fish/completions/{}.fish",
}
"""The file that each shell loads for a command, with ``{}`` for the command's name."""


def completion_command(program: str) -> click.Command:
    """Return the subcommand that prints a program's completion scripts."""
    examples = "\n      ".join(
        f"{program} completion {shell} >{path.format(program)}"
        for shell, path in _SCRIPT_PATHS.items()
    )

    @click.command(
        "completion",
        help="Print a shell completion script.\n\n"
        f"\b\nTry:  {examples}\n\n"
        "Installed below /usr or /usr/local, pyaoe has these files already.",
    )
    @click.argument("shell", type=click.Choice(tuple(_SCRIPT_PATHS)))
    @click.pass_context
    def completion(ctx: click.Context, shell: str) -> None:
        root = ctx.find_root()
        click.echo(completion_script(root.command, program, shell), nl=False)

    return completion


def completion_script(cli: click.Command, program: str, shell: str) -> str:
    """Return the completion script for a shell.

    Args:
        cli: the top-level command.
        program: its name.
        shell: bash, zsh or fish.

    Raises:
        ValueError: click does not support the shell.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise ValueError(shell)
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()
    generator = kind(cli, {}, program, variable)
    # Not source(): BashComplete.source() starts bash to check its version.
    return generator.source_template % generator.source_vars()


def starting_with(incomplete: str, names: Iterable[str]) -> list[str]:
    """Return the names that begin with what has been typed."""
    return [name for name in names if name.startswith(incomplete)]


def complete_interfaces(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[str]:
    """Complete an interface name, or the last one of a comma-separated list."""
    before, comma, _last = incomplete.rpartition(",")
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = interface_names()
    listed = before.split(",")
    return starting_with(
        incomplete, [f"{before}{comma}{name}" for name in names if name not in listed]
    )


def complete_file(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Let the shell complete a file name."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]
