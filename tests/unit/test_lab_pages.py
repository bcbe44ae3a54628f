"""The HTML pages of the lab in Chromium: keys, links, colors, and what fits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from click.testing import CliRunner

from initiator.cli.main import cli
from tests.browser import Browser

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

YEAR_2007: Final = "none@2.6.21/rawalloc_highorder_tail/clean/NOSG"
HARMLESS: Final = "none@2.6.21/rawalloc_highorder_tail/clean/SG"
LONG: Final = "b+/kmalloc_highorder_tail/stale_clone+free_realloc/COW"
COMMANDS: Final = {
    "case": f"explain {YEAR_2007}",
    "long": f"explain {LONG}",
    "pair": f"explain {YEAR_2007} --against {HARMLESS}",
    "removed": "explain none@2.6.21/stack_tail/netdev_removed/NOSG",
    "flags": "explain a/rawalloc_highorder_tail/clean/SG --against "
    "a/rawalloc_highorder_tail/stale_clone+free_realloc/COW",
    "order": "explore -p none@6.1 -n NOSG -s pagecache",
    "matrix": "matrix -p none@2.6.21 -p a",
}
SIZES: Final = ((1280, 720), (1024, 768), (390, 844))
"""A laptop, a projector and a phone."""

CLIPPED: Final = """(() => {
  const found = [];
  const says = (e) => `${e.tagName} ${e.getAttribute('class')} ${e.textContent}`;
  if (document.documentElement.scrollWidth > innerWidth) found.push('page too wide');
  for (const svg of document.querySelectorAll('svg')) {
    const all = svg.getBoundingClientRect();
    for (const e of svg.querySelectorAll('text')) {
      const r = e.getBoundingClientRect();
      if (r.left < all.left - 1 || r.right > all.right + 1 || r.top < all.top - 1
          || r.bottom > all.bottom + 1) found.push(says(e));
    }
  }
  for (const e of document.querySelectorAll('body *:not(svg *):not(script)')) {
    const r = e.getBoundingClientRect();
    const scrolls = e.closest('.card, .steps');
    if (!r.width || scrolls) continue;
    if (r.left < -1 || r.right > innerWidth + 1) found.push(says(e));
  }
  return found;
})()"""
"""Elements that are cut off, and not in a part of the page that scrolls."""

COLORS: Final = """(() => {
  const colors = (root) => new Set([...root.querySelectorAll('*')].flatMap((e) => {
    if (!e.getBoundingClientRect().width || e.closest('.names')) return [];
    const style = getComputedStyle(e);
    return e.tagName === 'text' ? [style.fill] : [style.fill, style.stroke];
  }));
  const page = getComputedStyle(document.documentElement);
  const probe = document.createElement('i');
  document.body.append(probe);
  const neutral = ['--ink', '--soft', '--rule', '--thread', '--card'].map((name) => {
    probe.style.color = page.getPropertyValue(name);
    return getComputedStyle(probe).color;
  });
  neutral.push('none', 'rgba(0, 0, 0, 0)', 'rgb(0, 0, 0)');
  const key = colors(document.querySelector('.key'));
  return [...colors(document.querySelector('svg[role=img]'))]
    .filter((color) => !key.has(color) && !neutral.includes(color));
})()"""
"""The colors of a timeline that its legend does not have, without shades of gray."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    written = {name: folder / f"{name}.html" for name in COMMANDS}
    for name, command in COMMANDS.items():
        words = ["lab", *command.split(), "--html", str(written[name])]
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == (1 if name == "order" else 0), done.output
    return written


def selected(browser: Browser) -> list[int]:
    """Return the selected events, once for each row of the log."""
    script = "[...document.querySelectorAll('tr.on')].map((e) => +e.dataset.step)"
    found: list[int] = browser.run(script)
    return found


def said(browser: Browser) -> str:
    return str(browser.run("document.querySelector('.say').textContent"))


def box(browser: Browser, selector: str) -> dict[str, Any]:
    element = f"document.querySelector({json.dumps(selector)})"
    script = f"{element}.getBoundingClientRect().toJSON()"
    found: dict[str, Any] = browser.run(script)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_clipped_and_no_script_fails(
    name: str, browser: Browser, pages: dict[str, Path]
) -> None:
    for width, height in SIZES:
        browser.open(pages[name], width, height)
        if name == "matrix":
            browser.click("a.cell.double-free")
        assert browser.run(CLIPPED) == [], (width, height)
        assert browser.problems == []


@pytest.mark.parametrize("name", ["case", "long", "pair", "order"])
def test_the_count_curve_is_above_the_fold(
    name: str, browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages[name], 1280, 720)
    curve = box(browser, "svg .count")
    assert curve["top"] > 0
    assert curve["bottom"] < box(browser, ".bar")["top"]
    # Name, result and the order of events precede the timeline, and no section.
    assert curve["top"] < box(browser, "h2")["top"]


