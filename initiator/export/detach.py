"""What waits while a disk is attached, and lets it go when somebody says so.

Signals, ``aoe detach`` and umount all come to one queue, and are taken one after the
other in the main thread.
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
from aoe.errors import AoEError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from initiator.export.attachment import Attachment
    from initiator.export.disk_thread import DiskThread

_KIND: Final = "attachment"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

find_attachments: Final = partial(control.find_running, _KIND)
send_command: Final = partial(control.send_command, kind=_KIND)


@dataclass(slots=True)
class _Request:
    # To detach it; whoever waits for that finds out how it went.
    lazy: bool = False
    done: Future[None] = field(default_factory=Future)


@contextmanager
def announced(
    about: dict[str, Any], detach: Callable[[bool], object]
) -> Iterator[None]:
    """Let ``aoe detach`` find what is attached.

    Args:
        about: what is told to those who ask.
        detach: called in a thread of its own, told whether to be lazy. When it returns,
            so does ``aoe detach``, as soon as the process has ended.
    """

    def answer(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if command == "detach":
            detach(arguments.get("lazy") == "yes")
        elif command != "status":
            raise UsageError(command, "not a command")
        return about

    log = logging.getLogger("aoe")
    with control.ControlServer(answer, kind=_KIND, log=log):
        yield


class Detacher:
    """Waits until a disk is to be detached, and does it.

    Args:
        report: takes a line for the user.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._lock = threading.Lock()
        self._over = False

    def wake(self, *_: object) -> None:
        """Detach it if that can be; from any thread, or as a signal's handler."""
        self._requests.put(_Request())

    def wait(
        self, disk: DiskThread, attachment: Attachment, about: dict[str, Any]
    ) -> None:
        """Return when it is detached, and flushed.

        Args:
            disk: what is flushed.
            attachment: what is undone.
            about: as ``announced`` has it.

        Raises:
            AoEError: the last flush failed.
        """
        with announced(about, self._detach):
            request = self._undone(attachment)
            try:
                flush(disk)
            except AoEError as error:
                self._answer(request, error)
                raise
            self._answer(request, None)

    def _undone(self, attachment: Attachment) -> _Request:
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

    def _answer(self, request: _Request, error: AoEError | None) -> None:
        # Those who came too late to be heard get the same answer.
        with self._lock:
            self._over = True
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

    def _detach(self, lazy: bool) -> None:  # noqa: FBT001 - what ``announced`` calls
        request = _Request(lazy)
        with self._lock:
            if self._over:
                return
            self._requests.put(request)
        request.done.result()


def flush(disk: DiskThread) -> bool:
    """Make all durable that was written; tell whether the target knows how to.

    Raises:
        AoEError: as ``Disk.flush``, but that the target does not know the command.
    """
    try:
        disk.flush()
    except UnsupportedError:
        return False
    return True


@contextmanager
def signals(detacher: Detacher) -> Iterator[None]:
    """Detach when we are told to end, by SIGINT, SIGTERM or SIGHUP."""
    before = {number: signal.signal(number, detacher.wake) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
