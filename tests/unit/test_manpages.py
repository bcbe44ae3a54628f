"""The man pages cover all commands, options, keys and filters."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import click
import msgspec
import pytest

from aoe.errors import AccessError, AoEError, BusyError, NotFoundError, UsageError
from initiator.lab.kernel.policy import POLICIES
from initiator.lab.reports.legend import OUTCOMES
from initiator.lab.reports.tables import AXES
from initiator.lab.traces.rules import RULES
from scripts.man_commands import children, command_page, options_of, read_help, walk
from scripts.man_config import EXAMPLE
from scripts.man_prose import DIRECTORY, Prose, is_block
from scripts.manpages import pages
from scripts.roff import Page, escape
from target.admin.metrics import StatusCollector
from target.config.toml import Document, Export, load_settings
from target.filters.settings import FILTERS
from tests.command_lines import CLIS, ours, parse
from tests.requirements import need

if TYPE_CHECKING:
    from pathlib import Path

PAGES = {page.file_name: page for page in pages()}
SECTIONS = {"aoe": 1, "aoe-target": 8}
OVERVIEWS = {f"{program}.{section}" for program, section in SECTIONS.items()}
TOPICS = {"aoe.7", "aoe-target.toml.5", "aoe-target.service.8"}


def page_of(ctx: click.Context) -> str:
    """Return the name of the page of a command or of its group."""
    program, command, *_ = ctx.command_path.split()
    return f"{program}-{command}.{SECTIONS[program]}"


CONTEXTS = [
    ctx for program, cli in CLIS.items() for ctx in list(walk(cli, program))[1:]
]
COMMANDS = {page_of(ctx): ctx for ctx in reversed(CONTEXTS)}
"""The commands that have their own page, by its name."""
PROSE = {path.stem: Prose(path.read_text()) for path in DIRECTORY.glob("*.txt")}
OPTIONS = {
    option
    for ctx in CONTEXTS
    for parameter in ctx.command.params
    for option in (*parameter.opts, *parameter.secondary_opts)
}
every_page = pytest.mark.parametrize("name", PAGES)
every_prose = pytest.mark.parametrize("name", PROSE)
every_command = pytest.mark.parametrize(
    "ctx", CONTEXTS, ids=[ctx.command_path for ctx in CONTEXTS]
)
every_command_page = pytest.mark.parametrize("name", COMMANDS)


def blocks(name: str) -> list[str]:
    """Return the unfilled lines in the prose of a page."""
    prose = PROSE[name]
    return [
        line.strip()
        for heading in prose.headings()
        for paragraph in prose.paragraphs(heading)
        if is_block(paragraph)
        for line in paragraph.splitlines()
    ]


LINES = [
    line for name in PROSE for line in blocks(name) if re.match("aoe(-target)? ", line)
]


def run(*command: str, text: str) -> str:
    need("mandoc", "groff")
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def plain(text: str) -> str:
    """Remove overstrikes, and the second space between sentences."""
    return re.sub(r"(?<=\.)  (?=\S)", " ", re.sub(r".\x08", "", text))


@cache
def rendered(name: str) -> str:
    """Return a page as man(1) renders it, as plain text."""
    return plain(run("mandoc", "-Tutf8", "-Owidth=1000", text=str(PAGES[name])))


def section(name: str, heading: str) -> str:
    """Return the rendered text of a section."""
    (found,) = re.findall(
        rf"^{re.escape(heading)}\n(.*?)(?=^\S|\Z)",
        rendered(name),
        re.DOTALL | re.MULTILINE,
    )
    return str(found)


def part(name: str, heading: str) -> str:
    """Return the rendered text of a subsection, including its heading."""
    parts = re.split(r"^(?=   \S|\S)", rendered(name), flags=re.MULTILINE)
    (found,) = (
        each
        for each in parts
        if re.match(rf"   {re.escape(heading)}( [^a-z]|\n)", each)
    )
    return found


def about(ctx: click.Context) -> str:
    """Return a command's page, or its subsection and the shared options."""
    name = page_of(ctx)
    if ctx.command is COMMANDS[name].command:
        return rendered(name)
    shared = section(name, "OPTIONS") if "\nOPTIONS\n" in rendered(name) else ""
    return part(name, ctx.command_path) + shared


def headings(name: str) -> list[str]:
    # The first line is the title of the page.
    return re.findall(r"^([A-Z].*)$", rendered(name), re.MULTILINE)[1:]


def test_pages_are_those_of_all_commands_and_topics() -> None:
    expected = {
        f"{program}-{command}.{SECTIONS[program]}"
        for program, cli in CLIS.items()
        for command in cli.commands
    }
    assert set(PAGES) == expected | OVERVIEWS | TOPICS
    assert set(PROSE) == set(PAGES)


