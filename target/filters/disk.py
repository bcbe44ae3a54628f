"""Filters around a disk: each is a ``Disk`` that asks the one inside it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeAlias

from target.filters.settings import (
    CorruptSettings,
    ErrorSettings,
    LogSettings,
    On,
    ReadOnlySettings,
    Where,
)
from target.filters.trigger import flip_bit

if TYPE_CHECKING:
    from collections.abc import Callable

    from target.filters.settings import FilterSettings
    from target.filters.trigger import Trigger
    from target.protocol.disk import Disk

    Say: TypeAlias = Callable[[str], None]


def wrap_disk(disk: Disk, settings: FilterSettings, trigger: Trigger, say: Say) -> Disk:
    """Put a filter around a disk; one for the wire leaves the disk as it is."""
    match settings:
        case ErrorSettings():
            return ErrorDisk(disk, settings, trigger)
        case CorruptSettings(where=Where.DISK):
            return CorruptDisk(disk, settings, trigger)
        case LogSettings(where=Where.DISK):
            return LogDisk(disk, settings, trigger, say)
        case ReadOnlySettings():
            return ReadOnlyDisk(disk, trigger)
    return disk


class FilteredDisk:
    """A disk that does as the one inside does; its size is looked up each time.

    Args:
        disk: the one inside.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    @property
    def size(self) -> int:
        """Bytes."""
        return self.disk.size

    @property
    def read_only(self) -> bool:
        """Writing is refused."""
        return self.disk.read_only

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer."""
        self.disk.read_into(offset, buffer)

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write the data."""
        self.disk.write_from(offset, data)

    def flush(self) -> None:
        """Make everything written stable."""
        self.disk.flush()

    def discard(self, offset: int, length: int) -> None:
        """Have these bytes read as zeroes."""
        self.disk.discard(offset, length)

    def close(self) -> None:
        """Close the disk inside."""
        self.disk.close()


class ReadOnlyDisk(FilteredDisk):
    """Refuses writes while it is switched on."""

    def __init__(self, disk: Disk, trigger: Trigger) -> None:
        super().__init__(disk)
        self._trigger = trigger

    @property
    def read_only(self) -> bool:
        """Writing is refused."""
        return self._trigger.is_armed or self.disk.read_only


class ErrorDisk(FilteredDisk):
    """Fails instead of doing what it is asked; the disk inside is not asked then."""

    def __init__(self, disk: Disk, settings: ErrorSettings, trigger: Trigger) -> None:
        super().__init__(disk)
        self._on = settings.on
        self._error = getattr(errno, settings.errno)
        self._trigger = trigger

    def _fail(self, call: On) -> None:
        if self._on in (On.ALL, call) and self._trigger.strikes():
            raise OSError(self._error, "failed on purpose")

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, or fail."""
        self._fail(On.READ)
        self.disk.read_into(offset, buffer)

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write the data, or fail and write none of it."""
        self._fail(On.WRITE)
        self.disk.write_from(offset, data)

    def flush(self) -> None:
        """Flush, or fail."""
        self._fail(On.FLUSH)
        self.disk.flush()

    def discard(self, offset: int, length: int) -> None:
        """Discard, or fail."""
        self._fail(On.DISCARD)
        self.disk.discard(offset, length)


class CorruptDisk(FilteredDisk):
    """Flips a bit in what is read, in what is written, or in both."""

    def __init__(self, disk: Disk, settings: CorruptSettings, trigger: Trigger) -> None:
        super().__init__(disk)
        self._on = settings.on
        self._trigger = trigger

    def _strikes(self, call: On) -> bool:
        return self._on in (On.ALL, call) and self._trigger.strikes()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, perhaps with one bit wrong."""
        self.disk.read_into(offset, buffer)
        if self._strikes(On.READ):
            flip_bit(buffer, self._trigger.dice)

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write the data, perhaps with one bit wrong; the caller's stays as it is."""
        if self._strikes(On.WRITE):
            data = memoryview(bytearray(data))
            flip_bit(data, self._trigger.dice)
        self.disk.write_from(offset, data)


class LogDisk(FilteredDisk):
    """Says what it was asked for, and how that went."""

    def __init__(
        self, disk: Disk, settings: LogSettings, trigger: Trigger, say: Say
    ) -> None:
        super().__init__(disk)
        self._on = settings.on
        self._trigger = trigger
        self._say = say

    def _log(self, call: On, do: Callable[[], None], where: str = "") -> None:
        if self._on not in (On.ALL, call) or not self._trigger.strikes():
            do()
            return
        try:
            do()
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "error")
            self._say(f"disk={call}{where} result={name}")
            raise
        self._say(f"disk={call}{where} result=ok")

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, and say so."""
        where = f" offset={offset} length={len(buffer)}"
        self._log(On.READ, lambda: self.disk.read_into(offset, buffer), where)

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write the data, and say so."""
        where = f" offset={offset} length={len(data)}"
        self._log(On.WRITE, lambda: self.disk.write_from(offset, data), where)

    def flush(self) -> None:
        """Flush, and say so."""
        self._log(On.FLUSH, self.disk.flush)

    def discard(self, offset: int, length: int) -> None:
        """Discard, and say so."""
        where = f" offset={offset} length={length}"
        self._log(On.DISCARD, lambda: self.disk.discard(offset, length), where)
