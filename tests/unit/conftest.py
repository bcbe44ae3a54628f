"""Fixtures for driver tests: fake interfaces, a fake target and a manual clock."""

from __future__ import annotations

from struct import iter_unpack
from typing import TYPE_CHECKING, NamedTuple, Protocol

import pytest

from aoe.address import Address
from aoe.ata import ATA_DATA, LBA28_LIMIT, SECTOR, AtaError, Opcode, Registers, Status
from aoe.config import CONFIG_STRING, Config
from aoe.header import FRAME_MINIMUM, Command, ErrorCode, Flag, Header
from aoe.identify import FeatureSet, Identity
from initiator.driver.aoedev import State
from initiator.driver.bio import Bio, Op, bio_for
from initiator.driver.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from initiator.driver.aoedev import AoeDev
    from initiator.driver.options import Options
    from initiator.driver.skbuff import Skb
    from tests.unit.network import Network

ADDRESS = Address(1, 2)
_DISK = b"".join(number.to_bytes(4, "big") for number in range(1 << 16))
"""256 KiB; all sectors differ."""
_READS = (Opcode.READ, Opcode.READ_EXT)
_WRITES = (Opcode.WRITE, Opcode.WRITE_EXT)


class Sent(NamedTuple):
    """A transmitted frame, copied at the time of transmission.

    ``room`` is the number of further frames that the target's window allowed.
    """

    port: FakeNetDevice
    raw: bytes
    frags: list[int]
    skb: Skb
    time: float
    room: int

    @property
    def header(self) -> Header:
        return Header.unpack_from(self.raw)

    @property
    def registers(self) -> Registers:
        return Registers.unpack_from(self.raw)

    @property
    def tag(self) -> int:
        return self.header.tag


class FakeNetDevice:
    """An interface that appends the frames of the driver to ``World.frames``."""

    def __init__(self, number: int, mtu: int, world: World) -> None:
        self.name = f"eth{number}"
        self.mac = bytes([2, 0, 0, 0, 0, number])
        self.mtu = mtu
        self._world = world

    def xmit(self, skb: Skb) -> None:
        raw = bytes(skb)
        assert len(raw) <= 14 + self.mtu
        frags = [frag.length for frag in skb.frags]
        room = self._world.room_at(raw[:6])
        self._world.frames.append(Sent(self, raw, frags, skb, self._world.now, room))


