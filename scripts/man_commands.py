"""Man pages of click commands: options from click, the rest from ``manpages.d``."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from aoe.common.commandline import SectionedCommand
from aoe.errors import AccessError, AoEError, BusyError, NotFoundError, UsageError
from scripts.man_prose import Prose, add_section, read_prose
from scripts.roff import Page, bold, escape, italic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_TRY: Final = re.compile(r"^Try:? +", re.MULTILINE)
_OPTION: Final = re.compile(r"--?[a-zA-Z][\w-]*")
_MERGED: Final = ("DESCRIPTION", "COMMANDS", "OPTIONS")
_EXIT_STATUS: Final = {
    0: "Success.",
    AoEError.exit_code: "Failure for any other reason.",
    UsageError.exit_code: "Usage error: an unknown option, an invalid value, or "
    "options that exclude each other.",
    NotFoundError.exit_code: "Not found: no such interface, file or target, or no "
    "response within the timeout.",
    AccessError.exit_code: "Permission denied.",
    BusyError.exit_code: "Busy: another process or client holds the address, the disk, "
    "the claim or the reservation.",
    130: "Interrupted with Ctrl-C.",
}
"""The exit statuses of all commands; the page of a command can replace an entry."""


class Help(NamedTuple):
    """The parts of a command's help.

    Args:
        summary: the first sentence.
        paragraphs: the rest; an unfilled block begins with ``\\b``.
        examples: the lines of ``Try:``.
    """

    summary: str
    paragraphs: list[str]
    examples: list[str]


def read_help(command: click.Command) -> Help:
    """Parse the help of a command."""
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
    """Yield contexts of a command and its subcommands, in order of definition."""
    yield from below(click.Context(command, info_name=program))


def below(ctx: click.Context) -> Iterator[click.Context]:
    """Yield a context and those of all of its subcommands."""
    yield ctx
    for child in children(ctx):
        yield from below(child)


def children(ctx: click.Context) -> list[click.Context]:
    """Return the contexts of the commands of a group; empty for other commands."""
    if not isinstance(ctx.command, click.Group):
        return []
    return [
        click.Context(command, info_name=name, parent=ctx)
        for name, command in ctx.command.commands.items()
    ]


def options_of(ctx: click.Context) -> list[tuple[str, str]]:
    """Return names and help text of a command's options, except ``--help``."""
    records = [
        parameter.get_help_record(ctx)
        for parameter in ctx.command.get_params(ctx)
        if isinstance(parameter, click.Option) and "--help" not in parameter.opts
    ]
    return [record for record in records if record is not None]


def page_name(ctx: click.Context) -> str:
    """Return the title of a command's page: ``aoe-copy`` for ``aoe copy``."""
    return ctx.command_path.replace(" ", "-")


def command_page(ctx: click.Context, section: int) -> Page:
    """Return the page of a command, including its subcommands."""
    prose = read_prose(f"{page_name(ctx)}.{section}")
    page = _begin(ctx, section)
    leaves = children(ctx) or [ctx]
    page.synopsis(map(_usage, leaves))
    _add_description(page, ctx, prose)
    shared = _shared_options(leaves)
    if isinstance(ctx.command, click.Group):
        _add_commands(page, leaves, prose, shared)
    _add_options(page, ctx, prose, shared)
    _add_rest(page, list(below(ctx)), prose)
    return page


def overview_page(
    cli: click.Command, program: str, section: int, groups: Mapping[str, Iterable[str]]
) -> Page:
    """Return the page of a program, with references to the pages of its commands.

    Args:
        cli: the program.
        program: its name.
        section: the section of the manual.
        groups: the names of the commands in each group, by title.
    """
    root = click.Context(cli, info_name=program)
    prose = read_prose(f"{program}.{section}")
    page = _begin(root, section)
    page.synopsis([_usage(root)])
    _add_description(page, root, prose)
    page.heading("OPTIONS")
    for names, text in options_of(root):
        page.tagged(_marked_names(names), text)
    page.tagged(
        f"{bold('-h')}, {bold('--help')}",
        "Show the help of the program or of a command, and exit.",
    )
    page.heading("COMMANDS")
    by_name = {str(ctx.info_name): ctx for ctx in children(root)}
    for title, commands in groups.items():
        if len(groups) > 1:
            page.subheading(escape(title))
        _add_references(page, section, [by_name[each] for each in commands])
    _add_rest(page, [root], prose)
    return page


def _add_references(page: Page, section: int, contexts: list[click.Context]) -> None:
    for ctx in contexts:
        reference = page.marked(f"{page_name(ctx)}({section})")
        page.tagged(reference, read_help(ctx.command).summary)


def _begin(ctx: click.Context, section: int) -> Page:
    summary = read_help(ctx.command).summary
    page = Page(
        page_name(ctx),
        section,
        summary[0].lower() + summary[1:].rstrip("."),
        placeholders=_placeholders(list(below(ctx))),
        commands=[str(each.info_name) for each in below(ctx.find_root())],
    )
    page.heading("SYNOPSIS")
    return page


