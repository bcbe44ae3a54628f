"""Punch holes with fallocate(2); Python's ``os`` module does not offer its modes."""

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
_UNSUPPORTED: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV}
)


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Deallocate a range of a file, which then reads as zeros; zero it on a device.

    Args:
        fd: a file descriptor that is open for writing.
        offset: bytes.
        length: bytes, more than 0.

    Returns:
        False if the file system or the device does not support it; nothing was done.

    Raises:
        OSError: the call failed.
    """
    error = errno.EINTR
    # Retry after a signal, as Python's own system calls do (PEP 475).
    while error == errno.EINTR:
        if not _fallocate()(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length):
            return True
        error = ctypes.get_errno()
    if error in _UNSUPPORTED:
        return False
    raise OSError(error, os.strerror(error))


@cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    library = ctypes.CDLL(None, use_errno=True)
    # glibc has 64-bit offsets under this name on every machine; musl has them always.
    function = getattr(library, "fallocate64", None) or library.fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return cast("Callable[[int, int, int, int], int]", function)
