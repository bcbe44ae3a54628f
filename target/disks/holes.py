"""Holes in files: fallocate(2), which Python does not offer with its modes."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_UNKNOWN: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV}
)


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Make a range read as zeros and free its space; a block device zeroes it.

    Args:
        fd: open for writing.
        offset: bytes.
        length: bytes, more than 0.

    Returns:
        False where the file system or the device cannot, and nothing was done.

    Raises:
        OSError: it can, and failed.
    """
    error = errno.EINTR
    # What Python's own system calls do when a signal comes in between.
    while error == errno.EINTR:
        if not _fallocate()(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length):
            return True
        error = ctypes.get_errno()
    if error in _UNKNOWN:
        return False
    raise OSError(error, os.strerror(error))


@cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    library = ctypes.CDLL(None, use_errno=True)
    # glibc has 64-bit offsets under this name on every machine; musl has them always.
    function = getattr(library, "fallocate64", None) or library.fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return cast("Callable[[int, int, int, int], int]", function)
