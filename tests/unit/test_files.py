"""Files, devices and streams as endpoints of a copy."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from aoe.errors import AoEError, BusyError, UsageError
from initiator.disk.copy import CHUNK, Chunk, DiskEndpoint, copy
from initiator.disk.files import FileSource, StreamEndpoint, open_source
from initiator.disk.output import FileDestination, open_destination, open_storage
from target.disks import open_disk

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.disk.disk import Disk


def test_a_served_image_is_not_truncated(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"\xaa" * 4096)
    (tmp_path / "link").symlink_to(image)
    disk = open_disk(image)

    with pytest.raises(BusyError, match="served"):
        FileDestination(tmp_path / "link")

    disk.close()
    assert image.read_bytes() == b"\xaa" * 4096


def test_a_file_that_is_being_written_cannot_be_served(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    endpoint = FileDestination(image)
    # Within one process too, since the two locks are of different kinds.
    with pytest.raises(BusyError):
        open_disk(image)
    endpoint.close()
    open_disk(image).close()


def test_a_file_system_without_locks_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(fcntl, "lockf", fail)
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    FileDestination(image).close()


@pytest.mark.parametrize("opener", [FileSource, open_source, open_destination])
def test_a_directory_is_rejected(
    tmp_path: Path, opener: Callable[[Path], object]
) -> None:
    with pytest.raises(UsageError, match="is a directory"):
        opener(tmp_path)


def test_a_pipe_is_rejected_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for opener in (FileSource, open_storage):
        with pytest.raises(UsageError, match="aoe read"):
            opener(tmp_path / "pipe")


def test_a_character_device_is_a_stream(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * 1536)
    endpoint = open_destination(tmp_path / "null")
    assert isinstance(endpoint, FileDestination)
    endpoint.close()
    (tmp_path / "link").symlink_to("/dev/null")
    sink = open_destination(tmp_path / "link")
    assert isinstance(sink, StreamEndpoint)
    assert copy(open_source(image), sink).copied == 1536


def test_enospc_of_a_device_is_an_aoe_error(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * 512)
    with pytest.raises(AoEError, match=r"/dev/full: no space left on device"):
        copy(FileSource(image), open_destination(Path("/dev/full")))


def test_a_failure_to_extend_a_file_is_an_aoe_error(tmp_path: Path) -> None:
    endpoint = FileDestination(tmp_path / "new")
    chunk = Chunk((1 << 63) - CHUNK, CHUNK, bytearray(b"\1" * CHUNK))
    with pytest.raises(AoEError, match="new: "):
        endpoint.write(chunk)
    with pytest.raises(AoEError, match="new: "):
        endpoint.prepare((1 << 63) - 1)


class MiB:
    """A disk of 1 MiB."""

    address = "e0.0"
    size = 1 << 20


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (1 << 20, None),
        (10 << 40, None),
        (10 << 40, 0),
        (1 << 19, 1 << 20),
        (-512, 512),
    ],
)
def test_a_region_must_be_within_the_disk(start: int, length: int | None) -> None:
    """A region beyond the end is an error, not an empty copy."""
    with pytest.raises(UsageError, match=r"e0\.0: "):
        DiskEndpoint(cast("Disk", MiB()), start, length)
