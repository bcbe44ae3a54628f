"""Files as the destination of a copy: what is left when a copy fails, and durability.

Also sources that change during a copy.
"""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from aoe.errors import AoEError
from initiator.disk.copy import CHUNK, DiskEndpoint, copy, verify
from initiator.disk.files import FileSource, StreamEndpoint
from initiator.disk.output import FileDestination, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from initiator.disk.copy import Chunk, Source
    from initiator.disk.disk import Disk

OLD = b"the old backup"
SIZE = 20 * CHUNK


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    directory = tmp_path / "backups"
    directory.mkdir()
    path = directory / "backup"
    path.write_bytes(OLD)
    return path


@pytest.fixture
def size_limit() -> Iterator[int]:
    """Limit the size of files that may be written (ulimit -f)."""
    limit = 2 * CHUNK
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save(source: Source, path: Path, *, in_place: bool = False) -> None:
    """Copy to a file as the commands do."""
    destination = open_storage(path, in_place=in_place)
    try:
        copy(source, destination)
        verify(source, destination.open_written())
        destination.commit()
    finally:
        destination.close()


class Unreadable:
    """A source that fails with its first byte."""

    size: int | None = SIZE

    def chunks(self) -> Iterator[tuple[int, int, bool]]:
        yield 0, CHUNK, False

    def read(self, chunk: Chunk) -> None:
        chunk.complete(AoEError("e0.0", "no response"))

    def run_once(self) -> None:
        pass

    def check_unchanged(self) -> None:
        pass


@pytest.mark.parametrize("in_place", [False, True])
def test_a_backup_is_replaced_by_the_complete_copy(
    image: Path, backup: Path, *, in_place: bool
) -> None:
    backup.chmod(0o640)
    inode = backup.stat().st_ino
    save(FileSource(image), backup, in_place=in_place)
    assert backup.read_bytes() == image.read_bytes()
    assert backup.stat().st_mode & 0o777 == 0o640
    assert (backup.stat().st_ino == inode) is in_place
    assert list(backup.parent.iterdir()) == [backup]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_backup_survives_a_source_that_cannot_be_read(
    backup: Path, *, in_place: bool
) -> None:
    with pytest.raises(AoEError, match="no response"):
        save(Unreadable(), backup, in_place=in_place)
    assert backup.read_bytes() == OLD
    assert list(backup.parent.iterdir()) == [backup]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_backup_survives_a_limit_of_the_file_size(
    image: Path, backup: Path, size_limit: int, *, in_place: bool
) -> None:
    assert size_limit < SIZE
    with pytest.raises(AoEError, match="backup: file too large"):
        save(FileSource(image), backup, in_place=in_place)
    assert backup.read_bytes() == OLD
    assert list(backup.parent.iterdir()) == [backup]


FULL = {
    "pwritev": "no space left on device. The old file is unchanged",
    "fsync": "written, but not flushed: no space left on device",
}


