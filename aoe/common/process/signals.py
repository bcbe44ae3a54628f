"""Signal handlers for the duration of a ``with`` block."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

    Handler: TypeAlias = Callable[[int, FrameType | None], object]


def not_ignored(*numbers: int) -> tuple[int, ...]:
    """Return those of the signals that are not ignored.

    nohup ignores SIGHUP, and a shell without job control ignores SIGINT in background
    jobs. A program must not catch them then: Ctrl-C is for the foreground only.
    """
    return tuple(each for each in numbers if signal.getsignal(each) != signal.SIG_IGN)


@contextmanager
def handling(handler: Handler, numbers: Iterable[int]) -> Iterator[None]:
    """Call the handler on these signals. Only for the main thread."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def reset(numbers: Iterable[int]) -> None:
    """Restore the default action of these signals."""
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
