"""Measure how much data per frame a path can carry, without writing (P23).

To the target, an IDENTIFY with trailing bytes, which targets ignore: whether it arrives
depends on its length only. From the target, a READ. Both are tried at full length, then
by binary search, since a path that carries a frame carries shorter ones too.

No I/O: the generators yield requests and are sent the responses, empty for one that was
lost.
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
    """What a path can carry, in sectors of data per frame.

    Args:
        expected: what both ends announce, and therefore what will be sent.
        to_target: what reaches the target; -1 if no frame does.
        from_target: what is received from the target; None if reads fail: it is
            reserved for another host, or has no disk.
    """

    expected: int
    to_target: int
    from_target: int | None

    @property
    def sectors(self) -> int:
        """What the path carries in both directions, as far as known; 0 if nothing."""
        return max(
            0,
            self.to_target
            if self.from_target is None
            else min(self.to_target, self.from_target),
        )


def measure(builder: RequestBuilder, expected: int) -> Generator[bytes, bytes, PathMtu]:
    """Measure what a path carries, up to ``expected`` sectors per frame.

    Yields:
        Requests, each of which should be sent several times before it counts as lost.

    Returns:
        The result, as the generator's value.
    """
    to_target = yield from _measure_to_target(builder, expected)
    if to_target < 0:
        return PathMtu(expected, to_target, None)
    page = yield builder.identify()
    identity = _identity(page)
    if identity is None or not identity.sectors:
        return PathMtu(expected, to_target, None)
    opcode = Opcode.READ_EXT if identity.lba48 else Opcode.READ
    limit = min(expected, identity.sectors)
    from_target = yield from _measure_from_target(builder, opcode, limit)
    if from_target is None:
        return PathMtu(expected, to_target, None)
    # A disk smaller than a frame cannot show more than its size.
    return PathMtu(
        expected, to_target, expected if from_target == limit else from_target
    )


def _measure_to_target(builder: RequestBuilder, expected: int) -> Steps:
    def gets_through(sectors: int) -> Generator[bytes, bytes, bool]:
        # Any response, even an error, proves that the request arrived.
        response = yield builder.identify(tail=bytes(sectors * SECTOR))
        return bool(response)

    return (yield from _search(gets_through, expected))


def _measure_from_target(
    builder: RequestBuilder, opcode: Opcode, expected: int
) -> Generator[bytes, bytes, int | None]:
    refused = False

    def gets_through(sectors: int) -> Generator[bytes, bytes, bool]:
        nonlocal refused
        response = yield builder.transfer(opcode, 0, sectors)
        refused = refused or (bool(response) and not _carries(response, sectors))
        return bool(response)

    found = yield from _search(gets_through, expected, least=1)
    return None if refused else found


def _search(
    gets_through: Callable[[int], Generator[bytes, bytes, bool]],
    expected: int,
    least: int = 0,
) -> Steps:
    """Return the most sectors that get through; ``least`` - 1 if not even that does."""
    if (yield from gets_through(expected)):
        return expected
    passed, failed = least - 1, expected
    while failed - passed > 1:
        # The least first: if that is lost too, the search is over.
        middle = least if passed < least else (passed + failed) // 2
        if (yield from gets_through(middle)):
            passed = middle
        else:
            failed = middle
    return passed


def _carries(response: bytes, sectors: int) -> bool:
    return not _failed(response) and len(response) >= ATA_DATA + sectors * SECTOR


def _failed(response: bytes) -> bool:
    try:
        status = Registers.unpack_from(response).command
    except DecodeError:
        return True
    return bool(response[14] & Flag.ERROR or status & STATUS_BAD)


def _identity(response: bytes) -> Identity | None:
    if not response or _failed(response) or len(response) < ATA_DATA + SECTOR:
        return None
    return Identity.unpack(response[ATA_DATA:])


def diagnose_path(
    address: Address, interface: str, mac: bytes, path: PathMtu
) -> Finding:
    """Return a finding: whether the path carries the frames that its ends will send."""
    subject, check = str(address), "path"
    where = f"{interface} to {format_mac(mac)}"
    if path.to_target < 0:
        return fail(subject, check, f"{where}: no answer to IDENTIFY")
    expected = short_size(path.expected * SECTOR)
    narrow = [
        f"{short_size(sectors * SECTOR) if sectors else 'no data'} {way}"
        for sectors, way in (
            (path.to_target, "to the target"),
            (path.from_target, "from the target"),
        )
        if sectors is not None and sectors < path.expected
    ]
    if narrow:
        text = (
            f"{where}: both ends announce {expected} per frame, the path carries only "
            f"{' and '.join(narrow)}: longer frames are lost"
        )
        mtu = max(path.sectors, 1) * SECTOR + 36
        fix = f"raise the MTU of the switches; or ip link set {interface} mtu "
        return fail(subject, check, text, f"{fix}{max(mtu, 1500)}")
    if path.from_target is None:
        text = (
            f"{where}: carries {expected} to the target; the other direction could not "
            "be measured, since reads fail"
        )
        return warn(subject, check, text)
    return ok(subject, check, f"{where}: carries {expected} in both directions")
