"""What the fuzzer talks to: a port with four targets, as the service has them.

::

    e0.0  a window of a file, with the rest of the file around it for a fence
    e7.3  an overlay over another file
    e7.4  a third file, read-only
    e9.1  a fourth, with --sync

Each frame goes the way of all frames: the port finds the target, or all of them for a
broadcast address, and the reply is written into memory that is full of rubbish. Then
``tests.fuzz_rules`` has its say. Disks and files fail now and then.
"""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from aoe.address import Address
from aoe.identify import FeatureSet
from aoe.net.base import Link, LinkStatistics
from target.disks import OpenFlags, open_disk
from target.protocol.exports import Export
from target.server.ports import Port
from tests.fuzz_rules import FAULT, Change, Served, asks_for_stability, hold

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from target.disks import Disk
    from target.protocol.exports import ClientState

SIZE = 1 << 20
GUARD = 1 << 16
MAC = bytes.fromhex("5254007a26e7")
RUBBISH = 0xDB
FAULTS = {0: errno.EIO, 1: errno.ENOSPC, 2: errno.ENODEV}
STATE_FAULTS = range(3, 9)
LUCK = 211
"""A checksum of the frame modulo this decides whether disk or file fail it, so that it
fails when it is replayed as well."""
RELIEF = 24
"""Frames after which all may talk to the targets again."""
AMNESTY = 1024
"""Frames after which everything is as it was when it was switched on."""