class FakeTarget:
    """An AoE target with a disk in memory."""

    def __init__(
        self,
        disk: bytearray,
        *,
        mac: bytes = b"\x52\x54\x00\xae\x00\x01",
        address: Address = ADDRESS,
        buffers: int = 16,
        sector_count: int = 255,
        lba48: bool = True,
    ) -> None:
        self.disk = disk
        self.mac = mac
        self.address = address
        self.config = Config(
            buffer_count=buffers,
            firmware=0x4001,
            sector_count=sector_count,
            version=1,
        )
        self.lba48 = lba48
        self.serial = "1"
        self.feature_sets = FeatureSet.NONE
        self.enabled = FeatureSet.NONE
        self.supports_fua = False
        self.read_only = False
        self.flushes = 0
        self.epoch = 0

    @property
    def identity(self) -> Identity:
        return Identity(
            len(self.disk) // SECTOR,
            serial=self.serial,
            lba48=self.lba48,
            feature_sets=self.feature_sets,
            enabled=self.enabled,
            epoch=self.epoch,
        )

    def announce(self, tag: int = 0) -> bytearray:
        """Return an announcement (P48), or a query config response to ``tag``."""
        response = self._header(Command.CONFIG, tag, CONFIG_STRING)
        self.config.pack_into(response)
        return response

    def answer(self, request: bytes) -> bytearray:
        """Execute a request and return the response."""
        header = Header.unpack_from(request)
        if header.command == Command.CONFIG:
            return self.announce(header.tag)
        opcode = Registers.unpack_from(request).command
        if opcode == Opcode.IDENTIFY:
            return self.report(request, data=self.identity.pack())
        if opcode == Opcode.FLUSH:
            self.flushes += 1
            return self.report(request)
        return self._execute(opcode, request)

    def _execute(self, opcode: int, request: bytes) -> bytearray:
        is_trim = (
            opcode == Opcode.DATA_SET_MANAGEMENT
            and FeatureSet.TRIM in self.feature_sets
        )
        is_write = opcode in _WRITES or (
            opcode == Opcode.WRITE_DMA_FUA_EXT and self.supports_fua
        )
        if self.read_only and (is_write or is_trim):
            return self.report(request, Status.ERROR, AtaError.ABORTED)
        if opcode in _READS or is_write:
            return self._transfer(request)
        if is_trim:
            return self._trim(request)
        return self.report(request, Status.ERROR, AtaError.ABORTED)

    def _transfer(self, request: bytes) -> bytearray:
        registers = Registers.unpack_from(request)
        lba, length = registers.lba, registers.count * SECTOR
        if registers.command in (Opcode.READ, Opcode.WRITE):
            lba %= LBA28_LIMIT
        extent = slice(lba * SECTOR, lba * SECTOR + length)
        if extent.stop > len(self.disk):
            return self.report(request, Status.ERROR, AtaError.NOT_FOUND)
        if registers.command in _READS:
            return self.report(request, data=bytes(self.disk[extent]))
        assert len(request) == ATA_DATA + length
        self.disk[extent] = request[ATA_DATA:]
        return self.report(request)

    def _trim(self, request: bytes) -> bytearray:
        ranges = request[
            ATA_DATA : ATA_DATA + Registers.unpack_from(request).count * SECTOR
        ]
        for (entry,) in iter_unpack("<Q", ranges):
            first, length = entry & 0xFFFF_FFFF_FFFF, (entry >> 48) * SECTOR
            extent = slice(first * SECTOR, first * SECTOR + length)
            if extent.stop > len(self.disk):
                return self.report(request, Status.ERROR, AtaError.NOT_FOUND)
            self.disk[extent] = bytes(length)
        return self.report(request)

    def report(
        self, request: bytes, status: int = 0, error: int = 0, data: bytes = b""
    ) -> bytearray:
        """Return an ATA response with these registers and data."""
        header = Header.unpack_from(request)
        response = self._header(Command.ATA, header.tag, ATA_DATA + len(data))
        registers = Registers.unpack_from(request)
        Registers(
            registers.aflags, error, 0, Status.READY | status, registers.lba
        ).pack_into(response)
        response[ATA_DATA : ATA_DATA + len(data)] = data
        return response

    def refuse(self, request: bytes, code: int = ErrorCode.BAD_ARGUMENT) -> bytearray:
        """Return an AoE error response."""
        response = bytearray(request.ljust(FRAME_MINIMUM, b"\0"))
        response[6:12] = self.mac
        response[14] |= Flag.RESPONSE | Flag.ERROR
        response[15] = code
        return response

    def _header(self, command: int, tag: int, length: int) -> bytearray:
        response = bytearray(max(length, FRAME_MINIMUM))
        Header(
            b"\2\0\0\0\0\0", self.mac, *self.address, command, tag, Flag.RESPONSE
        ).pack_into(response)
        return response


