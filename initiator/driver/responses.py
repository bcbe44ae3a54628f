"""Process ATA responses: copy data out, update the device, return errors.

The first half of ``ktiocomplete`` (K60, K61).
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, LBA28_LIMIT, LBA48_LIMIT, SECTOR, STATUS_BAD
from aoe.errors import AoEError, DeviceError
from aoe.identify import FeatureSet, Identity, trim_blocks
from initiator.driver.aoedev import State
from initiator.driver.bio import BioIter, Op
from initiator.driver.requests import failure, is_aborted, write_protected

if TYPE_CHECKING:
    from initiator.driver.aoedev import AoeDev
    from initiator.driver.driver import Driver
    from initiator.driver.netdev import NetDevice
    from initiator.driver.structs import Frame

_STATUS: Final = 27
_LBA: Final = 28
_ERROR: Final = 25
# A plain integer: operations on enum members would dominate the cost per frame.
_IS_BAD: Final = int(STATUS_BAD)

_READ: Final = Op.READ
_WRITE: Final = Op.WRITE
_DISCARD: Final = Op.DISCARD

_RUNT_RETRIES: Final = 2
"""Retransmissions of a read after which a response that is too short fails it."""


def is_runt(d: AoeDev, tag: int, response: memoryview, now: float) -> bool:
    """Return True if a read's response is too short and should be ignored.

    The frame is then retransmitted. The third runt of a read is processed, and fails it
    (K61).
    """
    f = d.outstanding(tag)
    if (
        f is None
        or f.op is not _READ
        or len(response) >= ATA_DATA + f.length
        or f.attempts >= _RUNT_RETRIES
        or response[_STATUS] & _IS_BAD
    ):
        return False
    f.target.last_response = now
    return True


def repeats_another_lba(d: AoeDev, tag: int, response: memoryview, now: float) -> bool:
    """Return True if a response has the tag of a request, but another LBA (P35).

    It is then of an earlier request with this tag. Not all targets repeat the LBA:
    responses are checked only once one has, and no longer if none has for the lifetime
    of a frame. A failure may have the LBA of the bad sector, and is not checked.
    """
    f = d.factive.get(tag) or d.rexmitq.get(tag)
    if f is None or (f.op is not _READ and f.op is not _WRITE):
        return False
    if response[_STATUS] & _IS_BAD:
        return False
    target = f.target
    lba = int.from_bytes(response[_LBA : _LBA + 6], "little")
    if lba % (LBA48_LIMIT if d.ext else LBA28_LIMIT) == f.sector:
        target.repeats_lba |= f.sector > 0
        target.other_lba_since = inf
    elif target.repeats_lba:
        target.other_lba_since = min(target.other_lba_since, now)
        target.repeats_lba = now - target.other_lba_since <= d.frame_lifetime
        return target.repeats_lba
    return False


def on_unexpected(
    driver: Driver, d: AoeDev, response: memoryview, tag: int, now: float
) -> None:
    """Log and count a response without an outstanding request."""
    driver.unexpected += 1
    jiffies = driver.jiffies(now)
    if driver.options.tags == "kernel":
        # + 1: the tag's jiffy may have just begun, the present one almost ended.
        d.timing.sample_late(((jiffies - tag & 0xFFFF) + 1) / driver.options.hz)
    driver.log.append(
        f"{'unexpected rsp':>15} {d.address}    tag={tag:08x}@{jiffies:08x} "
        f"s={response[6:12].hex()} d={response[:6].hex()}"
    )
    d.on_late_response(tag, now)


def complete(
    d: AoeDev, f: Frame, response: memoryview, netdev: NetDevice
) -> AoEError | None:
    """Process an ATA response; return the error of the frame, or None."""
    if f.is_probe:
        return None
    status, op = response[_STATUS], f.op
    if status & _IS_BAD:
        return _failed(d, f, status, response[_ERROR])
    if op is _READ:
        error = _copy_out(d, f, response)
        if error is not None:
            return error
    elif op is _WRITE:
        f.target.wpkts += 1
        d.epochs.answered += not f.fua
        d.read_only = False
    elif op is _DISCARD:
        d.epochs.answered += 1
    elif op is None:
        error = identify_error(d, response)
        if error is None:
            take_identity(d, identify_page(response))
        return error
    # The response may arrive on another interface than the request was sent on.
    ifp = f.ifp if f.ifp.netdev is netdev else f.target.find_if(netdev)
    if ifp is not None:
        ifp.lost = 0
    return None


def _copy_out(d: AoeDev, f: Frame, response: memoryview) -> AoEError | None:
    position = ATA_DATA
    if len(response) < position + f.length:
        why = f"runt: {len(response) - position} of {f.length} bytes"
        return DeviceError(str(d.address), why)
    for page, offset, length in f.segments:
        end = position + length
        page.data[offset : offset + length] = response[position:end]
        position = end
    f.target.rpkts += 1
    return None


def identify_page(response: memoryview) -> bytes:
    """Return the IDENTIFY data of a response."""
    return bytes(response[ATA_DATA : ATA_DATA + SECTOR])


def identify_error(d: AoeDev, response: memoryview) -> AoEError | None:
    """Return the error of a response to IDENTIFY, or None if it has the data."""
    status = response[_STATUS]
    if status & _IS_BAD:
        return failure(d.address, None, status, response[_ERROR])
    page = identify_page(response)
    if len(page) < SECTOR:
        why = f"runt IDENTIFY: {len(page)} of {SECTOR} bytes"
        return DeviceError(str(d.address), why)
    return None


def take_identity(d: AoeDev, page: bytes, *, keeps_size: bool = False) -> None:
    """Take over IDENTIFY data, and set the device up (K21, K22)."""
    if page != d.ident:
        d.takes_fua = True
    identity, before = Identity.unpack(page), d.ssize
    d.ident = page
    d.ext = identity.lba48
    if not keeps_size:
        # Sectors beyond cannot be addressed; the LBA would be truncated (K35).
        d.ssize = min(identity.sectors, LBA48_LIMIT if d.ext else LBA28_LIMIT)
    can_trim = FeatureSet.TRIM in identity.feature_sets
    d.trim_blocks = trim_blocks(page) if can_trim else 0
    d.state = State.UP
    if d.nopen and d.ssize != before:
        for callback in list(d.on_resize):
            callback()


def _failed(d: AoeDev, f: Frame, status: int, error: int) -> AoEError | None:
    aborted = is_aborted(status, error)
    if f.fua and f.buf is not None and aborted:
        # Probably not supported: use WRITE and FLUSH instead, for this bio and later.
        d.takes_fua = False
        d.add_followup(f.buf, Op.WRITE, BioIter(f.segments, f.sector))
        return None
    if f.op is Op.WRITE and aborted and d.read_only is not False:
        d.read_only = True
        return write_protected(d.address, status, error)
    if f.op is Op.DISCARD and aborted and d.read_only:
        return write_protected(d.address, status, error)
    return failure(d.address, f.op, status, error)
