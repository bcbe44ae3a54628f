"""A real ``aoe-target`` at one end of a wire, and a client at the other."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aoe.net.link import open_link
from tests.asking import CLIENT, TARGET
from tests.engines import serve_command
from tests.programs import AOE_TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aoe.net.link import Link
    from aoe.net.netns import Namespace, Wire

TIMEOUT = 30.0
"""Seconds to wait for any event, even on a busy machine."""
NO_PROBE = "--force"
"""The option that skips the probe for other targets, to save time."""
ANNOUNCEMENT_TAG = bytes(4)
"""The tag of announcements."""


def start(where: Namespace, *words: object, **options: object) -> subprocess.Popen[str]:
    """Start ``aoe-target`` with these arguments."""
    return run(where, [*AOE_TARGET, *map(str, words)], **options)


def run(
    where: Namespace, command: Sequence[str], **options: object
) -> subprocess.Popen[str]:
    """Start a program; its output is for ``ready_line`` and ``finish``."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process: subprocess.Popen[str] = where.popen(command, **{**pipes, **options})
    return process


def ready_line(process: subprocess.Popen[str]) -> str:
    """Wait until a target is ready, and return its first line of output."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=TIMEOUT)[1]
    return line


def finish(process: subprocess.Popen[str], number: int | None = None) -> str:
    """Send a signal, wait for the end, and return the output on standard error."""
    if number is not None:
        process.send_signal(number)
    return process.communicate(timeout=TIMEOUT)[1]


@contextmanager
def serving(wire: Wire, *words: object) -> Iterator[subprocess.Popen[str]]:
    """Serve 7.3 on the wire with these arguments after the interface."""
    process = run(wire.target, serve_command("e7.3", wire.interface, *words))
    ready_line(process)
    try:
        yield process
    finally:
        finish(process, 15)
    assert process.returncode == 0


class Client:
    """A client that sends frames of ``tests.asking`` and returns the responses.

    It replaces their MAC addresses by those of the wire, and vice versa.
    """

    def __init__(self, link: Link, target_mac: bytes) -> None:
        self.link = link
        self._target_mac = target_mac

    def send(self, *requests: bytes) -> None:
        for request in requests:
            dst = self._target_mac if request[:6] == TARGET else request[:6]
            assert self.link.send(dst + self.link.mac + request[12:])

    def receive(self, timeout: float = TIMEOUT) -> bytes:
        """Return the next response, empty if there is none before the timeout."""
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0:
            if self.link.wait(left) and (response := self.link.receive()) is not None:
                assert response[6:12] == self._target_mac
                return self._restore(bytes(response))
        return b""

    def _restore(self, response: bytes) -> bytes:
        is_ours = response[:6] == self.link.mac
        return (CLIENT if is_ours else response[:6]) + TARGET + response[12:]

    def ask(self, request: bytes, timeout: float = TIMEOUT) -> bytes:
        """Send a request and return the response, ignoring announcements (P48)."""
        self.send(request)
        response = self.receive(timeout)
        while (
            response[20:24] == ANNOUNCEMENT_TAG and request[20:24] != ANNOUNCEMENT_TAG
        ):
            response = self.receive(timeout)
        return response

    def receive_announcement(self) -> bytes:
        """Return the next announcement, ignoring other frames."""
        end = time.monotonic() + TIMEOUT
        while (frame := self.receive())[20:24] not in (ANNOUNCEMENT_TAG, b""):
            assert time.monotonic() < end
        return frame

    def ask_all(self, requests: Sequence[bytes]) -> list[bytes]:
        """Send all requests at once and return as many responses."""
        self.send(*requests)
        return [self.receive() for _ in requests]


@contextmanager
def client(wire: Wire) -> Iterator[Client]:
    """Open a client at the initiator's end of the wire."""
    with wire.initiator.enter():
        link = open_link(wire.interface, responses=True)
    with link:
        yield Client(link, wire.target_mac)
