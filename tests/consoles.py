"""Run the ``console`` blocks of a document in one shell, in their order.

    $ a command, which
    > may continue on further lines
    its output, on standard output or standard error

Each command must succeed and print the output in the document. Values that differ
between runs or releases (times, rates, counters, tags, process IDs, MAC addresses,
firmware versions) are compared by format only. White space matches any white space,
``...`` matches anything, and a count of retransmitted or repeated frames is optional.
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

from tests.requirements import SBIN

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT = 60.0
"""Timeout of a command in seconds; long, for a busy machine."""
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "-- exit status:"
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
"""The format of a variable value in a document, and the pattern that replaces it."""
_ANY_FORM = re.compile(
    "|".join(f"({re.escape(f) if f == '...' else f})" for f in _FORMS)
)
_RETRANSMITTED = re.compile(r", [\d,]+ (?:frames? retransmitted|repeats)")


class Step(NamedTuple):
    """A command of a document.

    Args:
        line: its line number.
        command: the command.
        printed: its output in the document.
    """

    line: int
    command: str
    printed: str


def steps(text: str) -> Iterator[Step]:
    """Yield the commands in the ``console`` blocks of a document."""
    for block in _BLOCK.finditer(text):
        first = text.count("\n", 0, block.start()) + 2
        for match in re.finditer(
            r"^\$ (.*\n(?:>(?: .*)?\n)*)((?:(?!\$ ).*\n)*)", block[1], re.MULTILINE
        ):
            line = first + block[1].count("\n", 0, match.start())
            command = re.sub(r"\n> ?", "\n", match[1].rstrip("\n"))
            yield Step(line, command, match[2])


def is_like(printed: str, expected: str) -> bool:
    """Return True if output matches that of a document, except for variable values."""
    wanted = _RETRANSMITTED.sub("", expected).strip()
    pattern, end = "", 0
    for match in _ANY_FORM.finditer(wanted):
        pattern += re.escape(wanted[end : match.start()])
        pattern += tuple(_FORMS.values())[(match.lastindex or 0) - 1]
        end = match.end()
    pattern += re.escape(wanted[end:])
    actual = _RETRANSMITTED.sub("", printed).strip()
    return re.fullmatch(pattern, actual, re.DOTALL) is not None


class Console:
    """A shell that gets its commands by a pipe, with those of pyaoe on its PATH.

    Args:
        directory: the working directory, and the one for temporary files.
    """

    def __init__(self, directory: Path) -> None:
        programs = [str(Path(sys.executable).parent), os.environ["PATH"], SBIN]
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
        self._output = ""

    def run(self, step: Step) -> str:
        """Run a command and return its output.

        For a command in the background, wait until its output matches the document, or
        until the timeout.

        Raises:
            AssertionError: it failed, or timed out.
        """
        self._write(f"{step.command}\nprintf '\\n{_MARK} %s\\n' $?\n")
        end = time.monotonic() + TIMEOUT
        mark = re.compile(rf"\n{_MARK} (\d+)\n")
        while not (match := mark.search(self._output)):
            assert self._read(end), (step, self._output)
        assert match[1] == "0", (step, self._output)
        self._output = mark.sub("", self._output)
        in_background = step.command.endswith("&")
        while in_background and not is_like(self._output, step.printed):
            if not self._read(end):
                break
        output, self._output = self._output, ""
        return output.strip()

    def _write(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(text.encode())
        self._shell.stdin.flush()

    def _read(self, end: float) -> bool:
        # Append available output; return False on end of file or timeout.
        assert self._shell.stdout is not None
        left = max(0.0, end - time.monotonic())
        if not select.select([self._shell.stdout], [], [], left)[0]:
            return False
        output = os.read(self._shell.stdout.fileno(), 1 << 16)
        self._output += output.decode(errors="replace")
        return output != b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._kill_all()
        self._shell.stdin.close()
        self._shell.wait(TIMEOUT)
        self._shell.stdout.close()

    def _kill_all(self) -> None:
        # Daemons have left the session. A process in the middle of execve has no
        # environment for a moment, so that one pass without a find is not enough.
        end, empty_passes = time.monotonic() + TIMEOUT, 0
        while empty_passes < 2 and time.monotonic() < end:
            empty_passes = 0 if self._kill_children() else empty_passes + 1
            time.sleep(0.05)

    def _kill_children(self) -> bool:
        # Kill the processes with this TMPDIR; return True if there were any.
        mine, found = f"TMPDIR={self._directory}".encode(), False
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mine in environment.read_bytes().split(b"\0"):
                    os.kill(int(environment.parent.name), signal.SIGKILL)
                    found = True
        return found