def _add_description(page: Page, ctx: click.Context, prose: Prose) -> None:
    page.heading("DESCRIPTION")
    page.text(read_help(ctx.command).summary)
    page.prose(prose.text("DESCRIPTION"))


def _shared_options(leaves: list[click.Context]) -> list[tuple[str, str]]:
    first, *others = [options_of(ctx) for ctx in leaves]
    return [each for each in first if all(each in records for records in others)]


def _add_commands(
    page: Page,
    leaves: list[click.Context],
    prose: Prose,
    shared: list[tuple[str, str]],
) -> None:
    extra = prose.tags("COMMANDS")
    page.heading("COMMANDS")
    for ctx in leaves:
        page.subheading(_usage(ctx))
        page.text(read_help(ctx.command).summary)
        if more := extra.pop(str(ctx.info_name), ""):
            page.text(more)
        for names, text in options_of(ctx):
            if (names, text) not in shared:
                page.tagged(_marked_names(names), text)
    _check_all_used(page, "COMMANDS", extra)


def _add_options(
    page: Page, ctx: click.Context, prose: Prose, shared: list[tuple[str, str]]
) -> None:
    if isinstance(ctx.command, click.Group):
        shared = list(dict.fromkeys([*options_of(ctx), *shared]))
    if not shared:
        return
    extra = prose.tags("OPTIONS")
    headings = _headings(ctx.command)
    page.heading("OPTIONS")
    if isinstance(ctx.command, click.Group):
        page.text("These options apply to all commands:")
    for names, text in shared:
        option = _long_name(names)
        if option in headings:
            page.subheading(escape(headings[option]))
        page.tagged(_marked_names(names), _extended(text, extra.pop(option, "")))
    _check_all_used(page, "OPTIONS", extra)
    page.prose(prose.untagged("OPTIONS"))


def _headings(command: click.Command) -> dict[str, str]:
    """Return the headings of the help, by the long name of the first option below."""
    if not isinstance(command, SectionedCommand):
        return {}
    return {
        parameter.opts[-1]: command.headings[str(parameter.name)]
        for parameter in command.params
        if parameter.name in command.headings
    }


def _long_name(names: str) -> str:
    long_names = (name for name in names.split() if name.startswith("--"))
    return next(long_names, names)


def _extended(text: str, more: str) -> str:
    # The text of the page is inserted in front of the default.
    before, bracket, default = text.partition("  [")
    return " ".join(filter(None, [before, more, bracket.strip() + default]))


def _check_all_used(page: Page, heading: str, extra: dict[str, str]) -> None:
    if extra:
        where = f"{page.file_name}.txt: {heading}"
        raise LookupError(f"{where}: there is no {', '.join(extra)}")


def _add_rest(page: Page, contexts: list[click.Context], prose: Prose) -> None:
    for heading in prose.middle(_MERGED):
        add_section(page, prose, heading)
    for heading in prose.tail(generated=("EXIT STATUS", "EXAMPLES")):
        if heading == "EXIT STATUS":
            _add_exit_status(page, prose)
        elif heading == "EXAMPLES":
            _add_examples(page, contexts, prose)
        else:
            add_section(page, prose, heading)


def _add_exit_status(page: Page, prose: Prose) -> None:
    page.heading("EXIT STATUS")
    extra = prose.tags("EXIT STATUS")
    for code, text in _EXIT_STATUS.items():
        page.tagged(bold(str(code)), extra.pop(str(code), text))
    _check_all_used(page, "EXIT STATUS", extra)
    page.prose(prose.untagged("EXIT STATUS"))


def _add_examples(page: Page, contexts: list[click.Context], prose: Prose) -> None:
    # Examples of the help that the page does not have are added at the end.
    text = prose.text("EXAMPLES")
    explained = {line.strip() for line in text.splitlines()}
    examples = [line for ctx in contexts for line in read_help(ctx.command).examples]
    more = [line for line in dict.fromkeys(examples) if line not in explained]
    page.heading("EXAMPLES")
    page.prose(text)
    if more:
        page.text("Also:")
        page.block(*more)


def _placeholders(contexts: list[click.Context]) -> set[str]:
    texts = [
        text
        for ctx in contexts
        for text in (
            *ctx.command.collect_usage_pieces(ctx),
            *(names for names, _ in options_of(ctx)),
        )
    ]
    return set(re.findall(r"[A-Z]{2,}", " ".join(texts)))


def _usage(ctx: click.Context) -> str:
    pieces = " ".join(ctx.command.collect_usage_pieces(ctx))
    marked = re.sub(
        r"[A-Z]{2,}|[^A-Z]+|[A-Z]",
        lambda m: italic(m[0]) if re.fullmatch(r"[A-Z]{2,}", m[0]) else escape(m[0]),
        pieces,
    )
    return f"{bold(ctx.command_path)} {marked}"


def _marked_names(names: str) -> str:
    # "-b, --buffers INTEGER": names are bold, metavars are italic.
    parts = []
    for part in re.split(r"( |, )", names):
        is_name = _OPTION.fullmatch(part)
        parts.append(
            bold(part) if is_name else italic(part) if part.strip(", ") else part
        )
    return "".join(parts)
