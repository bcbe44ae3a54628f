"""A target whose storage fails over for a while: all commands wait for it (P14)."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.attaching import attached, need_fuse
from tests.nbd_servers import exported, nbdkit, server
from tests.requirements import program
from tests.serving import NO_PROBE, serving
from tests.tools import aoe

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

SIZE = 4 << 20
PAUSE = 4.0
WAITS = "aoe: e7.3: device unavailable (AoE error 3): asking again for up to 60 s\n"


class Storage:
    """An nbdkit with an image, and the target that serves it."""

    def __init__(self, process: subprocess.Popen[bytes], image: Path) -> None:
        self._process = process
        self.image = image

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop it now, and let it continue after a while."""
        self.stop()
        timer = threading.Timer(PAUSE, self.resume)
        timer.start()
        try:
            yield
        finally:
            timer.join()


@pytest.fixture
def storage(wire: Wire, tmp_path: Path) -> Iterator[Storage]:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(SIZE))
    socket = tmp_path / "nbd"
    with (
        server(nbdkit(socket, "file", image), socket) as process,
        serving(wire, exported(socket), NO_PROBE, "--no-state"),
    ):
        yield Storage(process, image)


def test_p14_copy_waits_in_both_directions(
    wire: Wire, storage: Storage, tmp_path: Path
) -> None:
    copied = tmp_path / "copy"
    with storage.paused():
        code, text = aoe(wire, "copy", "e7.3", copied, "--verify")
    assert (code, text.count(WAITS)) == (0, 1)
    assert "available again after " in text
    assert copied.read_bytes() == storage.image.read_bytes()
    copied.write_bytes(os.urandom(SIZE))
    with storage.paused():
        code, text = aoe(wire, "copy", copied, "e7.3")
    assert (code, text.count(WAITS)) == (0, 1)
    assert copied.read_bytes() == storage.image.read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ("read", "e7.3", os.devnull, "--length", "1M"),
        ("write", "e7.3", "-"),
        ("trim", "e7.3", "--length", "1M", "--destroy"),
        ("bench", "e7.3", "--seconds", "0.5"),
    ],
    ids=" ".join,
)
def test_p14_all_commands_wait(
    wire: Wire, storage: Storage, words: tuple[str, ...]
) -> None:
    with storage.paused():
        code, text = aoe(wire, *words, input="x" * 4096)
    assert (code, text.count(WAITS)) == (0, 1), text


def test_p14_a_pause_longer_than_deadsecs_is_an_error(
    wire: Wire, storage: Storage
) -> None:
    storage.stop()
    words = ("read", "e7.3", os.devnull, "--deadsecs", 2)
    code, text = aoe(wire, *words)
    storage.resume()
    assert code == 1
    assert WAITS.replace("60", "2") in text
    assert "e7.3: device unavailable for " in text


@pytest.mark.parametrize("kind", ["nbd", "fuse"])
def test_p14_exports_wait(
    wire: Wire, storage: Storage, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "disk"
    if kind == "fuse":
        need_fuse()
    copied = tmp_path / "copied"
    source = {
        "nbd": [program("nbdcopy"), exported(place), str(copied)],
        "fuse": ["cp", str(place), str(copied)],
    }[kind]
    with attached(wire, f"--{kind}", place) as attachment:
        with storage.paused():
            attachment.run(*source)
        assert copied.read_bytes() == storage.image.read_bytes()
        if kind == "nbd":
            copied.write_bytes(os.urandom(SIZE))
            with storage.paused():
                attachment.run(source[0], "--flush", copied, exported(place))
            assert copied.read_bytes() == storage.image.read_bytes()
