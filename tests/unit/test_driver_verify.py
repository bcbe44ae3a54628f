"""Paths are used only after IDENTIFY has shown that they serve the same disk."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from aoe.ata import SECTOR, Opcode
from aoe.errors import DeviceError, NotFoundError
from aoe.header import TAG_USER
from initiator.driver.options import Options
from tests.unit.conftest import ADDRESS
from tests.unit.network import OTHER_MAC, Network

if TYPE_CHECKING:
    from tests.unit.conftest import Connect

WRITES = (Opcode.WRITE, Opcode.WRITE_EXT)


# --- two disks at one address ---------------------------------------------------------


def test_a1_the_writes_of_an_open_disk_are_never_divided_between_two_disks(
    network: Network,
) -> None:
    other = network.add()
    network.world.deliver(other.announce())
    network.run()
    network.write_all(7)
    assert set(network.sent_to(other.mac)) == {Opcode.IDENTIFY}
    assert network.world.target.disk == b"\7" * (512 * SECTOR)
    assert not any(other.disk)
    assert {bio.error for bio in network.world.ended} == {None}
    [warning] = network.warnings
    assert "52:54:00:ae:00:02" in warning
    assert "serial '2'" in warning
    assert "another disk" in warning


def test_a1_of_two_disks_at_one_address_none_is_used(fresh: Network) -> None:
    fresh.add()
    fresh.world.driver.discover(ADDRESS)
    fresh.run(0.1)
    device = fresh.world.device
    bio = fresh.world.write(0, bytes(SECTOR))
    assert not fresh.world.is_up
    assert isinstance(bio.error, DeviceError)
    for text in (str(bio.error), str(device.conflict), fresh.warnings[0]):
        assert "52:54:00:ae:00:01" in text
        assert "52:54:00:ae:00:02" in text
    assert not {*WRITES} & {*fresh.sent_to(OTHER_MAC)}


def test_a1_a_slower_second_disk_takes_a_closed_device_down(fresh: Network) -> None:
    fresh.world.driver.discover(ADDRESS)
    fresh.run(0.02)
    assert fresh.world.is_up
    fresh.world.deliver(fresh.add().announce())
    fresh.run()
    assert not fresh.world.is_up
    assert fresh.world.device.conflict is not None


def test_a1_the_remaining_disk_is_used_when_the_other_is_gone(fresh: Network) -> None:
    other = fresh.add()
    fresh.world.driver.discover(ADDRESS)
    fresh.run(0.1)
    del fresh.targets[other.mac]
    fresh.run(11)
    fresh.world.driver.discover(ADDRESS)
    fresh.run(1)
    assert fresh.world.is_up


@pytest.mark.parametrize("serial", ["1", ""])
def test_a1_a_path_with_a_disk_of_another_size_is_refused(
    network: Network, serial: str
) -> None:
    """As two vblades of one host would have it: the serial number is not unique."""
    network.world.deliver(network.add(serial=serial, sectors=100).announce())
    network.run()
    network.write_all(7)
    assert set(network.sent_to(OTHER_MAC)) == {Opcode.IDENTIFY}
    assert network.world.device.ssize == 512
    assert network.warnings


def test_a1_a_second_path_to_the_same_disk_is_used(network: Network) -> None:
    second = network.world.second_mac()
    network.targets[second.mac] = second
    network.world.deliver(second.announce())
    network.run()
    network.write_all(7)
    assert network.sent_to(second.mac)[0] == Opcode.IDENTIFY
    assert Opcode.WRITE_EXT in network.sent_to(second.mac)
    assert network.warnings == []


def test_a1_a_path_carries_no_data_before_it_is_proven(network: Network) -> None:
    second = network.world.second_mac()
    network.world.deliver(second.announce())
    network.write_all(7)
    assert set(network.sent_to(second.mac)) == {Opcode.IDENTIFY}


# --- size -----------------------------------------------------------------------------


def test_a1_an_announcement_of_a_smaller_disk_does_not_change_the_size(
    network: Network,
) -> None:
    network.world.deliver(network.add(sectors=8).announce())
    network.run(1)
    assert network.world.device.ssize == 512
    bio = network.world.read(500, bytearray(SECTOR))
    network.run()
    assert bio.error is None


def test_a1_a_disk_that_has_grown_is_the_same_disk(network: Network) -> None:
    network.world.target.disk += bytes(SECTOR)
    network.world.deliver(network.world.target.announce())
    network.run()
    assert network.world.is_up
    assert network.world.device.ssize == 513
    assert network.warnings == []


def test_a1_with_the_same_serial_number_a_grown_disk_is_found_on_a_new_path(
    network: Network,
) -> None:
    """Both paths have grown, and the new one is heard first."""
    network.world.target.disk += bytes(SECTOR)
    second = network.world.second_mac()
    network.targets[second.mac] = second
    for _ in range(2):
        network.world.deliver(second.announce())
        network.run(0.1)
    assert network.world.device.ssize == 513
    assert len(network.world.device.targets) == 2


# --- a disk that was exchanged --------------------------------------------------------


def test_a1_a_target_that_restarts_with_another_disk_gets_no_data(
    network: Network,
) -> None:
    mac = network.world.target.mac
    other = network.add(mac=mac)
    network.world.deliver(other.announce())
    bio = network.world.write(0, b"w" * SECTOR)
    network.run()
    assert not any(other.disk)
    assert isinstance(bio.error, DeviceError)
    assert "another disk" in str(bio.error)
    assert "another disk" in network.warnings[0]
    again = network.world.write(0, b"w" * SECTOR)
    network.run(1)
    assert "another disk" in str(again.error)
    assert not any(other.disk)


def test_a1_data_read_from_an_exchanged_disk_is_not_passed_on(network: Network) -> None:
    """The request reaches the new disk; its announcement precedes the response."""
    data = bytearray(b"\xee" * SECTOR)
    bio = network.world.read(3, data)
    [request] = network.world.take()
    other = network.add(mac=network.world.target.mac)
    network.world.deliver(other.announce())
    network.world.deliver(other.answer(request.raw))
    network.run()
    assert data == b"\xee" * SECTOR
    assert bio.error is not None


def test_a1_data_of_a_target_that_restarts_with_its_disk_is_used(
    network: Network,
) -> None:
    data = bytearray(SECTOR)
    bio = network.world.read(3, data)
    [request] = network.world.take()
    network.world.deliver(network.world.target.announce())
    network.world.deliver(network.world.target.answer(request.raw))
    assert network.world.ended == []
    network.run()
    assert network.world.ended == [bio]
    assert data == network.world.target.disk[3 * SECTOR : 4 * SECTOR]
    assert network.world.device.retransmits == 0


def test_a1_after_silence_another_disk_with_the_same_mac_gets_no_data(
    network: Network,
) -> None:
    """The new target's announcement is lost."""
    world = network.world
    target = network.targets.pop(world.target.mac)
    bio = world.write(0, b"w" * SECTOR)
    network.run(2)
    other = network.add(mac=target.mac)
    network.run(2)
    assert not any(other.disk)
    assert isinstance(bio.error, DeviceError)


