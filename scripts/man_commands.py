"""The page of a click command: what its help says, with nothing left out."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from scripts.roff import Page, bold, escape, italic

if TYPE_CHECKING:
    from collections.abc import Iterator

_TRY: Final = re.compile(r"^Try:? +", re.MULTILINE)
_OPTION: Final = re.compile(r"--?[a-zA-Z][\w-]*")


class Help(NamedTuple):
    """The parts of a command's help.

    Args:
        summary: its first sentence.
        paragraphs: the rest; a block that is not to be wrapped begins with ``\\b``.
        examples: the lines of ``Try:``.
    """

    summary: str
    paragraphs: list[str]
    examples: list[str]


def read_help(command: click.Command) -> Help:
    """Take a command's help apart."""
    summary, *rest = inspect.cleandoc(command.help or "").split("\n\n")
    paragraphs, examples = [], []
    for paragraph in rest:
        block = paragraph.removeprefix("\b\n")
        if _TRY.match(block):
            examples += [line.strip() for line in _TRY.sub("", block).splitlines()]
        else:
            paragraphs.append(paragraph)
    return Help(" ".join(summary.split()), paragraphs, examples)


def walk(command: click.Command, program: str) -> Iterator[click.Context]:
    """Yield a context for a command and each one below it, in the order of the code."""
    yield from _below(click.Context(command, info_name=program))


def _below(ctx: click.Context) -> Iterator[click.Context]:
    yield ctx
    if isinstance(ctx.command, click.Group):
        for name, command in ctx.command.commands.items():
            yield from _below(click.Context(command, info_name=name, parent=ctx))


def options_of(ctx: click.Context) -> list[tuple[str, str]]:
    """Return the options that ``--help`` lists, but for itself, and what it says."""
    records = [
        parameter.get_help_record(ctx)
        for parameter in ctx.command.get_params(ctx)
        if isinstance(parameter, click.Option) and "--help" not in parameter.opts
    ]
    return [record for record in records if record is not None]


def command_page(cli: click.Command, program: str, section: int) -> Page:
    """Make a page of all commands, up to where what no command knows begins."""
    contexts = list(walk(cli, program))
    said = read_help(cli)
    page = Page(
        program,
        section,
        said.summary[0].lower() + said.summary[1:].rstrip("."),
        placeholders=_placeholders(contexts),
        commands=[str(ctx.info_name) for ctx in contexts[1:]],
    )
    leaves = [ctx for ctx in contexts if not isinstance(ctx.command, click.Group)]
    page.heading("SYNOPSIS")
    page.synopsis(map(_usage, leaves))
    page.heading("DESCRIPTION")
    page.text(said.summary)
    _add_paragraphs(page, said)
    page.heading("OPTIONS")
    _add_options(page, contexts[0])
    page.tagged(bold("-h") + ", " + bold("--help"), "Explain a command; all take it.")
    page.heading("COMMANDS")
    for ctx in contexts[1:]:
        _add_command(page, ctx)
    return page


def add_examples(page: Page, cli: click.Command, program: str) -> None:
    """Add what the commands' helps tell to try, below what each of them does."""
    page.heading("EXAMPLES")
    for ctx in list(walk(cli, program))[1:]:
        said = read_help(ctx.command)
        if said.examples:
            page.text(said.summary.rstrip(".") + ":")
            page.block(*said.examples)


def _placeholders(contexts: list[click.Context]) -> set[str]:
    words = set()
    for ctx in contexts:
        for parameter in ctx.command.params:
            words |= set(re.findall(r"[A-Z]{2,}", parameter.make_metavar(ctx)))
    return words


def _usage(ctx: click.Context) -> str:
    pieces = " ".join(ctx.command.collect_usage_pieces(ctx))
    marked = re.sub(
        r"[A-Z]{2,}|[^A-Z]+|[A-Z]",
        lambda m: italic(m[0]) if re.fullmatch(r"[A-Z]{2,}", m[0]) else escape(m[0]),
        pieces,
    )
    return f"{bold(ctx.command_path)} {marked}"


def _add_command(page: Page, ctx: click.Context) -> None:
    is_group = isinstance(ctx.command, click.Group)
    page.subheading(bold(ctx.command_path) if is_group else _usage(ctx))
    said = read_help(ctx.command)
    page.text(said.summary)
    _add_paragraphs(page, said)
    _add_options(page, ctx)


def _add_paragraphs(page: Page, said: Help) -> None:
    for paragraph in said.paragraphs:
        if paragraph.startswith("\b"):
            page.block(*paragraph.splitlines()[1:])
        elif not paragraph.startswith("Exit codes: 0 done"):
            # Those that all commands have are a section of their own.
            page.text(" ".join(paragraph.split()))


def _add_options(page: Page, ctx: click.Context) -> None:
    for names, text in options_of(ctx):
        page.tagged(_marked_names(names), text)


def _marked_names(names: str) -> str:
    # "-b, --buffers INTEGER": the names are bold, what they take is italic.
    parts = []
    for part in re.split(r"( |, )", names):
        is_name = _OPTION.fullmatch(part)
        parts.append(
            bold(part) if is_name else italic(part) if part.strip(", ") else part
        )
    return "".join(parts)
