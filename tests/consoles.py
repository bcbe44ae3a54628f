"""Documents that are run: their ``console`` blocks, in one shell, one after the other.

    $ a command, the rest of which
    > can stand on further lines
    what it prints, on standard output or standard error

Every command has to succeed. What it prints has to be what stands there, but for what
differs from run to run or between releases: times, rates, counters, tags, process ids,
MAC addresses and firmware versions are compared by their form, blanks by that they are
there; that some frames had to be sent again may be said or not; and ``...`` stands for
anything.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 60.0
"""Seconds that a busy machine gets for a command."""
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "-- that was it:"
_FORMS = {
    "...": ".*",
    r"\b[0-9a-f]{2}(?::[0-9a-f]{2}){5}\b": "[0-9a-f]{2}(?::[0-9a-f]{2}){5}",
    r"\b0x[0-9a-f]{8}\b": "0x[0-9a-f]{8}",
    r"(?<=firmware )0x[0-9a-f]{4}\b": "0x[0-9a-f]{4}",
    r"\b\d+\s+\d+\.\d{6}\b": r"\d+\s+\d+\.\d{6}",
    r"(?<=\": )\d+(?:\.\d+)?": r"\d+(?:\.\d+)?",
    r"\bprocess \d+, up [\d:]+": r"process \d+, up [\d:]+",
    r"\b\d+(?= (?:received|sent|reads|writes|flushes)\b)": r"\d+",
    r"\b[\d,]+(?= times\b)": r"[\d,]+",
    r"\b\d+(?:\.\d+)?(?= *(?:ms|s|MB/s)\b)": r"\d+(?:\.\d+)?",
    r"\s+": r"\s+",
}
"""What differs: how it looks in a document, and what it is then compared with."""
_ANY_FORM = re.compile(
    "|".join(f"({re.escape(f) if f == '...' else f})" for f in _FORMS)
)
_SENT_AGAIN = re.compile(r", [\d,]+ frames? sent again")


class Step(NamedTuple):
    """A command of a document.

    Args:
        line: where it stands, counted from one.
        command: what is typed.
        printed: what the document says comes of it.
    """

    line: int
    command: str
    printed: str


def steps(text: str) -> Iterator[Step]:
    """Find the commands of a document; other blocks are none of our business."""
    for block in _BLOCK.finditer(text):
        first = text.count("\n", 0, block.start()) + 2
        for match in re.finditer(
            r"^\$ (.*\n(?:>(?: .*)?\n)*)((?:(?!\$ ).*\n)*)", block[1], re.MULTILINE
        ):
            line = first + block[1].count("\n", 0, match.start())
            command = re.sub(r"\n> ?", "\n", match[1].rstrip("\n"))
            yield Step(line, command, match[2])


def is_like(printed: str, expected: str) -> bool:
    """Tell whether something is what a document says, but for what always differs."""
    wanted = _SENT_AGAIN.sub("", expected).strip()
    pattern, end = "", 0
    for match in _ANY_FORM.finditer(wanted):
        pattern += re.escape(wanted[end : match.start()])
        pattern += tuple(_FORMS.values())[(match.lastindex or 0) - 1]
        end = match.end()
    pattern += re.escape(wanted[end:])
    said = _SENT_AGAIN.sub("", printed).strip()
    return re.fullmatch(pattern, said, re.DOTALL) is not None


class Console:
    """A shell that is typed into, with the commands of pyaoe on its PATH.

    Args:
        directory: where it starts, and makes temporary directories.
    """

    def __init__(self, directory: Path) -> None:
        programs = [str(Path(sys.executable).parent), os.environ["PATH"]]
        path = os.pathsep.join(programs)
        self._shell = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={**os.environ, "PATH": path, "TMPDIR": str(directory), "COLUMNS": "80"},
            start_new_session=True,
        )
        self._directory = directory
        self._heard = ""

    def run(self, step: Step) -> str:
        """Type a command and return what is printed until it ends.

        What goes on in the background is waited for until it has said what the
        document says.

        Raises:
            AssertionError: it failed, or took too long.
        """
        self._type(f"{step.command}\nprintf '\\n{_MARK} %s\\n' $?\n")
        end = time.monotonic() + PATIENCE
        mark = re.compile(rf"\n{_MARK} (\d+)\n")
        while not (match := mark.search(self._heard)):
            assert self._listen(end), (step, self._heard)
        assert match[1] == "0", (step, self._heard)
        self._heard = mark.sub("", self._heard)
        in_background = step.command.endswith("&")
        while in_background and not is_like(self._heard, step.printed):
            if not self._listen(end):
                break
        heard, self._heard = self._heard, ""
        return heard.strip()

    def _type(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(text.encode())
        self._shell.stdin.flush()

    def _listen(self, end: float) -> bool:
        # Take in what is printed; False when nothing more is, by then.
        assert self._shell.stdout is not None
        left = max(0.0, end - time.monotonic())
        if not select.select([self._shell.stdout], [], [], left)[0]:
            return False
        heard = os.read(self._shell.stdout.fileno(), 1 << 16)
        self._heard += heard.decode(errors="replace")
        return heard != b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._end_all()
        self._shell.stdin.close()
        self._shell.wait(PATIENCE)
        self._shell.stdout.close()

    def _end_all(self) -> None:
        # Some have gone to the background for good. Who is just becoming another
        # program has no environment for a moment: it takes two looks to be sure.
        end, quiet = time.monotonic() + PATIENCE, 0
        while quiet < 2 and time.monotonic() < end:
            quiet = 0 if self._kill_ours() else quiet + 1
            time.sleep(0.05)

    def _kill_ours(self) -> bool:
        # Tells whether there was any; all of ours have our directory's name.
        mine, found = f"TMPDIR={self._directory}".encode(), False
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mine in environment.read_bytes().split(b"\0"):
                    os.kill(int(environment.parent.name), signal.SIGKILL)
                    found = True
        return found
