from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from aoe.header import sectors_per_frame
from aoe.net.interfaces import VethEnd, create_veth
from aoe.net.link import open_link
from aoe.net.netns import Wire
from tests.asking import ata, ata_response, config, config_response, response_frame
from tests.programs import AOE_TARGET
from tests.requirements import missing, need
from tests.serving import TIMEOUT, Client, client, finish, ready_line, serving, start
from tests.tools import call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.netns

READ, WRITE, FLUSH = 0x24, 0x34, 0xE7
SECTORS = 4096


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SECTORS * 512))
    return path


@pytest.mark.parametrize("how", ["rings", "plain"])
@pytest.mark.parametrize("mtu", [1500, 9000, 65535])
def test_read_and_write_with_mtu_sized_frames(image: Path, mtu: int, how: str) -> None:
    before = image.read_bytes()
    count = min(sectors_per_frame(mtu), 64)
    starts = range(0, SECTORS - count + 1, count)
    options = ["--plain"] if how == "plain" else []
    with Wire(mtu) as wire, serving(wire, image, *options), client(wire) as asking:
        data = b""
        for lba in starts:
            response = asking.ask(ata(READ, lba, count))
            assert response == ata_response(0x40, lba=lba, data=response[36:])
            assert len(response) == 36 + 512 * count
            data += response[36:]
        assert data == before[: len(data)]
        changed = os.urandom(count * 512)
        for lba in (0, starts[-1]):
            request = ata(WRITE, lba, count, aflags=0x41, data=changed)
            assert asking.ask(request) == ata_response(0x40, lba=lba, aflags=0x41)
    after = bytearray(before)
    for lba in (0, starts[-1]):
        after[lba * 512 : (lba + count) * 512] = changed
    assert image.read_bytes() == after


def test_responses_are_padded_on_the_wire_p19(wire: Wire, image: Path) -> None:
    # A veth pair does not pad frames.
    with serving(wire, image, "-b", "16"), client(wire) as asking:
        response = asking.ask(config(0))
        assert len(response) == 60
        assert (
            response
            == config_response(0)[:26] + response[26:28] + config_response(0)[28:]
        )


def test_all_outstanding_requests_are_answered_p60(wire: Wire, image: Path) -> None:
    content = image.read_bytes()
    with serving(wire, image), client(wire) as asking:
        for first in range(0, 1024, 64):
            responses = asking.ask_all([ata(READ, first + n) for n in range(64)])
            assert (
                b"".join(response[36:] for response in responses)
                == (content[first * 512 : (first + 64) * 512])
            )


def test_target_announces_itself_when_ready_p48(wire: Wire, image: Path) -> None:
    with client(wire) as asking, serving(wire, image):
        announcement = asking.receive()
        assert announcement[:6] == b"\xff" * 6
        assert announcement[14:24] == bytes.fromhex("18000007030100000000")
        assert len(announcement) == 60
        assert asking.receive(timeout=0.1) == b""


def test_frames_to_be_dropped_get_no_response(wire: Wire, image: Path) -> None:
    with serving(wire, image), client(wire) as asking:
        for request in (config(0)[:20], config(1, b"x"), ata(READ)[:35]):
            assert asking.ask(request, timeout=0.2) == b""
        assert asking.ask(ata(0xE5, count=0)) == ata_response(0x40, count=0xFF)


def test_target_survives_link_down(wire: Wire, image: Path) -> None:
    with serving(wire, image), client(wire) as asking:
        assert asking.ask(ata(READ))[27] == 0x40
        wire.target.run(["ip", "link", "set", wire.interface, "down"], check=True)
        time.sleep(0.5)
        wire.target.run(["ip", "link", "set", wire.interface, "up"], check=True)
        end = time.monotonic() + 10
        while not (response := asking.ask(ata(READ), timeout=0.2)):
            assert time.monotonic() < end
        assert response == ata_response(0x40, data=image.read_bytes()[:512])


def test_target_uses_no_cpu_while_its_link_is_down(wire: Wire, image: Path) -> None:
    with serving(wire, image) as process:
        wire.target.run(["ip", "link", "set", wire.interface, "down"], check=True)
        time.sleep(0.3)
        before = cpu_seconds(process.pid)
        time.sleep(1)
        assert cpu_seconds(process.pid) - before < 0.2


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - a file of the kernel's
        fields = file.read().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_disk_on_two_interfaces_is_shared(wire: Wire, image: Path) -> None:
    second = "aoe1"
    create_veth(
        VethEnd(second, 9000, bytes.fromhex("525400ae0101"), wire.target.pid),
        VethEnd(second, 9000, bytes.fromhex("525400ae0102"), wire.initiator.pid),
    )
    process = start(wire.target, "serve", "e7.3", f"{wire.interface},{second}", image)
    assert ready_line(process).startswith(
        "e7.3 2 MiB on aoe0 (52:54:00:ae:00:01, MTU 1500, 2 sectors a frame), "
        "aoe1 (52:54:00:ae:01:01, MTU 9000, 17 sectors a frame) from "
    )
    with wire.initiator.enter():
        link = open_link(second, responses=True)
    with client(wire) as here, link:
        there = Client(link, bytes.fromhex("525400ae0101"))
        assert here.ask(config(3, b"mine"))[32:36] == b"mine"
        assert there.ask(config(1, b"mine"))[32:36] == b"mine"
        data = os.urandom(17 * 512)
        there.ask(ata(WRITE, 8, 17, aflags=0x41, data=data))
        assert here.ask(ata(READ, 8))[36:] == data[:512]
        assert len(there.ask(ata(READ, 0, 17))) == 36 + 17 * 512
        assert here.ask(ata(READ, 0, 17))[24:28] == b"\x40\x04\x11\x41"
        # Without one interface, the other still serves.
        wire.target.run(["ip", "link", "delete", second], check=True)
        assert here.ask(ata(READ))[27] == 0x40
    assert finish(process, 15) == (
        "aoe-target: aoe1: interface is gone, waiting for it to reappear\n"
    )
    assert process.returncode == 0


