"""A disk as a Python file."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from aoe.address import Address
from aoe.errors import DeviceError
from initiator.disk.file_view import DiskFile

if TYPE_CHECKING:
    from initiator.disk.disk import Disk


class FailingDisk:
    """A disk whose FLUSH fails."""

    address = Address(7, 3)
    size = 4096
    read_only = False
    flushes = 0

    def write(self, _offset: int, _data: bytes) -> None:
        pass

    def flush(self) -> None:
        self.flushes += 1
        raise DeviceError("e7.3", "FLUSH failed")


def test_a_failed_flush_is_not_forgotten_when_the_file_is_closed() -> None:
    disk = FailingDisk()
    file = DiskFile(cast("Disk", disk))
    file.write(b"data")
    with pytest.raises(DeviceError):
        file.flush()
    with pytest.raises(DeviceError):
        file.close()
    assert disk.flushes == 2


def test_a_file_that_was_not_written_to_is_not_flushed() -> None:
    disk = FailingDisk()
    DiskFile(cast("Disk", disk)).close()
    assert disk.flushes == 0
