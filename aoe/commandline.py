"""What the two commands share: argument types, and how a run ends."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Final, NoReturn

import click

from aoe.address import Address
from aoe.errors import AoEError, UsageError
from aoe.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable


class Parsed(click.ParamType[object]):
    """An argument that one of our parsers reads.

    Args:
        name: what help calls it.
        parse: takes the text and raises ``UsageError`` if it is wrong.
    """

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Parse the text; a default that needs no parsing passes."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


ADDRESS: Final = Parsed("address", Address.parse)
SIZE: Final = Parsed("size", parse_size)


def run(command: click.Command, program: str) -> NoReturn:
    """Run a command and end the process: one line for an error, and its exit code.

    0 done, 1 failed, 2 wrong usage, 3 not found or timed out, 4 not permitted, 5 busy;
    130 after Ctrl-C. A reader of our output that went away is a silent failure (click).
    """
    try:
        code = command.main(prog_name=program, standalone_mode=False)
    except AoEError as error:
        code = error.exit_code
        click.echo(f"{program}: {error}", err=True)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        code = error.exit_code
        _explain(error, program)
    except (KeyboardInterrupt, click.Abort):
        code = 128 + signal.SIGINT
        click.echo(f"{program}: interrupted", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: click.ClickException, program: str) -> None:
    cure = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        cure = f" Try: {error.ctx.command_path} --help"
    words = error.format_message().rstrip(".")
    click.echo(
        f"{program}: {words}.{cure}" if cure else f"{program}: {words}", err=True
    )