def test_truncated_file_is_a_read_error_p41(wire: Wire, image: Path) -> None:
    with serving(wire, image), client(wire) as asking:
        os.truncate(image, 1024)
        failed = ata_response(0x41, 0x40, count=1, lba=2)
        assert asking.ask(ata(READ, 2)) == failed
        assert asking.ask(ata(READ, 1))[27] == 0x40


def test_read_only_disk_is_not_written_p40(wire: Wire, image: Path) -> None:
    before = image.read_bytes()
    with serving(wire, image, "--read-only"), client(wire) as asking:
        response = asking.ask(ata(WRITE, aflags=0x41, data=bytes(512)))
        assert response == ata_response(0x41, 0x04, count=1, aflags=0x41)
    assert image.read_bytes() == before


def test_window_of_a_file(wire: Wire, image: Path) -> None:
    content = image.read_bytes()
    with serving(wire, image, "-o", "8", "-l", "16"), client(wire) as asking:
        assert asking.ask(ata(READ, 0))[36:] == content[4096:4608]
        assert asking.ask(ata(READ, 15))[27] == 0x40
        response = asking.ask(ata(READ, 16))
        assert response == ata_response(0x41, 0x10, count=1, lba=16)


@pytest.fixture
def traced(wire: Wire, image: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Serve with these options, send requests, and return the system calls."""
    need("strace")

    def trace(*options: str, requests: list[bytes]) -> list[str]:
        log = tmp_path / "calls"
        # With -D strace is a grandchild, so that the process ID is the target's.
        strace = ["strace", "-D", "-yy", "-o", str(log)]
        calls = "-etrace=openat,pwritev,pwritev2,fdatasync,sendto"
        served = [*AOE_TARGET, "serve", "e7.3", wire.interface]
        process = wire.target.popen(
            [*strace, calls, *served, str(image), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        ready_line(process)
        with client(wire) as asking:
            for request in requests:
                assert asking.ask(request)[27] == 0x40
        finish(process, signal.SIGTERM)
        end = time.monotonic() + TIMEOUT
        while "exited with 0" not in (text := log.read_text()):
            assert time.monotonic() < end
        lines = text.splitlines()
        return [line for line in lines if "disk.img" in line or is_frame(line)]

    return trace


def is_frame(line: str) -> bool:
    return "sendto" in line and "NETLINK" not in line and "UNIX" not in line


def names(lines: list[str]) -> list[str]:
    return [line.partition("(")[0].removesuffix("2") for line in lines]


def test_flush_is_answered_after_fdatasync_p46(
    traced: Callable[..., list[str]],
) -> None:
    write = ata(WRITE, aflags=0x41, data=bytes(512))
    calls = names(traced(requests=[write, ata(FLUSH, count=0)]))
    begin = calls.index("pwritev")
    assert calls[begin:] == ["pwritev", "sendto", "fdatasync", "sendto"]


def test_sync_opens_with_o_dsync(traced: Callable[..., list[str]]) -> None:
    write = ata(WRITE, aflags=0x41, data=bytes(512))
    lines = traced("--sync", requests=[write])
    assert "O_DSYNC" in next(line for line in lines if "disk.img" in line)
    assert names(lines)[-2:] == ["pwritev", "sendto"]


def test_direct_bypasses_the_page_cache(wire: Wire, image: Path) -> None:
    content = image.read_bytes()
    process = start(wire.target, "serve", "e7.3", wire.interface, image, "--direct")
    assert process.stdout is not None
    if not process.stdout.readline():
        error = finish(process)
        assert "this file system does not support O_DIRECT" in error
        missing("O_DIRECT in TMPDIR", "set TMPDIR to a directory on a disk")
    with client(wire) as asking:
        assert asking.ask(ata(READ, 3, 2))[36:] == content[1536:2560]
        request = ata(WRITE, 5, aflags=0x41, data=b"\xee" * 512)
        assert asking.ask(request)[27] == 0x40
        assert asking.ask(ata(READ, 5))[36:] == b"\xee" * 512
    finish(process, 15)
    assert image.read_bytes() == content[:2560] + b"\xee" * 512 + content[3072:]


def test_unknown_command_is_echoed_up_to_the_mtu_p16(wire: Wire, image: Path) -> None:
    argument = bytes(range(250)) * 5
    with serving(wire, image), client(wire) as asking:
        request = ata(0)[:19] + b"\x09" + ata(0)[20:24] + argument
        response = asking.ask(request)
        assert response == response_frame(9, argument, verfl=0x1C, error=1)


def test_neither_the_target_nor_a_copy_imports_scapy(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    words = ("serve", "e7.3", wire.interface, image)
    process = start(wire.target, *words, env=environment)
    ready_line(process)
    copy = tmp_path / "copy.img"
    done = call(
        wire.initiator, "copy", "e7.3", copy, "-i", wire.interface, env=environment
    )
    target = finish(process, signal.SIGTERM)
    assert (process.returncode, done.returncode) == (0, 0)
    assert copy.read_bytes() == image.read_bytes()
    for data_path, output in (
        ("target.server.fast_path", target),
        ("initiator.io.fast_path", done.stderr),
    ):
        names = {line.rpartition("|")[2].strip() for line in output.splitlines()}
        assert data_path in names
        assert "scapy" not in names
