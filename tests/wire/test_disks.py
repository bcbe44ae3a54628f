from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from target.disks import OpenFlags, open_disk
from tests.asking import ata, registers
from tests.serving import PATIENCE, client, finish, ready_line, serving, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.netns import Wire

pytestmark = pytest.mark.netns

READ, WRITE, FLUSH = 0x24, 0x34, 0xE7
SIZE = 1 << 20
GONE = bytes.fromhex("1c03")
"""Flags and error of a reply that says that the device is unavailable (P41)."""


def write(lba: int, data: bytes) -> bytes:
    return ata(WRITE, lba, len(data) // 512, aflags=0x41, data=data)


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}; apt install {package}")
    return found


@contextmanager
def qemu_nbd(place: Path, image: Path) -> Iterator[None]:
    place.unlink(missing_ok=True)
    name = program("qemu-nbd", "qemu-utils")
    process = subprocess.Popen([name, "-t", "-f", "qcow2", "-k", place, image])
    try:
        end = time.monotonic() + PATIENCE
        while not is_listening(place):
            assert time.monotonic() < end
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def is_listening(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(place)) == 0


def test_a_qcow2_is_served_by_way_of_nbd_and_outlives_its_server(
    wire: Wire, tmp_path: Path
) -> None:
    image, place = tmp_path / "disk.qcow2", tmp_path / "socket"
    raw = tmp_path / "disk.raw"
    tool = program("qemu-img", "qemu-utils")
    subprocess.run([tool, "create", "-q", "-f", "qcow2", image, str(SIZE)], check=True)
    data = [os.urandom(1024) for _ in range(2)]
    stack = ExitStack()
    with qemu_nbd(place, image):
        process = start(
            wire.target,
            *("serve", "e7.3", wire.interface, f"nbd+unix:///?socket={place}"),
            *("--state-dir", tmp_path),
        )
        assert ready_line(process).startswith("e7.3 1 MiB on aoe0 ")
        asking = stack.enter_context(client(wire))
        assert asking.ask(write(5, data[0])) == registers(0x40, lba=5, aflags=0x41)
        assert asking.ask(ata(FLUSH, count=0)) == registers(0x40)
        assert asking.ask(ata(READ, 5, 2))[36:] == data[0]
    assert asking.ask(ata(READ, 5, 2))[14:16] == GONE
    with qemu_nbd(place, image):
        end = time.monotonic() + PATIENCE
        while (reply := asking.ask(ata(READ, 5, 2)))[14:16] == GONE:
            assert time.monotonic() < end
        assert reply[36:] == data[0]
        asking.ask(write(9, data[1]))
        assert asking.ask(ata(FLUSH, count=0)) == registers(0x40)
        stack.close()
        assert finish(process, 15) == ""
    subprocess.run([tool, "convert", "-O", "raw", image, raw], check=True)
    expected = bytearray(SIZE)
    expected[5 * 512 : 7 * 512], expected[9 * 512 : 11 * 512] = data
    assert raw.read_bytes() == expected


def test_an_overlay_takes_what_is_written_and_survives_a_killed_target(
    wire: Wire, tmp_path: Path
) -> None:
    golden, overlay = tmp_path / "golden.img", tmp_path / "client3.ovl"
    golden.write_bytes(os.urandom(SIZE))
    before, data = golden.read_bytes(), os.urandom(1024)
    words = ("serve", "e7.3", wire.interface, golden, "--overlay", overlay)
    process = start(wire.target, *words)
    assert ready_line(process).endswith(f" from {golden} [overlay {overlay}]\n")
    with client(wire) as asking:
        assert asking.ask(write(5, data)) == registers(0x40, lba=5, aflags=0x41)
    finish(process, 9)
    with serving(wire, golden, "--overlay", overlay), client(wire) as asking:
        assert asking.ask(ata(READ, 5, 2))[36:] == data
        assert asking.ask(ata(READ, 7, 2))[36:] == before[7 * 512 : 9 * 512]
    assert golden.read_bytes() == before


def test_nbd_over_tcp_with_a_name_that_needs_quoting(
    wire: Wire, tmp_path: Path
) -> None:
    told = tmp_path / "pid"
    name = program("nbdkit", "nbdkit")
    wire.target.run(["ip", "link", "set", "lo", "up"], check=True)
    command = [name, "-f", "-i", "127.0.0.1", "-p", "1809", "-P", str(told)]
    process = wire.target.popen([*command, "info", "exportname"])
    try:
        end = time.monotonic() + PATIENCE
        while not told.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        export = "ä" * 256
        with wire.target.entered():
            uri = f"nbd://127.0.0.1:1809/{quote(export)}"
            disk = open_disk(uri, OpenFlags(read_only=True))
        buffer = memoryview(bytearray(512))
        disk.read_into(0, buffer)
        assert bytes(buffer) == export.encode()
        disk.close()
    finally:
        process.terminate()
        process.wait(PATIENCE)
