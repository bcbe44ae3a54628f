"""Build the driver's frames, and the errors of failed responses.

Frames are queries, IDENTIFY, READ, WRITE, FLUSH and TRIM. Headers go into the linear
part of an skb; the data of a WRITE and the ranges of a TRIM are its fragments.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from math import inf
from struct import Struct
from typing import TYPE_CHECKING, Final

from aoe.address import MAC_BROADCAST, Address
from aoe.ata import (
    DEVICE_LBA,
    REGISTERS,
    SECTOR,
    AFlag,
    AtaError,
    Opcode,
    Status,
    describe_failure,
)
from aoe.config import CONFIG_STRING, Config
from aoe.errors import AccessError, AoEError, DeviceError, UnsupportedError
from aoe.header import (
    ETH_P_AOE,
    HEADER,
    HEADER_LENGTH,
    TAG_COUNTER,
    VERSION,
    Command,
)
from initiator.driver.bio import BioVec, Op, UserPages
from initiator.driver.skbuff import Skb

if TYPE_CHECKING:
    from initiator.driver.page_hooks import PageHooks
    from initiator.driver.structs import Frame

_WRITES: Final = int(AFlag.WRITE)
_LBA48: Final = int(AFlag.EXTENDED)
_COMMANDS: Final = {
    (Op.READ, False): (0, int(Opcode.READ)),
    (Op.READ, True): (_LBA48, int(Opcode.READ_EXT)),
    (Op.WRITE, False): (_WRITES, int(Opcode.WRITE)),
    (Op.WRITE, True): (_LBA48 | _WRITES, int(Opcode.WRITE_EXT)),
    (Op.FLUSH, False): (0, int(Opcode.FLUSH)),
    (Op.FLUSH, True): (0, int(Opcode.FLUSH)),
}
"""aflags and opcode by operation and LBA48; a device with LBA48 gets only EXT (K35)."""

_TAG_BLOCKS: Final = 32
_TAG_BLOCK: Final = (TAG_COUNTER + 1) // _TAG_BLOCKS
_TAG_LENGTH: Final = 4
_TAGGED: Final = Struct(f"!{HEADER_LENGTH - _TAG_LENGTH}sI")
"""A header, with the tag at its end."""
_FUA: Final = _LBA48 | _WRITES, int(Opcode.WRITE_DMA_FUA_EXT)
_TRIM: Final = 1
"""The feature register of DATA SET MANAGEMENT."""
_RANGE: Final = Struct("<Q")
"""A range to trim: LBA in bits 0 to 47, number of sectors in bits 48 to 63."""
_RANGE_SECTORS: Final = 0xFFF8
"""Maximum sectors per range: a multiple of 4096 bytes. A device that trims blocks of
this size would keep a block that is divided between two ranges."""
TRIM_BLOCK: Final = SECTOR // _RANGE.size * _RANGE_SECTORS * SECTOR
"""Bytes of a device that one 512-byte block of ranges covers."""


class TagBlocks:
    """The tags of a device that no frame in the network can have (P10).

    A response is recognized by its tag alone, so a tag must not be used again while a
    response to its first use may arrive. The numbers are used in blocks, and a block
    again only when it was left long enough ago. Nothing is recorded per frame.

    Args:
        start: the number before the first one.
        is_limited: whether to do so; the kernel does not check its tags (K26).

    Attributes:
        end: the first number that may not be used yet.
        free_at: when the next block may be entered, if that is being waited for.
    """

    def __init__(self, start: int = 0, *, is_limited: bool = True) -> None:
        self.end: float = start if is_limited else inf
        self.free_at: float | None = None
        # When each of the latest blocks was entered, and the one before it left. The
        # numbers of a block are the same as 32 blocks before. Its last frames may
        # have been sent while the next one was current: one entry less than blocks
        # between them.
        self._entered = deque([-inf] * (_TAG_BLOCKS - 2), maxlen=_TAG_BLOCKS - 2)

    def reach(self, number: int, now: float, lifetime: float) -> bool:
        """Enter the block of the number after ``number``; return False to wait.

        Args:
            number: the last number that was used, in sequence.
            now: the time.
            lifetime: seconds for which frames and their responses may be in flight.
        """
        self.free_at = None
        while number >= self.end:
            free_at = self._entered[0] + lifetime
            if now < free_at:
                self.free_at = free_at
                return False
            self._entered.append(now)
            self.end += _TAG_BLOCK
        return True


def query(src: bytes, address: Address, tag: int) -> Skb:
    """Build a config query, always to the Ethernet broadcast address (K10, K12)."""
    skb = Skb(CONFIG_STRING)
    put_header(skb, MAC_BROADCAST, src, address, Command.CONFIG, tag)
    Config().pack_into(skb.head)
    return skb


def put_header(
    skb: Skb, dst: bytes, src: bytes, address: Address, command: int, tag: int
) -> None:
    """Write the Ethernet and AoE headers; done for each transmission (K52)."""
    _TAGGED.pack_into(skb.head, 0, untagged_header(dst, src, address, command), tag)


@lru_cache(maxsize=256)
def untagged_header(dst: bytes, src: bytes, address: Address, command: int) -> bytes:
    """Build a header without its tag; cached, since it is the same for each path."""
    shelf, slot = address
    fields = dst, src, ETH_P_AOE, VERSION << 4, 0, shelf, slot, command, 0
    return HEADER.pack(*fields)[:-_TAG_LENGTH]


def put_command(
    skb: Skb, op: Op, lba: int, length: int, *, ext: bool, fua: bool = False
) -> None:
    """Write the registers for ``length`` bytes at sector ``lba`` (K34-K36)."""
    aflags, opcode = _FUA if fua else _COMMANDS[op, ext]
    if not ext and length:
        # As in the kernel, bits 32 to 47 are not cleared; LBA28 commands ignore them.
        lba = lba & ~0xF000_0000 | DEVICE_LBA << 24
    REGISTERS.pack_into(
        skb.head,
        HEADER_LENGTH,
        aflags,
        0,
        length // SECTOR,
        opcode,
        lba & 0xFFFF_FFFF,
        lba >> 32,
        0,
    )


def put_request(f: Frame, page_hooks: PageHooks | None, *, ext: bool) -> None:
    """Write the ATA header, attach the data (``aoecmd_ata_rw``, K28-K36)."""
    skb, op = f.skb, f.op
    if f.buf is None or op is None:
        return
    if op is Op.DISCARD:
        put_trim(skb, f.sector, f.length, ext=ext)
        return
    put_command(skb, op, f.sector, f.length, ext=ext, fua=f.fua)
    if op is not Op.WRITE:
        skb.frags = []
    elif page_hooks is None:
        skb.frags = f.segments
    else:
        page_hooks.attach(f.buf.bio, skb, f.segments)


def read_write_registers(length: int, *, writes: bool) -> bytes:
    """Build aflags, feature, count and opcode of a READ or WRITE EXT (K34, K35)."""
    aflags, opcode = _COMMANDS[Op.WRITE if writes else Op.READ, True]
    return bytes((aflags, 0, length // SECTOR, opcode))


def put_trim(skb: Skb, sector: int, length: int, *, ext: bool) -> None:
    """Write a TRIM of ``length`` bytes, with its blocks of ranges as fragment."""
    end = sector + length // SECTOR
    ranges = b"".join(
        _RANGE.pack(min(end - first, _RANGE_SECTORS) << 48 | first)
        for first in range(sector, end, _RANGE_SECTORS)
    )
    blocks = -(-len(ranges) // SECTOR)
    payload = ranges.ljust(blocks * SECTOR, b"\0")
    skb.frags = [BioVec(UserPages(payload), 0, len(payload))]
    aflags = _WRITES | _LBA48 if ext else _WRITES
    opcode = Opcode.DATA_SET_MANAGEMENT
    REGISTERS.pack_into(skb.head, HEADER_LENGTH, aflags, _TRIM, blocks, opcode, 0, 0, 0)


def put_identify(skb: Skb) -> None:
    """Write the registers of IDENTIFY DEVICE (K20)."""
    REGISTERS.pack_into(
        skb.head, HEADER_LENGTH, 0, 0, 1, Opcode.IDENTIFY, 0xA0 << 24, 0, 0
    )


def is_aborted(status: int, error: int) -> bool:
    """Return True if the command was aborted (ABRT) without another error or fault."""
    return status == Status.READY | Status.ERROR and error == AtaError.ABORTED


def failure(address: Address, op: Op | None, status: int, error: int) -> DeviceError:
    """Return the error for the registers of a failed response.

    A FLUSH or TRIM that is aborted without a fault is not supported by the target.
    ggaoed copies the opcode of a FLUSH into the status instead.

    Args:
        address: the device.
        op: the operation; None for IDENTIFY.
        status: status register.
        error: error register.
    """
    aborted = is_aborted(status, error)
    echoed = op is Op.FLUSH and status in (Opcode.FLUSH, Opcode.FLUSH_EXT)
    unsupported = echoed or (aborted and op in (Op.FLUSH, Op.DISCARD))
    kind = UnsupportedError if unsupported else DeviceError
    return kind(str(address), describe_failure(status, error))


def write_protected(address: Address, status: int, error: int) -> AoEError:
    """Return the error of a write to a disk that is read-only (P40)."""
    failure = describe_failure(status, error)
    return AccessError(str(address), f"read-only, the target aborts writes: {failure}")
