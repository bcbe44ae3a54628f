"""Acceptance of ``aoe attach --nbd``: other people's clients, our target and vblade."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest

from tests.nbd_clients import GO, HELLO, WRITE, chunks, request, wish
from tests.nbd_servers import exported, program, raw_bytes
from tests.serving import AT_ONCE, PATIENCE, finish, ready_line, serving, start

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
"""Reads and writes of mixed sizes anywhere, each checked."""


@contextmanager
def our_target(wire: Wire, image: Path) -> Iterator[object]:
    with serving(wire, image) as process:
        yield process


@contextmanager
def vblade(wire: Wire, image: Path) -> Iterator[object]:
    name = shutil.which("vblade", path="/usr/sbin:/usr/bin")
    if name is None:
        pytest.skip("no vblade; apt install vblade")
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
def place(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def attach_command(wire: Wire, place: object, *words: object) -> list[str]:
    command = [sys.executable, "-m", "initiator", "attach", "e7.3"]
    return [*command, "-i", wire.interface, "--nbd", str(place), *map(str, words)]


@contextmanager
def attached(
    wire: Wire, place: Path, *words: object
) -> Iterator[subprocess.Popen[str]]:
    process: subprocess.Popen[str] = wire.initiator.popen(
        attach_command(wire, place, *words),
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
    assert not place.exists()


def run(tool: str, *words: object, check: bool = True) -> Done:
    command = [program(tool, PACKAGES[tool]), *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


PACKAGES = {
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "fio": "fio",
}


def qemu_io(uri: str, commands: Sequence[str], *, check: bool = True) -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = run("qemu-io", "-f", "raw", *words, uri, check=check)
    assert "Pattern verification failed" not in done.stdout
    return done.stdout + done.stderr


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@BOTH
def test_fio_finds_what_it_wrote(
    wire: Wire, image: Path, place: Path, serve: Serve
) -> None:
    with serve(wire, image), attached(wire, place):
        uri = f"--uri={exported(place, 'e7.3')}"
        sizes = [f"--size={SIZE}", "--io_size=12m", "--verify_state_save=0"]
        done = run("fio", "--name=x", "--ioengine=nbd", uri, *_MIXED, *sizes)
    assert ": err= 0:" in done.stdout


@BOTH
def test_nbdcopy_both_ways(
    wire: Wire, image: Path, place: Path, tmp_path: Path, serve: Serve
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(SIZE))
    uri = exported(place, "e7.3")
    with serve(wire, image), attached(wire, place):
        run("nbdcopy", "--connections=4", "--flush", there, uri)
        assert sha256(image) == sha256(there)
        run("nbdcopy", uri, back)
    assert sha256(back) == sha256(there)


@BOTH
def test_nbdinfo_and_qemu_img_accept_it(
    wire: Wire, image: Path, place: Path, tmp_path: Path, serve: Serve
) -> None:
    uri = exported(place)
    with serve(wire, image), attached(wire, place):
        listed = json.loads(run("nbdinfo", "--json", "--list", uri).stdout)
        told = json.loads(run("nbdinfo", "--json", uri).stdout)
        size = json.loads(run("qemu-img", "info", "--output=json", uri).stdout)
        assert raw_bytes(uri) == image.read_bytes()
        other = tmp_path / "other"
        other.write_bytes(os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB))
        run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", other, uri)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", other, uri)
    assert image.read_bytes() == other.read_bytes()
    assert size["virtual-size"] == SIZE
    assert [each["export-name"] for each in listed["exports"]] == ["e7.3"]
    [export] = told["exports"]
    assert told["structured"] is True
    wanted = {
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
    assert {key: export[key] for key in wanted} == wanted


@BOTH
def test_qemu_io_reads_what_it_wrote_at_any_byte(
    wire: Wire, image: Path, place: Path, serve: Serve
) -> None:
    wanted = bytearray(image.read_bytes())
    wanted[1:701] = b"\x03" * 700
    wanted[5000:105_000] = bytes(100_000)
    wanted[513:1537] = b"\x09" * 1024
    wanted[MIB - 1] = 7
    with serve(wire, image), attached(wire, place):
        uri = exported(place, "e7.3")
        said = qemu_io(
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
    assert data[: 3 * MIB] == wanted[: 3 * MIB]
    if serve is our_target:
        assert data[3 * MIB :] == bytes(MIB)
    assert "wrote 700/700 bytes at offset 1" in said
    assert "failed" in beyond


def test_zeroes_take_no_room_unless_they_are_to(
    wire: Wire, image: Path, place: Path
) -> None:
    image.write_bytes(os.urandom(SIZE))
    before = image.stat().st_blocks
    with our_target(wire, image), attached(wire, place):
        qemu_io(exported(place, "e7.3"), [f"write -z 0 {MIB}"])
        assert image.stat().st_blocks >= before
        qemu_io(exported(place, "e7.3"), [f"write -z -u 512 {2 * MIB}"])
    assert before - image.stat().st_blocks >= (2 * MIB - 8192) // 512
    assert not any(image.read_bytes()[: 2 * MIB + 512])


def test_what_is_read_only_stays_as_it_is(wire: Wire, image: Path, place: Path) -> None:
    before = sha256(image)
    uri = exported(place, "e7.3")
    with our_target(wire, image), attached(wire, place, "--read-only"):
        told = json.loads(run("nbdinfo", "--json", uri).stdout)
        assert told["exports"][0]["is_read_only"] is True
        assert raw_bytes(uri) == image.read_bytes()
        said = qemu_io(uri, ["write 0 512"], check=False)
        assert "Permission denied" in said
    assert sha256(image) == before


def test_a_port_serves_as_well(wire: Wire, image: Path) -> None:
    look = 'echo "$uri"; qemu-img info "$uri"'
    command = attach_command(wire, "127.0.0.1:10809", "--run", look)
    with our_target(wire, image):
        wire.initiator.run(["ip", "link", "set", "lo", "up"], check=True)
        done = wire.initiator.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nbd://127.0.0.1/e7.3\n")
    assert f"({SIZE} bytes)" in done.stdout


def test_a_command_is_served_and_its_exit_code_is_ours(
    wire: Wire, image: Path, place: Path
) -> None:
    command = attach_command(wire, place, "--run", 'nbdinfo --size "$uri"; exit 7')
    program("nbdinfo", "libnbd-bin")
    with our_target(wire, image):
        done = wire.initiator.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, f"{SIZE}\n")
    assert not place.exists()


def test_in_the_background_it_says_where_and_goes_on(
    wire: Wire, image: Path, place: Path
) -> None:
    command = attach_command(wire, place, "--background", "--json")
    with our_target(wire, image):
        done = wire.initiator.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["uri"] == exported(place, "e7.3")
        assert (told["size_bytes"], told["read_only"]) == (SIZE, False)
        try:
            assert run("nbdinfo", "--size", told["uri"]).stdout == f"{SIZE}\n"
        finally:
            os.kill(told["pid"], signal.SIGTERM)
        wait_until(lambda: not place.exists())


def test_in_the_background_a_failure_is_told(wire: Wire, place: Path) -> None:
    command = attach_command(wire, place, "--background", "-t", "0.2")
    done = wire.initiator.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("aoe: e7.3: no answer on ")
    assert not place.exists()


@contextmanager
def stuck(
    target: subprocess.Popen[str], place: Path, data: bytes
) -> Iterator[IO[bytes]]:
    """Have a write under way at a target that is stopped; yields where answers come."""
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as heard:
        client.connect(str(place))
        client.sendall(HELLO + wish(GO))
        heard.read(18 + 32 + 20)
        target.send_signal(signal.SIGSTOP)
        client.sendall(request(WRITE, 0, data=data))
        wait_until(lambda: unread(client) == 0)
        yield heard


def test_a_signal_lets_what_is_under_way_be_finished(
    wire: Wire, image: Path, place: Path
) -> None:
    data = os.urandom(MIB)
    with (
        serving(wire, image) as target,
        attached(wire, place) as process,
        stuck(target, place, data) as heard,
    ):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        target.send_signal(signal.SIGCONT)
        assert chunks(heard.read(16))[0].error == 0
        finish(process)
    assert image.read_bytes()[:MIB] == data


def test_a_second_signal_ends_it_at_once(wire: Wire, image: Path, place: Path) -> None:
    with serving(wire, image) as target:
        process = wire.initiator.popen(
            attach_command(wire, place), stdout=-1, stderr=-1, text=True
        )
        ready_line(process)
        with stuck(target, place, b"x" * MIB):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            finish(process, signal.SIGINT)
            target.send_signal(signal.SIGCONT)
        assert process.returncode == -signal.SIGINT
        with attached(wire, place):
            assert run("nbdinfo", "--size", exported(place)).stdout == f"{SIZE}\n"


def test_who_waits_for_ready_is_told(wire: Wire, image: Path, place: Path) -> None:
    reader, writer = os.pipe()
    command = attach_command(wire, place, "--ready-fd", writer)
    with serving(wire, image), os.fdopen(reader) as told:
        process = wire.initiator.popen(
            command, stdout=-1, stderr=-1, text=True, pass_fds=[writer]
        )
        os.close(writer)
        assert told.read() == "READY=1\n"
        assert place.exists()
        finish(process, signal.SIGTERM)
    assert process.returncode == 0


def unread(line: socket.socket) -> int:
    """Count the bytes that the other end has not taken yet."""
    return int.from_bytes(fcntl.ioctl(line, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def wait_until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_k55_k56_a_dead_target_is_an_error_and_one_that_returns_is_used(
    wire: Wire, image: Path, place: Path
) -> None:
    uri = exported(place, "e7.3")
    words = ("serve", "e7.3", wire.interface, image, AT_ONCE)
    first = start(wire.target, *words)
    ready_line(first)
    with attached(wire, place, "--deadsecs", 1):
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
