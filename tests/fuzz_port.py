"""The port under test of the fuzzer, with four targets as the service has them.

::

    e0.0  a range of a file; the rest of the file must not change
    e7.3  an overlay over another file
    e7.4  a third file, read-only
    e9.1  a fourth, with --sync

Each frame takes the normal path: the port finds the target, or all targets of a
broadcast address. The response buffer is filled with poison bytes before. Then
``tests.fuzz_rules`` checks the responses. Disks and state files fail now and then.
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
from target.protocol.target import Target
from target.server.ports import Port
from tests.fuzz_rules import FAULT, Change, Served, check_request, needs_flush

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from target.disks import Disk
    from target.protocol.engine import MakeEngine
    from target.protocol.exports import ClientState

SIZE = 1 << 20
GUARD = 1 << 16
MAC = bytes.fromhex("5254007a26e7")
POISON = 0xDB
FAULTS = {0: errno.EIO, 1: errno.ENOSPC, 2: errno.ENODEV}
STATE_FAULTS = range(3, 9)
FAULT_MODULUS = 211
"""The CRC of a frame modulo this selects whether disk or state file fail. So a frame
that is replayed meets the same fault."""
CLEAR_INTERVAL = 24
"""Frames after which mask list and reservation are cleared."""
RESET_INTERVAL = 1024
"""Frames after which all state that clients have set is reset."""


class CheckedDisk:
    """A disk that records changes, asserts bounds and alignment, and injects faults."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.size = disk.size
        self.read_only = disk.read_only
        self.fault: int | None = None
        """The errno of the fault; ``delay`` operations succeed before it."""
        self.delay = 0
        self.failed = False
        self.flush_failed = False
        """A flush has failed, and no client has got the error yet (P46)."""
        self._changes: list[Change] = []

    def take_changes(self) -> list[Change]:
        changes, self._changes = self._changes, []
        return changes

    def _check(self, offset: int, length: int) -> None:
        assert 0 <= offset < offset + length <= self.size, "beyond the disk"
        assert offset % 512 == length % 512 == 0, "not a whole sector"
        self._inject_fault()

    def _inject_fault(self) -> None:
        if self.fault is not None:
            if not self.delay:
                self.failed = True
                raise OSError(self.fault, "injected")
            self.delay -= 1

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check(offset, len(buffer))
        self.disk.read_into(offset, buffer)

    def write_from(self, offset: int, data: memoryview) -> None:
        assert not self.read_only
        self._check(offset, len(data))
        self.disk.write_from(offset, data)
        self._changes.append(Change(offset, len(data), bytes(data)))

    def discard(self, offset: int, length: int) -> None:
        assert not self.read_only
        self._check(offset, length)
        self.disk.discard(offset, length)
        self._changes.append(Change(offset, length))

    def flush(self) -> None:
        try:
            self._inject_fault()
        except OSError as error:
            # ENODEV (disk unreachable) is not a write-back error.
            self.flush_failed = self.flush_failed or error.errno != errno.ENODEV
            raise
        self.disk.flush()

    def close(self) -> None:
        self.disk.close()


class FuzzLink(Link):
    """A link that receives one frame at a time and keeps the frames that are sent."""

    def __init__(self, mtu: int) -> None:
        self.name, self.index, self.mac, self.mtu, self.up = "fuzz0", 1, MAC, mtu, True
        self.request: bytes | None = None
        self.responses: list[bytes] = []
        self._poison = bytes([POISON]) * (14 + mtu)
        self._response = bytearray(14 + mtu)

    def receive(self) -> memoryview | None:
        request, self.request = self.request, None
        return None if request is None else memoryview(request)

    def reserve(self) -> memoryview | None:
        self._response[:] = self._poison
        return memoryview(self._response)

    def commit(self, length: int) -> None:
        assert length <= len(self._response)
        self.responses.append(bytes(self._response[:length]))

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
    """A request and its response, as bytes of the frames; -1: not present.

    Args:
        version: AoE version.
        command: AoE command.
        opcode: ATA opcode.
        error: AoE error of the response, -1 without a response.
        registers: status and error registers of the response.
    """

    version: int
    command: int
    opcode: int
    error: int
    registers: tuple[int, int]


