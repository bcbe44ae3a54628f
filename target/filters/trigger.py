"""When a filter strikes: chance, a count, a file that has to exist."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from target.filters.settings import ChanceSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from target.filters.settings import FilterSettings


class Trigger:
    """Decides about everything that a filter could strike at.

    Args:
        settings: the filter's.
        exists: tells whether there is a file of this name.
    """

    def __init__(self, settings: FilterSettings, exists: Callable[[str], bool]) -> None:
        chance = settings if isinstance(settings, ChanceSettings) else _CERTAIN
        self.dice = Random(chance.seed)  # noqa: S311 # for faults, not for secrets
        """Also for what a filter does when it strikes."""
        self.struck = 0
        """How often it has done so."""
        self._file = settings.file
        self._exists = exists
        self._probability = chance.probability
        self._count = chance.count
        self._after = chance.after

    @property
    def is_armed(self) -> bool:
        """The file is there, or none is needed."""
        return not self._file or self._exists(self._file)

    def strikes(self) -> bool:
        """Decide about one frame or call. Asked for everything that is struck at."""
        if self.struck == self._count or not self.is_armed:
            return False
        if self._after:
            self._after -= 1
            return False
        if self._probability < 1 and self.dice.random() >= self._probability:
            return False
        self.struck += 1
        return True


_CERTAIN = ChanceSettings()


def flip_bit(data: bytearray | memoryview, dice: Random) -> None:
    """Flip one bit, any of them, in bytes that are at least one."""
    place, bit = divmod(dice.randrange(len(data) * 8), 8)
    data[place] ^= 1 << bit
