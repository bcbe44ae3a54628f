"""The lab's face: tables, CSV, JSON, one case told, drawn and traced."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from click.testing import Result as Outcome

import initiator
from aoe.common import rules as rules_module
from aoe.common.rules import repository_url
from initiator.cli.main import cli
from initiator.lab.cases import Case, Result, all_cases, run_case
from initiator.lab.kernel.journal import SEVERITY
from initiator.lab.reports.chrome_trace import chrome_trace
from initiator.lab.reports.html_page import html_page
from initiator.lab.reports.legend import OUTCOMES
from initiator.lab.reports.story import tell
from initiator.lab.reports.tables import COLUMNS, dump_lines, record, write_csv
from initiator.rules import load_all_rules, load_kernel_rules

YEAR_2007 = "none@2.6.21/rawalloc_highorder_tail/clean/NOSG"
KINDS = [
    YEAR_2007,
    "d/xfs_kmalloc_subpage/clean/SG",
    "f/kmalloc_highorder_tail/stale_clone+free_realloc/COW",
    "e/xfs_kmalloc_subpage/stale_clone+free_realloc/SG",
    "b+/kmalloc_highorder_tail/stale_clone+free_realloc/COW",
    "none@6.1/vmalloc_page/devfail+free_realloc/NOSG",
]


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return [run_case(case, keep_entries=True) for case in all_cases()]


def aoe(*words: str) -> Outcome:
    return CliRunner().invoke(cli, ["lab", *words])


def parse(page: str) -> ET.Element:
    return ET.fromstring(page)  # noqa: S314 - it is a page of our own


def kept(case: str) -> Result:
    return run_case(Case.parse(case), keep_entries=True)


# --- the matrix -----------------------------------------------------------------


def test_all_cases_have_a_result_with_a_known_outcome(results: list[Result]) -> None:
    assert len({result.case for result in results}) == len(results) == 1890
    assert {result.outcome for result in results} <= set(OUTCOMES)
    per_policy = Counter(result.case.policy for result in results)
    assert set(per_policy.values()) == {189}


def test_k117_outcomes_are_explained_worst_first() -> None:
    assert list(OUTCOMES) == [*(fault.value for fault in SEVERITY), "ok"]


def test_every_rule_that_a_journal_names_is_explained(results: list[Result]) -> None:
    named = {entry.rule for result in results for entry in result.journal.entries}
    assert named - set(load_kernel_rules()) == {""}


def test_every_rule_that_the_model_names_is_explained() -> None:
    package = Path(initiator.__file__).parent
    sources = [*package.glob("driver/*.py"), *package.glob("lab/**/*.py")]
    named = {
        rule
        for source in sources
        for rule in re.findall(r'"(K\d+)"', source.read_text())
    }
    assert "K75" in named
    assert named <= set(load_kernel_rules())


def test_csv_has_a_line_for_each_case_and_a_column_for_each_fact(
    results: list[Result],
) -> None:
    file = io.StringIO()
    write_csv(results, file)
    lines = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert ",".join(lines[0]) == (
        "policy,submitter,event,nic,outcome,flags,reason,"
        "gets,puts,copied,wasted,held,quarantined,if_linearized_late,if_bad_page_kept_out"
    )
    assert len(lines) == 1890
    for line, result in zip(lines, results, strict=True):
        assert Case(*list(line.values())[:4]) == result.case
        assert line["outcome"] == result.outcome
        assert tuple(line["flags"].split()) == result.flags
        assert int(line["copied"]) == result.costs["copied"]


def test_k121_both_settings_are_reported_where_they_make_a_difference() -> None:
    late = run_case(Case.parse("b+/pagecache/stale_clone+free_realloc/NOSG"))
    assert late.outcome == "ok"
    assert record(late)["if_linearized_late"] == "wrong-bytes"
    modern = run_case(Case.parse("none@6.1/pagecache/stale_clone+free_realloc/NOSG"))
    assert (modern.if_linearized_late, modern.if_bad_page_kept_out) == ("", "")


def test_json_has_the_same_cases_as_the_filters_name() -> None:
    done = aoe("matrix", "-p", "a", "-p", "e", "-n", "COW", "-e", "clean", "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert (report["schema_version"], report["command"]) == (1, "lab matrix")
    cases = report["cases"]
    assert len(cases) == 2 * 7
    assert set(cases[0]) == set(COLUMNS)
    assert {case["policy"] for case in cases} == {"a", "e"}
    assert {(case["event"], case["nic"]) for case in cases} == {("clean", "COW")}
    assert all(isinstance(case["flags"], list) for case in cases)


def test_the_fixes_of_2007_run_when_they_are_named() -> None:
    done = aoe("matrix", "-s", "xfs_get_free_page", "-s", "jbd_get_free_page", "--csv")
    lines = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(lines) == 2 * 10 * 9 * 3
    assert {line["wasted"] for line in lines if line["nic"] == "SG"} == {"3072"}


def test_the_table_counts_outcomes_and_costs_by_policy(results: list[Result]) -> None:
    done = aoe("matrix")
    assert done.exit_code == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    outcomes = next(row for row in rows if row[:1] == ["c+"])
    mine = [result for result in results if result.case.policy == "c+"]
    counts = Counter(result.outcome for result in mine)
    assert outcomes[1:] == [str(counts[word] or "·") for word in OUTCOMES]
    costs = [row for row in rows if row[:1] == ["c+"]][1]
    assert costs[1] == f"{sum(result.costs['gets'] for result in mine):,}"
    assert re.search(r"aoe lab explain \S+/\S+/\S+/\S+$", done.stdout.rstrip())


def test_chosen_cells_are_shown_in_words() -> None:
    done = aoe("matrix", "-p", "e", "-n", "SG", "-s", "pagecache", "-s", "stack_tail")
    rows = [line.split() for line in done.stdout.splitlines()]
    row = next(row for row in rows if row[:1] == ["stale_clone+rewrite_in_place"])
    assert row[1:] == ["wrong-bytes", "wrong-bytes"]
    assert next(row for row in rows if row[:1] == ["clean"])[1:] == ["ok", "ok"]
    assert "\x1b[" not in done.stdout


@pytest.mark.parametrize("columns", ["80", "200"])
def test_a_terminal_of_any_width_gets_whole_words(columns: str) -> None:
    from rich.console import Console

    from initiator.lab.reports.tables import cell_tables

    cells = [run_case(case) for case in all_cases(policies=["d"])]
    console = Console(width=int(columns), file=io.StringIO(), color_system=None)
    for table in cell_tables(cells, console.width):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    words = Counter(re.findall(r"BUG|double-free|wrong-bytes|\bok\b", text))
    assert words == Counter(r.outcome for r in cells if r.outcome in words)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("matrix", "-n", "FAST"),
            "aoe: FAST: no such nic (have: SG, NOSG, COW)",
        ),
        (
            ("matrix", "-p", "x"),
            (
                "aoe: x: no such policy "
                "(have: none@2.6.21, none@6.1, a, b, b+, c, c+, d, e, f)"
            ),
        ),
        (
            ("explain", "a/b"),
            "aoe: a/b: not a case. Write it policy/submitter/event/nic",
        ),
        (
            ("run", "a/pagecache/clean/BIG"),
            "aoe: BIG: unknown (have: SG, NOSG, COW)",
        ),
        (
            ("run", "a/pagecache/clean/SG", "-i", "eth0"),
            "aoe: e0.0: would be overwritten from its first sector. Add --overwrite",
        ),
    ],
)
def test_a_name_that_is_unknown_is_one_line_and_code_2(
    words: tuple[str, ...], line: str
) -> None:
    command = [sys.executable, "-m", "initiator", "lab", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{line}\n"


# --- one case -------------------------------------------------------------------


def test_k75_the_bug_of_2007_is_told_step_by_step() -> None:
    done = aoe("explain", YEAR_2007)
    assert done.exit_code == 0
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == YEAR_2007
    network = [line for line in lines if re.match(r"\d+ network ", line)]
    assert [line.split(" ", 1)[1] for line in network[:3]] == [
        "network get_page 1 0 -> 1 K75 count was 0: the next put_page frees it",
        "network skb_linearize K75 clone 0, 4096 bytes",
        "network put_page 1 1 -> 0 K75",
    ]
    faults = [line for line in lines if line.startswith(">>")]
    assert "PREMATURE-FREE: freed by network, still used by driver" in faults[0]
    assert "DOUBLE-FREE" in faults[1]
    first = next(line for line in lines if line.startswith("The first rule that broke"))
    assert first.startswith("The first rule that broke: K75 at step 8, premature-free.")
    assert " Linearizing: " in first
    start = lines.index("Rules, in full with: aoe rule NUMBER") + 1
    named = {entry.rule for entry in kept(YEAR_2007).journal.entries}
    assert lines[start : lines.index("", start)] == [
        f"{number} {rule.title}"
        for number, rule in load_kernel_rules().items()
        if number in named
    ]


def test_a_case_may_be_written_as_four_words() -> None:
    assert (
        aoe("explain", *YEAR_2007.split("/")).stdout == aoe("explain", YEAR_2007).stdout
    )


def test_json_tells_every_event_and_which_broke_the_rule() -> None:
    report = json.loads(aoe("explain", YEAR_2007, "--json").stdout)
    assert report["outcome"] == "double-free"
    assert [event["step"] for event in report["events"]] == list(
        range(len(report["events"]))
    )
    assert report["first_broken"]["rule"] == "K75"
    assert report["events"][report["first_broken"]["step"]] == report["first_broken"]
    assert set(report["meanings"]) == {"policy", "submitter", "event", "card"}
    named = {event["rule"] for event in report["events"]} - {""}
    assert {rule["number"] for rule in report["rules"]} == named
    rules = load_kernel_rules()
    for rule in report["rules"]:
        assert rule["statement"] == rules[rule["number"]].statement


def test_run_in_memory_marks_the_bytes_that_nobody_submitted() -> None:
    done = aoe("run", "none@6.1/pagecache/stale_clone+rewrite_in_place/SG")
    assert done.exit_code == 0
    assert "not what was submitted, 4096 bytes" in done.stdout
    assert done.stdout.count("77 " * 15) == 1
    right = aoe("run", "none@6.1/pagecache/clean/SG").stdout
    assert "The disk holds what was submitted" in right
    assert "^^" not in right


def test_a_dump_shows_where_bytes_differ() -> None:
    landed = b"A" * 32 + b"AAAAxAAAAAAAAAAA" + b"A" * 16
    lines = list(dump_lines(b"A" * 64, landed))
    row = "41 " * 16 + " " + "A" * 16
    assert lines == [
        (f"00000000  on disk    {row}", False),
        ("*", False),
        (f"00000020  on disk    41 41 41 41 78 {'41 ' * 11} AAAAxAAAAAAAAAAA", True),
        (f"          submitted  {row}", True),
        ("                                 ^^", True),
        (f"00000030  on disk    {row}", False),
        ("00000040", False),
    ]


# --- the story, the picture and the trace ---------------------------------------


def test_k75_the_page_is_free_while_its_owner_uses_it() -> None:
    result = kept(YEAR_2007)
    story = tell(result.journal.entries, result.journal.worst)
    tail = story.lanes[1]
    assert [(each.text, each.start, each.end) for each in tail.owners] == [
        ("driver", 0, 13)
    ]
    assert tail.free[0].start == 8
    assert tail.lost_until(tail.free[0]) == 13
    assert [count for _, count in tail.counts[-3:]] == [1, 0, 0]
    assert [(life.kind, life.number) for life in story.lives] == [
        ("bio", 0),
        ("skb", 0),
        ("clone", 0),
    ]
    assert story.answered(story.of_kind("bio")[0]) is story.of_kind("clone")[0]


class Page(HTMLParser):
    """Records what a page loads and links to, and that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.links.append(str(value))
            elif name in ("src", "href"):
                self.loads.append(str(value))
            elif name == "id":
                self.ids.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("case", KINDS)
