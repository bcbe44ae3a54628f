"""``aoe attach --nbd`` with the clients of libnbd, qemu and fio, and with vblade."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest

from tests.nbd_clients import (
    CLIENT_FLAGS,
    GO,
    WRITE,
    info_option,
    parse_replies,
    request,
)
from tests.nbd_servers import exported, raw_bytes
from tests.programs import AOE
from tests.requirements import need, program
from tests.serving import NO_PROBE, TIMEOUT, finish, ready_line, serving, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from aoe.net.netns import Wire

    Done = subprocess.CompletedProcess[str]
    Serve = Callable[[Wire, Path], AbstractContextManager[object]]

pytestmark = pytest.mark.netns

MIB = 1 << 20
SIZE = 4 * MIB
_MIXED = [
    "--rw=randrw",
    "--bssplit=512/20:4k/40:16k/20:64k/15:1m/5",
    "--blockalign=512",
    "--iodepth=32",
    "--verify=crc32c",
    "--verify_fatal=1",
    "--verify_backlog=64",
]
"""Random reads and writes of mixed sizes, verified by checksum."""


@contextmanager
def our_target(wire: Wire, image: Path) -> Iterator[object]:
    with serving(wire, image) as process:
        yield process


@contextmanager
def vblade(wire: Wire, image: Path) -> Iterator[object]:
    name = program("vblade")
    command = [name, "-b", "64", "7", "3", wire.interface, str(image)]
    process = wire.target.popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


BOTH = pytest.mark.parametrize("serve", [our_target, vblade], ids=["ours", "vblade"])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(0).randbytes(SIZE))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def attach_command(wire: Wire, path: object, *words: object) -> list[str]:
    command = [*AOE, "attach", "e7.3"]
    return [*command, "-i", wire.interface, "--nbd", str(path), *map(str, words)]


@contextmanager
def attached(wire: Wire, path: Path, *words: object) -> Iterator[subprocess.Popen[str]]:
    process: subprocess.Popen[str] = wire.initiator.popen(
        attach_command(wire, path, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = ready_line(process)
        assert line.startswith("e7.3 4 MiB as nbd+unix:///e7.3?socket=")
        yield process
    finally:
        if process.poll() is None:
            finish(process, signal.SIGTERM)
    assert process.returncode == 0
    assert not path.exists()


def run(tool: str, *words: object, check: bool = True) -> Done:
    command = [program(tool), *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def qemu_io(uri: str, commands: Sequence[str], *, check: bool = True) -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = run("qemu-io", "-f", "raw", *words, uri, check=check)
    assert "Pattern verification failed" not in done.stdout
    return done.stdout + done.stderr


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@BOTH
def test_fio_verifies_mixed_reads_and_writes(
    wire: Wire, image: Path, path: Path, serve: Serve
) -> None:
    with serve(wire, image), attached(wire, path):
        uri = f"--uri={exported(path, 'e7.3')}"
        sizes = [f"--size={SIZE}", "--io_size=12m", "--verify_state_save=0"]
        done = run("fio", "--name=x", "--ioengine=nbd", uri, *_MIXED, *sizes)
    assert ": err= 0:" in done.stdout


@BOTH
def test_nbdcopy_to_and_from_the_disk(
    wire: Wire, image: Path, path: Path, tmp_path: Path, serve: Serve
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(SIZE))
    uri = exported(path, "e7.3")
    with serve(wire, image), attached(wire, path):
        run("nbdcopy", "--connections=4", "--flush", there, uri)
        assert sha256(image) == sha256(there)
        run("nbdcopy", uri, back)
    assert sha256(back) == sha256(there)


@BOTH
def test_nbdinfo_and_qemu_img_accept_it(
    wire: Wire, image: Path, path: Path, tmp_path: Path, serve: Serve
) -> None:
    uri = exported(path)
    with serve(wire, image), attached(wire, path):
        listed = json.loads(run("nbdinfo", "--json", "--list", uri).stdout)
        info = json.loads(run("nbdinfo", "--json", uri).stdout)
        size = json.loads(run("qemu-img", "info", "--output=json", uri).stdout)
        assert raw_bytes(uri) == image.read_bytes()
        other = tmp_path / "other"
        other.write_bytes(os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB))
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", other, uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", other, uri)
    assert image.read_bytes() == other.read_bytes()
    assert size["virtual-size"] == SIZE
    assert [each["export-name"] for each in listed["exports"]] == ["e7.3"]
    [export] = info["exports"]
    assert info["structured"] is True
    expected = {
        "export-size": SIZE,
        "is_read_only": False,
        "can_flush": True,
        "can_fua": True,
        "can_zero": True,
        "can_multi_conn": True,
        "can_df": True,
        "can_trim": serve is our_target,
        "block_size_minimum": 1,
        "block_size_preferred": 4096,
        "block_size_maximum": 32 * MIB,
    }
    assert {key: export[key] for key in expected} == expected


@BOTH
def test_qemu_io_reads_and_writes_at_unaligned_offsets(
    wire: Wire, image: Path, path: Path, serve: Serve
) -> None:
    expected = bytearray(image.read_bytes())
    expected[1:701] = b"\x03" * 700
    expected[5000:105_000] = bytes(100_000)
    expected[513:1537] = b"\x09" * 1024
    expected[MIB - 1] = 7
    with serve(wire, image), attached(wire, path):
        uri = exported(path, "e7.3")
        output = qemu_io(
            uri,
            [
                "write -P 3 1 700",
                "write -z 5000 100000",
                "write -f -P 9 513 1024",
                f"aio_write -P 7 {MIB - 1} 1",
                "aio_flush",
                "flush",
                "read -P 3 1 512",
                "read -P 9 513 1024",
                "read -P 0 5000 100000",
                f"discard {3 * MIB} {MIB}",
            ],
        )
        beyond = qemu_io(uri, [f"read {SIZE - 512} 1024"], check=False)
    data = image.read_bytes()
    assert data[: 3 * MIB] == expected[: 3 * MIB]
    if serve is our_target:
        assert data[3 * MIB :] == bytes(MIB)
    assert "wrote 700/700 bytes at offset 1" in output
    assert "failed" in beyond


def test_write_zeroes_deallocates_only_if_the_client_allows_it(
    wire: Wire, image: Path, path: Path
) -> None:
    image.write_bytes(os.urandom(SIZE))
    before = image.stat().st_blocks
    with our_target(wire, image), attached(wire, path):
        qemu_io(exported(path, "e7.3"), [f"write -z 0 {MIB}"])
        assert image.stat().st_blocks >= before
        qemu_io(exported(path, "e7.3"), [f"write -z -u 512 {2 * MIB}"])
    assert before - image.stat().st_blocks >= (2 * MIB - 8192) // 512
    assert not any(image.read_bytes()[: 2 * MIB + 512])


def test_read_only_export_refuses_writes(wire: Wire, image: Path, path: Path) -> None:
    before = sha256(image)
    uri = exported(path, "e7.3")
    with our_target(wire, image), attached(wire, path, "--read-only"):
        info = json.loads(run("nbdinfo", "--json", uri).stdout)
        assert info["exports"][0]["is_read_only"] is True
        assert raw_bytes(uri) == image.read_bytes()
        output = qemu_io(uri, ["write 0 512"], check=False)
        assert "Permission denied" in output
    assert sha256(image) == before


def test_tcp_port_is_served(wire: Wire, image: Path) -> None:
    need("qemu-img")
    script = 'echo "$uri"; qemu-img info "$uri"'
    command = attach_command(wire, "127.0.0.1:10809", "--run", script)
    with our_target(wire, image):
        wire.initiator.run(["ip", "link", "set", "lo", "up"], check=True)
        done = wire.initiator.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nbd://127.0.0.1/e7.3\n")
    assert f"({SIZE} bytes)" in done.stdout


def test_run_exits_with_the_code_of_the_command(
    wire: Wire, image: Path, path: Path
) -> None:
    command = attach_command(wire, path, "--run", 'nbdinfo --size "$uri"; exit 7')
    need("nbdinfo")
    with our_target(wire, image):
        done = wire.initiator.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, f"{SIZE}\n")
    assert not path.exists()


def test_background_prints_the_uri_and_continues(
    wire: Wire, image: Path, path: Path
) -> None:
    command = attach_command(wire, path, "--background", "--json")
    with our_target(wire, image):
        done = wire.initiator.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        about = json.loads(done.stdout)
        assert about["uri"] == exported(path, "e7.3")
        assert (about["size_bytes"], about["read_only"]) == (SIZE, False)
        try:
            assert run("nbdinfo", "--size", about["uri"]).stdout == f"{SIZE}\n"
        finally:
            os.kill(about["pid"], signal.SIGTERM)
        wait_until(lambda: not path.exists())


def test_background_reports_a_failure_to_start(wire: Wire, path: Path) -> None:
    command = attach_command(wire, path, "--background", "-t", "0.2")
    done = wire.initiator.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("aoe: e7.3: no response on ")
    assert not path.exists()


@contextmanager
def write_to_stopped_target(
    target: subprocess.Popen[str], path: Path, data: bytes
) -> Iterator[IO[bytes]]:
    """Send a write while the target is stopped, and yield the stream of replies."""
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as replies:
        client.connect(str(path))
        client.sendall(CLIENT_FLAGS + info_option(GO))
        replies.read(18 + 32 + 20)
        target.send_signal(signal.SIGSTOP)
        client.sendall(request(WRITE, 0, data=data))
        wait_until(lambda: unread(client) == 0)
        yield replies


def test_first_signal_completes_outstanding_requests(
    wire: Wire, image: Path, path: Path
) -> None:
    data = os.urandom(MIB)
    with (
        serving(wire, image) as target,
        attached(wire, path) as process,
        write_to_stopped_target(target, path, data) as replies,
    ):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        target.send_signal(signal.SIGCONT)
        assert parse_replies(replies.read(16))[0].error == 0
        finish(process)
    assert image.read_bytes()[:MIB] == data


def test_second_signal_ends_the_process_at_once(
    wire: Wire, image: Path, path: Path
) -> None:
    with serving(wire, image) as target:
        process = wire.initiator.popen(
            attach_command(wire, path), stdout=-1, stderr=-1, text=True
        )
        ready_line(process)
        with write_to_stopped_target(target, path, b"x" * MIB):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            finish(process, signal.SIGINT)
            target.send_signal(signal.SIGCONT)
        assert process.returncode == -signal.SIGINT
        with attached(wire, path):
            assert run("nbdinfo", "--size", exported(path)).stdout == f"{SIZE}\n"


def test_ready_fd_receives_ready(wire: Wire, image: Path, path: Path) -> None:
    reader, writer = os.pipe()
    command = attach_command(wire, path, "--ready-fd", writer)
    with serving(wire, image), os.fdopen(reader) as ready:
        process = wire.initiator.popen(
            command, stdout=-1, stderr=-1, text=True, pass_fds=[writer]
        )
        os.close(writer)
        assert ready.read() == "READY=1\n"
        assert path.exists()
        finish(process, signal.SIGTERM)
    assert process.returncode == 0


def unread(client: socket.socket) -> int:
    """Return how many bytes the other end has not read yet."""
    return int.from_bytes(
        fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)), sys.byteorder
    )


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_k55_k56_requests_fail_while_the_target_is_down_and_work_after_it_restarts(
    wire: Wire, image: Path, path: Path
) -> None:
    uri = exported(path, "e7.3")
    words = ("serve", "e7.3", wire.interface, image, NO_PROBE)
    first = start(wire.target, *words)
    ready_line(first)
    with attached(wire, path, "--deadsecs", 1):
        qemu_io(uri, ["write -P 1 0 64k"])
        finish(first, signal.SIGKILL)
        for command in ("write -P 2 64k 64k", "read 0 512"):
            assert "Input/output error" in qemu_io(uri, [command], check=False)
        second = start(wire.target, *words)
        ready_line(second)
        wait_until(lambda: "error" not in qemu_io(uri, ["read 0 512"], check=False))
        qemu_io(uri, ["read -P 1 0 64k", "write -P 3 0 64k", "flush"])
    finish(second, signal.SIGTERM)
    assert image.read_bytes()[: 64 << 10] == b"\x03" * (64 << 10)
