"""Staying able to work when memory is short, as those must who help to free it.

A file system on an attached disk has dirty pages that the kernel can only drop once we
have written them. If we then waited for memory ourselves, for which just those pages
have to go, nothing would ever move again.
"""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_IO_FLUSHER: Final = 57
_CURRENT: Final = 1
_FUTURE: Final = 2
_ON_FAULT: Final = 4


def serve_reclaim() -> bool:
    """Mark this thread, and those that it starts later, as ones that write pages back.

    Their allocations then start no writeback (PR_SET_IO_FLUSHER, Linux 5.6), and what
    of the program is in memory stays there. It takes CAP_SYS_RESOURCE.

    Returns:
        Whether we may.
    """
    libc = ctypes.CDLL(None)
    if libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        return False
    # Of what is mapped and never touched, such as most of a stack, nothing is locked.
    return bool(libc.mlockall(_CURRENT | _FUTURE | _ON_FAULT) == 0)