def test_a_page_stands_alone_and_is_well_formed(case: str) -> None:
    text = html_page(kept(case))
    page = Page()
    page.feed(text)
    assert (page.open, page.loads) == ([], [])
    assert not re.search(r"@import|url\(", text)
    within, elsewhere = (
        {link for link in page.links if link.startswith("#") is inside}
        for inside in (True, False)
    )
    assert within <= {f"#{each}" for each in page.ids}
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith(f"{repository_url()}/") for link in elsewhere)
    assert text.count("http") == sum("http" in link for link in page.links)
    parse(text)


def test_a_page_has_the_text_of_its_rules_and_links_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = "https://example.org/pyaoe"
    monkeypatch.setattr(rules_module, "repository_url", lambda: base)
    result = kept(YEAR_2007)
    root = parse(html_page(result))
    rules = load_all_rules()
    articles = {each.get("id"): each for each in root.iter("article")}
    named = {entry.rule for entry in result.journal.entries} - {""}
    assert {number.lower() for number in named} <= set(articles)
    # What K75 cites is there, too.
    assert {"k119"} <= set(articles)
    for rule in rules.values():
        if rule.anchor in articles:
            text = " ".join("".join(articles[rule.anchor].itertext()).split())
            assert text.startswith(f"{rule.number} {rule.title}")
            assert rule.source.replace("`", "") in text
            first = rule.statement.partition("\n\n")[0].replace("`", "")
            assert " ".join(first.split()) in text
    row = next(each for each in root.iter("tr") if each.get("id") == "s8")
    assert [(a.get("href"), a.get("title"), a.text) for a in row.iter("a")] == [
        ("#k75", "Linearizing", "K75")
    ]
    links = {a.get("href") for a in articles["k75"].iter("a")}
    assert "#k119" in links
    assert f"{base}/blob/main/initiator/KERNEL.md#k75" in links
    # A rule that is not on the page is linked to in the repository.
    for a in root.iter("a"):
        number = a.text or ""
        if number in rules:
            cited = rules[number]
            here = f"#{cited.anchor}"
            document = f"{base}/blob/main/{cited.document}{here}"
            assert a.get("href") == (here if cited.anchor in articles else document)


