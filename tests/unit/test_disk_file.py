"""The FUSE operations of a disk as a file."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from aoe.errors import (
    AccessError,
    AoEError,
    BusyError,
    DeviceError,
    NotFoundError,
    UnsupportedError,
)
from initiator.export.fuse import FuseOperations

if TYPE_CHECKING:
    from initiator.export.disk_thread import DiskThread

SIZE = 4096
PUNCH = 3


class Disk:
    """A stand-in for ``DiskThread``: memory, and an error to raise."""

    def __init__(self) -> None:
        self.size = SIZE
        self.content = bytearray(os.urandom(SIZE))
        self.error: AoEError | None = None
        self.flushes = 0
        self.trims: list[tuple[int, int]] = []
        self.disk = SimpleNamespace(discard_zeroes_data=True)

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def read(self, offset: int, length: int) -> bytearray:
        self._fail()
        return self.content[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        self._fail()
        self.content[offset : offset + len(data)] = data

    def trim(self, offset: int, length: int) -> None:
        self._fail()
        self.trims.append((offset, length))

    def flush(self) -> None:
        self.flushes += 1
        self._fail()


@pytest.fixture
def disk() -> Disk:
    return Disk()


def file_of(
    disk: Disk, *, read_only: bool = False, on_last_close: object = None
) -> FuseOperations:
    return FuseOperations(
        cast("DiskThread", disk),
        read_only=read_only,
        on_mount=lambda: None,
        on_last_close=on_last_close or (lambda: None),  # type: ignore[arg-type] # any callable
    )


def test_reads_and_writes_stop_at_the_end_of_the_disk(disk: Disk) -> None:
    file = file_of(disk)
    last = file.read("/", 100, SIZE - 10, 0)
    assert last is not None
    assert bytes(last) == disk.content[-10:]
    assert file.read("/", 100, SIZE, 0) is None
    assert file.write("/", b"x" * 100, SIZE - 10, 0) == 10
    assert disk.content == disk.content[: SIZE - 10] + b"x" * 10
    with pytest.raises(OSError, match="beyond the end") as caught:
        file.write("/", b"x", SIZE, 0)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (BusyError("e7.3", "reserved"), errno.EBUSY),
        (AccessError("e7.3", "read-only"), errno.EROFS),
        (NotFoundError("e7.3", "no response"), errno.ETIMEDOUT),
        (DeviceError("e7.3", "medium error"), errno.EIO),
        (AoEError("e7.3", "is closed"), errno.EIO),
    ],
)
def test_errors_become_errno(disk: Disk, error: AoEError, number: int) -> None:
    file = file_of(disk)
    disk.error = error
    for operation in (
        lambda: file.read("/", 1, 0, 0),
        lambda: file.write("/", b"x", 0, 0),
        lambda: file.fsync("/", 0, 0),
        lambda: file.fallocate("/", PUNCH, 0, 512, 0),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is checked below
            operation()
        assert caught.value.errno == number


def test_fsync_succeeds_if_the_target_does_not_support_flush(disk: Disk) -> None:
    file = file_of(disk)
    disk.error = UnsupportedError("e7.3", "no such command")
    assert file.fsync("/", 0, 0) == 0


def test_close_flushes_after_a_write_until_a_flush_succeeds(disk: Disk) -> None:
    file = file_of(disk)
    file.flush("/", 0)
    assert disk.flushes == 0
    file.write("/", b"x", 0, 0)
    disk.error = DeviceError("e7.3", "medium error")
    with pytest.raises(OSError, match="Input/output error"):
        file.flush("/", 0)
    disk.error = None
    file.flush("/", 0)
    file.flush("/", 0)
    assert disk.flushes == 2


def test_read_only_file_cannot_be_opened_for_writing(disk: Disk) -> None:
    file = file_of(disk, read_only=True)
    assert file.getattr("/")["st_mode"] & 0o777 == 0o400
    assert file.open("/", os.O_RDONLY) == 0
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(OSError, match="read-only"):
            file.open("/", flags)


def test_last_close_is_reported(disk: Disk) -> None:
    closed: list[bool] = []
    file = file_of(disk, on_last_close=lambda: closed.append(True))
    file.open("/", 0)
    file.open("/", 0)
    file.release("/", 0)
    assert (closed, file.wait_closed(0)) == ([], False)
    file.release("/", 0)
    assert (closed, file.wait_closed(0)) == ([True], True)


def test_punch_hole_trims_only_if_trimmed_sectors_read_as_zeroes(disk: Disk) -> None:
    file = file_of(disk)
    assert file.fallocate("/", PUNCH, 512, 1024, 0) == 0
    assert disk.trims == [(512, 1024)]
    # Mode 0 allocates: nothing to do within the disk, ENOSPC beyond its end.
    assert file.fallocate("/", 0, 0, SIZE, 0) == 0
    zero_range = 16
    for mode in (zero_range, PUNCH):
        disk.disk.discard_zeroes_data = False
        with pytest.raises(OSError, match="not supported") as caught:
            file.fallocate("/", mode, 0, 512, 0)
        assert caught.value.errno == errno.EOPNOTSUPP
    with pytest.raises(OSError, match="beyond the end"):
        file.fallocate("/", 0, SIZE, 1, 0)
    assert disk.trims == [(512, 1024)]


def test_size_is_fixed(disk: Disk) -> None:
    file = file_of(disk)
    assert file.truncate("/", 0) == 0
    assert file.getattr("/")["st_size"] == SIZE
    with pytest.raises(OSError, match="size is fixed"):
        file.truncate("/", SIZE + 1)
    with pytest.raises(OSError, match="/other"):
        file.getattr("/other")
