"""Frames that arrived while a request was executed that took long.

Clients repeat a request that has no response yet. Executed again, each repeat of a slow
request would delay all others by as much, and a repeated write could undo a newer one.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

from aoe.ata import ATA_DATA
from aoe.header import Command

_SRC: Final = slice(6, 12)
_BEFORE_TAG: Final = slice(14, 20)
_AFTER_TAG: Final = slice(24, None)
_COMMAND: Final = 19


class Backlog:
    """A queue of frames, in the order of their arrival."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._frames)

    def append(self, frame: bytes) -> None:
        """Append a frame."""
        self._frames.append(frame)
        self._counts[_content(frame)] += 1

    def pop(self) -> memoryview:
        """Remove and return the first frame."""
        frame = self._frames.popleft()
        self._forget(_content(frame))
        return memoryview(frame)

    def clear(self) -> None:
        """Remove all frames."""
        self._frames.clear()
        self._counts.clear()

    def take_repeats(self, request: bytes, *, same_client: bool) -> list[bytes]:
        """Remove and return the ATA requests that equal one, except for their tags.

        Args:
            request: the request.
            same_client: only those with the same source address.
        """
        content = _content(request)
        if request[_COMMAND] != Command.ATA or not self._counts[content]:
            return []
        repeats = [
            frame
            for frame in self._frames
            if _content(frame) == content
            and (request[_SRC] == frame[_SRC] or not same_client)
        ]
        taken = set(map(id, repeats))
        self._frames = deque(each for each in self._frames if id(each) not in taken)
        for _ in repeats:
            self._forget(content)
        return repeats

    def _forget(self, content: bytes) -> None:
        self._counts[content] -= 1
        if not self._counts[content]:
            del self._counts[content]


def _content(frame: bytes) -> bytes:
    # Registers and data; a frame without them has no repeats.
    if len(frame) < ATA_DATA:
        return b""
    return frame[_BEFORE_TAG] + frame[_AFTER_TAG]
