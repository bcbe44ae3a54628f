"""Failover between two links, and a target that stalls."""

from __future__ import annotations

import os
import shlex
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from aoe.address import Address
from aoe.net.interfaces import (
    VethEnd,
    create_veth,
    get_interface_details,
    remove,
    set_down,
    set_up,
)
from initiator.disk.disk import Disk
from initiator.driver.bio import Bio, Op
from initiator.driver.options import Options
from initiator.io.host import Host
from tests.programs import AOE
from tests.requirements import program
from tests.serving import TIMEOUT, finish, ready_line, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

E73 = Address(7, 3)
SIZE = 4 << 20
PIECE = 64 << 10
SHARE = 50
"""Minimum number of received_frames on a path that is in use."""


def run_for_the_full_time() -> bool:
    """Return False, to run for the full time."""
    return False


class Load:
    """Load on a disk: it is written once, then read; eight operations at a time."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.data = os.urandom(SIZE)
        self.completed = 0
        self.longest_pause = 0.0
        self._started = self._running = 0
        self._last = time.monotonic()

    def run(
        self, until: Callable[[], bool] = run_for_the_full_time, seconds: float = 1.5
    ) -> bool:
        """Run until a condition is true; return False after ``seconds``."""
        end = time.monotonic() + seconds
        self._last = time.monotonic()
        while not until():
            if time.monotonic() > end:
                return False
            while self._running < 8:
                self._submit()
            self.disk.host.run_once(0.05)
            pause = time.monotonic() - self._last
            self.longest_pause = max(self.longest_pause, pause)
        return True

    def _submit(self) -> None:
        offset = self._started * PIECE % SIZE
        expected = self.data[offset : offset + PIECE]
        first = self._started < SIZE // PIECE
        buffer = bytearray(expected if first else PIECE)

        def end_io(bio: Bio) -> None:
            assert bio.error is None
            assert buffer == expected
            self.completed += 1
            self._running -= 1
            self._last = time.monotonic()

        op = Op.WRITE if first else Op.READ
        self._started += 1
        self._running += 1
        self.disk.submit(op, offset, buffer, end_io)

    def drain(self) -> None:
        assert self.disk.host.run_until(lambda: not self._running, TIMEOUT)


@contextmanager
def load_on_two_paths(wire: Wire, tmp_path: Path) -> Iterator[Load]:
    """Serve on two links, open the disk on both, and write all of it once."""
    create_second_link(wire)
    image = tmp_path / "disk.img"
    words = ["serve", "e7.3", "aoe0,aoe1", image, "--create", "4M"]
    target = start(wire.target, *words)
    ready_line(target)
    with wire.initiator.enter(), Host.on("aoe0", "aoe1") as host:
        disk = Disk(host, E73)
        load = Load(disk)
        assert load.run(lambda: load.completed >= SIZE // PIECE, TIMEOUT)
        yield load
        load.drain()
    finish(target, signal.SIGTERM)
    assert target.returncode == 0
    assert image.read_bytes() == load.data


def create_second_link(wire: Wire) -> None:
    create_veth(
        VethEnd("aoe1", 1500, bytes.fromhex("525400ae0011"), wire.target.pid),
        VethEnd("aoe1", 1500, bytes.fromhex("525400ae0012"), wire.initiator.pid),
    )


def received_frames(*names: str) -> list[int]:
    """Return the numbers of received_frames received on the initiator's interfaces."""
    return [get_interface_details(name).counters["rx_packets"] for name in names]


def uses_both(load: Load) -> bool:
    """Run until both paths have carried load; return False on timeout."""
    before = received_frames("aoe0", "aoe1")

    def have_both_carried() -> bool:
        after = received_frames("aoe0", "aoe1")
        return all(b - a > SHARE for a, b in zip(before, after, strict=True))

    return load.run(have_both_carried, 3 * TIMEOUT)


def assert_continues_on(load: Load, name: str) -> None:
    """Check that the load continues on one path, without long pauses."""
    before, completed = received_frames(name)[0], load.completed
    load.longest_pause = 0.0
    load.run()
    assert received_frames(name)[0] - before > SHARE
    assert load.completed - completed > 10
    assert load.longest_pause < 3


