"""An HTML page about a case: description, timeline, event log and rules.

The page is self-contained: it loads no script, font, image or style sheet. It links to
the rules that it cites and has their full text.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from initiator.lab.reports.history import build_history
from initiator.lab.reports.legend import FLAGS, OUTCOMES
from initiator.lab.reports.rule_html import RuleLinks
from initiator.lab.reports.tables import counts, describe_case, verdict
from initiator.lab.reports.timeline import draw, tooltip

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from initiator.lab.cases import Result
    from initiator.lab.kernel.journal import Entry

STYLE: Final = """
:root { color-scheme: light dark;
  --paper: #fbfaf7; --card: #ffffff; --ink: #1d2327; --soft: #667079; --rule: #dcdcd6;
  --thread: #ecebe5; --bad: #c8102e; --bad-soft: #c8102e1c; --good: #1a7f4b;
  --warn: #a15c00; --own: #bcd5f5; --slab: #d9d7cf; --aoe: #b9e3d6; --other: #f7d3a6;
  --bio: #8fb3e8; --skb: #86cbb8; --clone: #c9b3ea; --count: #24406b; --get: #10805c;
  --put: #b4560a; --free: #9aa3a940; --on: #ffd54a55; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171a; --card: #1c2024; --ink: #e8e6e1; --soft: #98a2ab; --rule: #343a40;
  --thread: #262b30; --bad: #ff6b74; --bad-soft: #ff6b7426; --good: #4fc98a;
  --warn: #f0b35a; --own: #2f4f7d; --slab: #4a4c48; --aoe: #22594a; --other: #7a5220;
  --bio: #42669f; --skb: #2f7765; --clone: #64508c; --count: #9dc1ff; --get: #4fd0a0;
  --put: #ff9d4d; --free: #9aa3a930; --on: #ffd54a33; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 32px 60px; max-width: 1500px; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans",
  sans-serif; }
h1 { font-size: 25px; line-height: 1.25; margin: 0; font-weight: 650; }
h1 .sep { color: var(--soft); font-weight: 400; padding: 0 .12em; }
h2 { font-size: 17px; margin: 34px 0 10px; }
header { display: flex; gap: 18px; align-items: center; flex-wrap: wrap; }
.badge { color: #fff; background: var(--bad); border-radius: 999px; padding: 4px 16px;
  font-weight: 650; font-size: 17px; white-space: nowrap; }
