from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aoe.errors import AccessError, AoEError, BusyError, NotFoundError, UsageError
from target.disks import Disk, OpenFlags, open_disk
from target.disks.direct import DirectDisk
from target.disks.memory import MemoryDisk

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 64 << 10


def pattern(length: int) -> bytes:
    return bytes(range(251)) * (length // 251 + 1)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(SIZE)[:SIZE])
    return path


@pytest.fixture(params=["file", "sync", "direct", "memory"])
def disk(request: pytest.FixtureRequest, image: Path) -> Iterator[Disk]:
    if request.param == "memory":
        opened: Disk = MemoryDisk(image.read_bytes())
    else:
        flags = OpenFlags(
            sync=request.param == "sync", direct=request.param == "direct"
        )
        opened = open_disk(image, flags)
    yield opened
    opened.close()


def read(disk: Disk, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xdb" * length)
    disk.read_into(offset, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 512), (512, 8704), (SIZE - 512, 512)]
)
def test_read(disk: Disk, offset: int, length: int) -> None:
    assert disk.size == SIZE
    assert read(disk, offset, length) == pattern(SIZE)[offset : offset + length]


def test_write(disk: Disk) -> None:
    data = os.urandom(1536)
    disk.write_from(512, memoryview(data))
    disk.flush()
    expected = bytearray(pattern(SIZE)[:SIZE])
    expected[512:2048] = data
    assert read(disk, 0, SIZE) == expected


def test_discarded_range_reads_as_zeros(disk: Disk) -> None:
    disk.discard(512, 8192)
    expected = bytearray(pattern(SIZE)[:SIZE])
    expected[512:8704] = bytes(8192)
    assert read(disk, 0, SIZE) == expected


def test_discard_deallocates(image: Path) -> None:
    disk = open_disk(image)
    disk.flush()
    before = image.stat().st_blocks
    disk.discard(8192, 32 << 10)
    assert image.stat().st_blocks == before - (32 << 10) // 512
    assert image.stat().st_size == SIZE
    disk.close()


def test_discard_without_hole_support_writes_zeros(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("target.disks.file.punch_hole", lambda *_: False)
    monkeypatch.setattr("target.disks.file._ZERO_CHUNK", 4096)
    disk = open_disk(image, OpenFlags(offset=512))
    disk.discard(512, 9216)
    disk.close()
    expected = bytearray(pattern(SIZE)[:SIZE])
    expected[1024:10240] = bytes(9216)
    assert image.read_bytes() == expected


def test_flushed_data_is_in_the_file(image: Path) -> None:
    disk = open_disk(image)
    disk.write_from(1024, memoryview(b"\xee" * 512))
    disk.flush()
    assert image.read_bytes()[1024:1536] == b"\xee" * 512
    disk.close()


def test_flush_calls_fdatasync_p46(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_ino))
    disk = open_disk(image)
    disk.write_from(0, memoryview(bytes(512)))
    assert not synced
    disk.flush()
    assert synced == [image.stat().st_ino]
    disk.close()


