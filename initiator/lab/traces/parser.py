"""Traces as text, of ``trace-cmd report``, ``perf script``, ftrace and ``pages.bt``.

All print a line per event: task, CPU, time, name of the tracepoint, and its fields. Of
a tracepoint whose format it cannot evaluate, ``trace-cmd`` prints the raw fields after
``[FAILED TO PARSE]``; they have the same names.
"""

from __future__ import annotations

import re
from functools import partial
from importlib import resources
from typing import IO, TYPE_CHECKING, Final, NoReturn

from aoe.errors import UsageError
from initiator.lab.traces.events import BioEvent, Event, MarkEvent, PageEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

LONGEST_LINE: Final = 65536
"""Bytes. A file without line breaks is not read into memory."""

_TO_TIME: Final = (
    r"\s*(?P<comm>\S.*?)[\s-]+(?P<pid>\d+)(?:/\d+)?\s+"
    r"(?:\([\s\d-]+\)\s+)?(?:\[\d+\]\s+)?(?:[^\s\d\[]\S*\s+)?"  # TGID, CPU, flags
    r"(?P<time>\d+(?:\.\d+)?)"
)
_HEAD: Final = re.compile(_TO_TIME)
_EVENT: Final = re.compile(
    rf"(?P<head>{_TO_TIME}): +(?:\d+ +)?(?:(?:\w+:)?(?P<name>[\w.]+): *)?(?P<fields>.*)"
)
"""Any event, with the period that perf may print; most are split without it."""
_NOISE: Final = re.compile(
    r"\s*(?:#.*|cpus=\d+|version = .*|CPU \d+ is empty|Attaching \d+ probes?\.\.\.|"
    r"<(?:user )?stack trace>|=> .*|[0-9a-f]{6,16} .*|.* PERF_RECORD_.*)?"
)
_LOST: Final = re.compile(
    r"CPU:\d+ \[(?:LOST )?(?P<ftrace>\d*) ?EVENTS(?: DROPPED)?\]|"
    r"Lost (?P<bpftrace>\d+) events|.*PERF_RECORD_LOST\w*[: ]+lost (?P<perf>\d+)"
)
_SCRIPT: Final = "# aoe lab pages.bt"
"""The beginning of the first line that ``pages.bt`` prints."""
_MARKER: Final = re.compile(r"(?:[\w.+]+: )?(bio_page|page_count|page_to_zero): (.*)")
"""A line of ``pages.bt`` in a message of trace_printk() or of trace_marker."""

_NUMBER: Final = r"(0x[0-9a-fA-F]+|\d+)"
_MODIFIED: Final = re.compile(
    rf"(?:\[FAILED TO PARSE\] )?pfn={_NUMBER} flags=\S* count=(-?\d+) mapcount=\S+ "
    r"mapping=(\S+) mt=\S+ val=(-?\d+)(?: ret=(-?\d+))?"
)
_BLOCK: Final = re.compile(
    rf"(?:\[FAILED TO PARSE\] )?(?:page=\S+ )?pfn={_NUMBER} order=(\d+)"
    r"(?:.* gfp_flags=(\S+))?"
)
_BIO: Final = re.compile(
    r"(\d+,\d+) (?:\S* )?(?:\d+ )?(?:\(.*?\) )?(\d+) \+ (\d+)(?: .*)?\[.*"
)
_BIO_PAGE: Final = re.compile(
    rf"dev=(\d+,\d+) sector=(\d+) pfn={_NUMBER}(?: count=(-?\d+))?(?: mapping=(\S+))?"
)
_SAMPLE: Final = re.compile(rf"pfn={_NUMBER} count=(-?\d+)(?: at=(\S+))?")
_NO_MAPPING: Final = re.compile(r"\(nil\)|\(null\)|(?:0x)?0+")

_BINARY: Final = {
    "\x17\x08Dtracing": ("a trace.dat file", "Convert it: trace-cmd report -i FILE"),
    "PERFILE2": ("a perf.data file", "Convert it: perf script -i FILE"),
    "\x1f\x8b": ("compressed", "Decompress it: zcat FILE | aoe lab replay -"),
}


