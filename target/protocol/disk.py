"""The interface between the protocol core and a disk."""

from __future__ import annotations

import errno
from typing import Final, Protocol

DEVICE_GONE: Final = frozenset({errno.ENODEV, errno.ENXIO})
"""The ``OSError.errno`` values that mean that the disk is gone."""


class Disk(Protocol):
    """An array of bytes that can be read, written and flushed.

    Offsets and sizes are in bytes. The caller stays within ``size`` and does not write
    if ``read_only`` is set. A failure raises ``OSError`` and nothing else; an errno in
    ``DEVICE_GONE`` means that the disk is gone, and the client may retry.
    """

    @property
    def size(self) -> int:
        """Size in bytes, a multiple of 512."""
        ...

    @property
    def read_only(self) -> bool:
        """True if writes are refused."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill all of ``buffer`` from ``offset`` on."""
        ...

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write all of ``data`` from ``offset`` on."""
        ...

    def flush(self) -> None:
        """Return when all completed writes are on stable storage (P46)."""
        ...

    def discard(self, offset: int, length: int) -> None:
        """Make a range read as zeros, and deallocate it where possible.

        The result is stable when a write would be: after ``flush``, or on return if the
        disk was opened for synchronous writes.
        """
        ...

    def find_fault(self) -> str:
        """Return why the disk must be opened again; empty if it need not be.

        For example, its file was truncated or deleted. Reads that would return wrong
        data, writes and flushes fail from then on.
        """
        ...

    def close(self) -> None:
        """Release all resources; no other method may be called afterwards."""
        ...