class FuzzedPort:
    """A port with four targets.

    Args:
        directory: a directory for their files; it is created.
        mtu: MTU of the interface.
        before: MTU of the interface when the targets were added, if different.
        make_engine: the engine of the targets.
    """

    def __init__(
        self,
        directory: Path,
        mtu: int,
        before: int | None = None,
        make_engine: MakeEngine = Target,
    ) -> None:
        directory.mkdir()
        self.outcomes: Counter[Outcome] = Counter()
        self.frames = 0
        self._checksum = 0
        self._is_state_lost = False
        self._directory = directory
        self._files: dict[str, bytes] = {}
        self._make_engine = make_engine
        self._initial_mtu = before or mtu
        self._link = FuzzLink(mtu)
        initial = FuzzLink(before or mtu)
        self._port = Port(initial, reopen=lambda _name, _frames: self._link)
        self.served = [
            self._serve(Address(0, 0), "window", OpenFlags(offset=GUARD, length=SIZE)),
            self._serve(Address(7, 3), "golden", OpenFlags(), "overlay"),
            self._serve(Address(7, 4), "still", OpenFlags(read_only=True)),
            self._serve(Address(9, 1), "stable", OpenFlags(sync=True)),
        ]
        # Makes the port reopen its link, as after a change of the MTU.
        self._port.ensure_buffers(1)

    def _serve(
        self, address: Address, name: str, flags: OpenFlags, overlay: str = ""
    ) -> Served:
        path = self._directory / name
        content = Random(name).randbytes(2 * GUARD + SIZE if flags.offset else SIZE)
        path.write_bytes(content)
        self._files[name] = content
        over = str(self._directory / overlay) if overlay else ""
        disk = CheckedDisk(open_disk(path, flags, over))
        export = Export(address, disk, firmware_number=0x4019, sync=flags.sync)
        export.on_change = self._on_state_change
        model = bytearray(content[flags.offset :][:SIZE])
        target = self._port.add(export, self._make_engine)
        return Served(target, disk, model, MAC, self._link.mtu, self._initial_mtu)

    def _on_state_change(self, _state: ClientState) -> None:
        if self._checksum % FAULT_MODULUS in STATE_FAULTS:
            self._is_state_lost = True
            raise OSError(errno.ENOSPC, "injected")

    def _select_faults(self, request: bytes) -> None:
        self._checksum = crc32(request)
        self._is_state_lost = False
        for each in self.served:
            each.disk.fault = FAULTS.get(self._checksum % FAULT_MODULUS)
            each.disk.delay = self._checksum >> 16 & 1
            each.disk.failed = False

    def run(self, request: bytes) -> list[bytes]:
        """Serve a frame, check all rules, and return the responses.

        Raises:
            AssertionError: a rule was broken.
            Exception: the target raised it, which is a defect.
        """
        before = [each.target.export.state for each in self.served]
        self._select_faults(request)
        self._link.request, self._link.responses = request, []
        # 10 s apart: longer than the 5 s for which a failed flush is reported (P46).
        self._port.serve(self.frames * 10.0)
        responses = self._link.responses
        self._check_responses(request, list(responses), before)
        self.frames += 1
        if self.frames % CLEAR_INTERVAL == 0:
            self._clear_lists()
        if self.frames % RESET_INTERVAL == 0:
            self._reset_state()
        return responses

    def _check_responses(
        self, request: bytes, responses: list[bytes], before: list[ClientState]
    ) -> None:
        for each, state in zip(self.served, before, strict=True):
            target, disk = each.target, each.disk
            must_report = disk.flush_failed and needs_flush(request)
            has_fault = disk.failed or self._is_state_lost or must_report
            address = each.address
            own = [response for response in responses if response[16:19] == address]
            assert len(own) <= 1, "two responses of one target"
            if len(request) < 24 or not each.is_addressed(request):
                assert not own, "a response to a frame for another target"
                assert not disk.take_changes(), "a frame for another changed the disk"
                assert target.export.state is state, "a frame for another was executed"
                continue
            response = own[0] if own else b""
            check_request(each, request, response, state, has_fault=has_fault)
            if must_report and response and response[14:16] == b"\x18\0":
                assert (response[27], response[25]) == FAULT, (
                    "a failed flush is not reported"
                )
                disk.flush_failed = False
            self._count(request, response)
            responses = [other for other in responses if other[16:19] != address]
        assert not responses, "a response of an unknown target"

    def _count(self, request: bytes, response: bytes) -> None:
        is_ata = request[19] == 0 and len(request) >= 36
        has_registers = is_ata and response and response[14] == 0x18
        registers = (response[27], response[25]) if has_registers else (-1, -1)
        self.outcomes[
            Outcome(
                request[14] >> 4,
                request[19],
                request[27] if is_ata else -1,
                response[15] if response else -1,
                registers,
            )
        ] += 1

    def _clear_lists(self) -> None:
        # Random mask lists and reservations soon exclude all clients.
        for each in self.served:
            export = each.target.export
            export.state = replace(export.state, mask=(), holders=())

    def _reset_state(self) -> None:
        for each in self.served:
            export = each.target.export
            export.state = replace(export.state, config_string=b"", write_cache=None)
            export.uncorrectable.clear()
            export.enable(FeatureSet.SMART)

    @property
    def executed(self) -> int:
        """Return how many requests were handled, a broadcast once for each target."""
        return sum(each.target.statistics().requests for each in self.served)

    @property
    def dropped(self) -> Counter[str]:
        """Return the counts of frames without a response, by reason."""
        counts = Counter({"no_target": self._port.unmatched})
        for each in self.served:
            counts.update(each.target.statistics().dropped)
        return counts

    def verify(self) -> None:
        """Compare every byte of all disks and of their files with the models.

        Raises:
            AssertionError: a byte differs.
        """
        for each in self.served:
            buffer = memoryview(bytearray(SIZE))
            each.disk.disk.read_into(0, buffer)
            assert buffer == each.model, "the disk differs from the model"
        window = self._files["window"]
        expected = window[:GUARD] + self.served[0].model + window[GUARD + SIZE :]
        content = (self._directory / "window").read_bytes()
        assert content == expected, "bytes outside the range have changed"
        for name in ("golden", "still"):
            content = (self._directory / name).read_bytes()
            assert content == self._files[name], f"{name} has changed"

    def close(self) -> None:
        for each in self.served:
            each.disk.close()


def run_all(
    directory: Path,
    mtu: int,
    frames: Iterable[bytes],
    make_engine: MakeEngine = Target,
) -> FuzzedPort:
    """Run frames on a new port, and verify all disks at the end."""
    port = FuzzedPort(directory, mtu, make_engine=make_engine)
    try:
        for frame in frames:
            port.run(frame)
        port.verify()
    finally:
        port.close()
    return port
