"""A program at a terminal of its own: keys are typed, and what it shows is read."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from tests.programs import AOE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aoe.net.netns import Namespace

TIMEOUT = 60.0
"""Seconds to wait for a text; long, for a busy machine."""
_COLOR = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """``aoe`` at the controlling terminal of a session.

    Args:
        where: the namespace to run it in.
        words: its arguments.
        environment: variables to set.
    """

    def __init__(
        self, where: Namespace, *words: str, environment: Mapping[str, str]
    ) -> None:
        self._terminal, program_end = pty.openpty()
        termios.tcsetwinsize(program_end, (50, 200))
        self._shown = ""
        self._process = where.popen(
            [*AOE, *words],
            stdin=program_end,
            stdout=program_end,
            stderr=program_end,
            env={**os.environ, "TERM": "dumb", **environment},
            start_new_session=True,
            # Of the new session, so that Ctrl-C is a SIGINT.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY),
        )
        os.close(program_end)

    def type(self, keys: str) -> None:
        """Type keys."""
        os.write(self._terminal, keys.encode())

    def until(self, text: str) -> str:
        """Wait for a text; return what was shown before it, since the last call.

        Raises:
            AssertionError: it was not shown before the timeout.
        """
        end = time.monotonic() + TIMEOUT
        while text not in self._shown:
            assert self._read(end), (text, self._shown)
        before, _, self._shown = self._shown.partition(text)
        return before

    def run(self, line: str) -> str:
        """Type a line at a prompt, and return what is shown until the next prompt."""
        self.type(f"{line}\n")
        return self.until(">>> ")

    def exit_code(self) -> int:
        """Wait for the end of the program, and return its exit code."""
        end = time.monotonic() + TIMEOUT
        while self._read(end):
            pass
        return self._process.wait(TIMEOUT)

    def _read(self, end: float) -> bool:
        # Append what is shown, without colors; return False at the end or timeout.
        left = max(0.0, end - time.monotonic())
        if not select.select([self._terminal], [], [], left)[0]:
            return False
        shown = b""
        # EIO: the program has exited.
        with suppress(OSError):
            shown = os.read(self._terminal, 4096)
        self._shown = _COLOR.sub("", self._shown + shown.decode(errors="replace"))
        return shown != b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(TIMEOUT)
        os.close(self._terminal)
