"""``aoe copy`` and ``aoe read``: what success means, and what a failure leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from aoe.common.process.programs import program_command
from tests.loop_devices import loop_device
from tests.programs import AOE
from tests.requirements import program
from tests.serving import NO_PROBE, TIMEOUT, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

MIB = 1 << 20
SIZE = 16 * MIB
OLD = b"the old backup"
COMMANDS = pytest.mark.parametrize("command", ["copy", "read"])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    directory = tmp_path / "backups"
    directory.mkdir()
    path = directory / "backup"
    path.write_bytes(OLD)
    return path


def aoe(
    wire: Wire, *words: object, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [*prefix, *AOE, *map(str, words), "-i", wire.interface]
    return wire.initiator.run(
        command, capture_output=True, text=True, timeout=4 * TIMEOUT
    )


@COMMANDS
def test_a_late_write_error_of_a_file_is_reported(
    wire: Wire, image: Path, backup: Path, tmp_path: Path, command: str
) -> None:
    """Strace makes fsync fail, as it does after an error of writing back."""
    strace = (program("strace"), "-f", "-o", str(tmp_path / "log"))
    inject = ("-e", "trace=fsync", "-e", "inject=fsync:error=EIO")
    with serving(wire, image, NO_PROBE):
        done = aoe(wire, command, "e7.3", backup, prefix=(*strace, *inject))
    assert done.returncode == 1
    assert "backup: written, but not flushed: input/output error" in done.stderr
    assert done.stdout == ""
    assert backup.read_bytes() == OLD


@COMMANDS
def test_a_late_write_error_of_a_block_device_is_reported(
    wire: Wire, image: Path, tmp_path: Path, command: str
) -> None:
    """The file of a loop device is on a file system that is too small for it."""
    script = """
        mount -t tmpfs -o size=4M tmpfs "$1"
        truncate -s 16M "$1/disk"
        device=$(losetup --find --show "$1/disk")
        shift
        "$@" "$device" && code=0 || code=$?
        losetup --detach "$device"
        exit $code
    """
    with loop_device(image) as device:
        is_permitted = bool(device)
    point = tmp_path / "small"
    point.mkdir()
    prefix = ("unshare", "--mount", "sh", "-ec", script, "sh", str(point))
    command_line = (*prefix, *AOE, command, "-i", wire.interface, "e7.3")
    with serving(wire, image, NO_PROBE):
        done = wire.initiator.run(
            command_line, capture_output=True, text=True, timeout=4 * TIMEOUT
        )
    assert done.returncode != 0, done
    if is_permitted:
        assert done.returncode == 1, done
        assert ": written, but not flushed: input/output error" in done.stderr, done
        assert done.stdout == ""


@COMMANDS
def test_a_backup_survives_a_target_that_stops(
    wire: Wire, image: Path, backup: Path, command: str
) -> None:
    slow = ("--filter", "delay:seconds=0.02")
    with serving(wire, image, NO_PROBE, *slow) as target:
        process = start(wire, command, "e7.3", backup, "--deadsecs", "1")
        wait_for_data(backup)
        target.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=TIMEOUT)
        target.wait(TIMEOUT)
        target.returncode = 0
    assert process.returncode == 3, err
    assert backup.read_bytes() == OLD
    assert list(backup.parent.iterdir()) == [backup]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_backup_and_no_temporary_file(
    wire: Wire, image: Path, backup: Path, number: int
) -> None:
    slow = ("--filter", "delay:seconds=0.02")
    with serving(wire, image, NO_PROBE, *slow):
        process = start(wire, "copy", "e7.3", backup)
        wait_for_data(backup)
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert backup.read_bytes() == OLD
    assert list(backup.parent.iterdir()) == [backup]


def test_a_copy_under_nohup_survives_the_end_of_the_session(
    wire: Wire, image: Path, backup: Path
) -> None:
    slow = ("--filter", "delay:seconds=0.02")
    nohup = ("nohup", *program_command("aoe"))
    with serving(wire, image, NO_PROBE, *slow):
        process = start(wire, "copy", "e7.3", backup, program=nohup)
        wait_for_data(backup)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert backup.read_bytes() == image.read_bytes()


def start(
    wire: Wire, *words: object, program: Sequence[str] = AOE
) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = wire.initiator.popen(
        [*program, *map(str, words), "-i", wire.interface],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process


def wait_for_data(backup: Path) -> None:
    """Wait until the copy is under way."""
    wait_until(
        lambda: any(
            path.stat().st_blocks > 2 * MIB // 512 for path in backup.parent.iterdir()
        )
    )


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@COMMANDS
def test_a_backup_survives_a_limit_of_the_file_size(
    wire: Wire, image: Path, backup: Path, command: str
) -> None:
    limit = (program("prlimit"), f"--fsize={4 * MIB}")
    with serving(wire, image, NO_PROBE):
        done = aoe(wire, command, "e7.3", backup, prefix=limit)
    assert done.returncode == 1
    assert done.stderr == f"aoe: {backup}: file too large\n"
    assert backup.read_bytes() == OLD


@COMMANDS
def test_the_image_of_a_loop_device_is_not_overwritten(
    wire: Wire, image: Path, tmp_path: Path, command: str
) -> None:
    used = tmp_path / "used.img"
    used.write_bytes(bytes(MIB))
    with serving(wire, image, NO_PROBE), loop_device(used) as device:
        for options in ((), ("--in-place",)):
            done = aoe(wire, command, "e7.3", used, *options)
            if not device:
                return
            assert done.returncode == 5
            assert done.stderr == (
                f"aoe: {used}: attached to {device}. "
                "Unmount or detach it, or use --force\n"
            )
            assert used.read_bytes() == bytes(MIB)
        assert aoe(wire, command, "e7.3", used, "--force").returncode == 0
    assert used.read_bytes() == image.read_bytes()


@pytest.mark.parametrize("command", ["copy", "read", "redirected"])
def test_a_mounted_device_is_not_overwritten(
    wire: Wire, image: Path, tmp_path: Path, command: str
) -> None:
    used = tmp_path / "used.img"
    used.write_bytes(bytes(2 * SIZE))
    mkfs = program("mkfs.ext4")
    subprocess.run([mkfs, "-q", "-F", used], check=True)
    point = tmp_path / "mnt"
    point.mkdir()
    script = """
        mount -o loop "$1" "$2"
        device=$(findmnt --noheadings --output SOURCE "$2")
        shift 2
        if [ "$1" = redirected ]; then
            shift
            "$@" >"$device"
        else
            "$@" "$device"
        fi
    """
    words = ["unshare", "--mount", "sh", "-ec", script, "sh", str(used), str(point)]
    prefix, subcommand = [], command
    if command == "redirected":
        prefix, subcommand = [command], "read"
    with serving(wire, image, NO_PROBE), loop_device(image) as device:
        done = wire.initiator.run(
            [*words, *prefix, *AOE, subcommand, "-i", wire.interface, "e7.3"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    assert done.returncode != 0, done
    if device:
        assert done.returncode == 5
        assert f": mounted on {point}. Unmount or detach it" in done.stderr
    subprocess.run([program("fsck.ext4"), "-fn", used], check=True)


@COMMANDS
def test_a_read_only_device_is_not_written_to(
    wire: Wire, image: Path, tmp_path: Path, command: str
) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(SIZE))
    with serving(wire, image, NO_PROBE), loop_device(other) as device:
        if not device:
            return
        subprocess.run([program("blockdev"), "--setro", device], check=True)
        try:
            done = aoe(wire, command, "e7.3", device)
        finally:
            # The device keeps the setting when it is detached.
            subprocess.run([program("blockdev"), "--setrw", device], check=True)
        assert done.returncode == 4
        assert "the device is set to read-only" in done.stderr
        options = ("--verify",) if command == "copy" else ()
        assert aoe(wire, command, "e7.3", device, *options).returncode == 0
    assert other.read_bytes() == image.read_bytes()


def test_a_block_device_that_shrinks_while_it_is_copied(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "other.img"
    disk.write_bytes(bytes(SIZE))
    with (
        serving(wire, disk, NO_PROBE, "--filter", "delay:seconds=0.02"),
        loop_device(image) as device,
    ):
        if not device:
            return
        process = start(wire, "copy", device, "e7.3")
        wait_until(lambda: any(disk.read_bytes()[MIB:]))
        os.truncate(image, SIZE // 2)
        subprocess.run([program("losetup"), "--set-capacity", device], check=True)
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert out == ""
    assert f"aoe: {device}: has shrunk from " in err


@pytest.mark.parametrize("size", [SIZE // 2, 2 * SIZE], ids=["shrinks", "grows"])
def test_a_disk_that_is_resized_while_it_is_copied(
    wire: Wire, image: Path, backup: Path, size: int
) -> None:
    with serving(wire, image, NO_PROBE, "--filter", "delay:seconds=0.02") as target:
        process = start(wire, "copy", "e7.3", backup)
        wait_for_data(backup)
        os.truncate(image, size)
        target.send_signal(signal.SIGHUP)
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1, err
    assert out == ""
    assert backup.read_bytes() == OLD


def test_an_image_that_is_truncated_while_it_is_copied(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "other.img"
    disk.write_bytes(bytes(SIZE))
    with serving(wire, disk, NO_PROBE, "--filter", "delay:seconds=0.02"):
        process = start(wire, "copy", image, "e7.3")
        wait_until(lambda: any(disk.read_bytes()[MIB:]))
        os.truncate(image, SIZE // 2)
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert out == ""
    assert f"aoe: {image}: has shrunk from " in err
