"""Detection of local users of a disk, with simulated /proc and /sys."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from aoe.errors import BusyError
from target.disks import OpenFlags, measure_disk, open_disk
from target.disks.uses import find_use

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 20


class FakeHost:
    """Simulated /proc/self/mountinfo and /sys of a host.

    Args:
        root: the directory for the files.
    """

    def __init__(self, root: Path) -> None:
        self.mounts, self.disks = root / "mountinfo", root / "block"
        self.devices = root / "dev"
        self.devices.mkdir(parents=True)
        self.disks.mkdir()
        self.mounts.write_text(
            "21 1 0:19 / /proc rw,nosuid shared:5 - proc proc rw\n"
            "22 1 259:7 / / rw,relatime shared:1 - ext4 /dev/none rw\n"
        )

    def disk(self, name: str, number: str, parent: str = "") -> Path:
        folder = self.disks / parent / name
        (folder / "holders").mkdir(parents=True)
        (folder / "dev").write_text(f"{number}\n")
        (self.devices / number).symlink_to(folder)
        if parent:
            (folder / "partition").write_text("1\n")
        return folder

    def loop(self, name: str, number: str, file: Path, window: tuple[int, int]) -> None:
        folder = self.disk(name, number) / "loop"
        folder.mkdir()
        values = {"backing_file": file, "offset": window[0], "sizelimit": window[1]}
        for key, value in values.items():
            (folder / key).write_text(f"{value}\n")

    def mount(self, number: str, point: str, source: str = "/dev/none") -> None:
        with self.mounts.open("a") as file:
            file.write(f"40 22 {number} / {point} rw shared:9 - ext4 {source} rw\n")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    it = FakeHost(tmp_path / "machine")
    monkeypatch.setattr("target.disks.uses._MOUNTS", it.mounts)
    monkeypatch.setattr("target.disks.uses._DISKS", it.disks)
    monkeypatch.setattr("target.disks.uses._DEVICES", it.devices)
    return it


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


def use_of(number: str) -> str:
    major, minor = map(int, number.split(":"))
    mode = stat.S_IFBLK | 0o660
    info = os.stat_result((mode, *[0] * 9), {"st_rdev": os.makedev(major, minor)})
    return find_use(info, 0, SIZE)


def test_mounted_device_names_the_mount_point(host: FakeHost) -> None:
    host.disk("sda", "8:0")
    assert use_of("8:0") == ""
    host.mount("8:0", r"/mnt/my\040disk")
    host.mount("8:0", "/srv")
    assert use_of("8:0") == "mounted on /mnt/my disk"


def test_mounted_partition_makes_the_disk_busy(host: FakeHost) -> None:
    host.disk("sda", "8:0")
    host.disk("sda1", "8:1", parent="sda")
    host.disk("sda2", "8:2", parent="sda")
    host.mount("8:2", "/home")
    assert use_of("8:0") == "/dev/sda2 is mounted on /home"
    assert use_of("8:1") == ""
    assert use_of("8:2") == "mounted on /home"


def test_mounted_disk_makes_the_partition_busy(host: FakeHost) -> None:
    host.disk("sda", "8:0")
    host.disk("sda1", "8:1", parent="sda")
    host.mount("8:0", "/mnt")
    assert use_of("8:1") == "/dev/sda is mounted on /mnt"


def test_device_with_a_holder_is_in_use(host: FakeHost) -> None:
    folder = host.disk("sda", "8:0")
    (folder / "holders" / "dm-3").mkdir()
    assert use_of("8:0") == "in use by /dev/dm-3"


def test_mount_with_an_anonymous_device_number_is_found_by_its_source(
    host: FakeHost,
) -> None:
    # /dev/null represents the device of a btrfs: it exists on every host.
    host.mount("0:50", "/data", source="/dev/null")
    assert use_of("1:3") == "mounted on /data"


def test_unknown_device_is_not_in_use(host: FakeHost) -> None:
    host.mounts.unlink()
    assert use_of("8:0") == ""


def test_image_attached_to_a_loop_device_is_refused_for_writing(
    host: FakeHost, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host.loop("loop3", "7:3", image, (0, 0))
    for use in ("attached to /dev/loop3", "attached to /dev/loop3, mounted on /mnt"):
        for attempt in (open_disk, measure_disk):
            with pytest.raises(BusyError) as caught:
                attempt(str(image), OpenFlags())
            assert str(caught.value) == (
                f"{image}: {use}. Unmount or detach it, or use --read-only or --force"
            )
        for flags in (OpenFlags(read_only=True), OpenFlags(force=True)):
            caplog.clear()
            open_disk(image, flags).close()
            (line,) = caplog.messages
            assert line.startswith(f"{image}: {use}: clients and the local user")
        host.mount("7:3", "/mnt")


def test_loop_device_on_another_window_does_not_conflict(
    host: FakeHost, image: Path
) -> None:
    host.loop("loop3", "7:3", image, (4096, 8192))
    open_disk(image, OpenFlags(length=4096)).close()
    open_disk(image, OpenFlags(offset=12288)).close()
    with pytest.raises(BusyError, match="attached to /dev/loop3"):
        open_disk(image, OpenFlags(offset=11776))


def test_loop_device_on_another_file_does_not_conflict(
    host: FakeHost, image: Path, tmp_path: Path
) -> None:
    host.loop("loop3", "7:3", tmp_path / "deleted", (0, 0))
    host.loop("loop4", "7:4", tmp_path, (0, 0))
    open_disk(image).close()
