"""The events of a trace that the judge uses."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class PageEvent(NamedTuple):
    """An event of a page or of a block of pages.

    Args:
        line: line number in the trace, from 1.
        head: the text before the event: task, CPU and time.
        name: the tracepoint, or an event of ``pages.bt``.
        pfn: page frame number; of the first page for a block.
        refcount: page count as printed, or None. A tracepoint reads it after the
            modification, and another CPU may have changed it in between.
        value: argument of the modification; 0 if there is none.
        result: return value of the modification, or None.
        order: of a block that is allocated or freed.
        shared: the page has a mapping, so it can be found and referenced by others; or
            of an allocated block: it is compound.
        where: the function where ``pages.bt`` read the count, with ``return:`` before
            it at its end, or "".
    """

    line: int
    head: str
    name: str
    pfn: int
    refcount: int | None = None
    value: int = 0
    result: int | None = None
    order: int = 0
    shared: bool = False
    where: str = ""


class BioEvent(NamedTuple):
    """A bio is queued or completed, or a page of it is named.

    Args:
        line, head, name: as in ``PageEvent``.
        device: major and minor number, as ``152,0``.
        sector: first sector.
        sectors: number of sectors; of a completion 0 if the bio has been advanced, and
            ``sector`` is then behind its last.
        pfn: page of the bio (``bio_page``), or None.
        refcount: its page count, or None.
        shared: the page has a mapping.
    """

    line: int
    head: str
    name: str
    device: str
    sector: int
    sectors: int = 0
    pfn: int | None = None
    refcount: int | None = None
    shared: bool = False


class MarkEvent(NamedTuple):
    """Something about the trace itself.

    Args:
        line: line number.
        name: ``lost`` if events are missing here, ``pages.bt`` if all
            allocations from here on are in the trace, ``other`` for an event that the
            judge does not use.
        number: of events that are missing, 0 if unknown.
    """

    line: int
    name: str
    number: int = 0


Event: TypeAlias = PageEvent | BioEvent | MarkEvent
