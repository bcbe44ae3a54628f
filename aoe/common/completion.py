"""What a shell is told when somebody presses Tab.

click has the scripts, and finds out which parameter is being typed; here is what can
stand there. Whoever waits is typing: nothing is said on standard error, nothing takes
long, and what cannot be looked up is left out.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import click

from aoe.net.netdevice import interface_names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from click.shell_completion import CompletionItem

_PLACES: Final = {
    "bash": "~/.local/share/bash-completion/completions/{}",
    "zsh": '"${{fpath[1]}}/_{}"',
    "fish": "~/.config/fish/completions/{}.fish",
}
"""Where each shell looks for the script, by the name of the command."""


def completion_command(program: str) -> click.Command:
    """Make the subcommand that prints a program's completion scripts."""
    examples = "\n      ".join(
        f"{program} completion {shell} >{place.format(program)}"
        for shell, place in _PLACES.items()
    )

    @click.command(
        "completion",
        help="Print what a shell needs to complete this command.\n\n"
        f"\b\nTry:  {examples}\n\n"
        "An installation below /usr or /usr/local has put it in its place already.",
    )
    @click.argument("shell", type=click.Choice(tuple(_PLACES)))
    @click.pass_context
    def completion(ctx: click.Context, shell: str) -> None:
        root = ctx.find_root()
        click.echo(completion_script(root.command, program, shell), nl=False)

    return completion


def completion_script(cli: click.Command, program: str, shell: str) -> str:
    """Return the script that a shell reads.

    Args:
        cli: the whole command.
        program: its name.
        shell: bash, zsh or fish.

    Raises:
        ValueError: another shell.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise ValueError(shell)
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()
    maker = kind(cli, {}, program, variable)
    # Its source() would run bash first, to see how old that is.
    return maker.source_template % maker.source_vars()


def starting_with(incomplete: str, names: Iterable[str]) -> list[str]:
    """Choose the names that what was typed can become."""
    return [name for name in names if name.startswith(incomplete)]


def complete_interfaces(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[str]:
    """Complete the name of an interface, or the last of several between commas."""
    before, comma, _last = incomplete.rpartition(",")
    have: list[str] = []
    with contextlib.suppress(OSError):
        have = interface_names()
    named = before.split(",")
    return starting_with(
        incomplete, [f"{before}{comma}{name}" for name in have if name not in named]
    )


def complete_file(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Leave it to the shell, which knows files best."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]
