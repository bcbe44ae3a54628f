"""A real ``aoe-target`` at one end of a wire, and somebody asking at the other."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aoe.net.link import open_link
from tests.asking import CLIENT, TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aoe.net.link import Link
    from aoe.net.netns import Namespace, Wire

TIMEOUT = 30.0
"""Seconds that a busy machine gets for anything; what goes well takes far less."""
NO_PROBE = "--force"
"""Where nobody else is on the wire, a target need not search for another there."""
UNASKED = bytes(4)
"""The tag of what a target says of its own accord."""


def start(where: Namespace, *words: object, **options: object) -> subprocess.Popen[str]:
    """Start ``aoe-target`` with these words after it."""
    command = [sys.executable, "-m", "target", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process: subprocess.Popen[str] = where.popen(command, **{**pipes, **options})
    return process


def ready_line(process: subprocess.Popen[str]) -> str:
    """Wait until a target is ready and return what it says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=TIMEOUT)[1]
    return line


def finish(process: subprocess.Popen[str], number: int | None = None) -> str:
    """Send a signal, wait for the end, and return what was said on standard error."""
    if number is not None:
        process.send_signal(number)
    return process.communicate(timeout=TIMEOUT)[1]


@contextmanager
def serving(wire: Wire, *words: object) -> Iterator[subprocess.Popen[str]]:
    """Serve 7.3 on the wire with these words after the interface."""
    process = start(wire.target, "serve", "e7.3", wire.interface, *words)
    ready_line(process)
    try:
        yield process
    finally:
        finish(process, 15)
    assert process.returncode == 0


class Client:
    """Sends frames that ``tests.asking`` puts together, and returns what comes back.

    Their MAC addresses are exchanged for the wire's on the way out and back again.
    """

    def __init__(self, link: Link, target_mac: bytes) -> None:
        self.link = link
        self._target_mac = target_mac

    def send(self, *requests: bytes) -> None:
        for request in requests:
            dst = self._target_mac if request[:6] == TARGET else request[:6]
            assert self.link.send(dst + self.link.mac + request[12:])

    def receive(self, timeout: float = TIMEOUT) -> bytes:
        """Return the next reply, nothing at all when none comes in time."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            if self.link.wait(left) and (reply := self.link.receive()) is not None:
                assert reply[6:12] == self._target_mac
                return self._restore(bytes(reply))
        return b""

    def _restore(self, reply: bytes) -> bytes:
        mine = reply[:6] == self.link.mac
        return (CLIENT if mine else reply[:6]) + TARGET + reply[12:]

    def ask(self, request: bytes, timeout: float = TIMEOUT) -> bytes:
        """Send a request and return what comes back, but for announcements (P48)."""
        self.send(request)
        reply = self.receive(timeout)
        while reply[20:24] == UNASKED and request[20:24] != UNASKED:
            reply = self.receive(timeout)
        return reply

    def announced(self) -> bytes:
        """Return the next announcement, whatever else comes before it."""
        end = time.monotonic() + TIMEOUT
        while (frame := self.receive())[20:24] not in (UNASKED, b""):
            assert time.monotonic() < end
        return frame

    def ask_all(self, requests: Sequence[bytes]) -> list[bytes]:
        """Send them all at once and return as many replies."""
        self.send(*requests)
        return [self.receive() for _ in requests]


@contextmanager
def client(wire: Wire) -> Iterator[Client]:
    """Ask from the initiator's end of the wire."""
    with wire.initiator.enter():
        link = open_link(wire.interface, responses=True)
    with link:
        yield Client(link, wire.target_mac)
