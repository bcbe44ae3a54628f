"""Watch the files and devices that are served, also while no client uses them."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

from aoe.errors import AoEError, NotFoundError
from target.disks import identify_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from target.server.inventory import Served

log: Final = logging.getLogger("aoe-target")

_INTERVAL: Final = 1.0


class DiskWatch:
    """A timer that looks once a second for files that were truncated or replaced.

    Disks find such faults themselves when they are used, and log them.

    Args:
        served: returns the exports.
    """

    def __init__(self, served: Callable[[], Iterable[Served]]) -> None:
        self._served = served
        self._next = -math.inf
        self._logged: set[Served] = set()
        """The exports whose paths named another file at the last check."""

    def next_timeout(self) -> float:
        """Return the time of the next check."""
        return self._next

    def tick(self, now: float) -> None:
        """Check all disks."""
        self._next = now + _INTERVAL
        replaced = {
            served
            for served in self._served()
            if not served.export.disk.find_fault() and _is_replaced(served)
        }
        for served in replaced - self._logged:
            log.warning(
                "%s: now names another file, or none; the one that was opened is "
                "served until aoe-target reload",
                served.settings.path,
            )
        self._logged = replaced


def _is_replaced(served: Served) -> bool:
    try:
        files = identify_files(served.settings.path, served.settings.overlay)
    except NotFoundError:
        return True
    except AoEError:
        return False  # After a change of user, the directory may not be searchable.
    return files != served.files
