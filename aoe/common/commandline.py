"""What the two commands share: argument types, and how a run ends."""

from __future__ import annotations

import os
import signal
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NoReturn

import click

from aoe.address import Address
from aoe.common.sizes import parse_size
from aoe.errors import AoEError, UsageError, from_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_SCHEMA_VERSION: Final = 1


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


def parse_seconds(text: str) -> float:
    """Read a number of seconds, 0 to 30 days; what poll and sleep can be given.

    Raises:
        UsageError: not a number, or out of range.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MONTH:
        raise UsageError(text, "not a time", f"Write seconds, 0 to {_MONTH}")
    return seconds


_MONTH: Final = 30 * 24 * 3600
ADDRESS: Final = Parsed("address", Address.parse)
SECONDS: Final = Parsed("seconds", parse_seconds)
SIZE: Final = Parsed("size", parse_size)


class SectionedCommand(click.Command):
    """A command whose options are listed under headings, as subcommands are."""

    headings: Mapping[str, str] = MappingProxyType({})
    """Above which parameter, by its name in Python, there is which heading."""

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """List the options in their order, and their headings."""
        heading = "Options"
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            heading = self.headings.get(str(parameter.name), heading)
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(command: str, **content: object) -> None:
    """Print a command's result, with the version of its layout."""
    import msgspec

    document = {"schema_version": _SCHEMA_VERSION, "command": command, **content}
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))


def run(command: click.Command, program: str) -> NoReturn:
    """Run a command and end the process: one line for an error, and its exit code.

    0 done, 1 failed, 2 wrong usage, 3 not found or timed out, 4 not permitted, 5 busy;
    130 after Ctrl-C. A reader of our output that went away is a silent failure (click).
    """
    try:
        code = command.main(prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except AoEError as error:
        code = error.exit_code
        click.echo(f"{program}: {error}", err=True)
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        code = error.exit_code
        _explain(error, program)
    except BrokenPipeError:
        code = _give_up_output()
    except OSError as error:
        # Files and interfaces are named where they are used: this is our own output.
        code = _give_up_output()
        problem = from_os_error(error.filename or "standard output", error)
        click.echo(f"{program}: {problem}", err=True)
    except (KeyboardInterrupt, click.Abort):
        code = 128 + signal.SIGINT
        click.echo(f"{program}: interrupted", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _give_up_output() -> int:
    # What is still buffered would fail once more when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _explain(error: click.ClickException, program: str) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return
    fix = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        fix = f" Try: {error.ctx.command_path} --help"
    words = error.format_message().rstrip(".")
    if fix and not words.endswith(("?", "?)")):
        words += "."
    click.echo(f"{program}: {words}{fix}", err=True)
