"""What the protocol core asks of a disk."""

from __future__ import annotations

import errno
from typing import Final, Protocol

GONE: Final = frozenset({errno.ENODEV, errno.ENXIO})
"""The numbers of an error that mean that the disk is gone."""


class Disk(Protocol):
    """A row of bytes that can be read, written and flushed.

    Offsets and sizes are bytes. A caller stays within ``size`` and, where
    ``read_only`` holds, does not write. Whatever fails raises ``OSError``, and nothing
    else; those in ``GONE`` mean that it is gone, and asking again is up to the client.
    """

    @property
    def size(self) -> int:
        """Bytes, a multiple of 512."""
        ...

    @property
    def read_only(self) -> bool:
        """Writing is refused."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the whole of ``buffer`` from ``offset`` on."""
        ...

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write the whole of ``data`` from ``offset`` on."""
        ...

    def flush(self) -> None:
        """Return when everything written so far is on stable storage (P46)."""
        ...

    def discard(self, offset: int, length: int) -> None:
        """Have these bytes read as zeros, and give up their space where that works.

        It is stable when writes are: after ``flush``, at once where opened so.
        """
        ...

    def close(self) -> None:
        """Let go of the bytes; nothing else may be called afterwards."""
        ...
