"""Keep the export process from deadlocking with memory reclaim.

A file system on an attached disk has dirty pages that the kernel can free only after
this process has written them to the target. If an allocation here waited for the
writeback of those pages, neither could make progress.
"""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_IO_FLUSHER: Final = 57
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4


def become_io_flusher() -> bool:
    """Set PR_SET_IO_FLUSHER for this thread and those it starts, and lock all memory.

    An IO flusher's allocations start no writeback (Linux 5.6). mlockall keeps the
    program's pages from being reclaimed. The former needs CAP_SYS_RESOURCE.

    Returns:
        False if the kernel refused one of them.
    """
    libc = ctypes.CDLL(None)
    if libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        return False
    # MCL_ONFAULT: lock pages when they are first touched, not whole thread stacks.
    return bool(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0)
