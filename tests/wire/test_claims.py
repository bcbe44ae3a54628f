"""A disk is written to by one process of a host at a time."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.attaching import attached, may_mount
from tests.programs import AOE, AOE_TARGET
from tests.requirements import need, program
from tests.serving import NO_PROBE, TIMEOUT, finish, ready_line, run, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire
    from tests.attaching import Attached
    from tests.conftest import MakeWire

pytestmark = pytest.mark.netns

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(4 * MIB))
    return path


def aoe(wire: Wire, *words: object) -> subprocess.CompletedProcess[str]:
    command = [*AOE, *map(str, words), "-i", wire.interface]
    return wire.initiator.run(
        command, capture_output=True, text=True, input="", timeout=4 * TIMEOUT
    )


@contextmanager
def served_twice(wire: Wire, image: Path) -> Iterator[None]:
    """Serve the same disk as e7.3 and e7.4, with the same serial number."""
    words = (NO_PROBE, "--no-state", "--serial", "S-1")
    with ExitStack() as stack:
        stack.enter_context(serving(wire, image, *words))
        command = [*AOE_TARGET, "serve", "e7.4", wire.interface, str(image), *words]
        target = run(wire.target, command)
        stack.callback(finish, target, signal.SIGTERM)
        ready_line(target)
        yield


@contextmanager
def nbd(wire: Wire, tmp_path: Path, *words: object) -> Iterator[Attached]:
    with attached(wire, "--nbd", tmp_path / "socket", *words) as attachment:
        yield attachment


WRITERS = {
    "write": ("write", "e7.3"),
    "copy": ("copy", "image", "e7.3"),
    "trim": ("trim", "e7.3", "--destroy"),
    "bench": ("bench", "e7.3", "write", "--destroy", "--seconds", "0.1"),
    "check": ("check", "e7.3", "--write", "--only", "P38"),
    "attach": ("attach", "e7.3", "--nbd", "other", "--run", "true"),
    "lab": ("lab", "run", "e/pagecache/clean/SG", "--address", "e7.3", "--overwrite"),
}
READERS = {
    "read": ("read", "e7.3", "back"),
    "copy": ("copy", "e7.3", "back"),
    "bench": ("bench", "e7.3", "read", "--seconds", "0.1"),
    "check": ("check", "e7.3", "--only", "P38"),
    "attach": ("attach", "e7.3", "--nbd", "other", "--run", "true", "--read-only"),
    "flush": ("flush", "e7.3"),
}


def resolve(words: tuple[str, ...], image: Path, tmp_path: Path) -> list[object]:
    paths = {"image": image, "back": tmp_path / "back", "other": tmp_path / "other"}
    return [paths.get(word, word) for word in words]


@pytest.mark.parametrize("words", WRITERS.values(), ids=WRITERS)
def test_an_attached_disk_is_written_to_only_with_force(
    make_wire: MakeWire, image: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    wire = make_wire(9000)
    content = image.read_bytes()
    source = tmp_path / "source"
    source.write_bytes(bytes(MIB))
    arguments = resolve(words, source, tmp_path)
    with serving(wire, image, NO_PROBE):
        with nbd(wire, tmp_path) as attachment:
            pid = attachment.about["pid"]
            refused = aoe(wire, *arguments)
            assert refused.returncode == 5, refused
            assert (
                f"aoe: e7.3: being written to on this host by process {pid}. Detach it"
            ) in refused.stderr
            assert image.read_bytes() == content
            assert aoe(wire, *arguments, "--force").returncode == 0
            attachment.aoe("detach", "e7.3")
        assert aoe(wire, *arguments).returncode == 0


@pytest.mark.parametrize("words", READERS.values(), ids=READERS)
def test_an_attached_disk_is_read_without_force(
    wire: Wire, image: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    with serving(wire, image, NO_PROBE), nbd(wire, tmp_path):
        done = aoe(wire, *resolve(words, image, tmp_path))
        assert done.returncode == 0, done


def test_a_disk_that_is_attached_read_only_is_written_to(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(MIB))
    with serving(wire, image, NO_PROBE), nbd(wire, tmp_path, "--read-only"):
        assert aoe(wire, "write", "e7.3", source).returncode == 0
    assert image.read_bytes()[:MIB] == bytes(MIB)


def test_a_disk_is_claimed_at_all_of_its_addresses(
    wire: Wire, image: Path, tmp_path: Path
) -> None:
    with served_twice(wire, image), nbd(wire, tmp_path):
        refused = aoe(wire, "write", "e7.4", image)
        assert refused.returncode == 5
        assert "e7.4: being written to on this host by process" in refused.stderr
        assert aoe(wire, "read", "e7.4", tmp_path / "back").returncode == 0


def test_a_disk_is_not_copied_to_itself(wire: Wire, image: Path) -> None:
    with served_twice(wire, image):
        refused = aoe(wire, "copy", "e7.3", "e7.4", "--verify")
        assert refused.returncode == 2
        assert "e7.3 and e7.4: are the same disk" in refused.stderr
        assert aoe(wire, "copy", "e7.3", "e7.4", "--force").returncode == 0


def test_a_file_system_is_not_mounted_twice(wire: Wire, tmp_path: Path) -> None:
    need("libfuse")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    subprocess.run([program("mkfs.ext4"), "-q", "-F", image], check=True)
    points = [tmp_path / name for name in ("first", "second")]
    for point in points:
        point.mkdir()
    if not may_mount():
        return
    with (
        serving(wire, image, NO_PROBE),
        attached(wire, "--mount", points[0]) as attachment,
    ):
        attachment.run("touch", points[0] / "file")
        refused = aoe(wire, "attach", "e7.3", "--mount", points[1])
        assert refused.returncode == 5
        pid = attachment.about["pid"]
        assert refused.stderr == (
            f"aoe: e7.3: being written to on this host by process {pid}. "
            "Detach it first, or use --read-only or --force\n"
        )
        attachment.aoe("detach", points[0])
        assert attachment.wait() == 0
    subprocess.run([program("fsck.ext4"), "-fn", image], check=True)
