"""A real ``aoe-target`` under strace, and what would be left if the power failed.

The trace has every write with its bytes and every frame that was sent. Played back, it
tells what was on stable storage at the moment of each reply: what an ``O_DSYNC`` write
or an ``fdatasync`` had put there by then, and of the rest nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.serving import TIMEOUT, finish, ready_line

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
    """A system call that went well.

    Args:
        name: ``open``, ``write``, ``zero``, ``sync`` or ``send``.
        path: the file; what a socket is called for ``send``.
        offset: where ``write`` and ``zero`` begin, bytes.
        data: what was written or sent; as many zeros for ``zero``.
        flags: of ``open``.
    """

    name: str
    path: str
    offset: int = 0
    data: bytes = b""
    flags: str = ""


@contextmanager
def traced(wire: Wire, log: Path, *words: object) -> Iterator[None]:
    """Serve 7.3 under strace; the log is complete when this ends."""
    if not shutil.which("strace"):
        pytest.skip("no strace; apt install strace")
    strace = ["strace", "-D", "-y", "-xx", "-s", "70000", "-o", str(log), "-e", CALLS]
    served = [sys.executable, "-m", "target", "serve", "e7.3", wire.interface]
    process = wire.target.popen(
        [*strace, *served, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ready_line(process)
    yield
    assert finish(process, 15) == ""
    end = time.monotonic() + TIMEOUT
    while not re.search(r"exited with 0 \+\+\+$", log.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)


def calls_in(log: Path) -> Iterator[Call]:
    """Yield the calls of a trace that went well, in their order."""
    for line in log.read_text().splitlines():
        match = _CALL.fullmatch(line)
        if match is not None and int(match[4]) >= 0:
            call = _understand(match[1], _text(match[2] or ""), match[3], match[5])
            assert call.name != "write" or len(call.data) == int(match[4])
            yield call


def _understand(name: str, path: str, words: str, opened: str | None) -> Call:
    if name == "openat":
        flags = words.rpartition('", ')[2]
        return Call("open", _text(opened or ""), flags=flags)
    if name in ("fdatasync", "fsync"):
        return Call("sync", path)
    if name == "fallocate":
        offset, length = map(int, _match(_RANGE, words).groups())
        return Call("zero", path, offset, bytes(length))
    data = b"".join(_raw(part) for part in _BYTES.findall(words))
    if name == "sendto":
        return Call("send", path, data=data)
    return Call("write", path, int(_match(_OFFSET, words)[1]), data)


def _match(pattern: re.Pattern[str], words: str) -> re.Match[str]:
    match = pattern.search(words)
    assert match is not None, words
    return match


def _raw(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _text(text: str) -> str:
    return _raw(text).decode() if text.startswith("\\x") else text


class StableFile:
    """A file as it would be found if the power failed after the calls so far.

    Args:
        path: which file.
        content: what was in it when the trace began.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = str(path)
        self.stable = bytearray(content)
        self.is_dsync = self.is_direct = False
        self._cached = bytearray(content)

    def play(self, call: Call) -> None:
        """Follow one call, which may be about another file."""
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