def test_the_picture_marks_every_event_and_the_fatal_one() -> None:
    result = kept(YEAR_2007)
    root = parse(html_page(result))
    picture = next(each for each in root.iter("svg") if each.get("role") == "img")
    steps = {entry.step for entry in result.journal.entries}
    broken = {entry.step for entry in result.journal.faults}

    columns = {
        int(each.get("data-step", "")): each.get("class")
        for each in picture.iter("rect")
        if (each.get("class") or "").startswith("column")
    }
    assert columns == {
        step: "column broken" if step in broken else "column" for step in steps
    }
    marks = [each for each in picture.iter() if each.get("class") == "fault"]
    assert {int(each.get("data-step", "")) for each in marks} == broken
    title = marks[0].find("title")
    assert title is not None
    assert "K75" in (title.text or "")
    flags = [each.text for each in picture.iter("text") if each.get("class") == "flag"]
    assert sorted(map(str, flags)) == [
        "first rule that broke: K75, premature-free at step 8",
        "worst: K110, double-free at step 15",
    ]
    rows = {row.get("id"): row.get("class") for row in root.iter("tr") if row.get("id")}
    assert {name for name, style in rows.items() if style == "broken"} == {"s8", "s15"}
    assert len(rows) == len(steps)


def test_only_pages_that_take_part_have_a_lane() -> None:
    result = kept("none@6.1/pagecache/clean/SG")
    root = parse(html_page(result))
    names = [each.text for each in root.iter("text") if each.get("class") == "name"]
    assert names == ["machine", "bio 0", "skb 0", "clone 0", "disk gets", "page 0"]


