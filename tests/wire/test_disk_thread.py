"""``DiskThread``: a disk that several threads use at the same time."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from aoe.errors import AoEError
from initiator.disk.disk import Disk
from initiator.export.disk_thread import DiskThread
from tests.serving import NO_PROBE, TIMEOUT, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

PIECE = 1000
PIECES = 400


@contextmanager
def running(wire: Wire) -> Iterator[DiskThread]:
    with wire.initiator.enter():
        disk = Disk.open("e7.3", wire.interface)
    with disk, DiskThread(disk, report=lambda _: None) as thread:
        yield thread


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(PIECE * PIECES // 512 * 512 + 512))
    return path


def test_concurrent_writes_to_shared_sectors_lose_no_data(
    wire: Wire, image: Path
) -> None:
    pieces = [os.urandom(PIECE) for _ in range(PIECES)]
    with (
        serving(wire, image, NO_PROBE),
        running(wire) as disk,
        ThreadPoolExecutor(16) as pool,
    ):
        offsets = range(0, PIECE * PIECES, PIECE)
        list(pool.map(disk.write, offsets, pieces))
        disk.flush()
        read = list(pool.map(lambda offset: disk.read(offset, PIECE), offsets))
    assert read == pieces
    assert image.read_bytes()[: PIECE * PIECES] == b"".join(pieces)


def test_close_fails_outstanding_and_new_operations(wire: Wire, image: Path) -> None:
    with serving(wire, image, NO_PROBE) as target, running(wire) as disk:
        disk.read(0, 512)
        target.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(disk.read, 0, 512) for _ in range(4)]
            with pytest.raises(TimeoutError):
                waiting[0].result(0.5)
            disk.close()
            for each in waiting:
                with pytest.raises(AoEError, match="is closed"):
                    each.result(TIMEOUT)
        with pytest.raises(AoEError, match="is closed"):
            disk.write(0, b"x")
        target.send_signal(signal.SIGCONT)