@every_command_page
def test_command_page_has_standard_sections_in_order(name: str) -> None:
    expected = ["NAME", "SYNOPSIS", "DESCRIPTION"]
    expected += ["COMMANDS"] if children(COMMANDS[name]) else []
    expected += ["OPTIONS"] if options_of(COMMANDS[name]) else []
    expected += ["EXIT STATUS", "EXAMPLES", "SEE ALSO"]
    found = headings(name)
    assert [heading for heading in found if heading in expected] == expected
    assert len(found) == len(set(found))


@pytest.mark.parametrize("name", sorted(OVERVIEWS))
def test_overview_lists_every_command(name: str) -> None:
    program = name.partition(".")[0]
    text = section(name, "COMMANDS")
    listed = re.findall(
        rf"^ +({program}-[\w-]+)\({SECTIONS[program]}\)$", text, re.MULTILINE
    )
    assert listed == [f"{program}-{command}" for command in CLIS[program].commands]
    for command in CLIS[program].commands.values():
        assert read_help(command).summary in text


@every_page
def test_mandoc_lint_reports_nothing(name: str) -> None:
    assert run("mandoc", "-Tlint", "-Wwarning", text=str(PAGES[name])) == ""


@every_page
def test_groff_warns_of_nothing(name: str) -> None:
    assert run("groff", "-man", "-ww", "-z", "-Tutf8", text=str(PAGES[name])) == ""


@every_page
def test_every_reference_to_a_page_resolves(name: str) -> None:
    text = rendered(name)
    for other in set(re.findall(r"\baoe[\w.-]*\(\d\)", text)):
        title, section = other[:-1].split("(")
        assert f"{title}.{section}" in PAGES


@every_command
def test_page_has_every_command_option_and_example(ctx: click.Context) -> None:
    text = about(ctx)
    parsed = read_help(ctx.command)
    assert parsed.summary in text
    for parameter in ctx.command.params:
        if isinstance(parameter, click.Option):
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert re.search(rf"^ +(\S+, )?{option}[, \n]", text, re.MULTILINE)
    for names, words in options_of(ctx):
        assert names in text
        assert words.split("  [")[0] in text
    for example in parsed.examples:
        assert example in section(page_of(ctx), "EXAMPLES")


@every_command_page
def test_command_page_has_a_description(name: str) -> None:
    assert len(PROSE[name].text("DESCRIPTION")) > 50


@every_command_page
def test_command_page_refers_to_its_overview(name: str) -> None:
    overview = "aoe-target(8)" if name.startswith("aoe-target") else "aoe(1)"
    assert overview in section(name, "SEE ALSO")


@pytest.mark.parametrize("name", sorted({*COMMANDS, *OVERVIEWS}))
def test_page_has_every_exit_status(name: str) -> None:
    kinds = (AoEError, UsageError, NotFoundError, AccessError, BusyError)
    expected = [0, *(kind.exit_code for kind in kinds), 130]
    found = re.findall(r"^       (\d+) ", section(name, "EXIT STATUS"), re.MULTILINE)
    assert list(map(int, found)) == expected


@every_command_page
def test_command_page_has_an_example_of_its_command(name: str) -> None:
    words = COMMANDS[name].command_path.split()
    lines = PROSE[name].text("EXAMPLES").splitlines()
    found = [stage for line in lines if line[:1] == " " for stage in ours(line)]
    assert any(stage[: len(words)] == words for stage in found)


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_is_parsed(line: str) -> None:
    found = ours(line)
    assert found
    for stage in found:
        parse(stage)


def test_command_lines_are_found() -> None:
    assert "aoe copy e0.0 backup.img -i eth0" in LINES
    assert "aoe-target reload --pid 4242" in LINES
    assert len(LINES) > 100