class Fence:
    """A disk that notes what is changed, lets nobody out, and fails when told to."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.size = disk.size
        self.read_only = disk.read_only
        self.fault: int | None = None
        """The error number with which an operation fails; ``passes`` succeed before."""
        self.passes = 0
        self.failed = False
        self.unstable = False
        """A flush has failed, and nobody who asked for one has been told."""
        self._changes: list[Change] = []

    def take_changes(self) -> list[Change]:
        taken, self._changes = self._changes, []
        return taken

    def _pass(self, offset: int, length: int) -> None:
        assert 0 <= offset < offset + length <= self.size, "beyond the disk"
        assert offset % 512 == length % 512 == 0, "not a whole sector"
        self._count()

    def _count(self) -> None:
        if self.fault is not None:
            if not self.passes:
                self.failed = True
                raise OSError(self.fault, "injected")
            self.passes -= 1

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._pass(offset, len(buffer))
        self.disk.read_into(offset, buffer)

    def write_from(self, offset: int, data: memoryview) -> None:
        assert not self.read_only
        self._pass(offset, len(data))
        self.disk.write_from(offset, data)
        self._changes.append(Change(offset, len(data), bytes(data)))

    def discard(self, offset: int, length: int) -> None:
        assert not self.read_only
        self._pass(offset, length)
        self.disk.discard(offset, length)
        self._changes.append(Change(offset, length))

    def flush(self) -> None:
        try:
            self._count()
        except OSError as error:
            # A disk that is away says nothing about what was written.
            self.unstable = self.unstable or error.errno != errno.ENODEV
            raise
        self.disk.flush()

    def close(self) -> None:
        self.disk.close()


class Slot(Link):
    """A link that brings one frame at a time, and keeps what is sent."""

    def __init__(self, mtu: int) -> None:
        self.name, self.index, self.mac, self.mtu, self.up = "fuzz0", 1, MAC, mtu, True
        self.request: bytes | None = None
        self.replies: list[bytes] = []
        self._rubbish = bytes([RUBBISH]) * (14 + mtu)
        self._reply = bytearray(14 + mtu)

    def receive(self) -> memoryview | None:
        request, self.request = self.request, None
        return None if request is None else memoryview(request)

    def reserve(self) -> memoryview | None:
        self._reply[:] = self._rubbish
        return memoryview(self._reply)

    def commit(self, length: int) -> None:
        assert length <= len(self._reply)
        self.replies.append(bytes(self._reply[:length]))

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def wait(self, timeout: float | None) -> bool:
        raise NotImplementedError

    def statistics(self) -> LinkStatistics:
        return LinkStatistics()

    def close(self) -> None:
        pass


class Outcome(NamedTuple):
    """What became of a request, in the bytes of its frame: -1 where there are none.

    Args:
        version: AoE version.
        command: AoE command.
        opcode: ATA opcode.
        error: AoE error of the reply, -1 for silence.
        registers: status and error registers of the reply.
    """

    version: int
    command: int
    opcode: int
    error: int
    registers: tuple[int, int]


class FuzzedPort:
    """A port with four targets on files in a directory of its own.

    Args:
        place: the directory.
        mtu: of the interface.
        before: the MTU that the interface had when the targets were switched on.
    """

    def __init__(self, place: Path, mtu: int, before: int | None = None) -> None:
        place.mkdir()
        self.outcomes: Counter[Outcome] = Counter()
        self.frames = 0
        self._luck = 0
        self._is_state_lost = False
        self._place = place
        self._files: dict[str, bytes] = {}
        self._slot = Slot(mtu)
        self._port = Port(Slot(before or mtu), reopen=lambda _name, _frames: self._slot)
        self.served = [
            self._serve(Address(0, 0), "window", OpenFlags(offset=GUARD, length=SIZE)),
            self._serve(Address(7, 3), "golden", OpenFlags(), "overlay"),
            self._serve(Address(7, 4), "still", OpenFlags(read_only=True)),
            self._serve(Address(9, 1), "stable", OpenFlags(sync=True)),
        ]
        # The port takes up the slot as it does an interface with another MTU.
        self._port.ensure_buffers(1)

    def _serve(
        self, address: Address, name: str, flags: OpenFlags, overlay: str = ""
    ) -> Served:
        path = self._place / name
        content = Random(name).randbytes(2 * GUARD + SIZE if flags.offset else SIZE)
        path.write_bytes(content)
        self._files[name] = content
        over = str(self._place / overlay) if overlay else ""
        disk = Fence(open_disk(path, flags, over))
        export = Export(address, disk, firmware_number=0x4019, sync=flags.sync)
        export.on_change = self._keep
        model = bytearray(content[flags.offset :][:SIZE])
        return Served(self._port.add(export), disk, model)

    def _keep(self, _state: ClientState) -> None:
        if self._luck % LUCK in STATE_FAULTS:
            self._is_state_lost = True
            raise OSError(errno.ENOSPC, "injected")

    def _draw(self, request: bytes) -> None:
        self._luck = crc32(request)
        self._is_state_lost = False
        for each in self.served:
            each.disk.fault = FAULTS.get(self._luck % LUCK)
            each.disk.passes = self._luck >> 16 & 1
            each.disk.failed = False

    def run(self, request: bytes) -> list[bytes]:
        """Hand a frame over, hold the targets to the rules, and return the replies.

        Raises:
            AssertionError: a rule was broken.
            Exception: whatever the target lets out, which is nothing.
        """
        before = [each.target.export.state for each in self.served]
        self._draw(request)
        self._slot.request, self._slot.replies = request, []
        # Later than any doubt about an earlier flush lasts.
        self._port.serve(self.frames * 10.0)
        replies = self._slot.replies
        self._judge(request, list(replies), before)
        self.frames += 1
        if self.frames % RELIEF == 0:
            self._relieve()
        if self.frames % AMNESTY == 0:
            self._forgive()
        return replies

    def _judge(
        self, request: bytes, replies: list[bytes], before: list[ClientState]
    ) -> None:
        for each, state in zip(self.served, before, strict=True):
            target, disk = each.target, each.disk
            doubtful = disk.unstable and asks_for_stability(request)
            broken = disk.failed or self._is_state_lost or doubtful
            address = target.response_head[10:13]
            mine = [reply for reply in replies if reply[16:19] == address]
            assert len(mine) <= 1, "two replies of one target"
            if len(request) < 24 or not each.hears(request):
                assert not mine, "a reply to a frame for others"
                assert not disk.take_changes(), "a frame for others changed the disk"
                assert target.export.state is state, "a frame for others was obeyed"
                continue
            reply = mine[0] if mine else b""
            hold(each, request, reply, state, broken=broken)
            if doubtful and reply and reply[14:16] == b"\x18\0":
                assert (reply[27], reply[25]) == FAULT, "a failed flush is kept quiet"
                disk.unstable = False
            self._count(request, reply)
            replies = [other for other in replies if other[16:19] != address]
        assert not replies, "a reply of no target of ours"

    def _count(self, request: bytes, reply: bytes) -> None:
        is_ata = request[19] == 0 and len(request) >= 36
        has_registers = is_ata and reply and reply[14] == 0x18
        told = (reply[27], reply[25]) if has_registers else (-1, -1)
        self.outcomes[
            Outcome(
                request[14] >> 4,
                request[19],
                request[27] if is_ata else -1,
                reply[15] if reply else -1,
                told,
            )
        ] += 1

    def _relieve(self) -> None:
        # Most who fence themselves in or others out would never be heard again.
        for each in self.served:
            export = each.target.export
            export.state = replace(export.state, mask=(), holders=())

    def _forgive(self) -> None:
        for each in self.served:
            export = each.target.export
            export.state = replace(export.state, config_string=b"", write_cache=None)
            export.uncorrectable.clear()
            export.enable(FeatureSet.SMART)

    @property
    def executed(self) -> int:
        """Requests that reached a target, once for each that they reached."""
        return sum(each.target.requests for each in self.served)

    @property
    def dropped(self) -> Counter[str]:
        """Frames that were met with silence, by the reason that the target gives."""
        counts = Counter({"unmatched": self._port.unmatched})
        for each in self.served:
            counts.update(each.target.statistics().dropped)
        return counts

    def verify(self) -> None:
        """Compare every byte of every disk and of the files around them.

        Raises:
            AssertionError: one is not what it should be.
        """
        for each in self.served:
            buffer = memoryview(bytearray(SIZE))
            each.disk.disk.read_into(0, buffer)
            assert buffer == each.model, "the disk is not what was written"
        window = self._files["window"]
        fenced = window[:GUARD] + self.served[0].model + window[GUARD + SIZE :]
        assert (self._place / "window").read_bytes() == fenced, "outside the window"
        for name in ("golden", "still"):
            content = (self._place / name).read_bytes()
            assert content == self._files[name], f"{name} was written to"

    def close(self) -> None:
        for each in self.served:
            each.disk.close()


def run_all(place: Path, mtu: int, frames: Iterable[bytes]) -> FuzzedPort:
    """Run frames on a port of their own, and compare all bytes at the end."""
    port = FuzzedPort(place, mtu)
    try:
        for frame in frames:
            port.run(frame)
        port.verify()
    finally:
        port.close()
    return port
