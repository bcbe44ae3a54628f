"""A server that ends with the command it serves, or that stays behind its starter.

With ``run_beside`` there are two of us::

    we, with all our rights ----- fork -----> the server, which may give rights up
      |            <-- ready --                 |
      | sh -c CMD, with what it needs to know   | serves
      v                                         |
    CMD has ended: --- SIGTERM ---------------> ends
    exit as CMD did

The server has a process group of its own, so that Ctrl-C reaches CMD and not the disk
beneath it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ENDINGS: Final = (signal.SIGTERM, signal.SIGINT)
_OTHERS: Final = (signal.SIGHUP, signal.SIGUSR1)
"""What a server reloads and reports at."""
_PASSED_ON: Final = (*_ENDINGS, *_OTHERS)
_PATIENCE: Final = 2.0
"""Seconds that CMD gets between being asked to end and being killed."""
_LOOK: Final = 0.01


class Supervised(NamedTuple):
    """What a server knows of the command that it serves.

    Args:
        ready_fd: write to it once everything is open, and close it.
        parent: the process that runs the command.
    """

    ready_fd: int
    parent: int


def run_supervised(
    command: str, variables: Mapping[str, str], close: Iterable[int] = ()
) -> Supervised:
    """Fork, and return in the child only, which is to serve.

    The parent runs the command as soon as the child is ready, and exits as it did, with
    128 and the signal's number where that ended it. If the child ends first, the parent
    ends the command and exits as the child did. SIGTERM and SIGINT to the parent are
    passed on to the command, those that follow to the child.

    Args:
        command: for ``/bin/sh``, with our standard input, output and error.
        variables: what it finds in its environment, beside ours.
        close: file descriptors that the child alone shall have.
    """
    parent = os.getpid()
    waiting, ready = os.pipe()
    server = os.fork()
    if not server:
        os.close(waiting)
        os.setpgid(0, 0)
        return Supervised(ready, parent)
    for descriptor in (ready, *close):
        # What is closed already is told about by the child.
        with suppress(OSError):
            os.close(descriptor)
    raise SystemExit(_Supervisor(server).supervise(command, variables, waiting))


class _Supervisor:
    # The parent: it holds no disk and no interface.

    def __init__(self, server: int) -> None:
        self._server = server
        self._command: int | None = None
        self._was_asked = False

    def supervise(
        self, command: str, variables: Mapping[str, str], waiting: int
    ) -> int:
        for number in _PASSED_ON:
            signal.signal(number, self._pass_on)
        with os.fdopen(waiting, "rb") as pipe:
            is_ready = bool(pipe.read(1))
        if not is_ready:
            return _code(os.waitpid(self._server, 0)[1])
        # It may run, and a signal come that is for it, before its number is known here.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        self._command = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", command],
            {**os.environ, **variables},
            # Python ignores these; programs expect them not to be.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            setsigmask=before,
        )
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._wait(self._command)

    def _wait(self, command: int) -> int:
        ended, status = os.wait()
        while ended not in (self._server, command):
            # A shell that became us had children of its own.
            ended, status = os.wait()
        if ended == self._server:
            command_status = _end(command)
            return _code(status) or _code(command_status)
        self._command = None
        os.kill(self._server, signal.SIGTERM)
        os.waitpid(self._server, 0)
        return _code(status)

    def _pass_on(self, number: int, _frame: object) -> None:
        receiver = self._server
        if number in _ENDINGS and self._command is not None:
            if number == signal.SIGINT and _at_keyboard():
                return
            if not self._was_asked:
                receiver = self._command
            self._was_asked = True
        with suppress(ProcessLookupError):
            os.kill(receiver, number)


def _at_keyboard() -> bool:
    # Ctrl-C goes to everybody in the terminal's foreground: the command has it too.
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _end(child: int) -> int:
    os.kill(child, signal.SIGTERM)
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(_LOOK)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def daemonize(close: Iterable[int] = ()) -> int:
    """Fork, and return in the child only, in a session of its own.

    The parent exits with 0 when the child is ready, or as the child does, if it ends
    before.

    Args:
        close: file descriptors that the child alone shall have.

    Returns:
        Where to write once everything is open; then close it.
    """
    waiting, ready = os.pipe()
    child = os.fork()
    if not child:
        os.close(waiting)
        os.setsid()
        return ready
    for descriptor in (ready, *close):
        with suppress(OSError):
            os.close(descriptor)
    with os.fdopen(waiting, "rb") as pipe:
        is_ready = bool(pipe.read(1))
    raise SystemExit(0 if is_ready else _code(os.waitpid(child, 0)[1]))


def close_terminal() -> None:
    """Read from and write to nowhere from now on, and hold no directory."""
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    if nowhere > 2:
        os.close(nowhere)
    os.chdir("/")
