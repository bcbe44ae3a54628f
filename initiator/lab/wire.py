"""Cases on a real link: a real target executes the frames of the modelled machine.

The machine, its pages and its NIC are modelled; requests and responses are real frames.
After a case the sectors are read back from the target's disk.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from aoe.ata import ATA_DATA, SECTOR
from aoe.common.process.programs import program_command
from aoe.config import Config
from aoe.errors import AoEError, NotFoundError
from aoe.header import (
    ETHERNET_LENGTH,
    FRAME_MINIMUM,
    HEADER_LENGTH,
    Command,
    Flag,
    Header,
)
from aoe.net.link import open_link
from initiator.lab.cases import DEFAULT, Case, Result, result_of, simulate_case
from initiator.lab.kernel.memory import PAGE_SIZE
from initiator.lab.peer import ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe.address import Address
    from aoe.net.link import Link
    from aoe.net.netns import Wire
    from initiator.lab.cases import Switches
    from initiator.lab.peer import Peer

_DISK: Final = 64 * SECTOR
_SECTORS: Final = PAGE_SIZE // SECTOR
_SHELF_SLOT: Final = slice(16, 19)
"""Bytes of shelf and slot in a frame."""
_MTU: Final = ATA_DATA - ETHERNET_LENGTH + PAGE_SIZE


@dataclass(frozen=True, slots=True)
class CaseRun:
    """The result of a case and the sectors that it wrote.

    Args:
        result: the result of the case.
        submitted: the bytes of the bio; empty if the machine stopped before.
        on_disk: the contents of these sectors afterwards.
    """

    result: Result
    submitted: bytes
    on_disk: bytes

    def agrees_with(self, other: CaseRun) -> bool:
        """Return True if outcome, annotations and disk contents are equal."""
        mine, others = self.result, other.result
        return (mine.outcome, mine.flags, self.submitted, self.on_disk) == (
            others.outcome,
            others.flags,
            other.submitted,
            other.on_disk,
        )


def run_and_read_back(
    case: Case,
    peer: Peer | None = None,
    nic_mac: bytes | None = None,
    switches: Switches = DEFAULT,
) -> CaseRun:
    """Run a case with a peer, by default a disk in memory, and read the disk back."""
    world = simulate_case(case, switches, keep_entries=True, peer=peer, nic_mac=nic_mac)
    submitted, offset = b"", 0
    if world.writes:
        write = world.writes[0]
        submitted, offset = write.expected, write.bio.sector * SECTOR
    on_disk = world.peer.contents(offset, len(submitted))
    return CaseRun(result_of(case, world, switches), submitted, on_disk)


class WirePeer:
    """A real target on a link.

    In a world the target's address is e0.0; frames are rewritten to the real address.

    Args:
        link: the interface.
        contents: returns the bytes at an offset of the target's disk.
        address: address of the target.
        timeout: seconds to wait for a response.
    """

    def __init__(
        self,
        link: Link,
        contents: Callable[[int, int], bytes],
        address: Address = ADDRESS,
        timeout: float = 5.0,
    ) -> None:
        self.link = link
        self._timeout = timeout
        self.contents = contents
        self._address = address

    def exchange(self, frame: bytes) -> bytes | None:
        """Send a request and return the response.

        Raises:
            NotFoundError: no response within the timeout.
            AoEError: the frame was not sent, or the target accepts less than 4 KiB in
                a frame.
        """
        request = Header.unpack_from(frame)
        if not self.link.send(_with_address(frame, self._address)):
            raise AoEError(self.link.name, "the frame was not sent")
        response = self._receive(request)
        if request.command == Command.CONFIG:
            self._check(Config.unpack_from(response))
        return _with_address(response, ADDRESS)

    def _receive(self, request: Header) -> bytes:
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0:
            if not self.link.wait(left):
                break
            frame = self.link.receive()
            if frame is not None and self._is_response(frame, request):
                return bytes(frame)
        raise NotFoundError(
            str(self._address),
            f"no response on {self.link.name} within {self._timeout:g} s",
            f"List the targets with: aoe discover -i {self.link.name}",
        )

    def _is_response(self, frame: memoryview, request: Header) -> bool:
        if len(frame) < HEADER_LENGTH:
            return False
        header = Header.unpack_from(frame)
        return (
            bool(header.flags & Flag.RESPONSE)
            and (header.tag, header.command) == (request.tag, request.command)
            and (header.shelf, header.slot) == self._address
        )

    def _check(self, config: Config) -> None:
        if config.sector_count < _SECTORS:
            raise AoEError(
                str(self._address),
                f"accepts {config.sector_count or 2} sectors per frame, a case needs "
                f"{_SECTORS}",
                "Raise the MTU of the target's interface to 9000",
            )


def _with_address(frame: bytes, address: Address) -> bytes:
    changed = bytearray(frame.ljust(FRAME_MINIMUM, b"\0"))
    changed[_SHELF_SLOT] = address.shelf.to_bytes(2, "big") + bytes([address.slot])
    return bytes(changed)


def _open(interface: str) -> Link:
    link = open_link(interface, responses=True)
    if link.mtu >= _MTU:
        return link
    link.close()
    raise AoEError(
        interface,
        f"MTU {link.mtu} is too small for a page in a frame",
        f"Raise it: ip link set {interface} mtu 9000",
    )


@contextmanager
def on_interface(interface: str, address: Address) -> Iterator[WirePeer]:
    """Open a link to a real target, whose disk will be overwritten.

    Raises:
        AoEError: as ``open_link``, or the MTU is too small.
    """

    def contents(offset: int, length: int) -> bytes:
        from initiator.disk.disk import Disk

        with Disk.open(str(address), interface) as disk:
            return disk.read(offset, length) if length else b""

    with _open(interface) as link:
        yield WirePeer(link, contents, address)


class Bench:
    """A veth pair in network namespaces with an ``aoe-target`` and a zeroed disk.

    Raises:
        AccessError: network namespaces need root or a user namespace.
        AoEError: the target did not start.
    """

    def __init__(self) -> None:
        from aoe.net.netns import Wire

        with ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            self.disk = Path(directory, "disk.img")
            self.disk.write_bytes(bytes(_DISK))
            self.wire = stack.enter_context(Wire(mtu=9000))
            _serve(self.wire, self.disk)
            with self.wire.initiator.enter():
                self.link = stack.enter_context(_open(self.wire.interface))
            self.peer = WirePeer(self.link, self.contents)
            self._stack = stack.pop_all()

    def contents(self, offset: int, length: int) -> bytes:
        """Return the bytes at an offset of the disk's file."""
        with self.disk.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def run(self, case: Case, switches: Switches = DEFAULT) -> CaseRun:
        """Zero the disk and run a case."""
        with self.disk.open("r+b") as file:
            file.write(bytes(_DISK))
        return run_and_read_back(case, self.peer, self.link.mac, switches)

    def close(self) -> None:
        """Stop the target and remove the veth pair."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(wire: Wire, disk: Path) -> None:
    """Start a target by its command line and wait until it is ready."""
    serve = [*program_command("aoe-target"), "serve", str(ADDRESS)]
    target: subprocess.Popen[str] = wire.target.popen(
        [*serve, wire.interface, str(disk)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if target.stdout is None or target.stdout.readline():
        return
    message = target.stderr.read().strip() if target.stderr else ""
    raise AoEError("aoe-target", message or f"exit code {target.wait()}")
