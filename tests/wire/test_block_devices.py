"""Serve real block devices, and refuse mounted ones.

Loop devices need root outside a user namespace. Without it these tests check the error
message for a device that may not be opened.
"""

from __future__ import annotations

import os
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.asking import ata, ata_response
from tests.loop_devices import loop_device
from tests.programs import AOE_TARGET
from tests.requirements import program
from tests.serving import TIMEOUT, client, serving, start

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

READ, WRITE, FLUSH, TRIM = 0x24, 0x34, 0xE7, 0x06
SIZE = 4 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


def refusal(wire: Wire, path: str, *words: str) -> tuple[int, str]:
    process = start(wire.target, "serve", "e7.4", wire.interface, path, *words)
    out, err = process.communicate(timeout=TIMEOUT)
    assert out == ""
    return process.returncode, err.rstrip("\n").removeprefix(f"aoe-target: {path}: ")


def expect_permission_error(wire: Wire) -> None:
    # The second one on machines without loop devices.
    assert refusal(wire, "/dev/loop0") in (
        (4, "not allowed to read. Run as a user with access to it"),
        (3, "no such device. List them with: lsblk"),
    )


def test_block_device_is_served_for_reads_writes_flush_and_trim(
    wire: Wire, image: Path
) -> None:
    expected = bytearray(image.read_bytes())
    blocks = image.stat().st_blocks
    with loop_device(image) as device:
        if not device:
            expect_permission_error(wire)
            return
        ranges = struct.pack("<Q", 1024 << 48 | 2048).ljust(512, b"\0")
        for words in ((), ("--direct",), ("--sync",)):
            data = os.urandom(1024)
            with (
                serving(wire, device, "--no-state", *words),
                client(wire) as asking,
            ):
                request = ata(WRITE, 5, 2, aflags=0x41, data=data)
                assert asking.ask(request) == ata_response(0x40, lba=5, aflags=0x41)
                request = ata(TRIM, aflags=0x41, feature=1, data=ranges)
                assert asking.ask(request)[27] == 0x40
                assert asking.ask(ata(FLUSH, count=0)) == ata_response(0x40)
                assert asking.ask(ata(READ, 2048))[36:] == bytes(512)
                # O_EXCL keeps it from being mounted or served a second time.
                code, why = refusal(wire, device)
                assert code == 5
                assert why.startswith("mounted or in use")
            expected[5 * 512 : 7 * 512] = data
    expected[2048 * 512 : 3072 * 512] = bytes(1024 * 512)
    assert image.read_bytes() == expected
    assert image.stat().st_blocks < blocks


def test_image_of_a_loop_device_is_not_served_for_writing(
    wire: Wire, image: Path
) -> None:
    with loop_device(image) as device:
        if not device:
            expect_permission_error(wire)
            return
        code, why = refusal(wire, str(image))
    assert code == 5
    assert why.startswith(f"attached to {device}. Unmount or detach it")
    with serving(wire, image, "--no-state"):
        pass


def test_read_only_device_is_served_only_with_read_only(
    wire: Wire, image: Path
) -> None:
    with loop_device(image) as device:
        if not device:
            expect_permission_error(wire)
            return
        subprocess.run([program("blockdev"), "--setro", device], check=True)
        fix = f"To allow writes: blockdev --setrw {device}, or use --read-only"
        expected = (4, f"the device is set to read-only. {fix}")
        try:
            for words in ((), ("--force",)):
                assert refusal(wire, device, *words) == expected
            options = ("--no-state", "--read-only")
            with serving(wire, device, *options), client(wire) as asking:
                write = ata(WRITE, 0, 1, aflags=0x41, data=bytes(512))
                assert asking.ask(write)[27] == 0x41
        finally:
            # The device keeps the setting when it is detached.
            subprocess.run([program("blockdev"), "--setrw", device], check=True)
        with serving(wire, device, "--no-state"):
            pass


def test_device_that_shrinks_while_it_is_served_is_an_error(
    wire: Wire, image: Path
) -> None:
    content = image.read_bytes()
    with loop_device(image) as device:
        if not device:
            expect_permission_error(wire)
            return
        with serving(wire, device, "--no-state"), client(wire) as asking:
            write = ata(WRITE, 1, 1, aflags=0x41, data=content[512:1024])
            assert asking.ask(write)[27] == 0x40
            os.truncate(image, SIZE // 2)
            subprocess.run([program("losetup"), "--set-capacity", device], check=True)
            last = SIZE // 512 - 1
            assert asking.ask(ata(READ, last))[27] & 1
            assert asking.ask(ata(WRITE, last, aflags=0x41, data=bytes(512)))[27] & 1
            assert asking.ask(write)[27] & 1
            assert asking.ask(ata(FLUSH, count=0))[27] & 1
            assert asking.ask(ata(READ, 1))[36:] == content[512:1024]
    assert image.read_bytes() == content[: SIZE // 2]


def test_mounted_disk_is_refused_with_its_mount_point(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    mkfs = program("mkfs.ext4")
    subprocess.run([mkfs, "-q", "-F", image], check=True)
    point = tmp_path / "mount point"
    point.mkdir()
    # The mount ends with the mount namespace.
    script = """
        mount -o loop "$1" "$2"
        image=$1 device=$(findmnt --noheadings --output SOURCE "$2") interface=$3
        shift 3
        for path in "$image" "$device"; do
            "$@" serve e7.3 "$interface" "$path" || true
        done
    """
    words = [str(image), str(point), wire.interface, *AOE_TARGET]
    done = wire.target.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", *words],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    if done.returncode:
        expect_permission_error(wire)
        return
    of_image, of_device = done.stderr.splitlines()
    assert of_image.startswith(f"aoe-target: {image}: attached to /dev/loop")
    assert of_device.startswith("aoe-target: /dev/loop")
    assert f", mounted on {point}. Unmount" in of_image
    assert f": mounted on {point}. Unmount" in of_device
