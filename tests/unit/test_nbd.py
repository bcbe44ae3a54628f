from __future__ import annotations

import errno
import os
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from aoe.errors import AccessError, AoEError, NotFoundError, UsageError
from target.disks import Disk, OpenFlags, measure_disk, open_disk
from tests.nbd_servers import (
    CLIENTS,
    SIZE,
    FakeServer,
    exported,
    make_qcow2,
    nbdkit,
    qemu_nbd,
    raw_bytes,
    server,
    simple_reply,
    use_client,
)

if TYPE_CHECKING:
    from pathlib import Path


def read(disk: Disk, offset: int, length: int) -> bytes:
    buffer = memoryview(bytearray(length))
    disk.read_into(offset, buffer)
    return bytes(buffer)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    return make_qcow2(tmp_path / "disk.qcow2")


@pytest.fixture(params=CLIENTS, autouse=True)
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use_client(request.param, monkeypatch)
    return str(request.param)


@pytest.mark.parametrize("sync", [False, True])
def test_writes_are_in_the_qcow2_image(place: Path, qcow2: Path, *, sync: bool) -> None:
    data = os.urandom(256 << 10)
    with server(qemu_nbd(place, qcow2), place) as process:
        disk = open_disk(exported(place, "disk"), OpenFlags(sync=sync))
        assert (disk.size, disk.read_only) == (SIZE, False)
        disk.write_from(512, memoryview(data))
        disk.discard(1024, 4096)
        expected = data[:512] + bytes(4096) + data[512 + 4096 :]
        assert read(disk, 512, len(data)) == expected
        disk.flush()
        disk.close()
        process.terminate()
        process.wait()
    assert raw_bytes(qcow2)[512 : 512 + len(data)] == expected


def test_flushed_writes_survive_a_killed_server(place: Path, qcow2: Path) -> None:
    with server(qemu_nbd(place, qcow2), place) as process:
        disk = open_disk(exported(place, "disk"))
        disk.write_from(0, memoryview(b"x" * 512))
        disk.flush()
        process.kill()
        process.wait()
    assert raw_bytes(qcow2)[:512] == b"x" * 512
    disk.close()


def test_p41_p46_dead_server_is_enodev_until_it_is_reachable_again(
    place: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    command = nbdkit(place, "file", str(image))
    with server(command, place):
        disk = open_disk(exported(place))
        disk.write_from(0, memoryview(b"x" * 512))
        disk.flush()
        disk.write_from(512, memoryview(b"y" * 512))
    for _ in range(100):
        begin = time.monotonic()
        with pytest.raises(OSError, match=r"server|refused|reset|pipe") as caught:
            disk.read_into(0, memoryview(bytearray(512)))
        assert caught.value.errno == errno.ENODEV
        assert time.monotonic() - begin < 0.5
    with server(command, place):
        # The server is found again under a continuous load of requests.
        end = time.monotonic() + 5
        while True:
            try:
                assert read(disk, 0, 1024) == b"x" * 512 + b"y" * 512
                break
            except OSError:
                assert time.monotonic() < end
        for _ in range(3):
            with pytest.raises(OSError, match="may have lost writes that were not fl"):
                disk.flush()
        disk.close()
        # Until the disk is reopened.
        disk = open_disk(exported(place))
        disk.flush()
    disk.close()
    assert [line.rpartition(": ")[2] for line in caplog.messages] == [
        "connection refused; clients get AoE error 3 (device unavailable)",
        "the server is reachable again",
    ]


def test_restarted_server_is_reconnected_transparently(
    place: Path, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"x" * SIZE)
    command = nbdkit(place, "file", str(image))
    with server(command, place):
        disk = open_disk(exported(place))
    with server(command, place):
        assert read(disk, 0, 512) == b"x" * 512
        disk.flush()
        disk.close()


def test_hanging_server_times_out(place: Path) -> None:
    command = nbdkit(place, "--filter=delay", "memory", "4M", "rdelay=30")
    with server(command, place):
        disk = open_disk(exported(place))
        begin = time.monotonic()
        for _ in range(20):
            with pytest.raises(OSError, match=r"server|timed out") as caught:
                read(disk, 0, 512)
            assert caught.value.errno == errno.ENODEV
        assert 0.9 < time.monotonic() - begin < 2
        disk.close()


def test_server_error_is_raised(place: Path) -> None:
    command = nbdkit(place, "--filter=error", "memory", "4M", "error-rate=100%")
    with server(command, place):
        disk = open_disk(exported(place))
        with pytest.raises(OSError, match=r"Input.output error") as caught:
            read(disk, 0, 512)
        assert caught.value.errno == errno.EIO
        disk.close()


def test_server_with_larger_blocks_is_served_in_sectors(
    place: Path, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    before = os.urandom(SIZE)
    image.write_bytes(before)
    words = ("blocksize-minimum=4096", "blocksize-error-policy=error")
    policy = nbdkit(place, "--filter=blocksize-policy", "file", image, *words)
    with server(policy, place):
        disk = open_disk(exported(place))
        disk.write_from(512, memoryview(b"x" * 512))
        disk.discard(8192 + 512, 8192)
        disk.flush()
        expected = before[:512] + b"x" * 512 + before[1024:8704] + bytes(8192)
        assert read(disk, 0, 20480) == expected + before[16896:20480]
        disk.close()
    assert image.read_bytes() == expected + before[16896:]


def test_read_only_export_needs_read_only(place: Path) -> None:
    with server(nbdkit(place, "-r", "memory", "4M"), place):
        with pytest.raises(AccessError, match="Use --read-only"):
            open_disk(exported(place))
        open_disk(exported(place), OpenFlags(read_only=True)).close()


def test_overlay_over_an_nbd_export(place: Path, tmp_path: Path) -> None:
    with server(nbdkit(place, "-r", "pattern", "4M"), place):
        disk = open_disk(exported(place), overlay=str(tmp_path / "client.ovl"))
        disk.write_from(512, memoryview(b"x" * 512))
        expected = struct.pack("!64Q", *range(0, 512, 8)) + b"x" * 512
        assert read(disk, 0, 1024) == expected
        disk.close()


def test_refused_exports_and_options(place: Path, qcow2: Path) -> None:
    with pytest.raises(NotFoundError, match="Is the server running"):
        open_disk(exported(place))
    with (
        server(qemu_nbd(place, qcow2), place),
        pytest.raises(NotFoundError, match="no such export"),
    ):
        open_disk(exported(place, "other"))
    with pytest.raises(UsageError, match="--offset is only for files"):
        open_disk(exported(place), OpenFlags(offset=512))


def test_malformed_reply_closes_the_connection(
    place: Path,
) -> None:
    with FakeServer(place, lambda _: b"\xff" * 16):
        disk = open_disk(exported(place))
        with pytest.raises(
            OSError, match=r"malformed reply|connection closed by the server"
        ) as caught:
            read(disk, 0, 512)
        assert caught.value.errno == errno.ENODEV
        disk.close()


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EPERM, errno.EPERM),
        (errno.ENOSPC, errno.ENOSPC),
        (errno.ESHUTDOWN, errno.ENODEV),
    ],
)
def test_p41_server_error_differs_from_unreachable_server(
    place: Path, number: int, expected: int
) -> None:
    with FakeServer(place, lambda request: simple_reply(request, number)):
        disk = open_disk(exported(place))
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            read(disk, 0, 512)
        assert caught.value.errno == expected
        disk.close()


