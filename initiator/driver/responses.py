"""What an answer says of its frame: data to copy out, or why it failed.

The first half of ``ktiocomplete`` (K60, K61).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, LBA28_LIMIT, LBA48_LIMIT, SECTOR, STATUS_BAD
from aoe.errors import AoEError, DeviceError
from aoe.identify import FeatureSet, Identity, trim_blocks
from initiator.driver.aoedev import State
from initiator.driver.bio import BioIter, Op
from initiator.driver.requests import failure, is_aborted, write_refused

if TYPE_CHECKING:
    from initiator.driver.aoedev import AoeDev
    from initiator.driver.frame import Frame
    from initiator.driver.netdev import NetDevice

_STATUS: Final = 27
_ERROR: Final = 25
# A plain number: with enums, these bits would cost a frame more than all the rest.
_IS_BAD: Final = int(STATUS_BAD)

_READ: Final = Op.READ
_WRITE: Final = Op.WRITE

_PATIENCE: Final = 2
"""Retransmissions of a read after which answers that are too short count."""


def is_runt(d: AoeDev, tag: int, answer: memoryview) -> bool:
    """Tell whether a read's answer is too short and better waited for again.

    Whoever sends nothing else, three times, is believed: the read fails.
    """
    f = d.factive.get(tag)
    if f is None:
        f = d.rexmitq.get(tag)
    return (
        f is not None
        and f.op is _READ
        and len(answer) < ATA_DATA + f.length
        and f.attempts < _PATIENCE
        and not answer[_STATUS] & _IS_BAD
    )


def take(d: AoeDev, f: Frame, answer: memoryview, netdev: NetDevice) -> AoEError | None:
    """Take what an ATA answer brings; return why the frame failed, or None."""
    if f.is_probe:
        return None
    status, op = answer[_STATUS], f.op
    if status & _IS_BAD:
        return _failed(d, f, status, answer[_ERROR])
    if op is _READ:
        error = _copy_out(d, f, answer)
        if error is not None:
            return error
    elif op is _WRITE:
        f.target.wpkts += 1
        d.read_only = False
    elif op is None:
        return _identified(d, answer)
    # It came in on one that works, which need not be the one it was asked on.
    ifp = f.ifp if f.ifp.netdev is netdev else f.target.find_if(netdev)
    if ifp is not None:
        ifp.lost = 0
    return None


def _copy_out(d: AoeDev, f: Frame, answer: memoryview) -> AoEError | None:
    position = ATA_DATA
    if len(answer) < position + f.length:
        why = f"runt: {len(answer) - position} of {f.length} bytes"
        return DeviceError(str(d.address), why)
    for page, offset, length in f.segments:
        end = position + length
        page.data[offset : offset + length] = answer[position:end]
        position = end
    f.target.rpkts += 1
    return None


def _identified(d: AoeDev, answer: memoryview) -> AoEError | None:
    """Take what the disk says of itself; the device is up (K21, K22)."""
    page = bytes(answer[ATA_DATA : ATA_DATA + SECTOR])
    if len(page) < SECTOR:
        why = f"runt IDENTIFY: {len(page)} of {SECTOR} bytes"
        return DeviceError(str(d.address), why)
    if page != d.ident:
        d.takes_fua = True
    identity, before = Identity.unpack(page), d.ssize
    d.ident = page
    d.ext = identity.lba48
    # Sectors that the registers cannot name would be others (K35).
    d.ssize = min(identity.sectors, LBA48_LIMIT if d.ext else LBA28_LIMIT)
    can_trim = FeatureSet.TRIM in identity.feature_sets
    d.trim_blocks = trim_blocks(page) if can_trim else 0
    d.state = State.UP
    if d.nopen and d.ssize != before:
        for callback in list(d.on_resize):
            callback()
    return None


def _failed(d: AoeDev, f: Frame, status: int, error: int) -> AoEError | None:
    aborted = is_aborted(status, error)
    if f.fua and f.buf is not None and aborted:
        # Not known here, it seems: written and flushed instead, from now on.
        d.takes_fua = False
        d.add_followup(f.buf, Op.WRITE, BioIter(f.segments, f.sector))
        return None
    if f.op is Op.WRITE and aborted and d.read_only is not False:
        d.read_only = True
        return write_refused(d.address, status, error)
    if f.op is Op.DISCARD and aborted and d.read_only:
        return write_refused(d.address, status, error)
    return failure(d.address, f.op, status, error)
