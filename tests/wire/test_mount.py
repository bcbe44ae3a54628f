"""Attach disks as files, block devices and mounts, with the kernel's file systems.

Loop devices and mounts need root outside a user namespace. Without it these tests check
the error message of ``aoe attach``.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import struct
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.attaching import LONG, attached, may_mount, may_use_fuse, start_attach
from tests.programs import AOE
from tests.requirements import need, program
from tests.serving import NO_PROBE, TIMEOUT, finish, ready_line, serving, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe.net.netns import Wire
    from tests.attaching import Attached
    from tests.conftest import MakeWire

pytestmark = pytest.mark.netns

CHECKOUT = Path(__file__).parents[2]
FOLDERS = ("aoe", "target", "initiator", "tests")
MIB = 1 << 20
XFS_NEEDS = 300 * MIB
LOSSY = ("--filter", "drop:probability=0.02", "--filter", "duplicate:probability=0.02")
FSCK = {
    "xfs": ["xfs_repair", "-n", "-f"],
    "ext4": ["fsck.ext4", "-fn"],
    "ext3": ["fsck.ext3", "-fn"],
}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(XFS_NEEDS)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def expect_permission_error(wire: Wire, *words: object) -> None:
    process = start_attach(wire, *words)
    out, err = process.communicate(timeout=TIMEOUT * 3)
    assert out == ""
    assert process.returncode in (3, 4)
    line = err.splitlines()[-1]
    if may_use_fuse():
        assert line.startswith("aoe: /dev/loop-control: ")
        assert "or use --fuse FILE instead" in line or "modprobe loop" in line
    else:
        assert line.startswith("aoe: /dev/fuse: ")
        assert "that may open /dev/fuse" in line or "modprobe fuse" in line


def mounting(
    *words: str, needs: str = "mkfs.ext4"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a test by a check of the error message if mounting is not permitted.

    Args:
        words: options of ``aoe attach``; a name in braces stands for that fixture.
        needs: the program that makes the file system, in the same way.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def tested(**fixtures: Any) -> None:  # noqa: ANN401 - each has its own type
            if may_mount():
                need("libfuse", needs.format_map(fixtures))
                test(**fixtures)
                return
            need("libfuse")
            wire = fixtures.get("wire") or fixtures["make_wire"](9000)
            arguments = [word.format_map(fixtures) for word in words]
            with serving(wire, fixtures["disk"], NO_PROBE):
                expect_permission_error(wire, *arguments)

        return tested

    return decorate


@contextmanager
def mounted(wire: Wire, directory: Path, *words: object) -> Iterator[Attached]:
    """Mount the disk, and detach it at the end."""
    with attached(wire, "--mount", directory, *words) as attachment:
        yield attachment
        attachment.aoe("detach", directory)
        assert attachment.wait() == 0


def make_filesystem(kind: str, disk: Path) -> None:
    make = program(f"mkfs.{kind}")
    subprocess.run([make, "-q", str(disk)], check=True, capture_output=True)


def fsck(kind: str, disk: Path) -> None:
    words = [program(FSCK[kind][0]), *FSCK[kind][1:], str(disk)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Make a copy of this checkout's sources, which does not change during the test."""
    for folder in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / folder, tmp_path / "tree" / folder, ignore=ignored)
    return tmp_path / "tree"


def copy_tree(attachment: Attached, tree: Path, to: Path) -> subprocess.Popen[str]:
    """Copy a directory and 32 MiB of random data, and sync."""
    script = f"""
        cd "$2"
        cp -a "$1" tree
        head -c {32 * MIB} /dev/urandom >noise
        sha256sum <noise >sum
        sync --file-system .
    """
    return attachment.popen("sh", "-ec", script, "sh", tree, to)


def compare(attachment: Attached, tree: Path, copy: Path) -> None:
    attachment.run("diff", "-r", tree, copy / "tree")
    read = attachment.run("sh", "-ec", 'sha256sum <"$1"', "sh", copy / "noise")
    assert read == attachment.run("cat", copy / "sum")