def test_p41_enodev_of_the_server_is_eio(place: Path) -> None:
    with FakeServer(place, lambda request: simple_reply(request, errno.ENXIO)):
        disk = open_disk(exported(place))
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            read(disk, 0, 512)
        assert caught.value.errno not in (errno.ENXIO, errno.ENODEV)
        disk.close()


def test_p41_truncated_reply_is_an_error(place: Path) -> None:
    def reply(request: bytes) -> bytes:
        calls.append(request)
        return simple_reply(request, data=b"x" * 100) if len(calls) % 2 else b""

    calls: list[bytes] = []
    with FakeServer(place, reply):
        disk = open_disk(exported(place))
        with pytest.raises(OSError, match="timed out") as caught:
            read(disk, 0, 512)
        assert caught.value.errno == errno.ENODEV
        disk.close()


def test_abandoned_buffer_is_not_written(place: Path) -> None:
    requested, go_on = threading.Event(), threading.Event()

    def reply(request: bytes) -> bytes:
        requested.set()
        go_on.wait(10)
        return simple_reply(request, data=b"late" * 128)

    with FakeServer(place, reply):
        disk = open_disk(exported(place))
        buffer = bytearray(512)
        with pytest.raises(OSError, match="timed out"):
            disk.read_into(0, memoryview(buffer))
        assert requested.is_set()
        go_on.set()
        # There are no references to the buffer: it can be resized.
        buffer.extend(b"more")
        assert not any(buffer[:512])
        disk.close()


@pytest.mark.parametrize(
    ("size", "flags", "why"),
    [
        (SIZE + 512, 0b101, "size has changed from 4 MiB"),
        (SIZE - 512, 0b101, "size has changed from 4 MiB"),
        (SIZE, 0b111, "flags or block sizes have changed"),
        (SIZE, 0b001, "flags or block sizes have changed"),
    ],
)
def test_changed_export_is_not_used(
    place: Path, size: int, flags: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    requested: list[bytes] = []

    def reply(request: bytes) -> bytes:
        requested.append(request)
        return simple_reply(request) if len(requested) == 1 else b""

    with FakeServer(place, reply, flags=0b101) as fake:
        disk = open_disk(exported(place))
        fake.size, fake.flags = size, flags
        with pytest.raises(OSError, match=why) as caught:
            read(disk, 0, 512)
        assert caught.value.errno == errno.ENODEV
        disk.close()
    (line,) = caplog.messages
    assert line.startswith(f"{exported(place)}: ")
    assert line.endswith(
        "Run: aoe-target reload; clients get AoE error 3 (device unavailable)"
    )


def test_size_can_be_measured_while_served(place: Path, qcow2: Path) -> None:
    words = OpenFlags()
    with server(nbdkit(place, "memory", "4M"), place):
        disk = open_disk(exported(place))
        assert measure_disk(exported(place), words) == SIZE
    with server(nbdkit(place, "memory", "8M"), place):
        assert measure_disk(exported(place), words) == 2 * SIZE
        # No write is unflushed, so the export can be replaced.
        disk.flush()
        disk.close()
    with server(qemu_nbd(place, qcow2), place):
        disk = open_disk(exported(place, "disk"))
        assert measure_disk(exported(place, "disk"), words) is None
        disk.close()
    with pytest.raises(AoEError, match="Is the server running"):
        measure_disk(exported(place), words)
