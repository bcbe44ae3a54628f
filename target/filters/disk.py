"""Disk filters: each is a ``Disk`` that wraps another one."""

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

    LogLine: TypeAlias = Callable[[str], None]


def wrap_disk(
    disk: Disk, settings: FilterSettings, trigger: Trigger, log_line: LogLine
) -> Disk:
    """Wrap a disk in a disk filter; a wire filter returns the disk unchanged."""
    match settings:
        case ErrorSettings():
            return ErrorDisk(disk, settings, trigger)
        case CorruptSettings(where=Where.DISK):
            return CorruptDisk(disk, settings, trigger)
        case LogSettings(where=Where.DISK):
            return LogDisk(disk, settings, trigger, log_line)
        case ReadOnlySettings():
            return ReadOnlyDisk(disk, trigger)
    return disk


class FilteredDisk:
    """A disk that forwards all calls to another one; its size is not cached.

    Args:
        disk: the wrapped disk.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.disk.size

    @property
    def read_only(self) -> bool:
        """True if writes are refused."""
        return self.disk.read_only

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer."""
        self.disk.read_into(offset, buffer)

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write the data."""
        self.disk.write_from(offset, data)

    def flush(self) -> None:
        """Make all completed writes stable."""
        self.disk.flush()

    def discard(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""
        self.disk.discard(offset, length)

    def find_fault(self) -> str:
        """Return why the wrapped disk must be opened again."""
        return self.disk.find_fault()

    def close(self) -> None:
        """Close the wrapped disk."""
        self.disk.close()


class ReadOnlyDisk(FilteredDisk):
    """A disk that refuses writes while the filter is enabled."""

    def __init__(self, disk: Disk, trigger: Trigger) -> None:
        super().__init__(disk)
        self._trigger = trigger

    @property
    def read_only(self) -> bool:
        """True if writes are refused."""
        return self._trigger.is_enabled or self.disk.read_only


class ErrorDisk(FilteredDisk):
    """A disk that injects errors; a call that fails does not reach the wrapped disk."""

    def __init__(self, disk: Disk, settings: ErrorSettings, trigger: Trigger) -> None:
        super().__init__(disk)
        self._on = settings.on
        self._error = getattr(errno, settings.errno)
        self._trigger = trigger

    def _maybe_fail(self, operation: On) -> None:
        if self._on in (On.ALL, operation) and self._trigger.should_trigger():
            raise OSError(self._error, "injected error")

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, or fail."""
        self._maybe_fail(On.READ)
        self.disk.read_into(offset, buffer)

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write the data, or fail without writing any of it."""
        self._maybe_fail(On.WRITE)
        self.disk.write_from(offset, data)

    def flush(self) -> None:
        """Flush, or fail."""
        self._maybe_fail(On.FLUSH)
        self.disk.flush()

    def discard(self, offset: int, length: int) -> None:
        """Discard, or fail."""
        self._maybe_fail(On.DISCARD)
        self.disk.discard(offset, length)


class CorruptDisk(FilteredDisk):
    """A disk that flips a bit in data that is read, written, or both."""

    def __init__(self, disk: Disk, settings: CorruptSettings, trigger: Trigger) -> None:
        super().__init__(disk)
        self._on = settings.on
        self._trigger = trigger

    def _should_trigger(self, operation: On) -> bool:
        return self._on in (On.ALL, operation) and self._trigger.should_trigger()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, with one bit flipped if the filter triggers."""
        self.disk.read_into(offset, buffer)
        if self._should_trigger(On.READ):
            flip_bit(buffer, self._trigger.rng)

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write the data, with one bit of a copy flipped if the filter triggers."""
        if self._should_trigger(On.WRITE):
            data = memoryview(bytearray(data))
            flip_bit(data, self._trigger.rng)
        self.disk.write_from(offset, data)


class LogDisk(FilteredDisk):
    """A disk that logs calls and their results."""

    def __init__(
        self, disk: Disk, settings: LogSettings, trigger: Trigger, log_line: LogLine
    ) -> None:
        super().__init__(disk)
        self._on = settings.on
        self._trigger = trigger
        self._log_line = log_line

    def _log(
        self, operation: On, call_disk: Callable[[], None], where: str = ""
    ) -> None:
        if self._on not in (On.ALL, operation) or not self._trigger.should_trigger():
            call_disk()
            return
        try:
            call_disk()
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "error")
            self._log_line(f"disk={operation}{where} result={name}")
            raise
        self._log_line(f"disk={operation}{where} result=ok")

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, and log the call."""
        where = f" offset={offset} length={len(buffer)}"
        self._log(On.READ, lambda: self.disk.read_into(offset, buffer), where)

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write the data, and log the call."""
        where = f" offset={offset} length={len(data)}"
        self._log(On.WRITE, lambda: self.disk.write_from(offset, data), where)

    def flush(self) -> None:
        """Flush, and log the call."""
        self._log(On.FLUSH, self.disk.flush)

    def discard(self, offset: int, length: int) -> None:
        """Discard, and log the call."""
        where = f" offset={offset} length={length}"
        self._log(On.DISCARD, lambda: self.disk.discard(offset, length), where)