def test_fdatasync_error_is_raised_p46(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    disk = open_disk(image)
    with pytest.raises(OSError, match="input/output error"):
        disk.flush()
    disk.close()


def test_punch_hole_is_retried_after_eintr(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errnos = [errno.EINTR, errno.EINTR, 0]

    def fallocate(*_: int) -> int:
        ctypes.set_errno(errnos[0])
        return -1 if errnos.pop(0) else 0

    monkeypatch.setattr("target.disks.holes._fallocate", lambda: fallocate)
    disk = open_disk(image)
    disk.discard(0, 4096)
    assert errnos == []
    disk.close()


def test_partial_transfers_are_continued(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_read, whole_write = os.preadv, os.pwritev
    monkeypatch.setattr(
        os, "preadv", lambda fd, b, at: whole_read(fd, [b[0][:100]], at)
    )
    monkeypatch.setattr(
        os, "pwritev", lambda fd, b, at: whole_write(fd, [b[0][:100]], at)
    )
    disk = open_disk(image)
    assert read(disk, 512, 1024) == pattern(SIZE)[512:1536]
    disk.write_from(512, memoryview(b"\xee" * 1024))
    disk.close()
    monkeypatch.undo()
    expected = bytearray(pattern(SIZE)[:SIZE])
    expected[512:1536] = b"\xee" * 1024
    assert image.read_bytes() == expected


def test_read_past_a_truncated_end_of_file_is_eio_p41(image: Path) -> None:
    disk = open_disk(image)
    os.truncate(image, 1024 + 100)
    assert read(disk, 512, 512) == pattern(SIZE)[512:1024]
    with pytest.raises(OSError, match="unexpected end of file") as caught:
        read(disk, 1024, 512)
    assert caught.value.errno == errno.EIO
    disk.close()


def test_window_does_not_expose_the_rest_of_the_file(image: Path) -> None:
    disk = open_disk(image, OpenFlags(offset=1024, length=2048))
    assert disk.size == 2048
    assert read(disk, 0, 2048) == pattern(SIZE)[1024:3072]
    disk.write_from(1536, memoryview(b"\xee" * 512))
    disk.close()
    expected = bytearray(pattern(SIZE)[:SIZE])
    expected[2560:3072] = b"\xee" * 512
    assert image.read_bytes() == expected


def test_window_without_length_extends_to_the_end(image: Path) -> None:
    disk = open_disk(image, OpenFlags(offset=1024))
    assert disk.size == SIZE - 1024
    disk.close()


def test_direct_read_past_a_truncated_end_of_file_is_eio_p41(
    image: Path,
) -> None:
    disk = open_disk(image, OpenFlags(direct=True))
    os.truncate(image, 8192 + 100)
    assert read(disk, 4096, 4096) == pattern(SIZE)[4096:8192]
    for offset in (8192, 12288):
        with pytest.raises(OSError, match=r"Invalid argument|unexpected end of file"):
            read(disk, offset, 4096)
    disk.close()


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_direct_read_modify_write_preserves_neighbouring_sectors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("direct") / "disk.img"
    model = bytearray(pattern(SIZE)[:SIZE])
    path.write_bytes(model)
    begin, size = 8192, 32 << 10
    # A descriptor without O_DIRECT accepts all requests that one with it accepts.
    fd = os.open(path, os.O_RDWR)
    disk = DirectDisk(fd, begin, size, read_only=False, block=4096)
    for _ in range(data.draw(st.integers(1, 6))):
        first = data.draw(st.integers(0, size // 512 - 1))
        count = data.draw(st.integers(1, size // 512 - first))
        offset, length = first * 512, count * 512
        if data.draw(st.booleans()):
            content = bytes([data.draw(st.integers(0, 255))]) * length
            disk.write_from(offset, memoryview(content))
            model[begin + offset : begin + offset + length] = content
        expected = model[begin + offset : begin + offset + length]
        assert read(disk, offset, length) == expected
    disk.close()
    assert path.read_bytes() == model


def test_direct_transfers_larger_than_the_bounce_buffer(image: Path) -> None:
    os.truncate(image, 1 << 20)
    fd = os.open(image, os.O_RDWR)
    disk = DirectDisk(fd, 0, 1 << 20, read_only=False, block=4096)
    content = os.urandom((1 << 20) - 1024)
    disk.write_from(512, memoryview(content))
    assert read(disk, 512, len(content)) == content
    disk.close()


def test_create_makes_a_sparse_file_and_accepts_an_existing_one(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    for _ in range(2):
        disk = open_disk(path, OpenFlags(create=1 << 30))
        assert disk.size == 1 << 30
        assert read(disk, (1 << 30) - 512, 512) == bytes(512)
        disk.close()
    assert path.stat().st_blocks * 512 < 1 << 20


def failure(path: Path, flags: OpenFlags | None = None) -> tuple[type, str]:
    with pytest.raises(AoEError) as caught:
        open_disk(path, flags)
    return type(caught.value), str(caught.value).replace(str(path), "PATH")


def test_create_refuses_a_file_of_another_size(image: Path) -> None:
    assert failure(image, OpenFlags(create=1 << 20)) == (
        UsageError,
        (
            "PATH: already exists with 64 KiB (65,536 bytes). "
            "Omit --create, or choose another path"
        ),
    )
    assert image.stat().st_size == SIZE


def test_create_refuses_partial_sectors(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    kind, message = failure(path, OpenFlags(create=1000))
    assert kind is UsageError
    assert message == (
        "PATH: 1,000 bytes are not a whole number of 512-byte sectors. "
        "Make it 512 or 1024 bytes"
    )
    assert not path.exists()


def test_failed_create_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    kind, message = failure(path, OpenFlags(create=1 << 62))
    assert kind is AoEError
    assert message.endswith(". Choose a smaller size")
    assert not path.exists()


def test_missing_file_message_suggests_create(tmp_path: Path) -> None:
    assert failure(tmp_path / "none.img") == (
        NotFoundError,
        "PATH: no such file. Make one with --create 1G",
    )


def test_directory_is_refused(tmp_path: Path) -> None:
    assert failure(tmp_path) == (
        UsageError,
        "PATH: is a directory. Name a disk image or a block device",
    )


def test_fifo_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert failure(tmp_path / "pipe") == (
        UsageError,
        "PATH: neither a file nor a block device. Name a disk image or a block device",
    )


def test_file_without_write_permission_needs_read_only(image: Path) -> None:
    # Root could write to it, but the mode says that it is read-only.
    image.chmod(stat.S_IRUSR)
    assert failure(image) == (
        AccessError,
        "PATH: no user may write to it. chmod u+w PATH, or use --read-only",
    )
    disk = open_disk(image, OpenFlags(read_only=True))
    assert disk.read_only
    assert read(disk, 0, 512) == pattern(512)[:512]
    disk.close()


@pytest.mark.parametrize(
    ("size", "choice"), [(1000, "512 or 1024"), (100, "at least 512")]
)
def test_partial_sector_is_refused(image: Path, size: int, choice: str) -> None:
    os.truncate(image, size)
    assert failure(image) == (
        UsageError,
        (
            f"PATH: {size:,} bytes are not a whole number of 512-byte sectors. "
            f"Make it {choice} bytes"
        ),
    )


def test_empty_file_is_refused(image: Path) -> None:
    os.truncate(image, 0)
    assert failure(image) == (
        UsageError,
        "PATH: the disk is empty: 0 bytes. Give it a size: truncate -s 1G PATH",
    )


@pytest.mark.parametrize(
    ("offset", "length", "end"),
    [(0, SIZE + 512, "66,048"), (SIZE, 512, "66,048"), (1 << 20, None, "1,048,576")],
)
def test_window_past_the_end_is_refused(
    image: Path, offset: int, length: int | None, end: str
) -> None:
    assert failure(image, OpenFlags(offset=offset, length=length)) == (
        UsageError,
        (
            f"PATH: the window ends at {end} bytes, the file at 65,536. "
            "Choose a smaller --offset or --length"
        ),
    )


def test_unaligned_window_is_refused(image: Path) -> None:
    assert failure(image, OpenFlags(offset=1000)) == (
        UsageError,
        (
            "--offset 1000: 1,000 bytes are not a whole number of 512-byte sectors. "
            "Make it 512 or 1024 bytes"
        ),
    )


@pytest.mark.parametrize(("first", "second"), [(False, False), (False, True)])
def test_image_is_locked_for_writing(image: Path, *, first: bool, second: bool) -> None:
    held = open_disk(image, OpenFlags(read_only=first))
    fix = "Stop it first. With --force, writes from both sides corrupt it"
    busy = (BusyError, f"PATH: served or in use by another program. {fix}")
    assert failure(image, OpenFlags(read_only=second)) == busy
    held.close()
    open_disk(image, OpenFlags(read_only=second)).close()


def test_image_is_shared_for_reading_and_force_skips_the_lock(image: Path) -> None:
    disks = [open_disk(image, OpenFlags(read_only=True)) for _ in range(2)]
    disks.append(open_disk(image, OpenFlags(force=True)))
    for disk in disks:
        disk.close()


def test_locks_of_different_windows_do_not_conflict(image: Path) -> None:
    disks = [open_disk(image, OpenFlags(offset=n * 4096, length=4096)) for n in (0, 1)]
    assert failure(image, OpenFlags(offset=4096 + 512))[0] is BusyError
    for disk in disks:
        disk.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_failed_open_leaks_no_descriptor(image: Path) -> None:
    before = descriptors()
    failure(image, OpenFlags(offset=1 << 20))
    failure(image, OpenFlags(create=1 << 20))
    assert descriptors() == before
