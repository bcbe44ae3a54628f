"""Restarts of a real target and of its host, between a write and its FLUSH (P84)."""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING

import pytest

from aoe.errors import DeviceError
from initiator.disk.disk import Disk
from scripts.killtest_crash import FRONT_ENDS, run_crashes
from tests.attaching import need_fuse
from tests.crashing import CrashingHost, VolatileFile, crashing_host

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

SIZE = 1 << 20


@pytest.fixture
def file() -> VolatileFile:
    return VolatileFile(bytes(SIZE))


@pytest.fixture
def host(wire: Wire, tmp_path: Path, file: VolatileFile) -> Iterator[CrashingHost]:
    need_fuse()
    with crashing_host(wire, tmp_path, file) as booted:
        yield booted


@pytest.fixture
def disk(wire: Wire, host: CrashingHost) -> Iterator[Disk]:
    del host
    with wire.initiator.enter(), Disk.open("e7.3", wire.interface, timeout=10) as disk:
        yield disk


def test_p84_flush_after_a_crash_of_the_host_fails(
    wire: Wire, host: CrashingHost, disk: Disk, file: VolatileFile
) -> None:
    data = os.urandom(65536)
    disk.write(0, data)
    disk.flush()
    disk.write(65536, data)
    host.crash(Random(1))
    assert file.lost
    host.boot()
    for _ in range(2):
        disk.write(131072, data)
        with pytest.raises(DeviceError, match="may be lost"):
            disk.flush()
    assert file.stable[:65536] == data
    with Disk.open("e7.3", wire.interface) as again:
        again.write(65536, data)
        again.flush()
    assert file.stable[:131072] == data * 2


def test_p84_restart_of_the_target_alone_loses_nothing(
    host: CrashingHost, disk: Disk, file: VolatileFile
) -> None:
    data = os.urandom(65536)
    disk.write(0, data)
    host.kill()
    host.start()
    disk.flush()
    assert file.stable[:65536] == data


def test_p84_no_flush_covers_data_that_a_crash_has_lost(
    host: CrashingHost, tmp_path: Path
) -> None:
    host.close()
    results = list(run_crashes(3, seed=4, directory=tmp_path))
    assert [result.faults for result in results] == [[]] * 3
    assert {result.plan.front_end for result in results} == set(FRONT_ENDS)
    assert all(result.ledger.answered for result in results)
    assert sum(result.lost for result in results)
    assert sum(result.ledger.flushes for result in results)
    assert sum(result.ledger.failures for result in results)


def test_p84_crash_with_everything_flushed_is_no_error(
    host: CrashingHost, disk: Disk, file: VolatileFile
) -> None:
    data = os.urandom(65536)
    disk.write(0, data)
    disk.flush()
    host.crash(Random(1))
    host.boot()
    disk.write(65536, data)
    disk.flush()
    assert file.stable[:131072] == data * 2