@pytest.mark.parametrize("case", KINDS)
def test_a_trace_has_a_track_for_each_and_arrows_that_hold(case: str) -> None:
    result = kept(case)
    trace: Any = json.loads(json.dumps(chrome_trace(result)))
    events = trace["traceEvents"]
    assert all({"ph", "name", "pid", "tid"} <= set(event) for event in events)
    assert all("ts" in event for event in events if event["ph"] != "M")
    named = {
        event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    story = tell(result.journal.entries, result.journal.worst)
    lanes = {f"page {lane.page}" for lane in story.lanes}
    assert named == lanes | {life.period.text for life in story.lives}

    slices = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] > 0 for event in slices)
    for event in (event for event in events if event["ph"] in "stf"):
        assert any(
            (each["pid"], each["tid"]) == (event["pid"], event["tid"])
            and each["ts"] <= event["ts"] < each["ts"] + each["dur"]
            for each in slices
        ), event
    for number in {event["id"] for event in events if event["ph"] in "stf"}:
        phases = [event["ph"] for event in events if event.get("id") == number]
        assert "".join(phases) in ("sf", "stf", "sttf")

    counters = [event for event in events if event["ph"] == "C"]
    assert {event["name"] for event in counters} == {
        f"count of {lane}" for lane in lanes
    }
    for args in (event["args"] for event in events if event["ph"] == "i"):
        rule = load_kernel_rules().get(args["rule"])
        assert args["rule title"] == (rule.title if rule else "")
        assert bool(args["rule statement"]) is (rule is not None)
    faults = [event for event in events if event.get("cat") == "fault"]
    assert {event["args"]["step"] for event in faults} == {
        entry.step for entry in result.journal.faults
    }


def test_every_case_can_be_drawn_and_traced(results: list[Result]) -> None:
    for result in results[::7]:
        parse(html_page(result))
        assert chrome_trace(result)["traceEvents"]


def test_explain_writes_both_files(tmp_path: Path) -> None:
    html, trace = tmp_path / "case.html", tmp_path / "case.json"
    done = aoe("explain", YEAR_2007, "--html", str(html), "--trace", str(trace))
    assert done.exit_code == 0
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert json.loads(trace.read_text())["displayTimeUnit"] == "ms"


# --- what it costs not to use it ------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["lab", "--help"], ["lab", "run", "-h"]])
def test_help_loads_nothing_that_takes_long(words: list[str]) -> None:
    probe = (
        "import sys; from click.testing import CliRunner;"
        "from initiator.cli.main import cli;"
        f"code = CliRunner().invoke(cli, {words}).exit_code; print(code, *sys.modules)"
    )
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, *loaded = done.stdout.split()
    assert code == "0"
    assert not {"scapy", "pyroute2", "rich", "msgspec"} & set(loaded)
    assert not [name for name in loaded if name.startswith("initiator.lab.")]
