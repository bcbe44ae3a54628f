"""The filters of an export, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from target.filters.disk import wrap_disk
from target.filters.settings import ChanceSettings
from target.filters.target import FilteredTarget
from target.filters.trigger import Trigger
from target.filters.wire import make_wire_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from target.filters.settings import FilterSettings
    from target.protocol.disk import Disk
    from target.protocol.engine import Engine


class Filters:
    """The filters of one export, shared by its interfaces.

    Args:
        settings: the filters' settings; the first filter is nearest to the wire.
        exists: returns True if a file with this name exists.
        log_line: called with each line of the log filters.
    """

    def __init__(
        self,
        settings: Sequence[FilterSettings],
        *,
        exists: Callable[[str], bool],
        log_line: Callable[[str], None],
    ) -> None:
        self.settings = tuple(settings)
        self._log_line = log_line
        self._filters = [(each, Trigger(each, exists)) for each in settings]
        wire_filters = (make_wire_filter(*each, log_line) for each in self._filters)
        self.wire = [wire for wire in wire_filters if wire is not None]
        """The wire filters, the one nearest to the wire first."""

    def wrap_disk(self, disk: Disk) -> Disk:
        """Wrap a disk in all disk filters."""
        for settings, trigger in reversed(self._filters):
            disk = wrap_disk(disk, settings, trigger, self._log_line)
        return disk

    def trigger_counts(self) -> list[tuple[str, int | None]]:
        """Return each filter and how often it has triggered; None if not counted."""
        return [
            (
                str(settings),
                trigger.triggered if isinstance(settings, ChanceSettings) else None,
            )
            for settings, trigger in self._filters
        ]


def with_filters(target: Engine) -> Engine | FilteredTarget:
    """Return a target behind its export's wire filters, if there are any."""
    filters = target.export.filters
    if not isinstance(filters, Filters) or not filters.wire:
        return target
    return FilteredTarget(target, filters.wire)