def test_a1_after_silence_the_same_disk_gets_the_data(network: Network) -> None:
    world = network.world
    target = network.targets.pop(world.target.mac)
    bio = world.write(0, b"w" * SECTOR)
    network.run(2)
    network.targets[target.mac] = target
    network.run(2)
    assert world.ended == [bio]
    assert bio.error is None
    assert target.disk[:SECTOR] == b"w" * SECTOR


def test_a1_another_disk_does_not_replace_one_that_was_away(network: Network) -> None:
    """With the kernel's device, it would be back, with the wrong data."""
    world = network.world
    network.targets.clear()
    lost = world.write(0, b"w" * SECTOR)
    network.run(181)
    other = network.add()
    world.deliver(other.announce())
    network.run(1)
    assert isinstance(lost.error, NotFoundError)
    bio = world.write(0, b"w" * SECTOR)
    assert "another disk" in str(bio.error)
    assert not any(other.disk)
    # The right one, with a MAC address of another interface, is used.
    network.targets = {b"\2\2\2\2\2\2": world.target}
    world.target.mac = b"\2\2\2\2\2\2"
    world.deliver(world.target.announce())
    network.run(1)
    assert world.is_up


def test_a1_a_failure_names_the_disk_that_answered_instead(network: Network) -> None:
    world = network.world
    network.targets.clear()
    bio = world.write(0, b"w" * SECTOR)
    other = network.add()
    world.deliver(other.announce())
    network.run(185)
    assert "no response for 181 s" in str(bio.error)
    assert "52:54:00:ae:00:02" in str(bio.error)


def test_a1_frames_of_a_refused_path_move_to_the_other(network: Network) -> None:
    world = network.world
    second = world.second_mac()
    network.targets[second.mac] = second
    world.deliver(second.announce())
    network.run()
    bios = [world.write(2 * number, b"w" * 1024) for number in range(8)]
    frames = world.take()
    assert {f.header.dst for f in frames} == {world.target.mac, second.mac}
    other = network.add(mac=second.mac)
    world.deliver(other.announce())
    network.run(1)
    assert len(world.ended) == len(bios)
    assert {bio.error for bio in bios} == {None}
    assert world.target.disk[: 16 * SECTOR] == b"w" * (16 * SECTOR)
    assert not any(other.disk)


def test_a1_a_closed_device_may_change_its_disk(fresh: Network) -> None:
    fresh.world.driver.discover(ADDRESS)
    fresh.run(0.1)
    other = fresh.add(mac=fresh.world.target.mac, sectors=100)
    fresh.world.deliver(other.announce())
    fresh.run()
    assert fresh.world.is_up
    assert fresh.world.device.ssize == 100


# --- the kernel -----------------------------------------------------------------------


def test_k14_k19_the_kernel_uses_a_second_disk_at_once(connect: Connect) -> None:
    world = connect(Options.kernel())
    world.driver.open(world.device)
    network = Network(world)
    other = network.add()
    world.deliver(other.announce())
    network.write_all(7)
    assert other.disk.count(7) == 256 * SECTOR


def test_a1_paths_that_fail_in_turn_never_mix_disks(network: Network) -> None:
    """Two paths to one disk and a stranger, each away for a while."""
    world = network.world
    second, stranger = world.second_mac(), network.add(mac=b"\2\3\3\3\3\3")
    everyone = [world.target, second, stranger]
    for number, away in enumerate(itertools.islice(itertools.cycle(everyone), 12)):
        network.targets = {t.mac: t for t in everyone if t is not away}
        for target in network.targets.values():
            world.deliver(target.announce(TAG_USER if number % 2 else 0))
        for sector in range(0, 64, 2):
            world.write(sector, bytes([number]) * 1024)
        network.run(3)
        assert world.target.disk[: 64 * SECTOR] == bytes([number]) * (64 * SECTOR)
    assert not any(stranger.disk)
    assert {bio.error for bio in world.ended} == {None}
