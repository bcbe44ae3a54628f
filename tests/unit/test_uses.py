"""Detection of local users of a disk, with simulated /proc and /sys."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from aoe.common.uses import check_unused, find_use
from aoe.errors import BusyError
from target.disks import OpenFlags, measure_disk, open_disk

SIZE = 1 << 20


class FakeHost:
    """Simulated /proc/self/mountinfo and /sys of a host.

    Args:
        root: the directory for the files.
    """

    def __init__(self, root: Path) -> None:
        self.mounts, self.disks = root / "mountinfo", root / "block"
        root.mkdir()
        self.devices, self.swaps = root / "dev", root / "swaps"
        self.swaps.write_text("Filename  Type  Size  Used  Priority\n")
        self.devices.mkdir()
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

    def swap(self, path: Path) -> None:
        with self.swaps.open("a") as file:
            file.write(f"{str(path).replace(' ', chr(92) + '040')}\tfile\t1\t0\t-2\n")

    def mount(self, number: str, point: str, source: str = "/dev/none") -> None:
        with self.mounts.open("a") as file:
            file.write(f"40 22 {number} / {point} rw shared:9 - ext4 {source} rw\n")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    it = FakeHost(tmp_path / "machine")
    monkeypatch.setattr("aoe.common.uses._MOUNTS", it.mounts)
    monkeypatch.setattr("aoe.common.uses._DISKS", it.disks)
    monkeypatch.setattr("aoe.common.uses._DEVICES", it.devices)
    monkeypatch.setattr("aoe.common.uses._SWAPS", it.swaps)
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


def test_swap_file_and_swap_device_are_in_use(host: FakeHost, tmp_path: Path) -> None:
    path = tmp_path / "swap file"
    path.write_bytes(bytes(SIZE))
    open_disk(path).close()
    host.swap(tmp_path / "removed")
    host.swap(path)
    with pytest.raises(BusyError, match="in use as swap"):
        open_disk(path)
    # /dev/null represents the swap device: it exists on every host.
    host.disk("sda", "8:0")
    host.disk("sda1", "1:3", parent="sda")
    host.swap(Path("/dev/null"))
    assert use_of("1:3") == "in use as swap"
    assert use_of("8:0") == "/dev/sda1 is in use as swap"


def test_second_loop_device_on_a_file_is_in_use(host: FakeHost, image: Path) -> None:
    host.loop("loop3", "7:3", image, (0, 0))
    host.loop("loop4", "7:4", image, (0, 4096))
    host.loop("loop5", "7:5", image, (4096, 4096))
    host.mount("7:4", "/mnt")
    assert use_of("7:3") == "its file is attached to /dev/loop4, mounted on /mnt"
    assert use_of("7:5") == "its file is attached to /dev/loop3"
    (host.disks / "loop3").rename(host.disks / "was3")
    assert use_of("7:5") == ""


def test_check_before_writing_names_path_use_and_fix(
    host: FakeHost, image: Path
) -> None:
    check_unused(image, image.stat(), 0, SIZE, "Detach it")
    host.loop("loop3", "7:3", image, (0, 0))
    with pytest.raises(BusyError) as caught:
        check_unused(image, image.stat(), 0, SIZE, "Detach it")
    assert str(caught.value) == f"{image}: attached to /dev/loop3. Detach it"


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
                f"{image}: {use}. Unmount or detach it, or use --read-only. With "
                "--force, writes from both sides corrupt it"
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
