"""``aoe lab replay``: formats of traces, bad input, text, JSON, HTML, exit codes."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from aoe.errors import AoEError, UsageError
from initiator.cli.main import cli
from initiator.lab.reports.legend import OUTCOMES
from initiator.lab.traces.events import BioEvent, MarkEvent, PageEvent
from initiator.lab.traces.parser import (
    LONGEST_LINE,
    TraceParser,
    bpftrace_script,
    describe_head,
)
from initiator.lab.traces.rules import RULES
from tests.kernel_traces import (
    FILES,
    FOLDER,
    alloc,
    expected,
    free,
    line,
    mod,
    set_count,
)

if TYPE_CHECKING:
    from pathlib import Path

    from initiator.lab.traces.events import Event

BUG_OF_2007 = FOLDER / "faults/2007-nosg.txt"
CLEAN = FOLDER / "clean/raw-tail-sg.txt"
MODIFIED = "'pfn=0x... count=N mapping=... val=N'"
BLOCK = "'pfn=0x... order=N'"
BIO = "'MAJOR,MINOR FLAGS SECTOR + SECTORS [...]'"
FREE = "mm_page_free"
FIELDS = "page=0xffffea0000048d00 pfn=0x1234 order=3"


def replay(*words: object, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["lab", "replay", *map(str, words)], input=text)


def parse(*lines: str) -> list[Event]:
    return list(TraceParser("trace.txt").events(lines))


# --- formats ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "task", "time"),
    [
        (f"     dd-4   [001]   812.400013: {FREE}: {FIELDS}", "dd-4", 812.400013),
        (f" <idle>-0     [001] ..s1.  81.5: {FREE}: {FIELDS}", "<idle>-0", 81.5),
        (f" a b-20  ( 2011) [003] d... 81.1: {FREE}:     {FIELDS}", "a b-20", 81.1),
        (f" kworker/u4:2-ev-58 [0] 7.25: {FREE}: {FIELDS}", "kworker/u4:2-ev-58", 7.25),
        (f"   dd   4 [001] 5758.520920:    kmem:{FREE}: {FIELDS}", "dd-4", 5758.52092),
        (f" a b   412/413 [001] 25758.5:  1 kmem:{FREE}: {FIELDS}", "a b-412", 25758.5),
        (f" dd 412 25758.5: kmem:{FREE}: {FIELDS}", "dd-412", 25758.5),
        (f"insmod-301 [000] 9.000001: {FREE}: {FIELDS}", "insmod-301", 9.000001),
        (f" dd-4 [0] 9.1: {FREE}: [FAILED TO PARSE] {FIELDS[24:]}", "dd-4", 9.1),
        (" dd-4 [0] 9.1: mm_page_free_direct: page=0x1 pfn=4660 order=3", "dd-4", 9.1),
    ],
)
def test_an_event_of_each_program_is_read(text: str, task: str, time: float) -> None:
    (event,) = parse(text)
    assert isinstance(event, PageEvent)
    assert (event.name, event.pfn, event.order) == ("mm_page_free", 0x1234, 3)
    assert describe_head(event.head) == (task, time)


def test_fields_of_a_modification() -> None:
    text = (
        "pfn=0x12 flags=dirty|lru count=2 mapcount=1 mapping=0xffff mt=1 val=-1 ret=0"
    )
    (event,) = parse(line("page_ref_mod_and_test", text))
    assert isinstance(event, PageEvent)
    assert (event.refcount, event.value, event.result) == (2, -1, 0)
    assert event.shared
    for nowhere in ("0", "0x0", "(nil)", "0000000000000000", "(null)"):
        (event,) = parse(mod(1, 2, 1, mapping=nowhere))
        assert isinstance(event, PageEvent)
        assert not event.shared


def test_a_count_may_be_printed_without_its_sign() -> None:
    (event,) = parse(mod(1, (1 << 32) - 1, (1 << 32) - 1))
    assert isinstance(event, PageEvent)
    assert (event.refcount, event.value) == (-1, -1)


@pytest.mark.parametrize(
    ("name", "fields", "place"),
    [
        ("block_bio_queue", "152,0 WS 8 + 16 [dd]", ("152,0", 8, 16)),
        ("block_bio_queue", "152,0 FF 0 + 0 [a b]", ("152,0", 0, 0)),
        ("block_bio_complete", "259,17 R 123 + 0 [-5]", ("259,17", 123, 0)),
        ("block_rq_complete", "152,0 W () 8 + 16 [0]", ("152,0", 8, 16)),
        ("block_rq_complete", "254,0 RM () 8 + 16 0x2,0,7 [0]", ("254,0", 8, 16)),
    ],
)
def test_fields_of_a_bio(name: str, fields: str, place: tuple[str, int, int]) -> None:
    (event,) = parse(line(name, fields))
    assert isinstance(event, BioEvent)
    assert (event.device, event.sector, event.sectors) == place


@pytest.mark.parametrize(
    "text",
    [
        line("bio_page", "dev=152,0 sector=8 pfn=0x1234"),
        line("bprint", "submit_one: bio_page: dev=152,0 sector=8 pfn=0x1234"),
        line("print", "0xffffffffc0a1b2c3: bio_page: dev=152,0 sector=8 pfn=0x1234"),
        line("tracing_mark_write", "bio_page: dev=152,0 sector=8 pfn=0x1234"),
        line("submit_one", "bio_page: dev=152,0 sector=8 pfn=0x1234"),
    ],
)
def test_a_message_may_name_the_page_of_a_bio(text: str) -> None:
    (event,) = parse(text)
    assert isinstance(event, BioEvent)
    assert (event.device, event.sector, event.pfn) == ("152,0", 8, 0x1234)


def test_other_lines_of_the_programs_are_skipped() -> None:
    lines = [
        "# tracer: nop",
        "",
        "cpus=2",
        "version = 7",
        "CPU 1 is empty",
        "Attaching 14 probes...",
        "\tffffffff8132a1b0 __alloc_pages_bulk+0x3a0 ([kernel.kallsyms])",
        " => __alloc_pages",
        "<stack trace>",
    ]
    assert parse(*lines) == []
    other = [
        line("sched_switch", "swapper/1:0 [120] R ==> dd:58 [120]"),
        " <idle>-0 [001] d..2 812.4: mutex_unlock <-rb_simple_write",
    ]
    assert [event.name for event in parse(*other)] == ["other", "other"]
    assert all(isinstance(event, MarkEvent) for event in parse(*other))


# --- bad input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "what", "why"),
    [
        (
            "hello world",
            "trace.txt, line 3",
            "expected 'TASK-PID [CPU] SECONDS: EVENT: FIELDS', found 'hello world'",
        ),
        (
            line("mm_page_free", "page=0x1 pfn="),
            "trace.txt, line 3",
            f"{FREE}: expected {BLOCK}, found 'page=0x1 pfn='",
        ),
        (
            line("page_ref_mod", "pfn=0x12 flags="),
            "trace.txt, line 3",
            f"page_ref_mod: expected {MODIFIED}, found 'pfn=0x12 flags='",
        ),
        (
            line("mm_page_free", "page=0x1 pfn=12zz order=0"),
            "trace.txt, line 3",
            f"{FREE}: expected {BLOCK}, found 'page=0x1 pfn=12zz order=0'",
        ),
        (
            line("block_bio_queue", "152,0 W 8"),
            "trace.txt, line 3",
            f"block_bio_queue: expected {BIO}, found '152,0 W 8'",
        ),
        ("PERFILE2\x00", "trace.txt", "a perf.data file, not text"),
        ("\x17\x08Dtracing6", "trace.txt", "a trace.dat file, not text"),
    ],
)
def test_a_bad_line_is_named_with_what_was_expected(
    text: str, what: str, why: str
) -> None:
    with pytest.raises(UsageError) as raised:
        parse("# comment", alloc(1), text)
    assert (raised.value.what, raised.value.why) == (what, why)
    assert raised.value.fix


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zeros"
    path.write_bytes(b"\0" * (2 * LONGEST_LINE))
    result = replay(path)
    assert isinstance(result.exception, UsageError)
    assert result.exception.what == f"{path}, line 1"


def test_a_file_without_usable_events_is_refused() -> None:
    result = replay("-", text=line("sched_switch", "a ==> b"))
    assert isinstance(result.exception, UsageError)
    assert result.exception.why == "no event of pages or bios in 1 lines"


@pytest.mark.parametrize(
    ("words", "code"), [(["nosuchfile"], 3), ([], 2), (["-", "--rule", "x"], 2)]
)
def test_other_errors(words: list[str], code: int) -> None:
    result = replay(*words)
    assert isinstance(result.exception, AoEError)
    assert result.exception.exit_code == code


# --- the command --------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_exit_code_outcome_and_width(path: Path) -> None:
    result = replay(path)
    assert result.exit_code == bool(expected(path))
    last = re.findall(r"^Outcome: ([\w-]+)", result.output, re.MULTILINE)
    words = [
        rule.fault.value
        for _, name in expected(path)
        for rule in RULES
        if rule.name == name
    ]
    assert last == [min(words, key=list(OUTCOMES).index, default="ok")]
    assert max(map(len, result.output.splitlines())) <= 80
    assert "\x1b" not in result.output


def test_text_about_the_bug_of_2007() -> None:
    text = replay(BUG_OF_2007).output
    assert re.search(r"^>> +10 .* page_ref_mod_and_test +1 -> 0$", text, re.MULTILINE)
    assert "put-to-zero (K75)" in text
    assert "page 0x2b4c11: bad-page, premature-free, double-free" in text
    assert "First violation: get-from-zero at line 9" in text
    assert "Worst violation: freed-twice at line 14" in text


def test_standard_input_is_read() -> None:
    result = replay("-", text=BUG_OF_2007.read_text())
    assert result.exit_code == 1
    assert result.output.startswith("standard input\n")


def test_a_rule_without_its_events_is_said_not_to_be_judged() -> None:
    result = replay("-", text=f"{free(1)}\n{alloc(1)}\n")
    assert result.exit_code == 6
    assert "Outcome: undecided" in result.output
    assert (
        "freed-twice    K112  not judged: the trace has no page_ref_set"
        in result.output
    )
    some = replay("-", text=f"{set_count(1, 1)}\n{free(1)}\n")
    assert some.exit_code == 0
    assert "Outcome: ok, as far as judged" in some.output
    assert "freed-in-io    K70   not judged: the trace has no bio_page" in some.output


def test_json() -> None:
    result = replay(BUG_OF_2007, "--json")
    document: dict[str, Any] = json.loads(result.output)
    assert document["command"] == "lab replay"
    assert document["file"] == str(BUG_OF_2007)
    assert (document["lines"], document["outcome"]) == (14, "double-free")
    assert document["violations"] == 4
    assert document["complete"] is True
    assert document["first_violation"]["name"] == "get-from-zero"
    assert document["worst_violation"] == {
        "line": 14,
        "name": "freed-twice",
        "rule": "K112",
        "outcome": "double-free",
        "note": "the page is free since line 11",
    }
    (page,) = document["pages"]
    assert page["pfn"] == 0x2B4C11
    assert [each["line"] for each in page["violations"]] == [9, 10, 11, 14]
    put = next(each for each in page["events"] if each["line"] == 10)
    assert (put["task"], put["before"], put["count"]) == ("aoe_tx0-77", 1, 0)
    assert [each["name"] for each in document["rules"]] == [rule.name for rule in RULES]
    clean = json.loads(replay(CLEAN, "--json").output)
    assert clean["first_violation"] is clean["worst_violation"] is None
    assert clean["pages"] == []


def test_html(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    assert replay(BUG_OF_2007, "--html", path).exit_code == 1
    page = _Page(path.read_text())
    assert page.ids >= {href for href in page.links if not href.startswith("http")}
    assert page.loads == []
    assert page.text.count("put-to-zero") >= 2
    assert "Worst violation: freed-twice at line 14" in page.text
    assert page.tags.count("svg") > 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_html_of_each_trace_is_well_formed(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.html"
    replay(path, "--html", file)
    assert _Page(file.read_text()).open == []


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)
        self.ids.add(f"#{values.get('id')}")
        if href := values.get("href"):
            self.links.add(href)
        self.loads += [str(values["src"])] if "src" in values else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag != "meta":
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_pages_beyond_a_hundred_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("\n".join(mod(pfn, -1, -1) for pfn in range(1, 151)))
    result = replay(path)
    assert "150 violations" in result.output
    assert "Pages with violations: 150; the first 100 are listed." in result.output


def test_what_was_forgotten_is_said(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("\n".join(set_count(pfn, 1) for pfn in range(1, 31)))
    result = replay(path, "--remember", 10)
    assert "Forgotten pages, blocks and bios: 20" in result.output


# --- pages.bt -----------------------------------------------------------------------


def test_the_bpftrace_script_is_printed() -> None:
    result = replay("--bpftrace")
    assert result.exit_code == 0
    assert result.output == bpftrace_script()


def test_what_the_bpftrace_script_prints_is_read() -> None:
    """Each printf() of the script, with values for its conversions."""
    printed = re.findall(r'printf\("([^"]*)\\n"', bpftrace_script())
    values = {"%s": "insmod", "%d": "7", "%03d": "001", "%06d": "000123", "%lx": "1f"}
    names = set()
    for text in printed:
        filled = re.sub(r"%0?\d*(?:lx|[sd])", lambda found: values[found[0]], text)
        names |= {event.name for event in parse(filled)}
    assert names == {
        "pages.bt",
        "block_bio_queue",
        "bio_page",
        "page_count",
        "page_to_zero",
        "block_bio_complete",
        "mm_page_alloc",
        "mm_page_free",
    }