@pytest.mark.parametrize("is_lossy", [False, True], ids=["clean", "lossy"])
@pytest.mark.parametrize("kind", FSCK)
@mounting("--mount", "{directory}", needs="mkfs.{kind}")
def test_file_system_preserves_a_source_tree(
    make_wire: MakeWire,
    disk: Path,
    directory: Path,
    tree: Path,
    kind: str,
    *,
    is_lossy: bool,
) -> None:
    wire = make_wire(9000)
    with serving(wire, disk, NO_PROBE, *(LOSSY if is_lossy else [])):
        with attached(wire, "--loop") as attachment:
            device = attachment.about["device"]
            attachment.run(program(f"mkfs.{kind}"), "-q", device)
            attachment.aoe("detach", device)
            assert attachment.wait() == 0
        with mounted(wire, directory) as attachment:
            assert copy_tree(attachment, tree, directory).wait(LONG) == 0
        fsck(kind, disk)
        with mounted(wire, directory) as attachment:
            compare(attachment, tree, directory)
    fsck(kind, disk)


@pytest.mark.parametrize("kind", FSCK)
@mounting("--mount", "{directory}", needs="mkfs.{kind}")
def test_file_system_blocks_until_the_target_is_restarted(
    make_wire: MakeWire, disk: Path, directory: Path, tree: Path, kind: str
) -> None:
    wire = make_wire(9000)
    make_filesystem(kind, disk)
    words = ["serve", "e7.3", wire.interface, disk, NO_PROBE]
    target = start(wire.target, *words)
    ready_line(target)
    with mounted(wire, directory) as attachment:
        before = disk.stat().st_blocks
        copying = copy_tree(attachment, tree, directory)
        until = time.monotonic() + LONG
        while disk.stat().st_blocks < before + 4 * MIB // 512:
            assert time.monotonic() < until
            time.sleep(0.01)
        finish(target, signal.SIGKILL)
        time.sleep(1)
        assert copying.poll() is None
        target = start(wire.target, *words)
        ready_line(target)
        assert copying.wait(LONG) == 0
        compare(attachment, tree, directory)
    fsck(kind, disk)
    finish(target, signal.SIGTERM)


@mounting("--mount", "{directory}")
def test_mount_in_use_is_not_detached(wire: Wire, disk: Path, directory: Path) -> None:
    make_filesystem("ext4", disk)
    with (
        serving(wire, disk, NO_PROBE),
        attached(wire, "--mount", directory) as attachment,
    ):
        words = ["sh", "-c", 'cd "$1"; echo; exec sleep 999', "sh", directory]
        user = attachment.popen(*words, stdout=subprocess.PIPE)
        assert user.stdout is not None
        user.stdout.readline()
        refusal = attachment.aoe("detach", "e7.3", code=5)
        in_use = f"{directory}: in use by sleep ({user.pid})."
        assert refusal.startswith(f"aoe: {in_use}")
        assert attachment.process.stderr is not None
        attachment.signal(signal.SIGTERM)
        for _ in ("aoe detach", "the signal"):
            line = attachment.process.stderr.readline()
            assert line.startswith(f"aoe: still attached: {in_use}")
        attachment.run("touch", directory / "still-there")
        user.kill()
        user.communicate()
        attachment.aoe("detach", "e7.3")
        assert attachment.wait() == 0
    fsck("ext4", disk)


@mounting("--mount", "{directory}", needs="mkfs.xfs")
def test_umount_detaches_the_disk(wire: Wire, disk: Path, directory: Path) -> None:
    make_filesystem("xfs", disk)
    with (
        serving(wire, disk, NO_PROBE),
        attached(wire, "--mount", directory) as attachment,
    ):
        attachment.run("umount", directory)
        assert attachment.wait() == 0


def backing_file(device: Path) -> str:
    try:
        return Path("/sys/block", device.name, "loop/backing_file").read_text("utf-8")
    except FileNotFoundError:
        return ""


@mounting("--loop")
def test_signal_unmounts_and_removes_the_loop_device(
    wire: Wire, disk: Path, directory: Path
) -> None:
    make_filesystem("ext4", disk)
    with serving(wire, disk, NO_PROBE):
        with attached(wire, "--mount", directory, "--loop") as attachment:
            device = Path(attachment.about["device"])
            ours = backing_file(device)
            attachment.signal(signal.SIGINT)
            assert attachment.wait() == 0
        assert backing_file(device) != ours


@mounting("--loop")
def test_killed_attach_leaves_no_loop_device(
    wire: Wire, disk: Path, directory: Path
) -> None:
    make_filesystem("ext4", disk)
    with serving(wire, disk, NO_PROBE):
        with attached(wire, "--mount", directory) as attachment:
            device = Path(attachment.about["device"])
            ours = backing_file(device)
            attachment.signal(signal.SIGKILL)
            assert attachment.wait() != 0
        until = time.monotonic() + TIMEOUT
        while backing_file(device) == ours:
            assert time.monotonic() < until
            time.sleep(0.05)
        # Only the empty file that FUSE was mounted over is left.
        shutil.rmtree(Path(ours).parent)


