"""Forged announcements, and responses from MAC addresses that announced nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aoe.ata import SECTOR, Opcode
from aoe.header import Command
from tests.unit.conftest import ADDRESS, FakeTarget
from tests.unit.network import OTHER_MAC, Network, forge

if TYPE_CHECKING:
    from tests.unit.conftest import Connect


# --- forged announcements -------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 300, 30_000])
def test_a2_forged_announcements_do_not_disturb_a_disk(
    network: Network, count: int
) -> None:
    forge(network, count)
    network.write_all(7)
    assert network.world.target.disk == b"\7" * (512 * SECTOR)
    assert {bio.error for bio in network.world.ended} == {None}
    assert network.world.now == 0.0, "nothing was lost or retransmitted"
    assert len(network.world.device.candidates) <= 8
    network.run(200)
    bio = network.world.read(0, bytearray(SECTOR))
    network.run()
    assert bio.error is None
    assert network.world.is_up
    assert network.world.device.candidates == {}
    assert [t.addr for t in network.world.device.targets] == [network.world.target.mac]


def test_a2_frames_to_forged_addresses_are_few(network: Network) -> None:
    for number in range(1000):
        forge(network, 1, start=number)
        network.run(0.001)
    identifies = network.sent_to(network.world.target.mac).count(Opcode.IDENTIFY)
    asked = sum(f.registers.command == Opcode.IDENTIFY for f in network.sent)
    assert asked - identifies < 1000
    assert identifies == 0


def test_a2_a_disk_is_found_among_forged_announcements(fresh: Network) -> None:
    forge(fresh, 300)
    for number in range(20):
        forge(fresh, 5, start=1000 * number)
        fresh.world.driver.discover(ADDRESS)
        fresh.run(0.05)
    assert fresh.world.is_up


def test_a2_forged_addresses_leave_no_devices_behind(fresh: Network) -> None:
    for number in range(6000):
        announcement = fresh.world.target.announce()
        announcement[6:8] = b"\2\xee"
        announcement[16:18] = number.to_bytes(2, "big")
        fresh.world.deliver(announcement)
    fresh.world.now = 20.0
    fresh.world.driver.handle_timer(20.0)
    fresh.world.driver.discover(ADDRESS)
    fresh.run(1)
    assert fresh.world.is_up
    assert len(fresh.world.driver.devices) < 10


def test_a2_a_device_fails_only_if_no_path_answers(network: Network) -> None:
    forge(network, 8)
    mac = network.world.target.mac
    target = network.targets.pop(mac)
    bio = network.world.write(0, b"w" * SECTOR)
    network.run(100)
    assert network.world.ended == []
    network.targets[mac] = target
    network.run(1)
    assert bio.error is None


# --- responses from another MAC address -----------------------------------------------


class OtherPort(FakeTarget):
    """A target that announces itself with one MAC address and sends from another."""

    from_port = OTHER_MAC
    identifies = True

    def answer(self, request: bytes) -> bytearray:
        response = super().answer(request)
        is_ata = response[19] == Command.ATA
        is_identify = is_ata and request[27] == Opcode.IDENTIFY
        if is_ata and (self.identifies or not is_identify):
            response[6:12] = self.from_port
        return response


def other_port(connect: Connect) -> Network:
    world = connect(is_up=False)
    world.target = OtherPort(world.target.disk)
    network = Network(world)
    world.driver.discover(ADDRESS)
    network.run(0.1)
    return network


def test_a3_a_target_that_sends_from_another_port_is_used(connect: Connect) -> None:
    network = other_port(connect)
    world = network.world
    world.driver.open(world.device)
    data = bytearray(SECTOR)
    world.read(3, data)
    network.write_all(7)
    assert {bio.error for bio in world.ended} == {None}
    assert world.driver.foreign == 0
    assert data == connect().target.disk[3 * SECTOR : 4 * SECTOR]


def test_a3_a_target_may_begin_to_send_from_another_port(network: Network) -> None:
    world = network.world
    port = OtherPort(world.target.disk)
    port.serial = "1"
    network.targets[port.mac] = port
    network.write_all(7)
    assert {bio.error for bio in world.ended} == {None}
    assert world.now < 0.1


def test_a3_data_from_a_port_that_does_not_identify_itself_is_refused(
    network: Network,
) -> None:
    world = network.world
    port = OtherPort(world.target.disk)
    port.serial, port.identifies = "1", False
    network.targets[port.mac] = port
    data = bytearray(b"\xee" * SECTOR)
    bio = world.read(3, data)
    network.run(185)
    assert data == b"\xee" * SECTOR
    assert "52:54:00:ae:00:02" in str(bio.error)
    assert "without having announced" in str(bio.error)
    assert "without having announced" in network.warnings[0]
