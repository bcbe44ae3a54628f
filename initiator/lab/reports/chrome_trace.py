"""A case as a Chrome trace: open it in ui.perfetto.dev or chrome://tracing.

A step lasts a millisecond. Every page, bio, skb and clone has a track, pages have
counters, and arrows lead from a bio to its skb, to each clone, and back to bi_end_io.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from initiator.lab.reports.story import tell
from initiator.lab.reports.tables import counts, record
from initiator.rules import load_all_rules

if TYPE_CHECKING:
    from collections.abc import Iterator

    from initiator.lab.cases import Result
    from initiator.lab.kernel.journal import Entry
    from initiator.lab.reports.story import Lane, Life, Period, Story

    Event = dict[str, object]

_STEP: Final = 1000
"""Microseconds that a step is shown as."""
_TRACKS: Final = {"machine": 1, "bio": 2, "skb": 3, "clone": 4, "page": 5}
"""Process ids, which is what viewers group tracks by."""


def chrome_trace(result: Result) -> dict[str, object]:
    """Return the trace as a JSON object of the Trace Event Format.

    Args:
        result: of a case that was played with all entries kept.
    """
    story = tell(result.journal.entries, result.journal.worst)
    events = [
        *_names(story),
        *(_instant(entry, "machine", 0) for entry in story.others),
        *(event for life in story.lives for event in _life(life)),
        *(event for lane in story.lanes for event in _lane(lane)),
        *_flows(story),
    ]
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {**record(result), "flags": " ".join(result.flags)},
    }


def _names(story: Story) -> Iterator[Event]:
    for order, (kind, process) in enumerate(_TRACKS.items()):
        name = "machine" if kind == "machine" else f"{kind}s"
        yield _meta("process_name", process, 0, {"name": name})
        yield _meta("process_sort_index", process, 0, {"sort_index": order})
    for life in story.lives:
        place = _TRACKS[life.kind], life.number
        yield _meta("thread_name", *place, {"name": f"{life.kind} {life.number}"})
    for lane in story.lanes:
        name = f"page {lane.page}"
        yield _meta("thread_name", _TRACKS["page"], lane.page, {"name": name})


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
            "who": entry.actor,
            "count": counts(entry),
            "rule": entry.rule,
            "rule title": rule.title if rule else "",
            "rule statement": " ".join(rule.statement.split()) if rule else "",
            "note": entry.note,
        },
    }


def _slice(name: str, period: Period, kind: str, number: int) -> Event:
    length = max(period.end - period.start, 1) * _STEP
    return {
        "ph": "X",
        "name": name,
        "cat": kind,
        **_at(period.start, kind, number),
        "dur": length,
        "args": {},
    }


def _life(life: Life) -> Iterator[Event]:
    yield _slice(life.period.text, life.period, life.kind, life.number)
    for entry in life.marks:
        yield _instant(entry, life.kind, life.number)


def _lane(lane: Lane) -> Iterator[Event]:
    """Owners are slices; where periods overlap, viewers want them properly nested."""
    for period in lane.owners:
        yield _slice(f"owner: {period.text}", period, "page", lane.page)
    for entry in lane.marks:
        yield _instant(entry, "page", lane.page)
    for step, count in lane.counts:
        yield {
            "ph": "C",
            "name": f"count of page {lane.page}",
            **_at(step, "page", lane.page),
            "args": {"count": count},
        }


def _flows(story: Story) -> Iterator[Event]:
    """Arrows: bio, skb, clone and, for the clone that was answered, bi_end_io."""
    skbs = {skb.number: skb for skb in story.of_kind("skb")}
    bios = {bio.number: bio for bio in story.of_kind("bio")}
    for clone in story.of_kind("clone"):
        skb = skbs.get(-1 if clone.parent is None else clone.parent)
        if skb is None:
            continue
        steps = [_at(clone.period.start, "clone", clone.number)]
        steps.insert(0, _at(clone.period.start, "skb", skb.number))
        bio = bios.get(-1 if skb.parent is None else skb.parent)
        if bio is not None:
            steps.insert(0, _at(skb.period.start, "bio", bio.number))
            if story.answered(bio) is clone:
                # An arrow ends in a slice, and this one's last moment is its end.
                end = _at(bio.period.end, "bio", bio.number)
                steps.append(end | {"ts": bio.period.end * _STEP - 1})
        kinds = ["s", *["t"] * (len(steps) - 2), "f"]
        for kind, step in zip(kinds, steps, strict=True):
            flow = {"name": "write", "cat": "flow", "id": clone.number, "bp": "e"}
            yield {"ph": kind, **flow, **step}