def test_k10_an_unknown_path_is_found_by_the_periodic_query(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not announced, but open devices are queried periodically."""
    monkeypatch.setattr("initiator.io.host._QUERY_INTERVAL", 0.5)
    with load_on_two_paths(wire, tmp_path) as load:
        load.drain()
        targets = load.disk.host.driver.devices[E73].targets
        removed = targets.pop()
        assert uses_both(load)
        assert targets[1].addr == removed.addr


@pytest.mark.parametrize("timing", ["prompt", "kernel"])
def test_a_stalled_target_is_used_again_when_it_continues(
    wire: Wire, tmp_path: Path, timing: str
) -> None:
    """How soon is measured by scripts/frozen."""
    words = ["serve", "e7.3", "aoe0", tmp_path / "disk.img", "--create", "4M"]
    target = start(wire.target, *words)
    ready_line(target)
    options = Options(timing=timing)
    with wire.initiator.enter(), Host.on("aoe0", options=options) as host:
        load = Load(Disk(host, E73))
        assert load.run(lambda: load.completed >= 4 * SIZE // PIECE, 3 * TIMEOUT)
        target.send_signal(signal.SIGSTOP)
        load.run(seconds=2)
        frozen = load.completed
        load.run(seconds=0.5)
        assert load.completed == frozen
        target.send_signal(signal.SIGCONT)
        assert load.run(lambda: load.completed > frozen + 100, 3 * TIMEOUT)
        load.drain()
    finish(target, signal.SIGTERM)
    assert (tmp_path / "disk.img").read_bytes() == load.data


@pytest.mark.parametrize("interface", ["aoe0", "aoe1"])
@pytest.mark.parametrize("end", ["target", "initiator"])
def test_k41_k57_load_continues_while_one_of_two_paths_is_down(
    wire: Wire, tmp_path: Path, interface: str, end: str
) -> None:
    other = {"aoe0": "aoe1", "aoe1": "aoe0"}[interface]
    with load_on_two_paths(wire, tmp_path) as load:
        assert uses_both(load)
        namespace = getattr(wire, end)
        set_down(interface, namespace.pid)
        assert_continues_on(load, other)
        set_up(interface, namespace.pid)
        assert uses_both(load)


def test_load_continues_while_one_of_two_interfaces_is_missing(
    wire: Wire, tmp_path: Path
) -> None:
    """One after the other, so that each is the only one for some time."""
    with load_on_two_paths(wire, tmp_path) as load:
        remove("aoe1")
        assert_continues_on(load, "aoe0")
        create_second_link(wire)
        assert uses_both(load)
        remove("aoe0")
        assert_continues_on(load, "aoe1")
        create_veth(
            VethEnd("aoe0", 1500, wire.target_mac, wire.target.pid),
            VethEnd("aoe0", 1500, wire.initiator_mac),
        )
        assert uses_both(load)


def test_an_attached_disk_continues_on_the_other_path(
    wire: Wire, tmp_path: Path
) -> None:
    """A copy by an NBD client, during which the first link goes down."""
    create_second_link(wire)
    image, source = tmp_path / "disk.img", tmp_path / "source"
    source.write_bytes(os.urandom(64 << 20))
    target = start(wire.target, "serve", "e7.3", "aoe0,aoe1", image, "--create", "64M")
    ready_line(target)
    copy = f'nbdcopy --flush {shlex.quote(str(source))} "$uri"'
    command = [*AOE, "attach", "e7.3", "-i", "aoe0,aoe1"]
    command += ["--nbd", str(tmp_path / "socket"), "--run", copy]
    program("nbdcopy")
    process = wire.initiator.popen(command)
    until = time.monotonic() + TIMEOUT
    while image.stat().st_blocks < (4 << 20) // 512:
        assert time.monotonic() < until
        time.sleep(0.005)
    set_down("aoe0", wire.initiator.pid)
    assert process.wait(3 * TIMEOUT) == 0
    finish(target, signal.SIGTERM)
    assert image.read_bytes() == source.read_bytes()
