"""Targets and disks behind filters, for tests that control the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.filters.settings import parse_filter
from target.filters.stack import Filters
from target.filters.target import FilteredTarget
from tests.asking import make_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from target.disks import Disk


class FilterRig:
    """Filters with a simulated file system and log.

    Args:
        filters: filters in the command line's syntax.
        files: names of the files that exist; may be changed at any time.
    """

    def __init__(self, *filters: str, files: Sequence[str] = ()) -> None:
        self.files = set(files)
        self.lines: list[str] = []
        self.filters = Filters(
            [parse_filter(text) for text in filters],
            exists=self.files.__contains__,
            log_line=self.lines.append,
        )

    def target(self, disk: Disk | None = None) -> FilteredTarget:
        """Return the target 7.3 behind the filters, disk filters included."""
        target = make_target(disk)
        target.export.disk = self.filters.wrap_disk(target.export.disk)
        target.export.filters = self.filters
        return FilteredTarget(target, self.filters.wire)


def ask(target: FilteredTarget, request: bytes, now: float = 0.0) -> bytes:
    """Pass a request to a target, and return the response that is sent at once."""
    memory = bytearray(request)
    slot = memoryview(bytearray(b"\xdb" * target.target.frame_limit))
    length = target.handle(memoryview(memory), slot, now)
    assert memory == request
    # The memory of the request is reused for the next frame.
    memory[:] = b"\xdb" * len(memory)
    return bytes(slot[:length])


def due_responses(target: FilteredTarget, now: float) -> list[bytes]:
    """Return all responses that are due."""
    responses = []
    slot = memoryview(bytearray(b"\xdb" * target.target.frame_limit))
    while length := target.handle_due(slot, now):
        responses.append(bytes(slot[:length]))
        slot[:] = b"\xdb" * len(slot)
    return responses


def ask_all(target: FilteredTarget, request: bytes, now: float = 0.0) -> list[bytes]:
    """Pass a request to a target, and return all responses that are sent now."""
    response = ask(target, request, now)
    return [response] * bool(response) + due_responses(target, now)


def run_until_idle(target: FilteredTarget) -> list[tuple[float, bytes]]:
    """Advance the clock until no frame is queued; return the responses with times."""
    responses: list[tuple[float, bytes]] = []
    while (now := target.next_timeout()) is not None:
        responses += [(now, response) for response in due_responses(target, now)]
        later = target.next_timeout()
        assert later is None or later > now
    return responses
