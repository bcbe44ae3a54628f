"""Traces of kernels as text: those of ``tests/traces``, and lines to add to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from initiator.lab.traces.judge import LIMIT, Judge
from initiator.lab.traces.parser import TraceParser
from initiator.lab.traces.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from initiator.lab.traces.rules import TraceRule
    from initiator.lab.traces.verdict import Verdict

FOLDER = Path(__file__).parent / "traces"
FILES = sorted(FOLDER.glob("*/*.txt"))
_EXPECT = re.compile(r"# expect: (.*)")


def expected(path: Path) -> list[tuple[int, str]]:
    """Return line and rule of the violations that a trace says it has."""
    found = _EXPECT.search(path.read_text())
    assert found, f"{path} has no line '# expect: ...'"
    if found[1] == "nothing":
        return []
    words = (word.split() for word in found[1].split(", "))
    return [(int(line), rule) for line, rule in words]


def judge(
    lines: Iterable[str],
    *,
    limit: int = LIMIT,
    rules: Collection[TraceRule] = RULES,
) -> Verdict:
    """Return the verdict on a trace."""
    return Judge(limit, rules).judge(TraceParser("trace.txt").events(lines))


def violations(verdict: Verdict) -> list[tuple[int, str]]:
    """Return line and rule of all violations, in the order of the trace."""
    return sorted(
        (violation.line, violation.rule)
        for story in verdict.stories
        for violation in story.violations
    )


# --- lines ----------------------------------------------------------------------


def line(name: str, fields: str, *, task: str = "insmod-301", time: float = 9.0) -> str:
    """Return an event as trace-cmd report prints it."""
    return f"{task:>22} [000] {time:12.6f}: {name + ':':<22} {fields}"


def mod(pfn: int, count: int, value: int, *, mapping: str = "0") -> str:
    """Return an increment or a decrement that frees nothing."""
    return line("page_ref_mod", _fields(pfn, count, value, mapping))


def put(pfn: int, count: int, *, mapping: str = "0") -> str:
    """Return a put_page()."""
    fields = f"{_fields(pfn, count, -1, mapping)} ret={int(count == 0)}"
    return line("page_ref_mod_and_test", fields)


def set_count(pfn: int, count: int) -> str:
    """Return what an allocation does with the count."""
    return line("page_ref_set", _fields(pfn, count, count, "0"))


def alloc(pfn: int, order: int = 0, flags: str = "GFP_KERNEL") -> str:
    """Return an allocation."""
    fields = f"page=0 pfn={pfn:#x} order={order} migratetype=0 gfp_flags={flags}"
    return line("mm_page_alloc", fields)


def free(pfn: int, order: int = 0) -> str:
    """Return a free."""
    return line("mm_page_free", f"page=0 pfn={pfn:#x} order={order}")


def queue(sector: int, *pfns: int, device: str = "152,0") -> list[str]:
    """Return the queueing of a bio of 8 sectors with these pages."""
    return [
        line("block_bio_queue", f"{device} W {sector} + 8 [insmod]"),
        *(
            line("bio_page", f"dev={device} sector={sector} pfn={pfn:#x}")
            for pfn in pfns
        ),
    ]


def complete(sector: int, *, device: str = "152,0") -> str:
    """Return the completion of a request of 8 sectors."""
    return line("block_rq_complete", f"{device} W () {sector} + 8 none,0,0 [0]")


def _fields(pfn: int, count: int, value: int, mapping: str) -> str:
    return (
        f"pfn={pfn:#x} flags= count={count} mapcount=0 mapping={mapping} mt=0 "
        f"val={value}"
    )
