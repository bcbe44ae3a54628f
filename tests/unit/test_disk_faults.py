"""Files that are truncated, removed or replaced while they are served."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from target.disks import Disk, OpenFlags, open_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 64 << 10


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


def read(disk: Disk, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xdb" * length)
    disk.read_into(offset, memoryview(buffer))
    return bytes(buffer)


@pytest.fixture(params=["file", "sync", "direct"])
def fragile(request: pytest.FixtureRequest, image: Path) -> Iterator[Disk]:
    words = OpenFlags(sync=request.param == "sync", direct=request.param == "direct")
    disk = open_disk(image, words)
    yield disk
    disk.close()


def fails(operation: Callable[..., object], *arguments: object) -> bool:
    try:
        operation(*arguments)
    except OSError as error:
        return error.errno == errno.EIO
    return False


def test_write_to_a_truncated_file_fails_and_does_not_extend_it(
    fragile: Disk, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = memoryview(b"\xa5" * 4096)
    fragile.write_from(0, data)
    assert fragile.find_fault() == ""
    os.truncate(image, 8192)
    for offset in (0, 4096, 16384, SIZE - 4096):
        assert fails(fragile.write_from, offset, data)
    assert fails(fragile.flush)
    assert image.stat().st_size == 8192
    assert read(fragile, 0, 4096) == data
    # What was lost stays lost, even if the file has its size again.
    os.truncate(image, SIZE)
    assert fails(read, fragile, 8192, 4096)
    assert fails(fragile.write_from, 0, data)
    assert fails(fragile.flush)
    assert read(fragile, 0, 4096) == data
    assert fragile.find_fault() == "was truncated to 8,192 bytes"
    [line] = caplog.messages
    assert line.startswith(f"{image}: was truncated to 8,192 bytes while it was served")


def test_write_that_extends_a_file_truncated_at_the_same_time_fails_with_all_reads(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = open_disk(image)
    pwritev: Callable[..., int] = os.pwritev

    def truncate_first(*words: object) -> int:
        os.truncate(image, 0)
        return pwritev(*words)

    monkeypatch.setattr("os.pwritev", truncate_first)
    assert fails(disk.write_from, 8192, memoryview(bytes(512)))
    assert fails(read, disk, 0, 512)
    assert fails(read, disk, 8192, 512)
    disk.close()


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_flush_of_a_file_without_a_name_fails(
    fragile: Disk, image: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    fragile.write_from(0, memoryview(b"\xa5" * 4096))
    fragile.flush()
    if how == "replaced":
        new = image.with_name("new")
        new.write_bytes(bytes(SIZE))
        new.rename(image)
    else:
        image.unlink()
    # Reads succeed, so that clients can rescue their data.
    assert read(fragile, 0, 4096) == b"\xa5" * 4096
    assert fails(fragile.flush)
    assert fails(fragile.write_from, 0, memoryview(bytes(4096)))
    assert fragile.find_fault() == "was removed or replaced"
    [line] = caplog.messages
    assert line.startswith(f"{image}: was removed or replaced while it was served")


def test_synchronous_write_to_a_removed_file_fails(image: Path) -> None:
    disk = open_disk(image, OpenFlags(sync=True))
    image.unlink()
    assert fails(disk.write_from, 0, memoryview(bytes(512)))
    disk.close()


def test_renamed_file_and_one_that_has_grown_are_as_good_as_before(image: Path) -> None:
    disk = open_disk(image)
    image.rename(image.with_name("renamed"))
    os.truncate(image.with_name("renamed"), 2 * SIZE)
    disk.write_from(SIZE - 512, memoryview(b"\xa5" * 512))
    disk.flush()
    assert read(disk, SIZE - 512, 512) == b"\xa5" * 512
    assert disk.find_fault() == ""
    disk.close()


def test_truncated_overlay_and_base_are_errors(image: Path) -> None:
    for victim in ("base", "store"):
        store = image.with_name(f"{victim}.ovl")
        base = image.with_name(f"{victim}.img")
        base.write_bytes(image.read_bytes() * 2)
        disk = open_disk(base, overlay=str(store))
        disk.write_from(0, memoryview(b"\xa5" * 512))
        os.truncate(base if victim == "base" else store, 512)
        assert "was truncated" in disk.find_fault()
        assert fails(disk.write_from, SIZE, memoryview(bytes(512)))
        with suppress(OSError):
            disk.close()