@every_prose
def test_every_mentioned_option_exists(name: str) -> None:
    prose = PROSE[name]
    text = " ".join(
        paragraph
        for heading in prose.headings()
        for paragraph in prose.paragraphs(heading)
        if not is_block(paragraph)
    )
    mentioned = re.findall(r"(?<![\w/-])--[a-z][\w-]*", text)
    assert set(mentioned) - OPTIONS == set()


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("aoe-config.1", "COMMANDS"),
        ("aoe-config.1", "OPTIONS"),
        ("aoe-discover.1", "OPTIONS"),
        ("aoe-discover.1", "EXIT STATUS"),
    ],
)
def test_prose_for_an_unknown_tag_is_an_error(
    name: str, heading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prose = Prose(f"{heading}\n\n--gone\n    It does not exist.")
    monkeypatch.setattr("scripts.man_commands.read_prose", lambda _: prose)
    with pytest.raises(LookupError, match=f"{heading}: there is no --gone"):
        command_page(COMMANDS[name], 1)


def test_command_without_prose_is_an_error() -> None:
    new = click.Context(click.Command("new", help="Do it."), info_name="new")
    with pytest.raises(LookupError, match=r"new\.1\.txt: missing"):
        command_page(new, 1)


def test_example_that_only_the_help_has_is_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prose = Prose(
        "DESCRIPTION\n\nIt is.\n\nEXAMPLES\n\nOne:\n\n    aoe discover --json"
    )
    monkeypatch.setattr("scripts.man_commands.read_prose", lambda _: prose)
    text = str(command_page(COMMANDS["aoe-discover.1"], 1))
    examples = text.partition('.SH "EXAMPLES"')[2]
    assert examples.count(escape("aoe discover --json")) == 1
    assert examples.index("One:") < examples.index("Also:")
    assert escape("aoe discover -i eth0") in examples.partition("Also:")[2]


def test_imports_in_pages_succeed() -> None:
    lines = [line for name in PROSE for line in blocks(name)]
    imports = [line for line in lines if re.match(r"from \w+(\.\w+)* import ", line)]
    assert len(imports) > 1
    for line in imports:
        exec(line, {})  # noqa: S102 - text of our documentation


def test_serve_page_lists_every_metric() -> None:
    status = {"version": "1", "uptime_seconds": 1.0, "exports": [], "interfaces": []}
    listed = re.findall(r"\baoe_\w+", PROSE["aoe-target-serve.8"].text("METRICS"))
    kinds = {"counter": "_total", "info": "_info"}
    families = list(StatusCollector(lambda: status).collect())
    named = [family.name + kinds.get(family.type, "") for family in families]
    assert sorted(listed) == sorted(named)


def test_lab_page_has_every_name_of_an_axis_and_every_outcome() -> None:
    for axis, heading in (
        ("policy", "POLICIES"),
        ("submitter", "SUBMITTERS"),
        ("event", "EVENTS"),
        ("nic", "NICS"),
        ("kernel", "KERNELS"),
    ):
        tags = " ".join(PROSE["aoe-lab.1"].tags(heading)).replace(",", "").split()
        assert tags == list(POLICIES if axis == "policy" else AXES[axis])
    table = PROSE["aoe-lab.1"].paragraphs("OUTCOMES")[-1]
    assert re.findall(r"^ +(\S+)", table, re.MULTILINE) == list(OUTCOMES)


def test_lab_page_has_every_rule_of_a_trace_with_its_outcome() -> None:
    tags = PROSE["aoe-lab.1"].tags("TRACE RULES")
    assert list(tags) == [rule.name for rule in RULES]
    for rule in RULES:
        assert tags[rule.name].startswith(f"Outcome {rule.fault.value}: "), rule.name


def test_configuration_page_has_every_key() -> None:
    text = rendered("aoe-target.toml.5")
    for struct in (Document, Export):
        for key in struct.__struct_fields__:
            assert re.search(rf"^ +{key} = |\[\[?{key}\]", text, re.MULTILINE), key


@pytest.mark.parametrize("name", FILTERS)
def test_configuration_page_has_every_filter_and_its_keys(name: str) -> None:
    text = part("aoe-target.toml.5", f'name = "{name}"')
    for field in msgspec.structs.fields(FILTERS[name]):
        assert re.search(rf"\b{field.name}\b", text)


def test_default_that_a_filter_overrides_is_printed() -> None:
    shared = part("aoe-target.toml.5", "Keys of delay, drop, duplicate and reorder")
    assert 'Requests, responses or both. Default: "both".' in shared
    assert 'direction = "out"' in part("aoe-target.toml.5", 'name = "delay"')
    assert "direction, on" in part("aoe-target.toml.5", 'name = "drop"')


def test_configuration_example_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "aoe-target.toml"
    path.write_text(EXAMPLE)
    settings = load_settings(path)
    assert [str(export.address) for export in settings.exports] == ["e0.0", "e0.1"]
    text = rendered("aoe-target.toml.5")
    assert all(line in text for line in EXAMPLE.splitlines())


def test_special_characters_of_roff_are_escaped() -> None:
    page = Page("odd", 1, "a page")
    page.heading("DESCRIPTION")
    lines = [".SH is no heading", "'neither", r"C:\n", '"a" `b` ^c ~d --e', "µ"]
    page.block(*lines)
    text = str(page)
    assert run("mandoc", "-Tlint", "-Wwarning", text=text) == ""
    body = plain(run("mandoc", "-Tutf8", text=text)).split("DESCRIPTION")[1]
    assert [line.strip() for line in body.splitlines()[1 : len(lines) + 1]] == lines


def test_prose_with_heading_tag_and_block() -> None:
    page = Page("odd", 1, "a page")
    page.prose(
        "A HEADING\n\nSome words with --option.\n\nTAG\n    Meaning.\n\n    as is"
    )
    head, body = str(page).split('.SH "A HEADING"\n')
    assert ".SH" in head
    assert body == (
        "Some words with \\fB\\-\\-option\\fR.\n.TP\n\\fBTAG\\fR\nMeaning.\n"
        ".PP\n.RS 4\n.EX\nas is\n.EE\n.RE\n"
    )


def test_page_date_is_source_date_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1580601600")
    assert f'.TH {escape("X")} 1 "2020-02-02" "pyaoe ' in str(Page("x", 1, "a page"))
