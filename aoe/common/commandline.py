"""Argument types, JSON output and error reporting of both commands."""

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


class Parsed(click.ParamType):  # type: ignore[type-arg] # generic since click 8.4
    """A click parameter type backed by one of pyaoe's parsers.

    Args:
        name: the metavar in help.
        parse: converts the text, or raises ``UsageError``.
    """

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Return the parsed text, or a default that is no text unchanged."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


def parse_seconds(text: str) -> float:
    """Parse a number of seconds from 0 to 30 days, a range that poll and sleep accept.

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


class MissingCommandError(click.UsageError):
    """A call of a group without a subcommand; its message is the help of the group."""


class CommandGroup(click.Group):
    """A group whose help is a usage error if it is called without a subcommand.

    In click that is so from 8.2 on; earlier versions exit with 0 and print the help to
    standard output.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            MissingCommandError: there are none.
        """
        if not args and not ctx.resilient_parsing:
            raise MissingCommandError(ctx.get_help(), ctx)
        return super().parse_args(ctx, args)


class SectionedCommand(click.Command):
    """A command whose help lists its options in sections."""

    headings: Mapping[str, str] = MappingProxyType({})
    """Section headings, by the Python name of the first parameter of the section."""

    def format_options(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """Write the options in declaration order, each under its section heading."""
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
    """Print a command's result as JSON, with the version of its schema."""
    import msgspec

    document = {"schema_version": _SCHEMA_VERSION, "command": command, **content}
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))


def run(command: click.Command, program: str) -> NoReturn:
    """Run a command and exit; print an error as one line on standard error.

    Exit codes: 0 success, 1 failure, 2 usage error, 3 not found or timed out,
    4 permission denied, 5 busy, 130 interrupted by SIGINT. A closed pipe on standard
    output (EPIPE) gives 1 without a message, as in click.
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
        _print_usage_error(error, program)
    except BrokenPipeError:
        code = _discard_output()
    except OSError as error:
        # Errors of files and interfaces are converted where they occur. What is left
        # is an error of standard output.
        code = _discard_output()
        problem = from_os_error(error.filename or "standard output", error)
        click.echo(f"{program}: {problem}", err=True)
    except (KeyboardInterrupt, click.Abort):
        code = 128 + signal.SIGINT
        click.echo(f"{program}: interrupted", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _discard_output() -> int:
    # The interpreter flushes standard output at exit, which would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _print_usage_error(error: click.ClickException, program: str) -> None:
    if isinstance(error, MissingCommandError):
        click.echo(error.format_message(), err=True)
        return
    fix = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        fix = f" Try: {error.ctx.command_path} --help"
    message = error.format_message().rstrip(".")
    if fix and not message.endswith(("?", "?)")):
        message += "."
    click.echo(f"{program}: {message}{fix}", err=True)
