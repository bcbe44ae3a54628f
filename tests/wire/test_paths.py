"""Two cables, of which either may be cut, and a target that stands still."""

from __future__ import annotations

import os
import signal
import sys
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
from tests.nbd_servers import program
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
"""Frames that a path in use carries in a few megabytes, at the very least."""


def never() -> bool:
    """Wait for nothing but the end of the time."""
    return False


class Copying:
    """A disk that is written and read all the time, eight pieces at once."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.data = os.urandom(SIZE)
        self.pieces = 0
        self.longest_pause = 0.0
        self._started = self._running = 0
        self._last = time.monotonic()

    def run(self, until: Callable[[], bool] = never, seconds: float = 1.5) -> bool:
        """Go on until something is so, at most for so long; tell whether it is."""
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

        def ended(bio: Bio) -> None:
            assert bio.error is None
            assert buffer == expected
            self.pieces += 1
            self._running -= 1
            self._last = time.monotonic()

        op = Op.WRITE if first else Op.READ
        self._started += 1
        self._running += 1
        self.disk.submit(op, offset, buffer, ended)

    def drain(self) -> None:
        assert self.disk.host.run_until(lambda: not self._running, TIMEOUT)


@contextmanager
def two_paths(wire: Wire, tmp_path: Path) -> Iterator[Copying]:
    """Serve on two cables, open the disk on both, and write all of it once."""
    lay_second_cable(wire)
    image = tmp_path / "disk.img"
    words = ["serve", "e7.3", "aoe0,aoe1", image, "--create", "4M"]
    target = start(wire.target, *words)
    ready_line(target)
    with wire.initiator.enter(), Host.on("aoe0", "aoe1") as host:
        disk = Disk(host, E73)
        copying = Copying(disk)
        assert copying.run(lambda: copying.pieces >= SIZE // PIECE, TIMEOUT)
        yield copying
        copying.drain()
    finish(target, signal.SIGTERM)
    assert target.returncode == 0
    assert image.read_bytes() == copying.data


def lay_second_cable(wire: Wire) -> None:
    create_veth(
        VethEnd("aoe1", 1500, bytes.fromhex("525400ae0011"), wire.target.pid),
        VethEnd("aoe1", 1500, bytes.fromhex("525400ae0012"), wire.initiator.pid),
    )


def frames(*names: str) -> list[int]:
    """Count what the initiator's interfaces have received."""
    return [get_interface_details(name).counters["rx_packets"] for name in names]


def both_carry(copying: Copying) -> bool:
    """Wait until both paths carry load, from now on."""
    before = frames("aoe0", "aoe1")

    def do_they() -> bool:
        after = frames("aoe0", "aoe1")
        return all(b - a > SHARE for a, b in zip(before, after, strict=True))

    return copying.run(do_they, TIMEOUT)


def goes_on_over(copying: Copying, name: str) -> None:
    """Copy for a while over one path; nothing may stop for long."""
    before, pieces = frames(name)[0], copying.pieces
    copying.longest_pause = 0.0
    copying.run()
    assert frames(name)[0] - before > SHARE
    assert copying.pieces - pieces > 10
    assert copying.longest_pause < 3


def test_k10_a_path_that_is_not_known_is_found_in_time(
    wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody announces it; but whoever uses a device asks for it now and then."""
    monkeypatch.setattr("initiator.io.host._QUERY_INTERVAL", 0.5)
    with two_paths(wire, tmp_path) as copying:
        copying.drain()
        targets = copying.disk.host.driver.devices[E73].targets
        forgotten = targets.pop()
        assert both_carry(copying)
        assert targets[1].addr == forgotten.addr


@pytest.mark.parametrize("timing", ["prompt", "kernel"])
def test_a_frozen_target_is_as_good_as_new_when_it_goes_on(
    wire: Wire, tmp_path: Path, timing: str
) -> None:
    """How soon is for scripts/frozen to measure."""
    words = ["serve", "e7.3", "aoe0", tmp_path / "disk.img", "--create", "4M"]
    target = start(wire.target, *words)
    ready_line(target)
    options = Options(timing=timing)
    with wire.initiator.enter(), Host.on("aoe0", options=options) as host:
        copying = Copying(Disk(host, E73))
        assert copying.run(lambda: copying.pieces >= 4 * SIZE // PIECE, 3 * TIMEOUT)
        target.send_signal(signal.SIGSTOP)
        copying.run(seconds=2)
        frozen = copying.pieces
        copying.run(seconds=0.5)
        assert copying.pieces == frozen
        target.send_signal(signal.SIGCONT)
        assert copying.run(lambda: copying.pieces > frozen + 100, 3 * TIMEOUT)
        copying.drain()
    finish(target, signal.SIGTERM)
    assert (tmp_path / "disk.img").read_bytes() == copying.data


@pytest.mark.parametrize("cut", ["aoe0", "aoe1"])
@pytest.mark.parametrize("end", ["target", "initiator"])
def test_k41_k57_either_of_two_paths_may_be_down_for_a_while(
    wire: Wire, tmp_path: Path, cut: str, end: str
) -> None:
    other = {"aoe0": "aoe1", "aoe1": "aoe0"}[cut]
    with two_paths(wire, tmp_path) as copying:
        assert both_carry(copying)
        namespace = getattr(wire, end)
        set_down(cut, namespace.pid)
        goes_on_over(copying, other)
        set_up(cut, namespace.pid)
        assert both_carry(copying)


def test_either_of_two_paths_may_vanish_and_come_back(
    wire: Wire, tmp_path: Path
) -> None:
    """One after the other, so that each is once the only one."""
    with two_paths(wire, tmp_path) as copying:
        remove("aoe1")
        goes_on_over(copying, "aoe0")
        lay_second_cable(wire)
        assert both_carry(copying)
        remove("aoe0")
        goes_on_over(copying, "aoe1")
        create_veth(
            VethEnd("aoe0", 1500, wire.target_mac, wire.target.pid),
            VethEnd("aoe0", 1500, wire.initiator_mac),
        )
        assert both_carry(copying)


def test_what_is_attached_on_both_goes_on_over_either(
    wire: Wire, tmp_path: Path
) -> None:
    """A copy through an NBD client, of which the first cable is cut on the way."""
    lay_second_cable(wire)
    image, source = tmp_path / "disk.img", tmp_path / "source"
    source.write_bytes(os.urandom(64 << 20))
    target = start(wire.target, "serve", "e7.3", "aoe0,aoe1", image, "--create", "64M")
    ready_line(target)
    copy = f'nbdcopy --flush {source} "$uri"'
    command = [sys.executable, "-m", "initiator", "attach", "e7.3", "-i", "aoe0,aoe1"]
    command += ["--nbd", str(tmp_path / "socket"), "--run", copy]
    program("nbdcopy", "libnbd-bin")
    process = wire.initiator.popen(command)
    until = time.monotonic() + TIMEOUT
    while image.stat().st_blocks < (4 << 20) // 512:
        assert time.monotonic() < until
        time.sleep(0.005)
    set_down("aoe0", wire.initiator.pid)
    assert process.wait(3 * TIMEOUT) == 0
    finish(target, signal.SIGTERM)
    assert image.read_bytes() == source.read_bytes()
