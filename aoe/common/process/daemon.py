"""Daemonize a server, or run it for as long as a command runs.

``run_supervised`` splits the process in two::

    supervisor, with all privileges --- fork ---> server, which may drop privileges
      |                 <----- ready -----          |
      | sh -c CMD, with variables set               | serves
      v                                             |
    CMD has exited:     ---- SIGTERM --->         exits
    exit with the exit code of CMD

The server is in a process group of its own, so that Ctrl-C is delivered to CMD and not
to the server of its disk.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from aoe.common.process.signals import not_ignored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TERMINATING: Final = (signal.SIGTERM, signal.SIGINT)
_SERVER_ONLY: Final = (signal.SIGHUP, signal.SIGUSR1)
"""Signals for the server: reload and log statistics."""
_KILL_TIMEOUT: Final = 2.0
"""Seconds from SIGTERM to SIGKILL for CMD."""
_POLL_INTERVAL: Final = 0.01
"""Seconds."""


class Supervised(NamedTuple):
    """The server's end of ``run_supervised``.

    Args:
        ready_fd: write to it when the server is ready, then close it.
        parent: the process ID of the supervisor, which runs the command.
    """

    ready_fd: int
    parent: int


def run_supervised(
    command: str, variables: Mapping[str, str], close: Iterable[int] = ()
) -> Supervised:
    """Fork a server, and return in the child only.

    The parent runs the command when the child is ready and exits with its exit code, or
    with 128 plus the number of the signal that killed it. If the child exits first, the
    parent terminates the command and exits with the child's exit code. The parent
    forwards the first SIGTERM or SIGINT to the command and later ones to the child.

    Args:
        command: for ``/bin/sh``; it inherits standard input, output and error.
        variables: added to its environment.
        close: file descriptors to close in the parent.
    """
    parent = os.getpid()
    ready_read, ready_write = os.pipe()
    server = os.fork()
    if not server:
        os.close(ready_read)
        os.setpgid(0, 0)
        return Supervised(ready_write, parent)
    for descriptor in (ready_write, *close):
        # An invalid descriptor is reported by the child, when it writes to it.
        with suppress(OSError):
            os.close(descriptor)
    raise SystemExit(_Supervisor(server).supervise(command, variables, ready_read))


class _Supervisor:
    # The parent process. It has no disk and no interface open.

    def __init__(self, server: int) -> None:
        self._server = server
        self._command: int | None = None
        self._is_terminating = False
        # A SIGINT that is ignored stays so, here and in the command.
        self._forwarded = (
            signal.SIGTERM,
            *not_ignored(signal.SIGINT),
            *_SERVER_ONLY,
        )
        self._awaited = (*self._forwarded, signal.SIGCHLD)

    def supervise(
        self, command: str, variables: Mapping[str, str], ready_fd: int
    ) -> int:
        for number in self._forwarded:
            signal.signal(number, self._forward)
        with os.fdopen(ready_fd, "rb") as pipe:
            is_ready = bool(pipe.read(1))
        if not is_ready:
            return _exit_code(os.waitpid(self._server, 0)[1])
        # Blocked until the command's process ID is stored, as a signal in between would
        # be forwarded to the server; and until a child has exited, see _wait.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)
        self._command = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", command],
            {**os.environ, **variables},
            # Python ignores these signals, which is inherited across exec.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            setsigmask=before,
        )
        exited, status = self._wait(self._command)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._finish(self._command, exited, status)

    def _wait(self, command: int) -> tuple[int, int]:
        # Not os.wait() with handlers: Python runs the handler of a signal that arrives
        # just before wait4() blocks only after a child has exited.
        while True:
            exited, status = os.waitpid(-1, os.WNOHANG)
            # A shell that used exec to start this process leaves its children to it.
            if exited in (self._server, command):
                return exited, status
            if not exited:
                number = signal.sigwait(self._awaited)
                if number != signal.SIGCHLD:
                    self._forward(number, None)

    def _finish(self, command: int, exited: int, status: int) -> int:
        if exited == self._server:
            command_status = _terminate(command)
            return _exit_code(status) or _exit_code(command_status)
        self._command = None
        os.kill(self._server, signal.SIGTERM)
        os.waitpid(self._server, 0)
        return _exit_code(status)

    def _forward(self, number: int, _frame: object) -> None:
        receiver = self._server
        if number in _TERMINATING and self._command is not None:
            if number == signal.SIGINT and _is_in_foreground():
                return
            if not self._is_terminating:
                receiver = self._command
            self._is_terminating = True
        with suppress(ProcessLookupError):
            os.kill(receiver, number)


def _is_in_foreground() -> bool:
    # Ctrl-C signals the whole foreground process group, and so the command already.
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


def _terminate(child: int) -> int:
    os.kill(child, signal.SIGTERM)
    end = time.monotonic() + _KILL_TIMEOUT
    while time.monotonic() < end:
        exited, status = os.waitpid(child, os.WNOHANG)
        if exited:
            return status
        time.sleep(_POLL_INTERVAL)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def daemonize(close: Iterable[int] = ()) -> int:
    """Fork, and return in the child only, in a session of its own.

    The parent exits with 0 when the child is ready, or with the child's exit code if
    the child exits before.

    Args:
        close: file descriptors to close in the parent.

    Returns:
        A file descriptor: write to it when the server is ready, then close it.
    """
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if not child:
        os.close(ready_read)
        os.setsid()
        return ready_write
    for descriptor in (ready_write, *close):
        with suppress(OSError):
            os.close(descriptor)
    with os.fdopen(ready_read, "rb") as pipe:
        is_ready = bool(pipe.read(1))
    raise SystemExit(0 if is_ready else _exit_code(os.waitpid(child, 0)[1]))


def close_terminal() -> None:
    """Redirect standard streams to /dev/null, and change to the root directory.

    Keeping neither the terminal nor a directory open lets both go away.
    """
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)
    os.chdir("/")
