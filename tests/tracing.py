"""An ``aoe-target`` under strace, and the state of its files after a power failure.

The trace has every write with its data and every frame sent. Replaying it gives the
contents of stable storage at the time of each response: the data of ``O_DSYNC`` writes
and of writes before the last ``fdatasync``.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from tests.engines import serve_command
from tests.requirements import program
from tests.serving import TIMEOUT, finish, ready_line, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire

CALLS = "openat,pwrite64,pwritev,pwritev2,fallocate,fdatasync,fsync,sendto"
_CALL = re.compile(r"(\w+)\((?:\w+<([^>]*)>)?(.*)\) += (-?\d+)(?:<([^>]*)>)?")
_BYTES = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_OFFSET = re.compile(r", (\d+)(?:, 0)?$")
_RANGE = re.compile(r", (\d+), (\d+)$")


class Call(NamedTuple):
    """A successful system call.

    Args:
        name: ``open``, ``write``, ``zero``, ``sync`` or ``send``.
        path: the file, or the name of the socket for ``send``.
        offset: offset of ``write`` and ``zero``, in bytes.
        data: bytes written or sent; zeros for ``zero``.
        flags: flags of ``open``.
    """

    name: str
    path: str
    offset: int = 0
    data: bytes = b""
    flags: str = ""


@contextmanager
def traced(wire: Wire, log: Path, *words: object) -> Iterator[None]:
    """Serve e7.3 under strace; the log is complete when the context ends."""
    strace = [
        program("strace"),
        "-D",
        "-y",
        "-xx",
        "-s",
        "70000",
        "-o",
        str(log),
        "-e",
        CALLS,
    ]
    served = serve_command("e7.3", wire.interface, *words)
    process = run(wire.target, [*strace, *served])
    ready_line(process)
    yield
    assert finish(process, 15) == ""
    end = time.monotonic() + TIMEOUT
    while not re.search(r"exited with 0 \+\+\+$", log.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)


def calls_in(log: Path) -> Iterator[Call]:
    """Yield the successful calls of a trace in order."""
    for line in log.read_text().splitlines():
        match = _CALL.fullmatch(line)
        if match is not None and int(match[4]) >= 0:
            call = _parse(match[1], _text(match[2] or ""), match[3], match[5])
            assert call.name != "write" or len(call.data) == int(match[4])
            yield call


def _parse(name: str, path: str, arguments: str, opened: str | None) -> Call:
    if name == "openat":
        flags = arguments.rpartition('", ')[2]
        return Call("open", _text(opened or ""), flags=flags)
    if name in ("fdatasync", "fsync"):
        return Call("sync", path)
    if name == "fallocate":
        offset, length = map(int, _match(_RANGE, arguments).groups())
        return Call("zero", path, offset, bytes(length))
    data = b"".join(_raw(part) for part in _BYTES.findall(arguments))
    if name == "sendto":
        return Call("send", path, data=data)
    return Call("write", path, int(_match(_OFFSET, arguments)[1]), data)


def _match(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    match = pattern.search(text)
    assert match is not None, text
    return match


def _raw(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _text(text: str) -> str:
    return _raw(text).decode() if text.startswith("\\x") else text


class StableFile:
    """The contents of a file after a power failure at this point of the trace.

    Args:
        path: the file.
        content: its contents at the start of the trace.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = str(path)
        self.stable = bytearray(content)
        self.is_dsync = self.is_direct = False
        self._cached = bytearray(content)

    def replay(self, call: Call) -> None:
        """Apply a call; calls on other files are ignored."""
        if call.path != self.path:
            return
        if call.name == "open" and "O_RDWR" in call.flags:
            self.is_dsync = "O_DSYNC" in call.flags
            self.is_direct = "O_DIRECT" in call.flags
        elif call.name in ("write", "zero"):
            place = slice(call.offset, call.offset + len(call.data))
            assert place.stop <= len(self.stable)
            self._cached[place] = call.data
            if self.is_dsync and call.name == "write":
                self.stable[place] = call.data
        elif call.name == "sync":
            self.stable[:] = self._cached