@pytest.mark.parametrize("failing", FULL)
def test_a_backup_survives_a_write_error(
    image: Path, backup: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(AoEError, match=FULL[failing]):
        save(FileSource(image), backup)
    assert backup.read_bytes() == OLD
    assert list(backup.parent.iterdir()) == [backup]


def test_a_backup_in_a_directory_that_is_not_writable_survives(
    image: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_EXCL:
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_file(path, flags, mode)

    open_file = os.open
    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(AoEError, match=r"backups: permission denied.*--in-place"):
        save(FileSource(image), backup)
    assert backup.read_bytes() == OLD
    save(FileSource(image), backup, in_place=True)
    assert backup.read_bytes() == image.read_bytes()


def test_a_file_that_cannot_be_renamed_is_kept(
    image: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(AoEError, match="The copy is complete: ") as caught:
        save(FileSource(image), backup)
    assert backup.read_bytes() == OLD
    (kept,) = {*backup.parent.iterdir()} - {backup}
    assert str(kept) in str(caught.value)
    assert kept.read_bytes() == image.read_bytes()


def test_a_symbolic_link_stays_a_link(image: Path, backup: Path) -> None:
    link = backup.with_name("link")
    link.symlink_to(backup)
    save(FileSource(image), link)
    assert link.is_symlink()
    assert backup.read_bytes() == image.read_bytes()


def test_an_empty_source_empties_the_file(tmp_path: Path, backup: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    save(FileSource(empty), backup, in_place=True)
    assert backup.read_bytes() == b""


def test_a_private_backup_is_private_while_it_is_written(
    image: Path, backup: Path
) -> None:
    backup.chmod(0o600)
    destination = FileDestination(backup)
    copy(FileSource(image), destination)
    (temporary,) = {*backup.parent.iterdir()} - {backup}
    assert temporary.stat().st_mode & 0o077 == 0
    destination.close()


def test_a_copy_is_flushed_before_it_replaces_the_file(
    image: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync
    flushed = []

    def record(fd: int) -> None:
        flushed.append(
            (str(Path(f"/proc/self/fd/{fd}").readlink()), backup.read_bytes())
        )
        flush(fd)

    monkeypatch.setattr(os, "fsync", record)
    save(FileSource(image), backup)
    (data, before), (directory, after) = flushed
    assert data.endswith(".part")
    assert before == OLD
    assert directory == str(backup.parent)
    assert after == image.read_bytes()


def test_a_redirected_output_is_flushed(
    image: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with (
        backup.open("wb") as file,
        pytest.raises(AoEError, match="standard output: written, but not flushed"),
    ):
        copy(FileSource(image), StreamEndpoint(file.fileno(), "standard output"))


class Changing:
    """A source that calls a function when its third chunk has been read."""

    def __init__(self, source: Source, change: Callable[[], object]) -> None:
        self._source = source
        self._change = change
        self._reads = 0
        self.size = source.size
        self.chunks = source.chunks
        self.run_once = source.run_once
        self.check_unchanged = source.check_unchanged

    def read(self, chunk: Chunk) -> None:
        self._source.read(chunk)
        self._reads += 1
        if self._reads == 3:
            self._change()


def truncate(path: Path, *sizes: int) -> None:
    for size in sizes:
        os.truncate(path, size)


CHANGES = {
    "shrinks": (SIZE // 2,),
    "shrinks-by-a-byte": (SIZE - 1,),
    "is-emptied": (0,),
    "is-written-again": (0, SIZE),
    "grows": (SIZE * 2,),
}


@pytest.mark.parametrize("sizes", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("is_sparse", [False, True], ids=["full", "sparse"])
@pytest.mark.parametrize("is_stream", [False, True], ids=["file", "stdin"])
def test_a_source_that_changes_is_never_a_success(
    image: Path,
    backup: Path,
    sizes: tuple[int, ...],
    *,
    is_sparse: bool,
    is_stream: bool,
) -> None:
    if is_sparse:
        # What is left after the truncation is data, what is lost are holes and data.
        truncate(image, SIZE // 2, SIZE)
        with image.open("r+b") as file:
            file.seek(SIZE - CHUNK)
            file.write(b"x" * CHUNK)
    # Older kernels have timestamps of 4 ms.
    os.utime(image, (0, 0))
    with image.open("rb") as file:
        source: Source = FileSource(image)
        if is_stream:
            source = StreamEndpoint(file.fileno(), "standard input")
        with pytest.raises(AoEError, match="while it was copied"):
            save(Changing(source, lambda: truncate(image, *sizes)), backup)
    assert backup.read_bytes() == OLD


class Resizable:
    """A disk of zeroes."""

    address = "e0.0"
    size = SIZE

    def start_read(
        self, _offset: int, _buffers: object, done: Callable[[None], None]
    ) -> None:
        done(None)

    start_write = start_read


@pytest.mark.parametrize("size", [0, SIZE // 2, SIZE - 512, 2 * SIZE])
def test_a_disk_that_is_resized_while_it_is_copied_is_never_a_success(
    backup: Path, size: int
) -> None:
    disk = Resizable()

    def resize() -> None:
        disk.size = size

    source = Changing(DiskEndpoint(cast("Disk", disk)), resize)
    with pytest.raises(AoEError, match=r"e0\.0: has (shrunk|grown) from .* to ") as got:
        save(source, backup)
    assert got.value.exit_code == 1
    assert backup.read_bytes() == OLD


def test_a_range_is_copied_although_the_disk_grows(backup: Path) -> None:
    disk = Resizable()

    def grow() -> None:
        disk.size = 2 * SIZE

    save(Changing(DiskEndpoint(cast("Disk", disk), 0, SIZE), grow), backup)
    assert backup.read_bytes() == bytes(SIZE)


def test_a_destination_disk_that_shrinks_is_never_a_success(image: Path) -> None:
    disk = Resizable()

    def shrink() -> None:
        disk.size = SIZE // 2

    with pytest.raises(AoEError, match=r"e0\.0: has shrunk from .* to "):
        copy(Changing(FileSource(image), shrink), DiskEndpoint(cast("Disk", disk)))
