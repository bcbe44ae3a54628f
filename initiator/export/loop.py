"""A file as a block device: /dev/loopN.

It is set to go by itself when its last user closes it (LO_FLAGS_AUTOCLEAR), so that
none stays behind, whatever happens to us: we are its first user, a mount the next.
"""

from __future__ import annotations

import errno
import os
import struct
from fcntl import ioctl
from pathlib import Path
from typing import Final

from aoe.ata import SECTOR
from aoe.errors import NotFoundError, from_os_error

_CONTROL: Final = "/dev/loop-control"
_GET_FREE: Final = 0x4C82
_CONFIGURE: Final = 0x4C0A
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16
_CONFIG: Final = struct.Struct("=II 40x 12xI 64s 112x 64x")
"""``struct loop_config``: descriptor, block size; of ``struct loop_info64`` flags and
the file's name, behind five and three fields that stay zero.::

    0     4     8                 48        60      64      128                240   304
    | fd  | bs  | device .. limit | number  | flags | name  | crypt, key, init | 0   |
"""
_ATTEMPTS: Final = 100
"""Others look for a free device at the same time."""


class LoopDevice:
    """A loop device over a file; direct I/O, so that nothing is cached twice.

    Args:
        file: what it shows.
        read_only: whether it refuses writes.

    Raises:
        AccessError: only root may.
        NotFoundError: there are no loop devices.
        AoEError: the system refuses it.
    """

    def __init__(self, file: Path, *, read_only: bool) -> None:
        self.path = Path()
        self._fd = -1
        mode = os.O_RDONLY if read_only else os.O_RDWR
        backing = os.open(file, mode | os.O_CLOEXEC)
        try:
            self._attach(backing, str(file), mode)
        finally:
            os.close(backing)

    def _attach(self, backing: int, name: str, mode: int) -> None:
        flags = _AUTOCLEAR | _DIRECT_IO | (_READ_ONLY if mode == os.O_RDONLY else 0)
        config = _CONFIG.pack(backing, SECTOR, flags, os.fsencode(name)[:63])
        for attempt in range(_ATTEMPTS):
            path = Path(f"/dev/loop{_free_number()}")
            try:
                fd = os.open(path, mode | os.O_CLOEXEC)
                try:
                    ioctl(fd, _CONFIGURE, config)
                except BaseException:
                    os.close(fd)
                    raise
            except OSError as error:
                taken = error.errno in (errno.EBUSY, errno.EAGAIN)
                if not taken or attempt == _ATTEMPTS - 1:
                    raise from_os_error(str(path), error) from error
            else:
                self.path, self._fd = path, fd
                return

    def close(self) -> None:
        """Use it no longer: it goes, unless others use it. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _free_number() -> int:
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        fix = "Load them: modprobe loop"
        raise NotFoundError(_CONTROL, "no loop devices", fix) from error
    except OSError as error:
        fix = "Run as root; a user may have --fuse FILE"
        raise from_os_error(_CONTROL, error, fix) from error
    try:
        return int(ioctl(control, _GET_FREE, 0))
    except OSError as error:
        raise from_os_error(_CONTROL, error) from error
    finally:
        os.close(control)
