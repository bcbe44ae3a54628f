"""A disk in memory, for tests and experiments; its contents are not persistent."""

from __future__ import annotations

from aoe.common.sizes import check_sectors


class MemoryDisk:
    """A disk in a ``bytearray``, which is accessible as ``data``.

    Args:
        content: the size in bytes, or the initial contents.
        read_only: True if writes are refused.

    Raises:
        UsageError: the size is not a whole number of sectors.
    """

    def __init__(self, content: int | bytes, *, read_only: bool = False) -> None:
        self.data = bytearray(content)
        self.size = check_sectors("memory disk", len(self.data))
        self.read_only = read_only
        self._view = memoryview(self.data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``."""
        buffer[:] = self._view[offset : offset + len(buffer)]

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write ``data``."""
        self._view[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Do nothing: memory has no stable storage."""

    def discard(self, offset: int, length: int) -> None:
        """Set the range to zeros."""
        self._view[offset : offset + length] = bytes(length)

    def find_fault(self) -> str:
        """Return "": memory cannot change."""
        return ""

    def close(self) -> None:
        """Release the memory."""
        self._view.release()
