"""Run ``aoe attach`` in a mount namespace of its own, so that no mount is left over.

unshare(1) keeps the namespace alive until ``aoe attach`` has exited. If the namespace
ended together with a killed ``aoe attach``, the kernel would unmount the file system
before the FUSE connection is aborted, and would wait for its I/O forever.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.accounts import IS_ROOT
from tests.programs import AOE
from tests.requirements import missing, need
from tests.serving import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe.net.netns import Wire

LONG = 120.0
"""Seconds for commands that move much data on a loaded machine."""


def may_use_fuse() -> bool:
    return os.access("/dev/fuse", os.R_OK | os.W_OK)


def need_fuse() -> None:
    """Skip the test unless it may mount a FUSE file system."""
    need("libfuse")
    if not may_use_fuse():
        missing("access to /dev/fuse", "modprobe fuse, and run the tests as root")


def may_mount() -> bool:
    """Return True if loop devices are usable: root outside a user namespace."""
    return IS_ROOT and os.access("/dev/loop-control", os.R_OK | os.W_OK)


class Attached:
    """A running ``aoe attach``, and commands in its namespaces.

    Args:
        process: unshare, which exits with the code of ``aoe attach``.
        about: the JSON document that ``aoe attach`` printed when it was ready.
    """

    def __init__(self, process: subprocess.Popen[str], about: dict[str, Any]) -> None:
        self.process = process
        self.about = about

    def inside(self, *words: object) -> list[str]:
        """Return a command line that runs in the same namespaces."""
        namespaces = ["--target", str(self.process.pid), "--mount", "--net"]
        return ["nsenter", *namespaces, "--", *map(str, words)]

    def run(self, *words: object, code: int = 0) -> str:
        """Run a program there, assert its exit code, and return its output."""
        done = subprocess.run(
            self.inside(*words),
            capture_output=True,
            text=True,
            check=False,
            timeout=LONG,
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def aoe(self, *words: object, code: int = 0) -> str:
        return self.run(*AOE, *words, code=code)

    def popen(self, *words: object, stdout: int | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(self.inside(*words), text=True, stdout=stdout)

    def signal(self, number: int) -> None:
        os.kill(self.about["pid"], number)

    def wait(self) -> int:
        """Wait until it exits, and return its exit code."""
        return self.process.wait(TIMEOUT * 3)


def start_attach(wire: Wire, *words: object) -> subprocess.Popen[str]:
    """Start ``aoe attach e7.3`` with further arguments."""
    command = [
        "unshare",
        "--mount",
        "--fork",
        *AOE,
        "attach",
    ]
    command += ["e7.3", "-i", wire.interface, *map(str, words)]
    process: subprocess.Popen[str] = wire.initiator.popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return process


@contextmanager
def attached(wire: Wire, *words: object) -> Iterator[Attached]:
    """Attach e7.3; kill the process if it still runs at the end."""
    process = start_attach(wire, *words, "--json")
    assert process.stdout is not None
    lines = []
    while (line := process.stdout.readline()) not in ("", "}\n"):
        lines.append(line)
    assert line, process.communicate(timeout=TIMEOUT)[1]
    attachment = Attached(process, json.loads("".join((*lines, line))))
    try:
        yield attachment
    finally:
        if process.poll() is None:
            attachment.signal(signal.SIGKILL)
        process.communicate(timeout=LONG)
