"""When a filter triggers: probability, count, and a trigger file."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from target.filters.settings import ChanceSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from target.filters.settings import FilterSettings


class Trigger:
    """Decides for each matching frame or call if a filter acts on it.

    Args:
        settings: the filter's settings.
        exists: returns True if a file with this name exists.
    """

    def __init__(self, settings: FilterSettings, exists: Callable[[str], bool]) -> None:
        chance = settings if isinstance(settings, ChanceSettings) else _ALWAYS
        self.rng = Random(chance.seed)  # noqa: S311 # for faults, not for secrets
        """The random numbers, also for what the filter does when it triggers."""
        self.triggered = 0
        """How often the filter has triggered."""
        self._file = settings.file
        self._exists = exists
        self._probability = chance.probability
        self._count = chance.count
        self._after = chance.after

    @property
    def is_enabled(self) -> bool:
        """True if the trigger file exists, or none is configured."""
        return not self._file or self._exists(self._file)

    def should_trigger(self) -> bool:
        """Return True if the filter acts on this frame or call; call once for each."""
        if self.triggered == self._count or not self.is_enabled:
            return False
        if self._after:
            self._after -= 1
            return False
        if self._probability < 1 and self.rng.random() >= self._probability:
            return False
        self.triggered += 1
        return True


_ALWAYS = ChanceSettings()


def flip_bit(data: bytearray | memoryview, rng: Random) -> None:
    """Flip one random bit of ``data``, which must not be empty."""
    place, bit = divmod(rng.randrange(len(data) * 8), 8)
    data[place] ^= 1 << bit
