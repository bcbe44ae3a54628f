"""All filters of an export, as they were asked for."""

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
    from target.protocol.target import Target


class Filters:
    """The filters of one export, shared by its interfaces.

    Args:
        chosen: the first is the nearest to the wire.
        exists: tells whether there is a file of this name.
        say: takes the lines of log filters.
    """

    def __init__(
        self,
        chosen: Sequence[FilterSettings],
        *,
        exists: Callable[[str], bool],
        say: Callable[[str], None],
    ) -> None:
        self.chosen = tuple(chosen)
        self._say = say
        self._filters = [(settings, Trigger(settings, exists)) for settings in chosen]
        made = (make_wire_filter(*each, say) for each in self._filters)
        self.wire = [wire for wire in made if wire is not None]
        """Those that frames meet, the one nearest to the wire first."""

    def wrap_disk(self, disk: Disk) -> Disk:
        """Put those that are for disks around one."""
        for settings, trigger in reversed(self._filters):
            disk = wrap_disk(disk, settings, trigger, self._say)
        return disk

    def strikes(self) -> list[tuple[str, int | None]]:
        """Return how often each has struck; None for one that is just there."""
        return [
            (
                str(settings),
                trigger.struck if isinstance(settings, ChanceSettings) else None,
            )
            for settings, trigger in self._filters
        ]


def filtered(target: Target) -> Target | FilteredTarget:
    """Put the filters of a target's export in front of it, if there are any."""
    filters = target.export.filters
    if not isinstance(filters, Filters) or not filters.wire:
        return target
    return FilteredTarget(target, filters.wire)
