"""A write that an NBD server executes late never overtakes a newer one."""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING

import pytest

from target.disks import Disk, OpenFlags, open_disk
from tests.nbd_servers import CLIENTS, StallingServer, exported, use_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OLD, NEW = b"old." * 1024, b"new!" * 1024
END = 1 << 20
MULTI_CONN = 0b100001101


@pytest.fixture(params=CLIENTS, autouse=True)
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    use_client(request.param, monkeypatch)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def nbd(place: Path) -> Iterator[StallingServer]:
    with StallingServer(place) as server:
        yield server


def error_of(function: Callable[[], None]) -> int:
    """Return the error number of a call, 0 for success."""
    try:
        function()
    except OSError as error:
        return error.errno or errno.EPROTO
    return 0


def write(disk: Disk, offset: int, data: bytes) -> int:
    return error_of(lambda: disk.write_from(offset, memoryview(data)))


def flush(disk: Disk) -> int:
    return error_of(disk.flush)


def until_done(call: Callable[[], int]) -> int:
    """Repeat a call while the server is unreachable, as clients do (P41)."""
    end = time.monotonic() + 10
    while (result := call()) == errno.ENODEV:
        assert time.monotonic() < end
        time.sleep(0.02)
    return result


def drop_when_stalled(nbd: StallingServer) -> threading.Thread:
    def drop() -> None:
        assert nbd.stalled.wait(10)
        nbd.stalls = False
        nbd.drop()

    thread = threading.Thread(target=drop)
    thread.start()
    return thread


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("flags", [0b1101, MULTI_CONN])
def test_write_executed_after_the_connection_was_lost(
    place: Path, *, flags: int, sync: bool
) -> None:
    with StallingServer(place, flags=flags) as nbd:
        disk = open_disk(exported(place), OpenFlags(sync=sync))
        assert write(disk, 8192, NEW) == 0
        nbd.stalls = True
        thread = drop_when_stalled(nbd)
        assert until_done(lambda: write(disk, 0, OLD)) == errno.EIO
        thread.join()
        offsets = (0, 512, len(OLD) - 512, 8192)
        results = {
            offset: until_done(lambda: write(disk, offset, NEW))  # noqa: B023 - called at once
            for offset in offsets
        }
        flushes = [until_done(lambda: flush(disk)) for _ in range(3)]
        nbd.release()
        disk.close()
        # The writes to other sectors go on; what overlaps the lost one fails.
        assert results == dict.fromkeys(offsets, errno.EIO) | {8192: 0}
        assert flushes == [errno.EIO] * 3
        assert nbd.content[: len(OLD)] == OLD
        assert nbd.content[8192 : 8192 + len(NEW)] == NEW


def test_discard_in_doubt_holds_its_range(nbd: StallingServer, place: Path) -> None:
    disk = open_disk(exported(place))
    nbd.stalls = True
    thread = drop_when_stalled(nbd)
    assert error_of(lambda: disk.discard(4096, 8192)) == errno.EIO
    thread.join()
    assert until_done(lambda: write(disk, 8192, NEW)) == errno.EIO
    assert until_done(lambda: write(disk, 0, NEW)) == 0
    nbd.release()
    disk.close()


def test_reopened_disk_has_no_doubt(nbd: StallingServer, place: Path) -> None:
    disk = open_disk(exported(place))
    nbd.stalls = True
    thread = drop_when_stalled(nbd)
    assert write(disk, 0, OLD) == errno.EIO
    thread.join()
    nbd.release()
    disk.close()
    disk = open_disk(exported(place))
    assert (write(disk, 0, NEW), flush(disk)) == (0, 0)
    assert nbd.content[: len(NEW)] == NEW
    disk.close()


def test_stalled_write_delays_newer_ones_and_loses_nothing(
    nbd: StallingServer, place: Path
) -> None:
    disk = open_disk(exported(place))
    assert write(disk, 8192, OLD) == 0
    nbd.stalls = True
    assert write(disk, 0, OLD) == errno.ENODEV
    begin = time.monotonic()
    for _ in range(50):
        assert write(disk, 0, NEW) == flush(disk) == errno.ENODEV
    # The other disks of the process are not delayed meanwhile.
    assert time.monotonic() - begin < 0.5
    assert nbd.executed == [(3, 0, 0), (1, 8192, len(OLD))]
    nbd.release()
    assert until_done(lambda: write(disk, 0, NEW)) == 0
    assert flush(disk) == 0
    assert nbd.content[: len(NEW)] == NEW
    writes = [(1, offset, len(OLD)) for offset in (8192, 0, 0)]
    assert nbd.executed == [(3, 0, 0), *writes, (3, 0, 0)]
    disk.close()


def test_stalled_write_whose_connection_is_lost_is_in_doubt(
    nbd: StallingServer, place: Path
) -> None:
    disk = open_disk(exported(place))
    nbd.stalls = True
    assert write(disk, 0, OLD) == errno.ENODEV
    nbd.stalls = False
    nbd.drop()
    assert until_done(lambda: write(disk, 0, NEW)) == errno.EIO
    assert flush(disk) == errno.EIO
    assert write(disk, 8192, NEW) == 0
    nbd.release()
    assert nbd.content[: len(OLD)] == OLD
    disk.close()


@pytest.mark.parametrize("unflushed", [False, True])
def test_stalled_read_does_not_lose_earlier_writes(
    nbd: StallingServer, place: Path, *, unflushed: bool
) -> None:
    disk = open_disk(exported(place))
    assert write(disk, 0, NEW) == 0
    if not unflushed:
        assert flush(disk) == 0
    nbd.stalls = True
    buffer = bytearray(4096)
    assert error_of(lambda: disk.read_into(0, memoryview(buffer))) == errno.ENODEV
    nbd.release()
    buffer.extend(b"is not accessed any more")
    assert until_done(lambda: flush(disk)) == 0
    assert not any(buffer[:4096])
    disk.read_into(0, memoryview(buffer)[:4096])
    assert buffer[:4096] == NEW
    disk.close()


@pytest.mark.parametrize("is_finished", [False, True])
def test_stalled_write_that_is_partly_sent_has_its_own_data(
    nbd: StallingServer, place: Path, *, is_finished: bool
) -> None:
    disk = open_disk(exported(place))
    nbd.stalls = True
    data = bytearray(b"sent" * (END // 4))
    with pytest.raises(OSError, match="timed out"):
        disk.write_from(0, memoryview(data))
    # The memory is that of a receive ring, and is used for other frames.
    data[:] = b"ring" * (END // 4)
    data.extend(b"is not accessed any more")
    if is_finished:
        nbd.go_on()
        assert until_done(lambda: flush(disk)) == 0
        assert nbd.content[:END] == b"sent" * (END // 4)
        disk.close()
    else:
        # DISCONNECT must not become a part of the data.
        disk.close()
        nbd.go_on()
        time.sleep(0.1)
        assert not any(nbd.content)
