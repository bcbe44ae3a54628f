from __future__ import annotations

import errno
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from aoe.errors import AccessError, AoEError, DecodeError, NotFoundError, UsageError
from target.disks import Disk, OpenFlags, open_disk
from target.disks.nbd import NbdAddress
from target.disks.nbd_wire import (
    NbdExport,
    NbdFlag,
    handshake,
    pack_request,
    parse_reply,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SIZE = 4 << 20
GREETING = b"NBDMAGICIHAVEOPT" + struct.pack("!H", 3)


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}; apt install {package}")
    return found


def is_ready(path: Path) -> bool:
    """Tell whether a server listens at a socket, or has written a file about itself."""
    if not path.is_socket():
        return path.exists()
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(path)) == 0


@contextmanager
def server(command: Sequence[str], path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until its socket is there and the test is through."""
    path.unlink(missing_ok=True)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while not is_ready(path):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


def nbdkit(path: Path, *words: str) -> list[str]:
    return [program("nbdkit", "nbdkit"), "-f", "-U", str(path), *words]


def qemu_nbd(path: Path, image: Path, *words: str) -> list[str]:
    name = program("qemu-nbd", "qemu-utils")
    return [
        name,
        "-t",
        "-f",
        "qcow2",
        "-x",
        "disk",
        "-k",
        str(path),
        *words,
        str(image),
    ]


def read(disk: Disk, offset: int, length: int) -> bytes:
    buffer = memoryview(bytearray(length))
    disk.read_into(offset, buffer)
    return bytes(buffer)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    tool = program("qemu-img", "qemu-utils")
    subprocess.run([tool, "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    return path


def exported(path: Path, name: str = "") -> str:
    return f"nbd+unix:///{name}?socket={path}"


def raw_bytes(image: Path) -> bytes:
    raw = image.with_suffix(".raw")
    tool = program("qemu-img", "qemu-utils")
    subprocess.run([tool, "convert", "-O", "raw", image, raw], check=True)
    return raw.read_bytes()


@pytest.mark.parametrize("sync", [False, True])
def test_what_is_written_to_a_qcow2_is_in_it(
    place: Path, qcow2: Path, *, sync: bool
) -> None:
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


def test_a_flush_is_one_even_if_the_server_is_killed_after_it(
    place: Path, qcow2: Path
) -> None:
    with server(qemu_nbd(place, qcow2), place) as process:
        disk = open_disk(exported(place, "disk"))
        disk.write_from(0, memoryview(b"x" * 512))
        disk.flush()
        process.kill()
        process.wait()
    assert raw_bytes(qcow2)[:512] == b"x" * 512
    disk.close()


def test_a_server_that_dies_is_a_disk_away_until_it_is_back(
    place: Path, tmp_path: Path
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
        # Requests never cease, and yet it is found again.
        end = time.monotonic() + 5
        while True:
            try:
                assert read(disk, 0, 1024) == b"x" * 512 + b"y" * 512
                break
            except OSError:
                assert time.monotonic() < end
        with pytest.raises(OSError, match="may have lost what was written"):
            disk.flush()
        disk.flush()
    disk.close()


def test_a_server_restarted_between_two_requests_is_not_even_noticed(
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


def test_a_server_that_hangs_holds_nobody_up_for_long(place: Path) -> None:
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


def test_an_error_of_the_server_is_an_error_of_the_disk(place: Path) -> None:
    command = nbdkit(place, "--filter=error", "memory", "4M", "error-rate=100%")
    with server(command, place):
        disk = open_disk(exported(place))
        with pytest.raises(OSError, match=r"Input.output error") as caught:
            read(disk, 0, 512)
        assert caught.value.errno == errno.EIO
        disk.close()


def test_another_disk_at_the_old_place_is_not_taken_for_the_old_one(
    place: Path,
) -> None:
    with server(nbdkit(place, "memory", "4M"), place):
        disk = open_disk(exported(place))
    with server(nbdkit(place, "memory", "8M"), place):
        with pytest.raises(OSError, match="another size") as caught:
            read(disk, 0, 512)
        assert caught.value.errno == errno.ENODEV
    disk.close()


def test_an_export_for_reading_only_is_served_so_or_not_at_all(place: Path) -> None:
    with server(nbdkit(place, "-r", "memory", "4M"), place):
        with pytest.raises(AccessError, match="Serve it --read-only"):
            open_disk(exported(place))
        open_disk(exported(place), OpenFlags(read_only=True)).close()


def test_an_overlay_stands_over_an_export_too(place: Path, tmp_path: Path) -> None:
    with server(nbdkit(place, "-r", "pattern", "4M"), place):
        disk = open_disk(exported(place), overlay=str(tmp_path / "client.ovl"))
        disk.write_from(512, memoryview(b"x" * 512))
        expected = struct.pack("!64Q", *range(0, 512, 8)) + b"x" * 512
        assert read(disk, 0, 1024) == expected
        disk.close()


def test_what_cannot_be_served_says_why(place: Path, qcow2: Path) -> None:
    with pytest.raises(NotFoundError, match="Is the server running"):
        open_disk(exported(place))
    with (
        server(qemu_nbd(place, qcow2), place),
        pytest.raises(NotFoundError, match="no such export"),
    ):
        open_disk(exported(place, "other"))
    with pytest.raises(UsageError, match="--offset is for files"):
        open_disk(exported(place), OpenFlags(offset=512))


@pytest.mark.parametrize(
    "uri", ["nbds://host/", "nbd+unix:///name", "nbd:///name", "nbd://host:x/"]
)
def test_other_uris_are_refused_with_an_example(uri: str) -> None:
    with pytest.raises(UsageError, match=r"Write it as nbd://host/name"):
        NbdAddress(uri)


def shake(*answers: bytes, name: str = "") -> tuple[list[bytes], NbdExport]:
    sent, waiting = [], list(answers)
    steps = handshake(name)
    step = next(steps)
    while True:
        answer = b""
        if isinstance(step, int):
            answer = waiting.pop(0)
            assert len(answer) == step
        else:
            sent.append(step)
        try:
            step = steps.send(answer)
        except StopIteration as end:
            assert not waiting
            return sent, end.value


def option_reply(kind: int, data: bytes = b"") -> list[bytes]:
    head = struct.pack("!QIII", 0x3E889045565A9, 7, kind, len(data))
    return [head, data] if data else [head]


def test_the_handshake_byte_for_byte() -> None:
    size = option_reply(3, struct.pack("!HQH", 0, SIZE, 0b1101))
    blocks = option_reply(3, struct.pack("!HIII", 3, 512, 4096, 1 << 20))
    name = option_reply(3, b"\0\1ab")
    sent, export = shake(GREETING, *name, *size, *blocks, *option_reply(1), name="ab")
    assert b"".join(sent) == bytes.fromhex(
        "00000003 49484156454f5054 00000007 0000000a 00000002 6162 0001 0003"
    )
    flags = NbdFlag(0b1101)
    assert export == NbdExport(size=SIZE, flags=flags, block=512, payload=1 << 20)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [(1, DecodeError), (2, AccessError), (5, AccessError), (6, NotFoundError)],
)
def test_a_refusal_says_what_it_is_about(reason: int, kind: type[AoEError]) -> None:
    with pytest.raises(kind):
        shake(GREETING, *option_reply(1 << 31 | reason, b"because"))


@pytest.mark.parametrize(
    "answers",
    [
        [b"SSH-2.0-OpenSSH_9.2"[:18]],
        [b"NBDMAGICIHAVEOPT\0\0"],
        [GREETING, bytes(20)],
        [GREETING, *option_reply(1)],
    ],
)
def test_what_is_no_nbd_server_is_told_from_one(answers: list[bytes]) -> None:
    with pytest.raises(DecodeError):
        shake(*answers)


def test_requests_and_replies_byte_for_byte() -> None:
    from target.disks.nbd_wire import FUA, NbdCommand

    request = pack_request(NbdCommand.WRITE, 0x1122, 0x200, 0x400, FUA)
    assert request == bytes.fromhex(
        "25609513 0001 0001 0000000000001122 0000000000000200 00000400"
    )
    reply = bytes.fromhex("67446698 0000001c 0000000000001122")
    assert parse_reply(reply, 0x1122) == errno.ENOSPC
    with pytest.raises(DecodeError):
        parse_reply(reply, 0x1123)


def test_nonsense_from_the_server_ends_the_connection_not_the_process(
    place: Path,
) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen()

    def answer() -> None:
        export = option_reply(3, struct.pack("!HQH", 0, SIZE, 1))
        for _ in range(2):
            peer, _where = listener.accept()
            with peer:
                peer.sendall(GREETING + b"".join([*export, *option_reply(1)]))
                for length in (28, 28):
                    peer.recv(length, socket.MSG_WAITALL)
                peer.sendall(b"\xff" * 16)

    thread = threading.Thread(target=answer)
    thread.start()
    disk = open_disk(exported(place))
    with pytest.raises(OSError, match="an answer that is none") as caught:
        read(disk, 0, 512)
    assert caught.value.errno == errno.ENODEV
    disk.close()
    thread.join()
    listener.close()
