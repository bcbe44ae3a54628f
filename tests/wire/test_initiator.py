"""The initiator on a veth pair, with aoe-target and with Debian's vblade."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
from collections import deque
from typing import TYPE_CHECKING

import pytest

from aoe.address import Address
from aoe.errors import AoEError
from aoe.net.link import open_link
from aoe.net.netns import Wire
from initiator.disk.copy import DiskEndpoint, copy, verify
from initiator.disk.disk import Disk
from initiator.disk.files import FileSource
from initiator.driver.bio import Bio, Op
from initiator.io.host import Host
from tests.faulty_link import FaultyLink
from tests.programs import AOE, AOE_TARGET
from tests.requirements import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.netns

MIB = 1 << 20
E00 = Address(0, 0)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_image(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for _ in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size)))
    return path


def serve(wire: Wire, disk: Path, *options: str, address: str = "e0.0") -> None:
    command = [*AOE_TARGET, "serve", address, "aoe0", str(disk)]
    target = wire.target.popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert target.stdout is not None
    assert target.stdout.readline().startswith(address)


def serve_with_vblade(wire: Wire, disk: Path) -> None:
    vblade = program("vblade")
    wire.target.popen(
        [vblade, "-b", "64", "0", "0", "aoe0", str(disk)], stdout=subprocess.DEVNULL
    )


def aoe(wire: Wire, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*AOE, *words, "-i", "aoe0"]
    return wire.initiator.run(command, capture_output=True, text=True, timeout=600)


SERVERS = pytest.mark.parametrize(
    "server", [serve, serve_with_vblade], ids=["ours", "vblade"]
)


@SERVERS
def test_a_disk_reads_the_data_it_has_written(
    wire: Wire, tmp_path: Path, server: Callable[[Wire, Path], None]
) -> None:
    image = make_image(tmp_path / "disk.img", 4 * MIB)
    before = image.read_bytes()
    server(wire, image)
    with wire.initiator.enter(), Disk.open("e0.0", "aoe0") as disk:
        assert disk.size == 4 * MIB
        assert disk.read(0, 4 * MIB) == before
        written = os.urandom(999 * 512)
        disk.write(3 * 512, written)
        disk.flush()
        assert disk.read(3 * 512, len(written)) == written
    assert image.read_bytes() == before[:1536] + written + before[1536 + 999 * 512 :]


@SERVERS
def test_an_image_is_copied_to_a_disk_and_back(
    wire: Wire, tmp_path: Path, server: Callable[[Wire, Path], None]
) -> None:
    image = make_image(tmp_path / "image", 8 * MIB)
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(8 * MIB))
    server(wire, disk)

    there = aoe(wire, "copy", str(image), "e0.0", "--verify", "--json")
    back = aoe(wire, "copy", "e0.0", str(tmp_path / "back"))

    report = json.loads(there.stdout)
    assert (report["bytes"], report["verified"]) == (8 * MIB, True)
    assert (there.returncode, back.returncode) == (0, 0)
    assert sha256(disk) == sha256(image) == sha256(tmp_path / "back")


@SERVERS
def test_discover_stat_and_ping_show_a_target(
    wire: Wire, tmp_path: Path, server: Callable[[Wire, Path], None]
) -> None:
    image = make_image(tmp_path / "disk.img", MIB)
    server(wire, image)

    found = aoe(wire, "discover", "--json")
    stat = aoe(wire, "stat")
    ping = aoe(wire, "ping", "e0.0", "-c", "2", "--interval", "0", "--json")

    (target,) = json.loads(found.stdout)["targets"]
    assert target["address"] == "e0.0"
    assert target["mac"] == wire.target_mac.hex(":")
    assert target["sectors_per_frame"] == 2
    assert stat.stdout.split() == ["e0.0", "0.001GB", "aoe0", "1024", "up"]
    assert json.loads(ping.stdout)["received"] == 2


def test_a_range_is_written_from_a_file_and_read_to_a_pipe(
    wire: Wire, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.img"
    serve(wire, disk, "--create", "1M")
    written = os.urandom(1536)
    (tmp_path / "in").write_bytes(written)

    wrote = aoe(wire, "write", "e0.0", str(tmp_path / "in"), "--offset", "64K")
    command = [*AOE, "read", "e0.0", "-i", "aoe0"]
    window = ["--offset", "64K", "--length", "1536"]
    read = wire.initiator.run([*command, *window], capture_output=True)

    assert (wrote.returncode, read.returncode) == (0, 0)
    assert read.stdout == written == disk.read_bytes()[65536 : 65536 + 1536]


def test_copy_preserves_the_holes_of_a_file(
    make_wire: Callable[[int], Wire], tmp_path: Path
) -> None:
    wire = make_wire(9000)
    image = tmp_path / "sparse"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(40 * MIB)
        file.write(os.urandom(MIB))
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"\xff" * 64 * MIB)
    serve(wire, disk)

    there = aoe(wire, "copy", str(image), "e0.0", "--verify")
    back = aoe(wire, "copy", "e0.0", str(tmp_path / "back"), "--verify")

    assert (there.returncode, back.returncode) == (0, 0)
    assert sha256(disk) == sha256(image) == sha256(tmp_path / "back")
    assert (tmp_path / "back").stat().st_blocks * 512 < 3 * MIB


def test_a_disk_is_copied_to_another_disk(wire: Wire, tmp_path: Path) -> None:
    image = make_image(tmp_path / "a.img", 4 * MIB)
    serve(wire, image)
    other = tmp_path / "b.img"
    serve(wire, other, "--create", "4M", address="e0.1")

    done = aoe(wire, "copy", "e0.0", "e0.1", "--verify")

    assert done.returncode == 0, done.stderr
    assert sha256(other) == sha256(image)


def test_verify_finds_a_difference(wire: Wire, tmp_path: Path) -> None:
    """One bit of the disk is flipped after the copy."""
    image = make_image(tmp_path / "image", 2 * MIB)
    served = tmp_path / "disk.img"
    served.write_bytes(bytes(2 * MIB))
    serve(wire, served)
    with wire.initiator.enter():
        host = Host.on("aoe0")
    with host:
        disk = Disk(host, E00)
        copy(FileSource(image), DiskEndpoint(disk))
        with served.open("r+b") as file:
            file.seek(MIB + 700)
            byte = file.read(1)
            file.seek(MIB + 700)
            file.write(bytes([byte[0] ^ 1]))
        with pytest.raises(AoEError, match=f"first difference at byte {MIB + 700}"):
            verify(FileSource(image), DiskEndpoint(disk))


@pytest.fixture(scope="module")
def gigabyte(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("gigabyte")
    yield make_image(directory / "image", 1 << 30)
    shutil.rmtree(directory)


@pytest.mark.timeout(1800)  # for a busy machine
@pytest.mark.parametrize(
    "mtu", [1500, 9000, 65535, (9000, 1500), (1500, 9000)], ids=str
)
def test_a_gigabyte_is_copied_to_a_disk_and_back_at_any_mtu(
    mtu: int | tuple[int, int], gigabyte: Path, tmp_path: Path
) -> None:
    """P22, P23: the MTU may have any value, and may differ at the two ends."""
    disk, back = tmp_path / "disk.img", tmp_path / "back"
    source = gigabyte
    if isinstance(mtu, tuple):
        source = tmp_path / "part"
        with gigabyte.open("rb") as file:
            source.write_bytes(file.read(64 * MIB))
    with Wire(mtu) as wire:
        serve(wire, disk, "--create", str(source.stat().st_size))
        there = aoe(wire, "copy", str(source), "e0.0")
        again = aoe(wire, "copy", "e0.0", str(back))

    assert (there.returncode, again.returncode) == (0, 0), there.stderr + again.stderr
    expected = sha256(source)
    assert sha256(disk) == expected
    assert sha256(back) == expected
    disk.unlink()
    back.unlink()


def test_loss_duplication_and_reordering_corrupt_no_data(tmp_path: Path) -> None:
    """K25, K48-K53, P2: 256 MiB over a link that drops, duplicates and reorders."""
    size, depth = 256 * MIB, 8
    content = os.urandom(size)
    disk_path = tmp_path / "disk.img"
    rng = random.Random(2)
    # AoE does not order frames: a late duplicate of a write may be executed after a
    # newer write to the same sectors. Therefore each range is written only once.
    ranges = []
    start = 0
    while start < size:
        length = min(512 * rng.randint(1, 256), size - start)
        ranges.append((start, length))
        start += length
    with Wire(9000) as wire:
        serve(wire, disk_path, "--create", str(size))
        with wire.initiator.enter():
            link = FaultyLink(open_link("aoe0", responses=True), seed=3)
        with Host([link]) as host:
            disk = Disk(host, E00)

            def run(op: Op, buffers: dict[int, memoryview]) -> None:
                todo = deque(rng.sample(ranges, len(ranges)))
                ended: list[Bio] = []
                started = 0
                while len(ended) < len(ranges):
                    while todo and started - len(ended) < depth:
                        offset, _ = todo.popleft()
                        disk.submit(op, offset, buffers[offset], ended.append)
                        started += 1
                    host.run_once()
                assert [bio.error for bio in ended if bio.error] == []

            view = memoryview(content)
            run(Op.WRITE, {at: view[at : at + n] for at, n in ranges})
            link.deliver_delayed()
            read = bytearray(size)
            target = memoryview(read)
            run(Op.READ, {at: target[at : at + n] for at, n in ranges})
            assert disk.retransmits > 1000
    assert min(link.dropped, link.duplicated, link.reordered) > 1000
    assert read == content
    assert disk_path.read_bytes() == content
