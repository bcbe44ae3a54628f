"""Going on in the background, once there is something to go on with."""

from __future__ import annotations

import os
import syslog
from typing import TYPE_CHECKING

from click.exceptions import Exit

if TYPE_CHECKING:
    from collections.abc import Callable


def into_background() -> Callable[[], None]:
    """Go on in a child, and have the parent wait until that is ready.

    To be called before there are threads, and anything open. What the child prints
    until it is ready is seen where the parent was started; the parent ends with 0 then,
    or as the child does if that ends before.

    Returns:
        In the child: what it calls when it is ready. It has no terminal any more then.

    Raises:
        Exit: in the parent, with its exit code.
    """
    waiting, ready = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child:
        os.close(ready)
        if os.read(waiting, 1):
            raise Exit(0)
        raise Exit(_exit_code(os.waitpid(child, 0)[1]))
    os.close(waiting)
    os.setsid()

    def is_ready() -> None:
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.close(null)
        os.write(ready, b"\0")
        os.close(ready)

    return is_ready


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def log_line(line: str) -> None:
    """Tell the system log, as somebody in the background has to."""
    syslog.openlog("aoe", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(line)
