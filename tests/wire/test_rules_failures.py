"""Rules of disks that fail or disappear (P41, P46), byte for byte on a real wire."""

from __future__ import annotations

import shlex
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from aoe.net.netns import Wire
from tests.asking import ata, ata_response
from tests.engines import serve_command
from tests.nbd_servers import exported
from tests.requirements import need_namespaces, program
from tests.rules import (
    AWAKE,
    DISK,
    FAULT,
    UNCORRECTABLE,
    error_response,
    read_back,
    refused,
    trim,
    write,
    write_response,
)
from tests.serving import NO_PROBE, TIMEOUT, Client, client, finish, ready_line, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.rules import Step

pytestmark = [pytest.mark.netns, pytest.mark.usefixtures("engine")]

READS = (0x20, 0x24, 0xC8, 0x25, 0x40, 0x42)
WRITES = (0x30, 0x34, 0xCA, 0x35, 0x3D)
RESTS = (0xE0, 0xE2, 0xE6)
FLUSHES = (0xE7, 0xEA)
FLUSH = ata(0xE7, count=0)
CACHE_OFF = ata(0xEF, count=0, feature=0x82)
ONE = b"\xa5" * 512
UNTOUCHED = read_back(5, DISK[2560:3072])

DD = "dd status=none iflag=fullblock"
METHODS = {
    "get_size": "stat -c %s disk.img",
    "pread": f"{DD},skip_bytes,count_bytes if=disk.img skip=$4 count=$3",
    "pwrite": f"{DD} of=disk.img conv=notrunc oflag=seek_bytes seek=$4",
    "zero": f"{DD},count_bytes if=/dev/zero count=$3 of=disk.img conv=notrunc"
    " oflag=seek_bytes seek=$4",
    "flush": "true",
    **{f"can_{name}": "true" for name in ("write", "zero", "flush")},
}
"""An nbdkit sh plugin; a file named after a method has the error that it returns."""


class FailingDisk:
    """A disk with injected errors, behind an NBD server of its own."""

    def __init__(self, place: Path) -> None:
        nbdkit = program("nbdkit")
        self._place = place
        (place / "disk.img").write_bytes(DISK)
        socket = place / "socket"
        self.uri = exported(socket)
        self._server = subprocess.Popen(
            [nbdkit, "-f", "-U", socket, "eval", *map(self._method, METHODS)]
        )
        end = time.monotonic() + TIMEOUT
        while not socket.exists():
            assert time.monotonic() < end
            time.sleep(0.01)

    def _method(self, name: str) -> str:
        how = f"if [ -e {name} ]; then cat {name} >&2; exit 1; fi; {METHODS[name]}"
        return f"{name}=cd {shlex.quote(str(self._place))}; {how}"

    @contextmanager
    def failing(self, method: str, error: str) -> Iterator[None]:
        trigger = self._place / method
        trigger.write_text(f"{error} as it was told to\n")
        yield
        trigger.unlink()

    def vanish(self) -> None:
        self._server.kill()
        self._server.wait(TIMEOUT)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    disk = FailingDisk(tmp_path)
    yield disk
    disk.vanish()


@pytest.fixture
def asking(disk: FailingDisk, engine: str) -> Iterator[Client]:
    """Serve the disk, by each engine."""
    del engine
    need_namespaces()
    with (
        Wire() as wire,
        serving(wire, disk.uri, NO_PROBE, "--no-state"),
        client(wire) as asking,
    ):
        yield asking


FORCED = write(9, ONE, 0x3D)
FAILURES: dict[str, tuple[str, list[str], list[Step]]] = {
    "p41 read error is uncorrectable": (
        "pread",
        ["EIO", "ENOMEM", "EPERM"],
        [refused(ata(opcode, 5, 2), UNCORRECTABLE) for opcode in READS],
    ),
    "p41 write error is a device fault": (
        "pwrite",
        ["EIO", "ENOSPC", "EPERM"],
        [*(refused(write(5, ONE, opcode), FAULT) for opcode in WRITES), UNTOUCHED],
    ),
    "p41 trim error is a device fault": (
        "zero",
        ["EIO", "ENOSPC"],
        [refused(trim((5, 1)), FAULT), UNTOUCHED],
    ),
}


@pytest.mark.parametrize("rule", FAILURES)
def test_rule(asking: Client, disk: FailingDisk, rule: str) -> None:
    method, errors, steps = FAILURES[rule]
    good = (UNTOUCHED, (FORCED, write_response(9)))
    for error in errors:
        with disk.failing(method, error):
            for request, response in (*steps, AWAKE):
                assert asking.ask(request) == response
        for request, response in good:
            assert asking.ask(request) == response
    assert asking.ask(FLUSH) == ata_response(0x40)


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_p41_p46_flush_error_is_a_device_fault_until_the_disk_is_reopened(
    asking: Client, disk: FailingDisk, error: str
) -> None:
    flushes = [
        *(refused(ata(op, count=n), FAULT) for op in FLUSHES for n in (0, 1)),
        *(refused(ata(opcode, count=0), FAULT) for opcode in RESTS),
        refused(FORCED, FAULT),
    ]
    with disk.failing("flush", error):
        for request, response in (*flushes, AWAKE):
            assert asking.ask(request) == response
    # What they should have covered may be lost, though the disk works again.
    for request, response in (*flushes, AWAKE, UNTOUCHED):
        assert asking.ask(request) == response


def test_p41_server_shutdown_is_device_unavailable(
    asking: Client, disk: FailingDisk
) -> None:
    for method, request in (("pread", ata(0x24, 5)), ("pwrite", write(5, ONE))):
        with disk.failing(method, "ESHUTDOWN"):
            assert asking.ask(request) == error_response(request, 3, 36)
        end = time.monotonic() + TIMEOUT
        while asking.ask(UNTOUCHED[0]) != UNTOUCHED[1]:
            assert time.monotonic() < end


def test_p41_p18_missing_device_is_unavailable(wire: Wire, tmp_path: Path) -> None:
    disk = FailingDisk(tmp_path)
    with serving(wire, disk.uri, NO_PROBE, "--no-state"), client(wire) as asking:
        disk.vanish()
        for request in (
            *(ata(opcode, 5, 2) for opcode in READS),
            *(write(5, ONE, opcode) for opcode in WRITES),
            *(ata(opcode, count=0) for opcode in (*FLUSHES, *RESTS)),
            trim((5, 1)),
            CACHE_OFF,
        ):
            # The registers of the request, and no data.
            assert asking.ask(request) == error_response(request, 3, 36)
        assert asking.ask(AWAKE[0]) == AWAKE[1]


def test_p41_full_file_system_is_device_fault(wire: Wire, tmp_path: Path) -> None:
    mount = [program("mount"), "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    image = [str(tmp_path / "disk.img"), "--create", "1M", "--no-state", NO_PROBE]
    serve = serve_command("e7.3", wire.interface, *image)
    process = wire.target.popen(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f"{shlex.join(mount)} && exec {shlex.join(serve)}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ready_line(process)
    filling = [(write(lba, ONE), write_response(lba)) for lba in range(0, 128, 8)]
    with client(wire) as asking:
        for request, response in (
            *filling,
            refused(write(256, ONE), FAULT),
            read_back(256, bytes(512)),
            *(read_back(lba, ONE + bytes(512)) for lba in range(0, 128, 8)),
            # There is space again.
            (trim((0, 8)), ata_response(0x40, aflags=0x41)),
            (write(256, ONE), write_response(256)),
            read_back(256, ONE),
        ):
            assert asking.ask(request) == response
    assert finish(process, 15) == ""
