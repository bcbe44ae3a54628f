"""A disk in memory: for tests, for trying things out, gone when the process ends."""

from __future__ import annotations

from aoe.common.sizes import check_sectors


class MemoryDisk:
    """A disk whose bytes are a ``bytearray``, open to look at as ``data``.

    Args:
        content: its size in bytes, or its bytes.
        read_only: writing is refused.

    Raises:
        UsageError: the size is not a whole number of sectors.
    """

    def __init__(self, content: int | bytes, *, read_only: bool = False) -> None:
        self.data = bytearray(content)
        self.size = check_sectors("memory disk", len(self.data))
        self.read_only = read_only
        self._view = memoryview(self.data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Copy bytes out."""
        buffer[:] = self._view[offset : offset + len(buffer)]

    def write_from(self, offset: int, data: memoryview) -> None:
        """Copy bytes in."""
        self._view[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Do nothing: no memory is more stable than this."""

    def discard(self, offset: int, length: int) -> None:
        """Clear the bytes; the memory stays."""
        self._view[offset : offset + length] = bytes(length)

    def close(self) -> None:
        """Release the memory."""
        self._view.release()
