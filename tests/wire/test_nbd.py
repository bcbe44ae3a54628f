"""Acceptance tests of NBD disks: real servers, a real target, a real wire."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from target.disks import OpenFlags, open_disk
from tests.asking import ata, ata_response
from tests.nbd_servers import (
    CLIENTS,
    exported,
    make_qcow2,
    nbdkit,
    qemu_nbd,
    raw_bytes,
    server,
    use_client,
)
from tests.requirements import program
from tests.serving import (
    TIMEOUT,
    Client,
    client,
    finish,
    ready_line,
    serving,
    start,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

READ, WRITE, FLUSH, TRIM = 0x24, 0x34, 0xE7, 0x06
SIZE = 1 << 20
GOOD, FAULT = ata_response(0x40), ata_response(0x61, 0x04)
DEVICE_GONE = bytes.fromhex("1c03")
"""Flags and error of a response with the error "device unavailable" (P41)."""


@pytest.fixture(params=CLIENTS, autouse=True)
def nbd_client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    use_client(request.param, monkeypatch)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@contextmanager
def served(wire: Wire, uri: str, folder: Path, *words: object) -> Iterator[Client]:
    with (
        serving(wire, uri, "--state-dir", folder, *words),
        client(wire) as asking,
    ):
        yield asking


def write(lba: int, data: bytes) -> bytes:
    return ata(WRITE, lba, len(data) // 512, aflags=0x41, data=data)


def trim(lba: int, sectors: int) -> bytes:
    ranges = struct.pack("<Q", sectors << 48 | lba).ljust(512, b"\0")
    return ata(TRIM, aflags=0x41, feature=1, data=ranges)


def flush() -> bytes:
    return ata(FLUSH, count=0)


def fill(asking: Client, data: bytes) -> None:
    """Write a whole disk, with many requests outstanding."""
    pieces = [(at // 512, data[at : at + 1024]) for at in range(0, len(data), 1024)]
    for first in range(0, len(pieces), 32):
        batch = pieces[first : first + 32]
        replies = asking.ask_all([write(lba, piece) for lba, piece in batch])
        assert {reply[27] for reply in replies} == {0x40}


def fill_trim_and_flush(asking: Client) -> bytes:
    """Write a disk, trim a part of it, and return the expected contents."""
    data = bytearray(os.urandom(SIZE))
    fill(asking, bytes(data))
    assert asking.ask(trim(512, 512))[27] == 0x40
    data[512 * 512 : 1024 * 512] = bytes(512 * 512)
    assert asking.ask(flush()) == GOOD
    assert asking.ask(ata(READ, 511, 2))[36:] == data[511 * 512 : 513 * 512]
    return bytes(data)


def test_writes_to_nbdkit_memory_are_read_by_qemu_img(
    wire: Wire, place: Path, tmp_path: Path
) -> None:
    with server(nbdkit(place, "memory", SIZE), place):
        with served(wire, exported(place), tmp_path) as asking:
            data = fill_trim_and_flush(asking)
            assert raw_bytes(exported(place)) == data
        assert raw_bytes(exported(place)) == data


def test_writes_to_an_nbdkit_file_are_in_it_and_trim_punches_holes(
    wire: Wire, place: Path, image: Path, tmp_path: Path
) -> None:
    blocks = image.stat().st_blocks
    with (
        server(nbdkit(place, "file", image), place),
        served(wire, exported(place), tmp_path) as asking,
    ):
        data = fill_trim_and_flush(asking)
    assert raw_bytes(image) == data
    assert image.stat().st_blocks <= blocks - 512


def test_writes_to_a_qcow2_are_in_it_and_trim_deallocates_clusters(
    wire: Wire, place: Path, tmp_path: Path
) -> None:
    qcow2 = make_qcow2(tmp_path / "disk.qcow2", SIZE)
    with server(qemu_nbd(place, qcow2), place) as process:
        with served(wire, exported(place, "disk"), tmp_path) as asking:
            data = fill_trim_and_flush(asking)
        process.terminate()
        process.wait(TIMEOUT)
    assert raw_bytes(qcow2) == data
    tool = program("qemu-img")
    command = [tool, "map", "--output=json", str(qcow2)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    holes = [e for e in json.loads(output) if e["zero"] and not e["data"]]
    assert [(e["start"], e["length"]) for e in holes] == [(512 * 512, 512 * 512)]


def test_p41_flushed_writes_to_a_qcow2_survive_a_killed_server(
    wire: Wire, place: Path, tmp_path: Path
) -> None:
    qcow2 = make_qcow2(tmp_path / "disk.qcow2", SIZE)
    command = qemu_nbd(place, qcow2)
    with ExitStack() as stack:
        with server(command, place):
            uri = exported(place, "disk")
            asking = stack.enter_context(served(wire, uri, tmp_path))
            data = bytearray(fill_trim_and_flush(asking))
        assert asking.ask(ata(READ))[14:16] == DEVICE_GONE
        assert raw_bytes(qcow2) == data
        with server(command, place) as process:
            end = time.monotonic() + TIMEOUT
            while (reply := asking.ask(ata(READ, 5, 2)))[14:16] == DEVICE_GONE:
                assert time.monotonic() < end
            assert reply[36:] == data[5 * 512 : 7 * 512]
            data[9 * 512 : 11 * 512] = os.urandom(1024)
            assert asking.ask(write(9, bytes(data[9 * 512 : 11 * 512])))[27] == 0x40
            assert asking.ask(flush()) == GOOD
            stack.close()
            process.terminate()
            process.wait(TIMEOUT)
    assert raw_bytes(qcow2) == data


def test_p46_flush_is_answered_after_the_server_has_flushed(
    wire: Wire, place: Path, image: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    command = nbdkit(place, "--filter=log", "file", image, f"logfile={log}")
    with (
        server(command, place),
        served(wire, exported(place), tmp_path) as asking,
    ):
        # The target sends one when it opens the disk.
        for count in (2, 3):
            asking.ask(write(5, bytes(512)))
            assert flushes(log) == count - 1
            assert asking.ask(flush()) == GOOD
            assert flushes(log) == count


def flushes(log: Path) -> int:
    """Count the flushes that nbdkit has completed."""
    ends = [line for line in log.read_text().splitlines() if "...Flush" in line]
    assert all("return=0" in line for line in ends)
    return len(ends)


def test_p46_sync_write_is_answered_when_stable(
    wire: Wire, place: Path, image: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    words = ("--filter=log", "--filter=fua", "file", image, f"logfile={log}")
    for mode, sign in (
        (["fuamode=pass"], "Write .*fua=1"),
        ([], "...Flush .*return=0"),
    ):
        with (
            server(nbdkit(place, *words, *mode), place),
            served(wire, exported(place), tmp_path, "--sync") as asking,
        ):
            before = len(re.findall(sign, log.read_text()))
            assert asking.ask(write(5, bytes(512)))[27] == 0x40
            assert len(re.findall(sign, log.read_text())) == before + 1


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EPERM", "ENOMEM"])
def test_p41_server_errors_are_reported_as_ata_errors(
    wire: Wire, place: Path, tmp_path: Path, error: str
) -> None:
    trigger = tmp_path / "trigger"
    words = [f"error={error}", "error-rate=100%", f"error-file={trigger}"]
    command = nbdkit(place, "--filter=error", "memory", SIZE, *words)
    with (
        server(command, place),
        served(wire, exported(place), tmp_path) as asking,
    ):
        data = os.urandom(512)
        assert asking.ask(write(5, data))[27] == 0x40
        trigger.touch()
        assert asking.ask(ata(READ, 5)) == ata_response(0x41, 0x40, count=1, lba=5)
        refused = ata_response(0x61, 0x04, count=1, lba=5, aflags=0x41)
        assert asking.ask(write(5, bytes(512))) == refused
        assert asking.ask(trim(5, 1))[26:28] == b"\x01\x61"
        trigger.unlink()
        assert asking.ask(ata(READ, 5))[36:] == data


class Load:
    """A load that writes numbered sectors, one after the other.

    Args:
        asking: the client.
        lbas: the LBAs to write.
    """

    def __init__(self, asking: Client, lbas: range) -> None:
        self.written: dict[int, bytes] = {}
        self.kinds: set[str] = set()
        self._asking, self._lbas = asking, lbas
        self._turn = 0

    def step(self) -> str:
        """Write the next sector, and return the result."""
        self._turn += 1
        lba = self._lbas[self._turn % len(self._lbas)]
        data = struct.pack("<QQ", lba, self._turn) * 32
        reply = self._asking.ask(write(lba, data))
        if reply[14:16] == DEVICE_GONE:
            kind = "gone"
        elif reply[27] == 0x40:
            kind = "good"
            self.written[lba] = data
        else:
            kind = "fault" if reply[26:28] == b"\x04\x61" else reply.hex()
        if kind != "good":
            # The old or the new contents are possible.
            self.written.pop(lba, None)
        self.kinds.add(kind)
        return kind

    def until(self, kind: str) -> None:
        end = time.monotonic() + TIMEOUT
        while self.step() != kind:
            assert time.monotonic() < end


def test_p41_p46_server_killed_under_load_is_reconnected(
    wire: Wire, place: Path, image: Path, tmp_path: Path
) -> None:
    command = nbdkit(place, "file", image)
    with client(wire) as asking:
        load = Load(asking, range(100, 400))
        with server(command, place) as process:
            target = start(
                wire.target,
                *("serve", "e7.3", wire.interface, exported(place)),
                *("--state-dir", tmp_path),
            )
            ready_line(target)
            asking.receive()
            assassin = threading.Timer(0.3, process.kill)
            assassin.start()
            load.until("gone")
            assassin.join()
        for _ in range(50):
            assert load.step() == "gone"
        assert asking.ask(flush())[14:16] == DEVICE_GONE
        with server(command, place):
            load.until("good")
            for _ in range(100):
                assert load.step() == "good"
            assert load.kinds == {"gone", "good"}
            for lba, data in load.written.items():
                assert asking.ask(ata(READ, lba))[36:] == data
            # Completed writes may be lost, which is reported more than once (P2).
            assert asking.ask(flush()) == FAULT
            assert asking.ask(flush()) == FAULT
            end = time.monotonic() + TIMEOUT
            while (reply := asking.ask(flush())) != GOOD:
                assert reply == FAULT
                assert time.monotonic() < end
                time.sleep(0.1)
        messages = finish(target, 15).splitlines()
        assert target.returncode == 0
    assert [line.rpartition(": ")[2].rpartition("; ")[2] for line in messages] == [
        "clients get AoE error 3 (device unavailable)",
        "the server is reachable again",
        "the server may have lost writes that were not flushed",
    ]


def configuration(wire: Wire, folder: Path, exports: dict[str, str]) -> Path:
    path = folder / "aoe.toml"
    path.write_text(
        f'[defaults]\ninterfaces = ["{wire.interface}"]\nkeep_state = false\n'
        + "".join(
            f'[[export]]\naddress = "{address}"\npath = "{where}"\n'
            for address, where in exports.items()
        )
    )
    return path


def test_export_with_another_size_after_a_reconnect_needs_a_reload(
    wire: Wire, place: Path, tmp_path: Path
) -> None:
    settings = configuration(wire, tmp_path, {"e7.3": exported(place)})
    with ExitStack() as stack:
        with server(nbdkit(place, "memory", SIZE), place):
            target = start(wire.target, "serve", "--config", settings)
            ready_line(target)
            asking = stack.enter_context(client(wire))
            assert asking.ask(write(5, bytes(512)))[27] == 0x40
            assert asking.ask(flush()) == GOOD
        with server(nbdkit(place, "memory", 2 * SIZE), place):
            assert asking.ask(ata(READ))[14:16] == DEVICE_GONE
            reload = start(wire.target, "reload")
            assert reload.communicate(timeout=TIMEOUT)[1] == ""
            assert asking.receive()[:6] == b"\xff" * 6
            last = 2 * SIZE // 512 - 1
            assert asking.ask(ata(READ, last)) == ata_response(
                0x40, lba=last, data=bytes(512)
            )
        errors = finish(target, 15)
        assert "the size has changed from 1 MiB" in errors
        assert "to 2 MiB" in errors


def test_unreachable_server_does_not_affect_other_disks(
    wire: Wire, place: Path, image: Path, tmp_path: Path
) -> None:
    before = image.read_bytes()
    exports = {"e7.3": exported(place), "e7.4": str(image)}
    settings = configuration(wire, tmp_path, exports)
    with server(nbdkit(place, "memory", SIZE), place):
        target = start(wire.target, "serve", "--config", settings)
        ready_line(target)
    with client(wire) as asking:
        for lba in range(200):
            begin = time.monotonic()
            replies = asking.ask_all([ata(READ, lba), ata(READ, lba, slot=4)])
            assert time.monotonic() - begin < TIMEOUT
            by_slot = {reply[18]: reply for reply in replies}
            assert by_slot[3][14:16] == DEVICE_GONE
            assert by_slot[4][36:] == before[lba * 512 : lba * 512 + 512]
        with server(nbdkit(place, "memory", SIZE), place):
            end = time.monotonic() + TIMEOUT
            while asking.ask(ata(READ))[14:16] == DEVICE_GONE:
                assert time.monotonic() < end
    finish(target, 15)
    assert target.returncode == 0


def test_nbd_over_tcp_with_a_quoted_export_name(wire: Wire, tmp_path: Path) -> None:
    output = tmp_path / "pid"
    name = program("nbdkit")
    wire.target.run(["ip", "link", "set", "lo", "up"], check=True)
    command = [name, "-f", "-i", "127.0.0.1", "-p", "1809", "-P", str(output)]
    process = wire.target.popen([*command, "info", "exportname"])
    try:
        end = time.monotonic() + TIMEOUT
        while not output.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        export = "ä" * 256
        with wire.target.enter():
            uri = f"nbd://127.0.0.1:1809/{quote(export)}"
            disk = open_disk(uri, OpenFlags(read_only=True))
        buffer = memoryview(bytearray(512))
        disk.read_into(0, buffer)
        assert bytes(buffer) == export.encode()
        disk.close()
    finally:
        process.terminate()
        process.wait(TIMEOUT)
