"""Cases on a real wire: a real target executes what the modelled machine sends.

The machine, its pages and its card stay modelled; frames and answers are real. What
landed is read from the disk itself.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from aoe.ata import ATA_DATA, SECTOR
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
from initiator.lab.cases import Case, Result, result_of, simulate_case
from initiator.lab.kernel.memory import PAGE_SIZE
from initiator.lab.peer import ADDRESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aoe.address import Address
    from aoe.net.link import Link
    from aoe.net.netns import Wire
    from initiator.lab.peer import Peer

_DISK: Final = 64 * SECTOR
_SECTORS: Final = PAGE_SIZE // SECTOR
_PLACE: Final = slice(16, 19)
"""Of shelf and slot in a frame."""
_MTU: Final = ATA_DATA - ETHERNET_LENGTH + PAGE_SIZE


@dataclass(frozen=True, slots=True)
class CaseRun:
    """A case that was played, and what it did to the disk.

    Args:
        result: what came of it.
        submitted: the bytes of the bio; none if the machine stopped before.
        landed: what the disk holds in their place.
    """

    result: Result
    submitted: bytes
    landed: bytes

    def agrees_with(self, other: CaseRun) -> bool:
        """Tell whether outcome, annotations and disk are the same."""
        mine, others = self.result, other.result
        return (mine.outcome, mine.flags, self.submitted, self.landed) == (
            others.outcome,
            others.flags,
            other.submitted,
            other.landed,
        )


def play(case: Case, peer: Peer | None = None, nic_mac: bytes | None = None) -> CaseRun:
    """Play a case against a peer; against a disk in memory by default."""
    world = simulate_case(case, keep_entries=True, peer=peer, nic_mac=nic_mac)
    submitted, place = b"", 0
    if world.writes:
        submitted, place = world.writes[0].expected, world.writes[0].bio.sector * SECTOR
    landed = world.peer.contents(place, len(submitted))
    return CaseRun(result_of(case, world), submitted, landed)


class WirePeer:
    """A real target that answers the frames of a world.

    A world calls its target e0.0; on the wire it has its own address.

    Args:
        link: an interface on which the target is.
        contents: reads the target's disk: offset, length.
        address: the target's.
        patience: seconds that it gets for one answer.
    """

    def __init__(
        self,
        link: Link,
        contents: Callable[[int, int], bytes],
        address: Address = ADDRESS,
        patience: float = 5.0,
    ) -> None:
        self.link = link
        self._patience = patience
        self.contents = contents
        self._address = address

    def exchange(self, frame: bytes) -> bytes | None:
        """Send a request and return the answer to it.

        Raises:
            NotFoundError: no answer in time.
            AoEError: the target takes no 4 KiB in a frame, which a case wants, or did
                not take the frame.
        """
        request = Header.unpack_from(frame)
        if not self.link.send(_readdressed(frame, self._address)):
            raise AoEError(self.link.name, "the frame was not sent")
        answer = self._await(request)
        if request.command == Command.CONFIG:
            self._check(Config.unpack_from(answer))
        return _readdressed(answer, ADDRESS)

    def _await(self, request: Header) -> bytes:
        deadline = time.monotonic() + self._patience
        while (left := deadline - time.monotonic()) > 0:
            if not self.link.wait(left):
                break
            frame = self.link.receive()
            if frame is not None and self._is_answer(frame, request):
                return bytes(frame)
        raise NotFoundError(
            str(self._address),
            f"no answer on {self.link.name} within {self._patience:g} s",
            f"See who is there: aoe discover -i {self.link.name}",
        )

    def _is_answer(self, frame: memoryview, request: Header) -> bool:
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
                f"takes {config.sector_count or 2} sectors in a frame, a case wants "
                f"{_SECTORS}",
                "Raise the MTU of the target's interface to 9000",
            )


def _readdressed(frame: bytes, address: Address) -> bytes:
    changed = bytearray(frame.ljust(FRAME_MINIMUM, b"\0"))
    changed[_PLACE] = address.shelf.to_bytes(2, "big") + bytes([address.slot])
    return bytes(changed)


def _open(interface: str) -> Link:
    link = open_link(interface, responses=True)
    if link.mtu >= _MTU:
        return link
    link.close()
    raise AoEError(
        interface,
        f"an MTU of {link.mtu} has no room for a page in a frame",
        f"Raise it: ip link set {interface} mtu 9000",
    )


@contextmanager
def on_interface(interface: str, address: Address) -> Iterator[WirePeer]:
    """Reach a real target, whose disk will be overwritten.

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
    """A wire of our own, and a target of our own at its end, with a zeroed disk.

    Raises:
        AccessError: namespaces need root or a user namespace.
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
        """Read the disk's file."""
        with self.disk.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def play(self, case: Case) -> CaseRun:
        """Play a case on a zeroed disk."""
        with self.disk.open("r+b") as file:
            file.write(bytes(_DISK))
        return play(case, self.peer, self.link.mac)

    def close(self) -> None:
        """End the target, and take the wire away."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(wire: Wire, disk: Path) -> None:
    """Start a target, as one would type it, and wait until it is ready."""
    serve = ["-m", "target", "serve", str(ADDRESS), wire.interface, str(disk)]
    target: subprocess.Popen[str] = wire.target.popen(
        [sys.executable, *serve],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if target.stdout is None or target.stdout.readline():
        return
    words = target.stderr.read().strip() if target.stderr else ""
    raise AoEError("aoe-target", words or f"exit code {target.wait()}")