class TraceParser:
    """Parses a trace line by line.

    Args:
        name: name of the file, for errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines = 0
        modified = ("set", "mod", "mod_and_test", "mod_and_return", "mod_unless")
        self._parsers: dict[str, Callable[[str, str, str], Event]] = {
            **{
                f"page_ref_{word}": self._modification
                for word in (*modified, "freeze", "unfreeze")
            },
            "mm_page_alloc": self._block,
            "mm_page_free": self._block,
            "mm_page_free_batched": self._block,
            # Their names before Linux 3.3.
            "mm_page_free_direct": self._block,
            "mm_pagevec_free": self._block,
            "block_bio_queue": self._bio,
            "block_bio_complete": self._bio,
            "block_rq_complete": self._bio,
            "bio_page": self._bio_page,
            "page_count": self._sample,
            "page_to_zero": self._sample,
        }

    def events(self, lines: Iterable[str]) -> Iterator[Event]:
        """Yield an event for each line that has one.

        Raises:
            UsageError: a line is not part of a trace, or misses a field.
        """
        parsers = self._parsers
        for self.lines, line in enumerate(lines, start=1):
            head, _, rest = line.partition(": ")
            name, _, fields = rest.lstrip().partition(": ")
            name = name.rpartition(":")[2]
            parse = parsers.get(name)
            if parse is None or not head[-1:].isdigit():
                found = _EVENT.fullmatch(line.rstrip())
                if found is None or "PERF_RECORD" in line:
                    yield from self._other_line(line.rstrip())
                    continue
                head, name, fields = found["head"], found["name"], found["fields"]
                parse = parsers.get(name)
            if parse is not None:
                yield parse(head, name, fields.strip())
            elif (marker := _MARKER.fullmatch(fields)) is not None:
                yield parsers[marker[1]](head, marker[1], marker[2])
            else:
                yield MarkEvent(self.lines, "other")

    def _other_line(self, line: str) -> Iterator[Event]:
        lost = _LOST.fullmatch(line)
        if lost is not None:
            number = next(filter(None, lost.groups()), "0")
            yield MarkEvent(self.lines, "lost", int(number))
        elif line.startswith(_SCRIPT):
            yield MarkEvent(self.lines, "pages.bt")
        elif not _NOISE.fullmatch(line):
            self._not_a_line(line)

    def _not_a_line(self, line: str) -> NoReturn:
        for start, (what, fix) in _BINARY.items():
            if line.startswith(start):
                raise UsageError(self.name, f"{what}, not text", fix)
        raise UsageError(
            f"{self.name}, line {self.lines}",
            f"expected 'TASK-PID [CPU] SECONDS: EVENT: FIELDS', found {_short(line)}",
            "Give the text that trace-cmd report or perf script prints",
        )

    def _fields(self, pattern: re.Pattern[str], name: str, text: str) -> list[str]:
        found = pattern.match(text)
        if found is None:
            raise UsageError(
                f"{self.name}, line {self.lines}",
                f"{name}: expected '{_EXPECTED[pattern]}', found {_short(text)}",
                "Remove the line if it was cut off",
            )
        return [word or "" for word in found.groups()]

    def _modification(self, head: str, name: str, text: str) -> Event:
        pfn, count, mapping, value, result = self._fields(_MODIFIED, name, text)
        return PageEvent(
            self.lines,
            head,
            name,
            int(pfn, 0),
            _signed(count),
            _signed(value),
            _signed(result) if result else None,
            shared=not _NO_MAPPING.fullmatch(mapping),
        )

    def _block(self, head: str, name: str, text: str) -> Event:
        pfn, order, flags = self._fields(_BLOCK, name, text)
        name = _NEW_NAMES.get(name, name)
        compound = "COMP" in flags or "TRANSHUGE" in flags
        return PageEvent(
            self.lines,
            head,
            name,
            int(pfn, 0),
            order=int(order or 0),
            shared=compound,
        )

    def _bio(self, head: str, name: str, text: str) -> Event:
        device, sector, sectors = self._fields(_BIO, name, text)
        return BioEvent(self.lines, head, name, device, int(sector), int(sectors))

    def _bio_page(self, head: str, name: str, text: str) -> Event:
        device, sector, pfn, count, mapping = self._fields(_BIO_PAGE, name, text)
        return BioEvent(
            self.lines,
            head,
            name,
            device,
            int(sector),
            pfn=int(pfn, 0),
            refcount=_signed(count) if count else None,
            shared=bool(mapping) and not _NO_MAPPING.fullmatch(mapping),
        )

    def _sample(self, head: str, name: str, text: str) -> Event:
        pfn, count, where = self._fields(_SAMPLE, name, text)
        return PageEvent(
            self.lines, head, name, int(pfn, 0), _signed(count), where=where
        )


_NEW_NAMES: Final = {
    "mm_page_free_direct": "mm_page_free",
    "mm_pagevec_free": "mm_page_free_batched",
}
_EXPECTED: Final = {
    _MODIFIED: "pfn=0x... count=N mapping=... val=N",
    _BLOCK: "pfn=0x... order=N",
    _BIO: "MAJOR,MINOR FLAGS SECTOR + SECTORS [...]",
    _BIO_PAGE: "dev=MAJOR,MINOR sector=N pfn=0x...",
    _SAMPLE: "pfn=0x... count=N",
}


def read_lines(file: IO[bytes], name: str) -> Iterator[str]:
    """Yield the lines of a file, as text.

    Raises:
        UsageError: a line is longer than ``LONGEST_LINE``.
    """
    for number, line in enumerate(
        iter(partial(file.readline, LONGEST_LINE), b""), start=1
    ):
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise UsageError(
                f"{name}, line {number}",
                f"expected at most {LONGEST_LINE:,} bytes up to a line break",
                "Give the text that trace-cmd report or perf script prints",
            )
        yield line.decode("utf-8", "replace")


def bpftrace_script() -> str:
    """Return ``pages.bt``, for kernels without page_ref tracepoints."""
    return (resources.files(__package__) / "pages.bt").read_text("utf-8")


def describe_head(head: str) -> tuple[str, float]:
    """Return task and time of an event, as ``insmod-301`` and seconds."""
    found = _HEAD.fullmatch(head)
    return (
        (f"{found['comm']}-{found['pid']}", float(found["time"]))
        if found
        else ("", 0.0)
    )


def _signed(text: str) -> int:
    """Return a 32-bit number that may have been printed without its sign."""
    number = int(text)
    return number - (1 << 32) if number >= 1 << 31 else number


def _short(text: str) -> str:
    shown = text.strip()
    return repr(shown if len(shown) <= 50 else f"{shown[:47]}...")