@mounting("--mount", "{directory}")
def test_failed_mount_leaves_nothing_behind(
    wire: Wire, disk: Path, directory: Path
) -> None:
    with serving(wire, disk, NO_PROBE):
        # It has a /run of its own, which is listed after its exit code.
        script = 'mount -t tmpfs none /run; "$@" || echo $?; find /run -name "aoe-*"'
        attach = [*AOE, "attach", "e7.3", "-i", wire.interface, "--mount", directory]
        done = wire.initiator.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, attach)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT * 3,
        )
        assert done.stdout == "1\n"
        assert done.stderr.startswith(f"aoe: {directory}: not mounted: ")
        assert done.stderr.count("\n") == 1


@mounting("--mount", "{directory}")
def test_lazy_detach_completes_after_the_last_close(
    wire: Wire, disk: Path, directory: Path
) -> None:
    make_filesystem("ext4", disk)
    with serving(wire, disk, NO_PROBE):
        with attached(wire, "--mount", directory) as attachment:
            write = 'cd "$1"; echo; read line; echo $line >late; sync late'
            user = subprocess.Popen(
                attachment.inside("sh", "-c", write, "sh", directory),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert user.stdout is not None
            user.stdout.readline()
            attachment.aoe("detach", directory, "--lazy")
            attachment.run("mountpoint", directory, code=32)
            assert attachment.process.poll() is None
            user.communicate("written\n", timeout=TIMEOUT * 3)
            assert user.returncode == 0
            assert attachment.wait() == 0
        fsck("ext4", disk)
        with mounted(wire, directory) as attachment:
            assert attachment.run("cat", directory / "late") == "written\n"


@mounting("--mount", "{directory}", "--read-only")
def test_read_only_attach_makes_device_and_mount_read_only(
    wire: Wire, disk: Path, directory: Path
) -> None:
    make_filesystem("ext4", disk)
    before = disk.stat()
    with (
        serving(wire, disk, NO_PROBE),
        mounted(wire, directory, "--read-only", "--loop") as attachment,
    ):
        device = attachment.about["device"]
        assert attachment.run("blockdev", "--getro", device) == "1\n"
        refusal = attachment.run("touch", directory / "x", code=1)
        assert "Read-only file system" in refusal
    assert disk.stat().st_mtime_ns == before.st_mtime_ns


@mounting("--loop", "--background")
def test_detach_selects_one_of_several_by_path(wire: Wire, disk: Path) -> None:
    file, nbd = disk.with_name("again"), disk.with_name("socket")
    with serving(wire, disk, NO_PROBE), attached(wire, "--loop") as first:
        device = first.about["device"]
        words = ["attach", "e7.3", "-i", wire.interface, "--background"]
        second = first.aoe(*words, "--fuse", file, "--read-only")
        assert second == f"e7.3 300 MiB as {file} [read-only]\n"
        third = first.aoe(*words, "--nbd", nbd, "--read-only")
        listed = first.aoe("detach", "--list").splitlines(keepends=True)
        assert sorted(listed) == sorted((f"e7.3 300 MiB as {device}\n", second, third))
        refusal = first.aoe("detach", "e7.3", code=2)
        assert "attached 3 times. Give the directory, file or device" in refusal
        for name in (file, nbd, device):
            first.aoe("detach", name)
        assert first.wait() == 0
    assert not file.exists()
    assert not nbd.exists()


def test_fuse_file_reads_and_writes_the_disk(
    wire: Wire, disk: Path, tmp_path: Path
) -> None:
    need("libfuse")
    content = os.urandom(4 * MIB)
    disk.write_bytes(content)
    file = tmp_path / "e7.3"
    with serving(wire, disk, NO_PROBE):
        if not may_use_fuse():
            expect_permission_error(wire, "--fuse", file)
            return
        with attached(wire, "--fuse", file) as attachment:
            assert attachment.run("stat", "--format=%s", file) == f"{4 * MIB}\n"
            attachment.run("cmp", file, disk)
            # Offsets need no alignment, and O_TRUNC does not change the size.
            seek = "bs=5 oflag=seek_bytes seek=1021 conv=notrunc,fsync"
            for write in (f'printf hello | dd of="$1" {seek}', 'printf start >"$1"'):
                attachment.run("sh", "-ec", write, "sh", file)
            beyond = [f"of={file}", "bs=1M", "count=1", "seek=4", "conv=notrunc"]
            output = attachment.run("dd", "if=/dev/zero", *beyond, code=1)
            assert "No space left on device" in output
            attachment.aoe("detach", file)
            assert attachment.wait() == 0
        assert not file.exists()
    expected = b"start" + content[5:1021] + b"hello" + content[1026:]
    assert disk.read_bytes() == expected


def test_punch_hole_in_the_fuse_file_trims_the_disk(
    wire: Wire, disk: Path, tmp_path: Path
) -> None:
    need("libfuse")
    disk.write_bytes(os.urandom(4 * MIB))
    file = tmp_path / "e7.3"
    with serving(wire, disk, NO_PROBE):
        if not may_use_fuse():
            expect_permission_error(wire, "--fuse", file)
            return
        before = disk.stat().st_blocks
        with attached(wire, "--fuse", file) as attachment:
            punch = ["--punch-hole", "--offset", MIB, "--length", 2 * MIB]
            attachment.run("fallocate", *punch, file)
            attachment.run("cmp", file, disk)
            attachment.aoe("detach", file)
        assert before - disk.stat().st_blocks == 2 * MIB // 512
    assert disk.read_bytes()[MIB : 3 * MIB] == bytes(2 * MIB)


def test_detach_of_an_unattached_disk_fails(wire: Wire) -> None:
    done = wire.initiator.run(
        [*AOE, "detach", "e7.3"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT * 3,
    )
    assert done.returncode == 3
    assert done.stderr == "aoe: e7.3: not attached here (attached: nothing)\n"


def partition_table() -> bytes:
    """Return a first sector with one partition from sector 2048."""
    entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0x83, b"\0\0\0", 2048, 65536)
    return entry.rjust(462, b"\0").ljust(510, b"\0") + b"\x55\xaa"


@mounting("--mount", "{directory}")
def test_a_partitioned_disk_is_not_called_empty(
    wire: Wire, disk: Path, directory: Path
) -> None:
    """The commands in the message lead to the file system in the partition."""
    partition = disk.with_name("partition")
    with partition.open("wb") as file:
        file.truncate(65536 * 512)
    make_filesystem("ext4", partition)
    with disk.open("r+b") as file:
        file.write(partition_table())
        file.seek(2048 * 512)
        file.write(partition.read_bytes())
    with serving(wire, disk, NO_PROBE):
        process = start_attach(wire, "--mount", directory)
        out, err = process.communicate(timeout=TIMEOUT * 3)
        assert (process.returncode, out) == (1, "")
        assert "not mounted: the disk has a partition table (dos)" in err
        assert "--loop instead of --mount, then: partx --update /dev/loop" in err
        with attached(wire, "--loop") as attachment:
            device = attachment.about["device"]
            attachment.run("partx", "--update", device)
            attachment.run("mount", f"{device}p1", directory)
            refusal = attachment.aoe("detach", "e7.3", code=5)
            assert f"{device}: in use by a mount on {directory}." in refusal
            attachment.run("touch", directory / "file")
            attachment.run("umount", directory)
            attachment.aoe("detach", "e7.3")
            assert attachment.wait() == 0
        name = Path(device).name
        assert not Path(f"/sys/class/block/{name}p1").exists()


@pytest.mark.parametrize(
    ("offset", "magic", "kind"),
    [
        (0, b"LUKS\xba\xbe" + b"\0\2" + bytes(4088), "crypto_LUKS"),
        (4086, b"SWAPSPACE2", "swap"),
    ],
)
@mounting("--mount", "{directory}")
def test_other_contents_are_named(
    wire: Wire, disk: Path, directory: Path, offset: int, magic: bytes, kind: str
) -> None:
    with disk.open("r+b") as file:
        file.seek(offset)
        file.write(magic)
    if kind == "swap":
        subprocess.run([program("mkswap"), disk], check=True, capture_output=True)
    with serving(wire, disk, NO_PROBE):
        process = start_attach(wire, "--mount", directory)
        _, err = process.communicate(timeout=TIMEOUT * 3)
    assert process.returncode == 1
    assert f"not mounted: the disk contains {kind}, not a file system" in err
    assert ("cryptsetup open /dev/loop" in err) is (kind == "crypto_LUKS")
    assert "mkfs" not in err
