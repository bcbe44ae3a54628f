"""What FUSE is told of a disk as a file."""

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
from initiator.export.fuse import DiskFile

if TYPE_CHECKING:
    from initiator.export.disk_thread import DiskThread

SIZE = 4096
PUNCH = 3


class Disk:
    """A ``DiskThread`` by shape: memory, and an error to raise."""

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


def file_of(disk: Disk, *, read_only: bool = False, closed: object = None) -> DiskFile:
    return DiskFile(
        cast("DiskThread", disk),
        read_only=read_only,
        on_mount=lambda: None,
        on_last_close=closed or (lambda: None),  # type: ignore[arg-type] # a list's append, or nothing
    )


def test_it_ends_where_the_disk_ends(disk: Disk) -> None:
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
        (NotFoundError("e7.3", "no answer"), errno.ETIMEDOUT),
        (DeviceError("e7.3", "medium error"), errno.EIO),
        (AoEError("e7.3", "is closed"), errno.EIO),
    ],
)
def test_programs_are_told_what_went_wrong(
    disk: Disk, error: AoEError, number: int
) -> None:
    file = file_of(disk)
    disk.error = error
    for operation in (
        lambda: file.read("/", 1, 0, 0),
        lambda: file.write("/", b"x", 0, 0),
        lambda: file.fsync("/", 0, 0),
        lambda: file.fallocate("/", PUNCH, 0, 512, 0),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
            operation()
        assert caught.value.errno == number


def test_a_target_without_flush_does_not_fail_a_file_system(disk: Disk) -> None:
    file = file_of(disk)
    disk.error = UnsupportedError("e7.3", "no such command")
    assert file.fsync("/", 0, 0) == 0


def test_closing_flushes_what_was_written_until_that_succeeds(disk: Disk) -> None:
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


def test_who_may_only_read_cannot_open_it_for_more(disk: Disk) -> None:
    file = file_of(disk, read_only=True)
    assert file.getattr("/")["st_mode"] & 0o777 == 0o400
    assert file.open("/", os.O_RDONLY) == 0
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(OSError, match="read-only"):
            file.open("/", flags)


def test_the_last_close_is_told(disk: Disk) -> None:
    told: list[bool] = []
    file = file_of(disk, closed=lambda: told.append(True))
    file.open("/", 0)
    file.open("/", 0)
    file.release("/", 0)
    assert (told, file.wait_closed(0)) == ([], False)
    file.release("/", 0)
    assert (told, file.wait_closed(0)) == ([True], True)


def test_only_holes_that_read_as_zeroes_are_made(disk: Disk) -> None:
    file = file_of(disk)
    assert file.fallocate("/", PUNCH, 512, 1024, 0) == 0
    assert disk.trims == [(512, 1024)]
    # What is there already is room enough, and beyond it there is none.
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


def test_its_size_is_its_own(disk: Disk) -> None:
    file = file_of(disk)
    assert file.truncate("/", 0) == 0
    assert file.getattr("/")["st_size"] == SIZE
    with pytest.raises(OSError, match="size is fixed"):
        file.truncate("/", SIZE + 1)
    with pytest.raises(OSError, match="/other"):
        file.getattr("/other")
