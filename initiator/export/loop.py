"""A file as a block device: /dev/loopN.

With LO_FLAGS_AUTOCLEAR the kernel detaches the device at its last close, so that none
is left over even if this process is killed. Its users are this process and the mount.
With LO_FLAGS_PARTSCAN the kernel removes the device's partitions then; otherwise they
would show up on the next file that gets the device. It also adds those of the disk, if
it knows the partition table: not every kernel is built with the common ones.
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
_PARTSCAN: Final = 8
_DIRECT_IO: Final = 16
_CONFIG: Final = struct.Struct("=II 40x 12xI 64s 112x 64x")
"""``struct loop_config``: file descriptor, block size, and of ``struct loop_info64``
``lo_flags`` and ``lo_file_name``; the other fields are zero.::

    0     4     8                 48        60      64      128                240   304
    | fd  | bs  | device .. limit | number  | flags | name  | crypt, key, init | 0   |
"""
_BLKROSET: Final = 0x125D
_ATTEMPTS: Final = 100
"""Another process can take the free device between LOOP_CTL_GET_FREE and
LOOP_CONFIGURE; try again with the next one."""


class LoopDevice:
    """A loop device over a file, with direct I/O, so that data is not cached twice.

    Args:
        file: the backing file.
        read_only: refuse writes.

    Raises:
        AccessError: not permitted; loop devices need root.
        NotFoundError: the kernel has no loop devices.
        AoEError: the device could not be set up.
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
        flags = _AUTOCLEAR | _PARTSCAN | _DIRECT_IO
        flags |= _READ_ONLY if mode == os.O_RDONLY else 0
        config = _CONFIG.pack(backing, SECTOR, flags, os.fsencode(name)[:63])
        for attempt in range(_ATTEMPTS):
            path = Path(f"/dev/loop{_free_number()}")
            try:
                fd = os.open(path, mode | os.O_CLOEXEC)
                try:
                    ioctl(fd, _CONFIGURE, config)
                    # The device keeps what blockdev --setro has set for another file.
                    ioctl(fd, _BLKROSET, struct.pack("=i", mode == os.O_RDONLY))
                except BaseException:
                    os.close(fd)
                    raise
            except OSError as error:
                is_busy = error.errno in (errno.EBUSY, errno.EAGAIN)
                if not is_busy or attempt == _ATTEMPTS - 1:
                    raise from_os_error(str(path), error) from error
            else:
                self.path, self._fd = path, fd
                return

    def close(self) -> None:
        """Close it; the last close detaches it. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _free_number() -> int:
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        fix = "Load the module: modprobe loop"
        raise NotFoundError(_CONTROL, "no loop devices", fix) from error
    except OSError as error:
        fix = "Run as root, or use --fuse FILE instead"
        raise from_os_error(_CONTROL, error, fix) from error
    try:
        return int(ioctl(control, _GET_FREE, 0))
    except OSError as error:
        raise from_os_error(_CONTROL, error) from error
    finally:
        os.close(control)
