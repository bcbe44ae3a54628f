"""What keeps an attached disk attached, and lets it go when somebody says so.

Signals, ``aoe detach``, umount and the loss of the interface all come to one queue, and
are taken one after the other in the main thread.
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

from aoe import control
from aoe.errors import AoEError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from initiator.export.attachment import Attachment
    from initiator.export.thread import DiskThread

_KIND: Final = "attachment"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

find_attachments: Final = partial(control.find_running, _KIND)
ask: Final = partial(control.ask, kind=_KIND)


@dataclass(slots=True)
class _Request:
    # To detach it; whoever waits for that finds out how it went.
    lazy: bool = False
    done: Future[dict[str, Any]] = field(default_factory=Future)


class Keeper:
    """Waits until a disk is to be detached, and does it.

    Args:
        tell: shows a line to whoever attached the disk.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._requests: SimpleQueue[_Request] = SimpleQueue()
        self._about: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._ended = False

    def wake(self, *_: object) -> None:
        """Detach it if that can be; from any thread, or as a signal's handler."""
        self._requests.put(_Request())

    def keep(
        self, disk: DiskThread, attachment: Attachment, about: dict[str, Any]
    ) -> None:
        """Return when it is detached.

        Args:
            disk: flushed at the end.
            attachment: what is to be undone.
            about: what others are told who ask.

        Raises:
            AoEError: the disk's interface is gone, or its last flush failed.
        """
        self._about = about
        log = logging.getLogger("aoe")
        with control.ControlServer(self._answer, kind=_KIND, log=log):
            request = self._wait(disk, attachment)
            try:
                flush(disk)
            except AoEError as error:
                self._end(request, error)
                raise
            self._end(request)

    def _wait(self, disk: DiskThread, attachment: Attachment) -> _Request:
        while True:
            request = self._requests.get()
            if disk.error is not None:
                self._tell(str(disk.error))
            try:
                attachment.detach(lazy=request.lazy)
            except AoEError as error:
                request.done.set_exception(error)
                self._tell(f"still attached: {error}")
                continue
            if request.lazy:
                request.done.set_result(self._about)
                attachment.join()
            return request

    def _end(self, request: _Request, error: AoEError | None = None) -> None:
        # Those who have come too late to be heard get the same answer.
        with self._lock:
            self._ended = True
            requests = [request]
            while not self._requests.empty():
                requests.append(self._requests.get())
        for each in requests:
            if each.done.done():
                continue
            if error is None:
                each.done.set_result(self._about)
            else:
                each.done.set_exception(error)

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        # In the thread of the control socket.
        if command == "status":
            return self._about
        if command != "detach":
            raise UsageError(command, "not a command")
        request = _Request(lazy=arguments.get("lazy") == "yes")
        with self._lock:
            if self._ended:
                return self._about
            self._requests.put(request)
        return request.done.result()


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
def signals(keeper: Keeper) -> Iterator[None]:
    """Detach when we are told to end, by SIGINT, SIGTERM or SIGHUP."""
    before = {number: signal.signal(number, keeper.wake) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
