from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aoe.errors import AoEError, BusyError, NotFoundError, UsageError
from target.disks import Disk, OpenFlags, open_disk
from target.disks.overlay.files import (
    commit_overlay,
    overlay_status,
    reset_overlay,
)
from tests.programs import AOE_TARGET

CLUSTER = 64 << 10
SIZE = 5 * CLUSTER + 512


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    path = tmp_path / "golden.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "client.ovl")


def read(disk: Disk) -> bytes:
    buffer = memoryview(bytearray(disk.size))
    disk.read_into(0, buffer)
    return bytes(buffer)


def write(golden: Path, file: str, offset: int, data: bytes) -> None:
    disk = open_disk(golden, overlay=file)
    disk.write_from(offset, memoryview(data))
    disk.close()


def quiet(_done: int, _total: int) -> None:
    pass


def aoe_target(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AOE_TARGET, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_eight_overlays_do_not_change_their_base(golden: Path, tmp_path: Path) -> None:
    before = golden.read_bytes()
    checksum = hashlib.sha256(before).digest()
    golden.chmod(0o444)
    disks = [open_disk(golden, overlay=str(tmp_path / f"{n}.ovl")) for n in range(8)]
    for number, disk in enumerate(disks):
        assert not disk.read_only
        disk.write_from(512 * number, memoryview(bytes([number]) * 1024))
        disk.discard(CLUSTER * 2, CLUSTER)
    for number, disk in enumerate(disks):
        expected = bytearray(before)
        expected[512 * number : 512 * number + 1024] = bytes([number]) * 1024
        expected[2 * CLUSTER : 3 * CLUSTER] = bytes(CLUSTER)
        assert read(disk) == expected
        disk.close()
    assert hashlib.sha256(golden.read_bytes()).digest() == checksum


def test_overlay_is_sparse(golden: Path, file: str) -> None:
    write(golden, file, 3 * CLUSTER, b"\xee" * 512)
    found = overlay_status(file)
    assert (found.used, found.clusters, found.size) == (1, 6, SIZE)
    assert found.base_state == "unchanged"
    assert found.disk_bytes <= 2 * CLUSTER
    assert Path(file).stat().st_size > SIZE


def test_writes_are_there_after_a_reopen(golden: Path, file: str) -> None:
    expected = bytearray(golden.read_bytes())
    expected[SIZE - 512 :] = b"\xee" * 512
    write(golden, file, SIZE - 512, b"\xee" * 512)
    for flags in (OpenFlags(), OpenFlags(sync=True), OpenFlags(read_only=True)):
        disk = open_disk(golden, flags, file)
        assert read(disk) == expected
        disk.close()


def test_killed_target_loses_no_completed_write(golden: Path, file: str) -> None:
    program = (
        "import os, sys; from target.disks import open_disk\n"
        "disk = open_disk(sys.argv[1], overlay=sys.argv[2])\n"
        "disk.write_from(65536, memoryview(b'x' * 512))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, golden, file], check=False)
    assert done.returncode == -9
    disk = open_disk(golden, overlay=file)
    assert read(disk)[CLUSTER : CLUSTER + 513].startswith(b"x" * 512)
    assert read(disk)[CLUSTER + 512 :] == golden.read_bytes()[CLUSTER + 512 :]
    disk.close()


def test_overlay_of_a_window_of_the_base(golden: Path, file: str) -> None:
    disk = open_disk(golden, OpenFlags(offset=1024, length=CLUSTER), file)
    disk.write_from(512, memoryview(b"\xee" * 512))
    disk.close()
    expected = bytearray(golden.read_bytes())
    expected[1536:2048] = b"\xee" * 512
    assert commit_overlay(file, quiet) == CLUSTER
    assert golden.read_bytes() == expected


def test_commit_writes_to_the_base_and_empties_the_overlay(
    golden: Path, file: str
) -> None:
    expected = bytearray(golden.read_bytes())
    expected[512:1024] = b"\xee" * 512
    expected[SIZE - 512 :] = b"\xdd" * 512
    write(golden, file, 512, b"\xee" * 512)
    write(golden, file, SIZE - 512, b"\xdd" * 512)
    steps: list[tuple[int, int]] = []
    done = commit_overlay(file, lambda done, total: steps.append((done, total)))
    assert done == CLUSTER + 512
    assert steps == [(CLUSTER, CLUSTER + 512), (CLUSTER + 512, CLUSTER + 512)]
    assert golden.read_bytes() == expected
    assert overlay_status(file).used == 0
    write(golden, file, 0, b"\xcc" * 512)


def test_interrupted_commit_is_finished_by_another_one(golden: Path, file: str) -> None:
    expected = bytearray(golden.read_bytes())
    for cluster in range(3):
        write(golden, file, cluster * CLUSTER, bytes([cluster]) * 512)
        expected[cluster * CLUSTER : cluster * CLUSTER + 512] = bytes([cluster]) * 512

    def stop(done: int, total: int) -> None:
        if done * 3 > total:
            raise OSError(5, "input/output error")

    with pytest.raises(AoEError):
        commit_overlay(file, stop)
    fix = f"Finish it with: aoe-target overlay commit {file}"
    with pytest.raises(AoEError, match="a commit was interrupted") as caught:
        open_disk(golden, overlay=file)
    assert caught.value.fix == fix
    with pytest.raises(AoEError, match="a commit was interrupted"):
        reset_overlay(file)
    commit_overlay(file, quiet)
    assert golden.read_bytes() == expected
    write(golden, file, 0, bytes(512))


def test_commit_and_reset_are_refused_while_served(golden: Path, file: str) -> None:
    write(golden, file, 0, b"\xee" * 512)
    disk = open_disk(golden, overlay=file)
    for action in (lambda: commit_overlay(file, quiet), lambda: reset_overlay(file)):
        with pytest.raises(BusyError):
            action()
    assert overlay_status(file).in_use
    with pytest.raises(BusyError):
        open_disk(golden, OpenFlags(force=True), file)
    disk.close()


def test_commit_is_refused_while_another_overlay_uses_the_base(
    golden: Path, file: str, tmp_path: Path
) -> None:
    write(golden, file, 0, b"\xee" * 512)
    before = golden.read_bytes()
    other = open_disk(golden, overlay=str(tmp_path / "other.ovl"))
    with pytest.raises(BusyError):
        commit_overlay(file, quiet)
    other.close()
    assert golden.read_bytes() == before
    assert overlay_status(file).state == "ready"


def test_reset_empties_and_deallocates_the_overlay(golden: Path, file: str) -> None:
    write(golden, file, 0, b"\xee" * 4 * CLUSTER)
    reset_overlay(file)
    found = overlay_status(file)
    assert (found.used, found.state) == (0, "ready")
    assert found.disk_bytes <= CLUSTER
    disk = open_disk(golden, overlay=file)
    assert read(disk) == golden.read_bytes()
    disk.close()


def test_changed_base_is_refused_unless_forced_or_reset(
    golden: Path, file: str
) -> None:
    write(golden, file, 0, b"\xee" * 512)
    info = golden.stat()
    os.utime(golden, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    assert overlay_status(file).base_state == "changed"
    with pytest.raises(UsageError, match="has changed since the overlay") as caught:
        open_disk(golden, overlay=file)
    assert caught.value.fix == (
        "Restore the old base, or discard the overlay with: "
        f"aoe-target overlay reset {file}, or use --force"
    )
    with pytest.raises(UsageError, match="has changed since the overlay"):
        commit_overlay(file, quiet)
    open_disk(golden, OpenFlags(force=True), file).close()
    open_disk(golden, overlay=file).close()
    os.utime(golden, ns=(info.st_atime_ns, info.st_mtime_ns + 2))
    reset_overlay(file)
    open_disk(golden, overlay=file).close()


def test_base_of_another_size_is_refused_even_if_forced(
    golden: Path, file: str
) -> None:
    write(golden, file, 0, b"\xee" * 512)
    os.truncate(golden, SIZE + 512)
    with pytest.raises(UsageError, match=r"made for a base of 320\.5 KiB"):
        open_disk(golden, OpenFlags(force=True), file)


def test_base_can_be_moved(golden: Path, file: str) -> None:
    write(golden, file, 0, b"\xee" * 512)
    moved = golden.rename(golden.with_name("moved.img"))
    assert overlay_status(file).base_state == "missing"
    write(moved, file, 512, b"\xee" * 512)
    assert overlay_status(file).base == str(moved)


def test_other_file_is_not_overwritten(golden: Path, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_bytes(b"precious" * 64)
    with pytest.raises(UsageError, match="not an overlay"):
        open_disk(golden, overlay=str(other))
    with pytest.raises(UsageError, match="not an overlay"):
        reset_overlay(other)
    assert other.read_bytes() == b"precious" * 64
    with pytest.raises(NotFoundError, match="no such overlay"):
        overlay_status(tmp_path / "nothing")
    with pytest.raises(NotFoundError, match="no such overlay"):
        open_disk(golden, OpenFlags(read_only=True), str(tmp_path / "nothing"))


def test_overlay_file_is_not_served_as_an_image(golden: Path, file: str) -> None:
    write(golden, file, 0, b"\xee" * 512)
    with pytest.raises(UsageError, match="this is an overlay, not a disk image"):
        open_disk(file)


def test_failed_open_leaks_nothing(golden: Path, file: str) -> None:
    write(golden, file, 0, b"\xee" * 512)
    os.utime(golden)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(UsageError):
        open_disk(golden, overlay=file)
    with pytest.raises(UsageError):
        commit_overlay(file, quiet)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_output_of_the_overlay_commands(golden: Path, file: str) -> None:
    write(golden, file, 0, b"\xee" * 512)
    shown = aoe_target("overlay", "status", file)
    assert shown.returncode == 0
    assert "1 of 6 clusters of 64 KiB written" in shown.stdout
    assert f"base {golden}: 320.5 KiB (328,192 bytes), unchanged" in shown.stdout
    found = json.loads(aoe_target("overlay", "status", file, "--json").stdout)
    assert (found["schema_version"], found["used"], found["size"]) == (1, 1, SIZE)
    done = aoe_target("overlay", "commit", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{file}: 64 KiB (65,536 bytes) committed\n"
    assert golden.read_bytes()[:512] == b"\xee" * 512
    assert aoe_target("overlay", "reset", file).stdout == f"{file}: empty\n"


def test_errors_of_the_overlay_commands(golden: Path, file: str) -> None:
    missing = aoe_target("overlay", "status", file)
    assert missing.returncode == 3
    assert missing.stderr.startswith(f"aoe-target: {file}: no such overlay. ")
    disk = open_disk(golden, overlay=file)
    busy = aoe_target("overlay", "reset", file)
    disk.close()
    assert busy.returncode == 5
    assert "in use by another program" in busy.stderr
