"""A host on real interfaces: tags, clock, and interfaces that disappear or change."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from aoe.address import Address
from aoe.errors import NotFoundError
from aoe.header import Command, Header
from aoe.net.interfaces import (
    VethEnd,
    create_veth,
    find_interface,
    remove,
    set_down,
    set_mtu,
    set_up,
)
from aoe.net.netns import Wire
from initiator.disk.disk import Disk
from initiator.driver.bio import Bio, Op
from initiator.driver.driver import Driver
from initiator.driver.options import Options
from initiator.io.host import Host
from tests.serving import TIMEOUT, ready_line, serving, start

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.netns

E73 = Address(7, 3)


def test_p11_hosts_have_different_tag_bases(wire: Wire, tmp_path: Path) -> None:
    """With any options, since each receives the responses to both."""
    first = 1 + os.getpid() % 1000
    with (
        serving(wire, tmp_path / "disk.img", "--create", "1M"),
        wire.initiator.enter(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("initiator.io.tags.tag_base", lambda: first)
        options = Options(timing="kernel")
        with (
            Disk.open("e7.3", wire.interface, options=options) as one,
            Disk.open("e7.3", wire.interface, options=options) as other,
        ):
            bases = {each.host.driver.options.tag_base for each in (one, other)}
        with Disk.open("e7.3", wire.interface) as later:
            bases.add(later.host.driver.options.tag_base)
    assert bases == {first, first + 1}


def test_p10_an_initiator_does_not_use_the_tags_of_the_one_before(
    wire: Wire, tmp_path: Path
) -> None:
    """In a container, even the process ID is often the same."""
    first: list[int] = []

    def record(driver: Driver, frame: memoryview, *_: object) -> None:
        header = Header.unpack_from(frame)
        if header.command == Command.ATA:
            first.append(header.tag)
        received(driver, frame, *_)  # type: ignore[arg-type] # as passed

    received = Driver.receive
    with (
        serving(wire, tmp_path / "disk.img", "--create", "1M"),
        wire.initiator.enter(),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("initiator.io.tags.tag_base", lambda: 7)
        patch.setattr(Driver, "receive", record)
        for _ in range(8):
            with Disk.open("e7.3", wire.interface):
                pass
    assert {tag >> 21 for tag in first} == {0x400 | 7}
    assert len(set(first)) == len(first) >= 8


@pytest.mark.parametrize("rings", [None, False])
def test_a_frame_lost_before_a_pause_is_retransmitted(
    wire: Wire, tmp_path: Path, *, rings: bool | None
) -> None:
    """A caller blocked for longer than ``deadsecs`` does not fail the device."""
    image = tmp_path / "disk.img"
    with (
        serving(wire, image, "--create", "1M"),
        wire.initiator.enter(),
        Host.on(wire.interface, options=Options(deadsecs=1), rings=rings) as host,
    ):
        disk = Disk(host, E73)
        ended: list[Bio] = []
        set_down(wire.interface)
        disk.submit(Op.WRITE, 0, b"x" * 512, ended.append)
        host.run_once(0)
        set_up(wire.interface)
        time.sleep(2.5)
        assert host.run_until(lambda: bool(ended), 10)
        assert ended[0].error is None
        assert disk.retransmits > 0
    assert image.read_bytes()[:512] == b"x" * 512


def test_a_pause_does_not_raise_the_rto(wire: Wire, tmp_path: Path) -> None:
    """Otherwise the RTO would grow to the length of the pause."""
    with serving(wire, tmp_path / "disk.img", "--create", "1M"):
        with wire.initiator.enter():
            host = Host.on(wire.interface)
        with host:
            disk = Disk(host, E73)
            ended: list[Bio] = []
            disk.submit(Op.READ, 0, bytearray(512), ended.append)
            host.run_once(0)
            time.sleep(1)
            assert host.run_until(lambda: bool(ended), 10)
            assert host.driver.devices[E73].timing.timeout(0) < 0.5


@pytest.mark.parametrize("rings", [None, False])
def test_one_of_two_interfaces_may_disappear(
    wire: Wire, tmp_path: Path, *, rings: bool | None
) -> None:
    with (
        serving(wire, tmp_path / "disk.img", "--create", "1M"),
        wire.initiator.enter(),
    ):
        create_veth(VethEnd("other0"), VethEnd("other1"))
        with Host.on("other0", wire.interface, rings=rings) as host:
            disk = Disk(host, E73)
            remove("other0")
            for _ in range(200):
                assert disk.read(0, 512) == bytes(512)
            gone, port = host.ports
            assert gone.link is None
            assert port.link is not None


@pytest.mark.parametrize("rings", [None, False])
def test_an_interface_that_returns_is_used_again(
    wire: Wire, tmp_path: Path, *, rings: bool | None
) -> None:
    """Even if it is the only one, and has another MAC address and MTU."""
    interface = wire.interface
    with (
        serving(wire, tmp_path / "disk.img", "--create", "1M"),
        wire.initiator.enter(),
        Host.on(interface, rings=rings) as host,
    ):
        disk = Disk(host, E73)
        ended: list[Bio] = []
        remove(interface)
        disk.submit(Op.WRITE, 0, b"x" * 512, ended.append)
        assert not host.run_until(lambda: bool(ended), 0.5)
        far = VethEnd(interface, 9000, wire.target_mac, wire.target.pid)
        create_veth(VethEnd(interface), far)
        assert host.run_until(lambda: bool(ended), 10)
        assert ended[0].error is None
        [port] = host.ports
        assert port.mac == find_interface(interface).mac != Wire.initiator_mac
        assert disk.frame_size == 1024
        set_mtu(interface, 9000)
        end = time.monotonic() + TIMEOUT
        while disk.frame_size != 17 * 512 and time.monotonic() < end:
            assert disk.read(0, 65536)[:512] == b"x" * 512
        assert disk.frame_size == 17 * 512
        set_mtu(interface, 1500)
        assert disk.read(512, 65536) == bytes(65536)
        assert disk.frame_size == 1024


def test_the_loss_of_the_only_path_is_an_error(wire: Wire, tmp_path: Path) -> None:
    create = [tmp_path / "disk.img", "--create", "1M"]
    target = start(wire.target, "serve", "e7.3", wire.interface, *create)
    ready_line(target)
    with wire.initiator.enter():
        create_veth(VethEnd("other0"), VethEnd("other1"))
        with Host.on("other0", wire.interface, options=Options(deadsecs=1)) as host:
            disk = Disk(host, E73)
            remove(wire.interface)
            with pytest.raises(NotFoundError, match="no response for 2 s"):
                disk.read(0, 512)
            remove("other0")
            with pytest.raises(NotFoundError, match="other0: interface is gone"):
                Disk(host, Address(7, 4), timeout=1)


def test_k55_run_once_ends_the_bio_of_a_dead_target(wire: Wire, tmp_path: Path) -> None:
    create = [tmp_path / "disk.img", "--create", "1M"]
    target = start(wire.target, "serve", "e7.3", wire.interface, *create)
    ready_line(target)
    options = Options(deadsecs=1)
    with (
        wire.initiator.enter(),
        Disk.open("e7.3", wire.interface, options=options) as disk,
    ):
        target.kill()
        target.wait()
        ended: list[Bio] = []
        disk.submit(Op.WRITE, 0, bytes(512), ended.append)
        # run_once without a timeout, as in a copy; the alarm ends a test that hangs.
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(20)
        try:
            while not ended:
                disk.host.run_once()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
    assert isinstance(ended[0].error, NotFoundError)