class World:
    """A driver with fake interfaces, a fake target and a manual clock."""

    def __init__(
        self, options: Options | None, mtus: Sequence[int], target: FakeTarget
    ) -> None:
        self.now = 0.0
        self.frames: list[Sent] = []
        self.ended: list[Bio] = []
        self.target = target
        self.driver = Driver(options)
        self.ports = [FakeNetDevice(n, mtu, self) for n, mtu in enumerate(mtus)]
        for port in self.ports:
            self.driver.add_netdev(port)

    @property
    def device(self) -> AoeDev:
        return self.driver.devices[self.target.address]

    @property
    def is_up(self) -> bool:
        return self.device.state is State.UP

    def room_at(self, mac: bytes) -> int:
        """Return the free slots in a target's window; 0 if the target is unknown."""
        device = self.driver.devices.get(self.target.address)
        target = device.find_target(mac) if device else None
        return target.window.maxout - target.window.nout if target else 0

    def take(self) -> list[Sent]:
        """Return the frames transmitted since the last call."""
        frames, self.frames = self.frames, []
        return frames

    def deliver(self, frame: bytes | bytearray, port: FakeNetDevice | int = 0) -> None:
        """Pass a frame to the driver."""
        if isinstance(port, int):
            port = self.ports[port]
        self.driver.receive(memoryview(bytes(frame)), port, self.now)

    def respond(self, *frames: Sent) -> None:
        """Execute requests and deliver the responses."""
        for frame in frames:
            self.deliver(self.target.answer(frame.raw), frame.port)

    def run_until_idle(self) -> None:
        """Execute transmitted requests until the driver sends no more."""
        while frames := self.take():
            self.respond(*frames)

    def bring_up(self) -> None:
        """Announce the target on every interface and complete IDENTIFY."""
        for number in range(len(self.ports)):
            self.deliver(self.target.announce(), number)
            self.run_until_idle()

    def wait(self, seconds: float) -> None:
        """Advance the clock and run the driver's timers as they expire."""
        end = self.now + seconds
        while (due := self.driver.next_timeout()) is not None and due <= end:
            self.now = max(self.now, due)
            self.driver.handle_timer(self.now)
        self.now = end

    def second_mac(self, buffers: int = 16, sector_count: int = 255) -> FakeTarget:
        """Return another target with the same disk and address, and another MAC."""
        return FakeTarget(
            self.target.disk,
            mac=b"\x52\x54\x00\xae\x00\x02",
            buffers=buffers,
            sector_count=sector_count,
        )

    def submit(self, bio: Bio) -> Bio:
        self.driver.submit(self.device, bio, self.now)
        return bio

    def read(self, sector: int, buffer: bytearray | memoryview) -> Bio:
        return self.submit(bio_for(Op.READ, sector, buffer, self.ended.append))

    def write(self, sector: int, data: bytes, *, fua: bool = False) -> Bio:
        bio = bio_for(Op.WRITE, sector, data, self.ended.append, fua=fua)
        return self.submit(bio)

    def discard(self, sector: int, count: int) -> Bio:
        length = count * SECTOR
        return self.submit(Bio(Op.DISCARD, sector, self.ended.append, length=length))

    def flush(self) -> Bio:
        return self.submit(bio_for(Op.FLUSH, 0, b"", self.ended.append))


class Connect(Protocol):
    """Factory of worlds; with ``is_up``, the device is already identified."""

    def __call__(
        self,
        options: Options | None = None,
        *,
        mtus: Sequence[int] = (1500,),
        buffers: int = 16,
        sector_count: int = 255,
        lba48: bool = True,
        is_up: bool = True,
    ) -> World: ...


def _connect(
    options: Options | None = None,
    *,
    mtus: Sequence[int] = (1500,),
    buffers: int = 16,
    sector_count: int = 255,
    lba48: bool = True,
    is_up: bool = True,
) -> World:
    target = FakeTarget(
        bytearray(_DISK), buffers=buffers, sector_count=sector_count, lba48=lba48
    )
    world = World(options, mtus, target)
    if is_up:
        world.bring_up()
    return world


@pytest.fixture(scope="session")
def connect() -> Connect:
    """Return a factory of worlds with a disk of 512 sectors."""
    return _connect


@pytest.fixture
def network(connect: Connect) -> Network:
    """Return a network whose device is open and in use."""
    from tests.unit.network import Network

    world = connect()
    world.driver.open(world.device)
    return Network(world)


@pytest.fixture
def fresh(connect: Connect) -> Network:
    """Return a network on which nothing has been found."""
    from tests.unit.network import Network

    return Network(connect(is_up=False))