.badge.ok { background: #1a7f4b; } .badge.mild { background: #a15c00; }
.badge:not(.ok):not(.mild) { background: #c8102e; }
.flag-word { border: 1px solid var(--rule); border-radius: 999px; padding: 1px 10px;
  font-size: 13px; color: var(--soft); white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content max-content 1fr; gap: 2px 18px;
  margin: 16px 0; } dt { color: var(--soft); } dd { margin: 0; }
dd.which { font-weight: 600; }
.verdict { border-left: 4px solid var(--bad); padding: 8px 16px; margin: 18px 0;
  background: var(--card); border-radius: 0 8px 8px 0; }
.verdict.ok { border-color: var(--good); } .verdict p { margin: 2px 0; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  overflow-x: auto; padding: 8px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; color: var(--soft);
  font-size: 13px; margin: 8px 4px; } .key svg { vertical-align: -4px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 500; }
th, td { padding: 3px 12px 3px 6px; border-bottom: 1px solid var(--thread);
  vertical-align: top; } td.n, th.n { text-align: right; white-space: nowrap; }
td code, p code, li code { font: 13px/1.4 ui-monospace, "DejaVu Sans Mono", monospace; }
tr.broken { background: var(--bad-soft); } tr.broken td.n, tr.broken strong {
  color: var(--bad); } tr.on, tr:target { background: var(--on); }
.rules { padding: 4px 16px; } .rule { border-top: 1px solid var(--thread); }
.rule:first-child { border: 0; } .rule:target { background: var(--on); }
.rule h3 { font-size: 15px; margin: 10px 0 2px; } .rule p { margin: 4px 0; }
.rule table { width: auto; margin: 6px 0; } .rule p.source { color: var(--soft);
  font-size: 13px; margin-bottom: 10px; } a { color: inherit; }
footer { color: var(--soft); font-size: 13px; margin-top: 30px; }
svg { display: block; } svg text { font: 12px system-ui, "DejaVu Sans", sans-serif;
  fill: var(--ink); } svg text.name { font-weight: 600; font-size: 13px; }
svg text.more, svg text.tick, svg text.number { fill: var(--soft); font-size: 11px; }
svg text.number.broken { fill: var(--bad); font-weight: 700; }
svg text.action { font-size: 11.5px; } svg text.action.allocator { fill: var(--soft); }
svg text.action.aoe { fill: var(--get); } svg text.action.network { fill: var(--put); }
svg text.inside { font-size: 11.5px; pointer-events: none; }
svg text.bang, svg text.sign { fill: #fff; font-weight: 700; pointer-events: none; }
svg text.flag { fill: var(--bad); font-weight: 650; font-size: 13px; }
svg text.said { fill: var(--soft); font-size: 11px; pointer-events: none; }
svg text.said.lost { fill: var(--bad); font-weight: 600; }
.column { fill: transparent; } .column.broken { fill: var(--bad-soft); }
.column.on { fill: var(--on); } .thread { stroke: var(--thread); }
.rail { stroke: var(--rule); stroke-dasharray: 1 4; } .grid { stroke: var(--thread); }
.grid.zero { stroke: var(--rule); } .fatal { stroke: var(--bad); stroke-width: 2; }
.life.bio { fill: var(--bio); } .life.skb { fill: var(--skb); }
.life.clone { fill: var(--clone); } .band { stroke: none; }
.o-own { fill: var(--own); } .o-slab { fill: var(--slab); }
.o-aoe { fill: var(--aoe); } .o-other { fill: var(--other); }
.free { fill: var(--free); } .free.lost { fill: var(--bad-soft);
  stroke: var(--bad); stroke-dasharray: 5 4; }
.count { fill: none; stroke: var(--count); stroke-width: 2.5; }
.count.tail { stroke-dasharray: 4 3; opacity: .65; }
.dot { fill: var(--card); stroke: var(--count); stroke-width: 2; }
.sent { fill: var(--count); stroke: var(--card); stroke-width: 1.5; }
.arrow { stroke: var(--soft); } .tip { fill: var(--soft); }
.get { fill: var(--get); stroke: var(--card); } .put { fill: var(--put);
  stroke: var(--card); } .fault { fill: #c8102e; stroke: var(--card);
  stroke-width: 2; } .disk.right { fill: #1a7f4b; } .disk.wrong { fill: #c8102e; }
@media print { .card { overflow: visible; } body { max-width: none; } }
"""

_SCRIPT: Final = """
const all = step => document.querySelectorAll('[data-step="' + step + '"]');
for (const each of document.querySelectorAll('[data-step]')) {
  const light = on => all(each.dataset.step).forEach(e => e.classList.toggle('on', on));
  each.addEventListener('mouseenter', () => light(true));
  each.addEventListener('mouseleave', () => light(false));
  if (each.tagName !== 'TR') each.addEventListener('click', () => {
    location.hash = 's' + each.dataset.step; });
}
"""

_KEY: Final = (
    ('<path class="get" d="M8 2L14 13H2Z"/>', "get_page, page_ref_inc"),
    ('<path class="put" d="M8 14L2 3H14Z"/>', "put_page, page_ref_dec, free_pages"),
    ('<circle class="dot" cx="8" cy="8" r="5"/>', "other event"),
    ('<circle class="sent" cx="8" cy="8" r="5"/>', "transmission by the NIC"),
    ('<circle class="fault" cx="8" cy="8" r="7"/>', "violation of a rule"),
    ('<path class="count" d="M1 12H8V4H15"/>', "page count"),
    ('<rect class="free" x="1" y="2" width="14" height="12"/>', "on the free list"),
    (
        '<rect class="free lost" x="1" y="2" width="14" height="12"/>',
        "on the free list and still in use",
    ),
)
_MILD: Final = ("leak", "underflow", "bad-page")


def html_page(result: Result) -> str:
    """Return the page.

    Args:
        result: of a case that was run with ``keep_entries``.
    """
    history = build_history(result.journal.entries, result.journal.worst)
    first = None if history.first is None else history.first.step
    links = RuleLinks({entry.rule for entry in history.entries})
    command = f"{result.case}{result.switches.options}"
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"/>',
            '<meta name="viewport" content="width=device-width"/>',
            f"<title>{escape(str(result.case))}</title>",
            f"<style>{STYLE}</style></head><body>",
            *_top(result, links),
            '<h2>Timeline</h2><div class="card">',
            draw(history),
            f'</div><div class="key">{"".join(_key())}</div>',
            "<h2>Event log</h2>",
            '<div class="card"><table><thead><tr><th class="n">step</th><th>actor</th>',
            '<th>action</th><th class="n">page</th><th class="n">count</th>',
            "<th>rule</th><th>note</th></tr></thead><tbody>",
            *(_row(entry, first, links) for entry in history.entries),
            "</tbody></table></div>",
            *_rules("Rules", links, links.named),
            *_rules("Further rules cited by these", links, links.further),
            f"<footer><code>aoe lab explain {escape(command)}</code></footer>",
            f"<script>{_SCRIPT}</script></body></html>",
            "",
        )
    )


def _top(result: Result, links: RuleLinks) -> Iterator[str]:
    word = result.outcome
    kind = "ok" if word == "ok" else "mild" if word in _MILD else "grave"
    name = '<span class="sep">/</span>'.join(escape(part) for part in result.case)
    flags = "".join(
        f'<span class="flag-word" title="{escape(FLAGS[flag])}">{escape(flag)}</span>'
        for flag in result.flags
    )
    yield f"<header><h1>{name}</h1>"
    title = escape(OUTCOMES[word])
    yield f'<span class="badge {kind}" title="{title}">{word}</span>{flags}</header>'
    yield "<dl>"
    for axis, which, meaning in describe_case(result.case):
        yield f'<dt>{axis}</dt><dd class="which">{escape(which)}</dd>'
        yield f"<dd>{escape(meaning)}</dd>"
    yield f'</dl><div class="verdict {kind}">'
    yield from (f"<p>{links.link(line)}</p>" for line in verdict(result))
    yield "</div>"


def _key() -> Iterator[str]:
    for shape, meaning in _KEY:
        yield f'<span><svg width="16" height="16">{shape}</svg>'.replace(
            "<svg ", '<svg style="display:inline" '
        )
        yield f" {escape(meaning)}</span>"


def _row(entry: Entry, first: int | None, links: RuleLinks) -> str:
    note = links.link(entry.note)
    if entry.fault is not None:
        lead = ", first violation" if entry.step == first else ""
        note = f"<strong>{entry.fault.value}{lead}</strong>: {note}"
    style = ' class="broken"' if entry.fault is not None else ""
    page = "" if entry.page is None else str(entry.page)
    return (
        f'<tr id="s{entry.step}" data-step="{entry.step}"{style} '
        f'title="{escape(tooltip(entry))}"><td class="n">{entry.step}</td>'
        f"<td>{escape(entry.actor)}</td><td><code>{escape(entry.action)}</code></td>"
        f'<td class="n">{page}</td>'
        f'<td class="n">{escape(counts(entry).replace("->", "→"))}</td>'
        f"<td>{links.link(entry.rule)}</td><td>{note}</td></tr>"
    )


def _rules(title: str, links: RuleLinks, numbers: Sequence[str]) -> Iterator[str]:
    if numbers:
        yield f'<h2>{title}</h2><div class="card rules">'
        yield from links.articles(numbers)
        yield "</div>"
