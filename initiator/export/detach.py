"""Wait until a disk is to be detached, and detach it.

Requests come from signals, ``aoe detach`` and umount. All go through one queue and are
handled one at a time in the main thread.
"""

from __future__ import annotations

import logging
import signal
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from aoe.common import control
from aoe.common.process.signals import handling, not_ignored
from aoe.errors import AoEError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from initiator.export.attachment import Attachment
    from initiator.export.disk_thread import DiskThread

_KIND: Final = "attachment"

find_attachments: Final = partial(control.find_running, _KIND)
send_command: Final = partial(control.send_command, kind=_KIND)


@dataclass(slots=True)
class _Request:
    # A request to detach; ``done`` gets its result.
    lazy: bool = False
    done: Future[None] = field(default_factory=Future)


@contextmanager
def serve_control(
    about: dict[str, Any], detach: Callable[[bool], object]
) -> Iterator[None]:
    """Serve the control socket through which ``aoe detach`` finds an attachment.

    Args:
        about: the response to the commands ``status`` and ``detach``.
        detach: called in another thread, with True for a lazy detach. The response to
            ``detach`` is sent when it returns.
    """

    def respond(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command == "detach":
            detach(arguments.get("lazy") == "yes")
        elif command != "status":
            raise UsageError(command, "not a command")
        return about

    log = logging.getLogger("aoe")
    with control.ControlServer(respond, kind=_KIND, log=log):
        yield


class Detacher:
    """A queue of detach requests, handled in the thread that calls ``wait``.

    Args:
        report: called with each line for the user.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._lock = threading.Lock()
        self._finished = False

    def request_detach(self, *_: object) -> None:
        """Request a detach. Safe from any thread and as a signal handler."""
        # SimpleQueue.put is reentrant, so a signal handler may interrupt another put.
        self._requests.put(_Request())

    def wait(
        self, disk: DiskThread, attachment: Attachment, about: dict[str, Any]
    ) -> None:
        """Wait for requests until one has detached the disk, then flush it.

        Args:
            disk: the disk to flush.
            attachment: the attachment to detach.
            about: as for ``serve_control``.

        Raises:
            AoEError: the last flush failed.
        """
        with serve_control(about, self._detach):
            request = self._wait_for_detach(attachment)
            try:
                flush(disk)
            except AoEError as error:
                self._finish(request, error)
                raise
            self._finish(request, None)

    def _wait_for_detach(self, attachment: Attachment) -> _Request:
        while True:
            request = self._requests.get()
            try:
                attachment.detach(lazy=request.lazy)
            except AoEError as error:
                request.done.set_exception(error)
                self._report(f"still attached: {error}")
                continue
            if request.lazy:
                request.done.set_result(None)
                attachment.join()
            return request

    def _finish(self, request: _Request, error: AoEError | None) -> None:
        # Requests that were queued during the detach get the same result.
        with self._lock:
            self._finished = True
            requests = [request]
            while not self._requests.empty():
                requests.append(self._requests.get())
        for each in requests:
            if each.done.done():
                continue
            if error is None:
                each.done.set_result(None)
            else:
                each.done.set_exception(error)

    def _detach(self, lazy: bool) -> None:  # noqa: FBT001 - as serve_control calls it
        request = _Request(lazy)
        with self._lock:
            if self._finished:
                return
            self._requests.put(request)
        request.done.result()


def flush(disk: DiskThread) -> bool:
    """Flush the disk; return False if the target does not support FLUSH.

    Raises:
        AoEError: as ``Disk.flush``, except for UnsupportedError.
    """
    try:
        disk.flush()
    except UnsupportedError:
        return False
    return True


@contextmanager
def detach_on_signals(detacher: Detacher) -> Iterator[None]:
    """Request a detach on SIGTERM, and on SIGINT and SIGHUP unless they are ignored."""
    numbers = (signal.SIGTERM, *not_ignored(signal.SIGINT, signal.SIGHUP))
    with handling(detacher.request_detach, numbers):
        yield