@pytest.mark.parametrize("name", ["case", "long", "order"])
def test_all_colors_are_in_the_legend(
    name: str, browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages[name])
    assert browser.run(COLORS) == []


def test_keys_and_clicks_select_an_event(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["case"])
    # At first, the first violation.
    assert selected(browser) == [8]
    assert "premature-free: freed by network, still used by owner" in said(browser)
    browser.press("ArrowLeft")
    assert selected(browser) == [7]
    assert "put_page, page 1 · count 1 → 0 · K75 Linearizing" in said(browser)
    browser.press("ArrowRight", "ArrowRight", "v")
    assert selected(browser) == [15]
    browser.press("ArrowRight")
    assert selected(browser) == [15]
    browser.press("Home")
    assert selected(browser) == [0]
    assert browser.run("location.hash") == "#s0"
    browser.click("svg .get")
    assert selected(browser) == [5]
    browser.click("[data-key=ArrowRight]")
    assert selected(browser) == [6]
    assert browser.problems == []


def test_on_a_phone_the_selected_event_is_in_view(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["long"], 390, 844)
    for key in ("End", "Home"):
        browser.press(key)
        step, name = box(browser, ".column.on"), box(browser, "svg .names .name")
        assert name["right"] < step["left"], key
        assert step["right"] < 390, key
        assert name["left"] >= 0, key


def test_rules_are_links_to_their_text(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["case"])
    browser.click(".say a")
    assert browser.run("location.hash") == "#k75"
    assert -1 <= box(browser, "#k75")["top"] < 720


def test_two_cases_are_side_by_side_and_step_together(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["pair"], 1024, 768)
    left, right = box(browser, "#timeline-0"), box(browser, "#timeline-1")
    assert left["right"] < right["left"]
    assert left["top"] == right["top"]
    columns = "[...document.querySelectorAll('.card .column.on')]"
    marked = f"{columns}.map((e) => e.closest('svg').id)"
    # The first case alone has a violation, so that is selected.
    assert browser.run(marked) == ["timeline-0"]
    assert said(browser).startswith("first case only, step 8: ")
    browser.press("ArrowRight")
    assert browser.run(marked) == ["timeline-0", "timeline-1"]
    assert said(browser).startswith("both cases, steps 9 and 5: network transmit")


def test_a_step_of_the_counterexample_selects_its_events(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["order"])
    steps = "[...document.querySelectorAll('.order li')].map((e) => e.textContent)"
    assert len(browser.run(steps)) == 4
    active = "document.querySelector('.order .on').textContent"
    assert browser.run(active) == "clone 0 (of bio 0) leaves the qdisc"
    browser.click(".order li:nth-child(3) button")
    assert browser.run(active) == "the owner of bio 0 frees the buffer"
    assert said(browser).startswith("page cache free_pages, page 0 · count 1 → 0")


def test_a_cell_of_the_heat_map_opens_its_case(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["matrix"])
    opened = "document.querySelector('dialog[open] h1')?.textContent ?? ''"
    cell = "document.activeElement.hash"
    browser.run("document.querySelector('a.cell.double-free').focus()")
    browser.press("ArrowUp", "ArrowDown", "ArrowRight")
    name = str(browser.run(cell))[1:]
    browser.press("Enter")
    assert browser.run(opened) == name
    command = "document.querySelector('dialog .command').textContent"
    assert f"aoe lab explain {name} " in browser.run(command)
    first = selected(browser)
    browser.press("ArrowLeft")
    assert selected(browser) == [first[0] - 1]
    browser.press("Escape")
    assert browser.run(opened) == ""
    assert browser.run(cell) == f"#{name}"
    # A link to a case opens it, too.
    browser.run(f"location.hash = {json.dumps(YEAR_2007)}")
    assert browser.wait(opened) == YEAR_2007
    assert browser.problems == []


def test_a_picture_is_saved_as_a_file(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    browser.open(pages["case"])
    browser.run(
        "URL.createObjectURL = (blob) => { blob.text().then((text) => {"
        " window.saved = text; }); return 'data:,'; }"
    )
    browser.click("[data-save]")
    saved = browser.wait("window.saved")
    written = tmp_path / "case.svg"
    done = CliRunner().invoke(cli, ["lab", "explain", YEAR_2007, "--svg", str(written)])
    assert done.exit_code == 0
    for text in (saved, written.read_text()):
        picture = tmp_path / "picture.svg"
        picture.write_text(text)
        browser.open(picture)
        assert browser.run("document.querySelectorAll('.fault').length") == 2
        assert browser.run("getComputedStyle(document.querySelector('.get')).fill") == (
            "rgb(16, 128, 92)"
        )
