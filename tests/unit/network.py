"""A driver's world with several targets, for tests of paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.ata import SECTOR
from aoe.header import Command
from tests.unit.conftest import FakeTarget

if TYPE_CHECKING:
    from tests.unit.conftest import Sent, World

OTHER_MAC = b"\x52\x54\x00\xae\x00\x02"


class Network:
    """A world with several targets, each of which gets the frames sent to its MAC."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.warnings: list[str] = []
        self.targets = {world.target.mac: world.target}
        self.sent: list[Sent] = []
        world.driver.on_warning = lambda _, text: self.warnings.append(text)

    def add(
        self, *, mac: bytes = OTHER_MAC, serial: str = "2", sectors: int = 512
    ) -> FakeTarget:
        """Add a target at the same address, by default with another disk."""
        disk = bytearray(sectors * SECTOR)
        target = FakeTarget(disk, mac=mac)
        target.serial = serial
        self.targets[mac] = target
        return target

    def run(self, seconds: float = 0.0) -> None:
        """Deliver frames and responses, and let time pass."""
        world, end = self.world, self.world.now + seconds
        while True:
            while frames := world.take():
                self.sent += frames
                for frame in frames:
                    dst = frame.header.dst
                    for mac, target in list(self.targets.items()):
                        if dst in (mac, b"\xff" * 6):
                            world.deliver(target.answer(frame.raw), frame.port)
            if world.now >= end:
                return
            world.wait(min(max(0.01, seconds / 500), end - world.now))

    def sent_to(self, mac: bytes) -> list[int]:
        """Return the opcodes of the ATA commands sent to a MAC address."""
        return [
            f.registers.command
            for f in self.sent
            if f.header.dst == mac and f.header.command == Command.ATA
        ]

    def write_all(self, fill: int) -> None:
        """Write all sectors, two at a time."""
        for sector in range(0, 512, 2):
            self.world.write(sector, bytes([fill]) * (2 * SECTOR))
            self.run()


def forge(network: Network, count: int, start: int = 0) -> None:
    """Announce the device from made-up MAC addresses."""
    for number in range(start, start + count):
        announcement = network.world.target.announce()
        announcement[6:12] = b"\2\xee" + number.to_bytes(4, "big")
        network.world.deliver(announcement)
