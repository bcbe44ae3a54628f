"""How much a frame can carry on a path, found out without writing anything (P23).

Away from us, an IDENTIFY with bytes behind it that nobody looks at: whether it arrives
depends on its length alone. Towards us, a READ. Both are tried at full length first and
halved from there, for what a path carries it carries in any smaller frame too.

No I/O: requests are yielded, and replies are sent back, nothing for one that is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from aoe.address import format_mac
from aoe.ata import ATA_DATA, SECTOR, STATUS_BAD, Opcode, Registers
from aoe.common.doctor.findings import Finding, fail, ok, warn
from aoe.common.sizes import short_size
from aoe.errors import DecodeError
from aoe.header import Flag
from aoe.identify import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from aoe.address import Address
    from initiator.client.requests import RequestBuilder

    Steps: TypeAlias = Generator[bytes, bytes, int]


@dataclass(frozen=True, slots=True)
class PathMtu:
    """What one path carries, in sectors of data a frame.

    Args:
        wanted: what both ends claim, and so what will be sent.
        there: what gets to the target; -1 if nothing at all does.
        back: what gets back from it; None where it does not read for us: reserved for
            others, or without a disk.
    """

    wanted: int
    to_target: int
    from_target: int | None

    @property
    def sectors(self) -> int:
        """What gets through both ways, as far as that is known."""
        return max(
            0,
            self.to_target
            if self.from_target is None
            else min(self.to_target, self.from_target),
        )


def measure(builder: RequestBuilder, wanted: int) -> Generator[bytes, bytes, PathMtu]:
    """Find out what a path carries, up to ``wanted`` sectors a frame.

    Yields:
        Requests, each to be sent several times before it counts as lost.

    Returns:
        What was found, as the generator's value.
    """
    to_target = yield from _there(builder, wanted)
    if to_target < 0:
        return PathMtu(wanted, to_target, None)
    page = yield builder.identify()
    identity = _identity(page)
    if identity is None or not identity.sectors:
        return PathMtu(wanted, to_target, None)
    opcode = Opcode.READ_EXT if identity.lba48 else Opcode.READ
    limit = min(wanted, identity.sectors)
    from_target = yield from _back(builder, opcode, limit)
    if from_target is None:
        return PathMtu(wanted, to_target, None)
    # A disk that is smaller than a frame says nothing about what it has not got.
    return PathMtu(wanted, to_target, wanted if from_target == limit else from_target)


def _there(builder: RequestBuilder, wanted: int) -> Steps:
    def try_one(sectors: int) -> Generator[bytes, bytes, bool]:
        # Any answer will do, a refusal too: the request has arrived.
        reply = yield builder.identify(tail=bytes(sectors * SECTOR))
        return bool(reply)

    return (yield from _search(try_one, wanted))


def _back(
    builder: RequestBuilder, opcode: Opcode, wanted: int
) -> Generator[bytes, bytes, int | None]:
    refused = False

    def try_one(sectors: int) -> Generator[bytes, bytes, bool]:
        nonlocal refused
        reply = yield builder.transfer(opcode, 0, sectors)
        refused = refused or (bool(reply) and not _carries(reply, sectors))
        return bool(reply)

    found = yield from _search(try_one, wanted, least=1)
    return None if refused else found


def _search(
    try_one: Callable[[int], Generator[bytes, bytes, bool]], wanted: int, least: int = 0
) -> Steps:
    """Return the most that gets through, one less than ``least`` if nothing does."""
    if (yield from try_one(wanted)):
        return wanted
    good, bad = least - 1, wanted
    while bad - good > 1:
        # The least first: where nothing gets through, there is nothing to search.
        middle = least if good < least else (good + bad) // 2
        if (yield from try_one(middle)):
            good = middle
        else:
            bad = middle
    return good


def _carries(reply: bytes, sectors: int) -> bool:
    return not _failed(reply) and len(reply) >= ATA_DATA + sectors * SECTOR


def _failed(reply: bytes) -> bool:
    try:
        status = Registers.unpack_from(reply).command
    except DecodeError:
        return True
    return bool(reply[14] & Flag.ERROR or status & STATUS_BAD)


def _identity(reply: bytes) -> Identity | None:
    if not reply or _failed(reply) or len(reply) < ATA_DATA + SECTOR:
        return None
    return Identity.unpack(reply[ATA_DATA:])


def diagnose_path(
    address: Address, interface: str, mac: bytes, path: PathMtu
) -> Finding:
    """Judge one path: whether it carries what its two ends will send."""
    subject, check = str(address), "path"
    where = f"{interface} to {format_mac(mac)}"
    if path.to_target < 0:
        return fail(subject, check, f"{where}: no answer to IDENTIFY")
    wanted = short_size(path.wanted * SECTOR)
    narrow = [
        f"{short_size(sectors * SECTOR) if sectors else 'no data'} {way}"
        for sectors, way in ((path.to_target, "there"), (path.from_target, "back"))
        if sectors is not None and sectors < path.wanted
    ]
    if narrow:
        text = (
            f"{where}: both ends take frames of {wanted}, what is between carries only "
            f"{' and '.join(narrow)}: longer ones get lost"
        )
        mtu = max(path.sectors, 1) * SECTOR + 36
        fix = f"raise the MTU of switches between; or ip link set {interface} mtu "
        return fail(subject, check, text, f"{fix}{max(mtu, 1500)}")
    if path.from_target is None:
        text = f"{where}: carries {wanted} there; the way back could not be tried"
        return warn(subject, check, text)
    return ok(subject, check, f"{where}: carries {wanted} both ways")
