"""A case as a Chrome trace, for ui.perfetto.dev or chrome://tracing.

A step lasts one millisecond. Every page, bio, skb and clone has a track, and pages have
counters. Flow arrows lead from a bio to its skb, to each clone, and to bi_end_io.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from initiator.lab.reports.history import build_history
from initiator.lab.reports.tables import counts, record
from initiator.rules import load_all_rules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initiator.lab.cases import Result
    from initiator.lab.kernel.journal import Entry
    from initiator.lab.reports.history import History, Interval, Lifetime, PageHistory

    Event = dict[str, object]

_STEP: Final = 1000
"""Duration of a step in microseconds."""
_TRACKS: Final = {"machine": 1, "bio": 2, "skb": 3, "clone": 4, "page": 5}
"""Process ids, by which viewers group tracks."""


def chrome_trace(result: Result) -> dict[str, object]:
    """Return the trace as a JSON object of the Trace Event Format.

    Args:
        result: of a case that was run with ``keep_entries``.
    """
    history = build_history(result.journal.entries, result.journal.worst)
    events = [
        *_names(history),
        *(_instant(entry, "machine", 0) for entry in history.others),
        *(event for lifetime in history.lifetimes for event in _lifetime(lifetime)),
        *(event for page in history.pages for event in _page(page)),
        *_flows(history),
    ]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {**record(result), "flags": " ".join(result.flags)},
    }


def _names(history: History) -> Iterator[Event]:
    for order, (kind, process) in enumerate(_TRACKS.items()):
        name = "machine" if kind == "machine" else f"{kind}s"
        yield _meta("process_name", process, 0, {"name": name})
        yield _meta("process_sort_index", process, 0, {"sort_index": order})
    for lifetime in history.lifetimes:
        place = _TRACKS[lifetime.kind], lifetime.number
        yield _meta(
            "thread_name", *place, {"name": f"{lifetime.kind} {lifetime.number}"}
        )
    for page in history.pages:
        name = f"page {page.pfn}"
        yield _meta("thread_name", _TRACKS["page"], page.pfn, {"name": name})


def _meta(name: str, process: int, track: int, args: dict[str, object]) -> Event:
    return {"ph": "M", "name": name, "pid": process, "tid": track, "args": args}


def _at(step: int, kind: str, number: int) -> Event:
    return {"ts": step * _STEP, "pid": _TRACKS[kind], "tid": number}


def _instant(entry: Entry, kind: str, number: int) -> Event:
    name = f"{entry.fault.value}: {entry.action}" if entry.fault else entry.action
    rule = load_all_rules().get(entry.rule)
    return {
        "ph": "i",
        "s": "g" if entry.fault else "t",
        "name": name,
        "cat": "fault" if entry.fault else entry.actor,
        **_at(entry.step, kind, number),
        "args": {
            "step": entry.step,
            "actor": entry.actor,
            "count": counts(entry),
            "rule": entry.rule,
            "rule title": rule.title if rule else "",
            "rule statement": " ".join(rule.statement.split()) if rule else "",
            "note": entry.note,
        },
    }


def _slice(name: str, interval: Interval, kind: str, number: int) -> Event:
    length = max(interval.end - interval.start, 1) * _STEP
    return {
        "ph": "X",
        "name": name,
        "cat": kind,
        **_at(interval.start, kind, number),
        "dur": length,
        "args": {},
    }


def _lifetime(lifetime: Lifetime) -> Iterator[Event]:
    yield _slice(
        lifetime.interval.text, lifetime.interval, lifetime.kind, lifetime.number
    )
    for entry in lifetime.marks:
        yield _instant(entry, lifetime.kind, lifetime.number)


def _page(page: PageHistory) -> Iterator[Event]:
    """Yield slices of owners, events and counts of a page."""
    for interval in page.owners:
        yield _slice(f"owner: {interval.text}", interval, "page", page.pfn)
    for entry in page.marks:
        yield _instant(entry, "page", page.pfn)
    for step, count in page.counts:
        yield {
            "ph": "C",
            "name": f"count of page {page.pfn}",
            **_at(step, "page", page.pfn),
            "args": {"count": count},
        }


def _flows(history: History) -> Iterator[Event]:
    """Yield flow arrows from bio to skb and clone, and to bi_end_io."""
    skbs = {skb.number: skb for skb in history.of_kind("skb")}
    bios = {bio.number: bio for bio in history.of_kind("bio")}
    for clone in history.of_kind("clone"):
        skb = skbs.get(-1 if clone.parent is None else clone.parent)
        if skb is None:
            continue
        steps = [_at(clone.interval.start, "clone", clone.number)]
        steps.insert(0, _at(clone.interval.start, "skb", skb.number))
        bio = bios.get(-1 if skb.parent is None else skb.parent)
        if bio is not None:
            steps.insert(0, _at(skb.interval.start, "bio", bio.number))
            if history.completed_by(bio) is clone:
                # A flow must end within a slice: the last microsecond of the bio's.
                end = _at(bio.interval.end, "bio", bio.number)
                steps.append(end | {"ts": bio.interval.end * _STEP - 1})
        kinds = ["s", *["t"] * (len(steps) - 2), "f"]
        for kind, step in zip(kinds, steps, strict=True):
            flow = {"name": "write", "cat": "flow", "id": clone.number, "bp": "e"}
            yield {"ph": kind, **flow, **step}
