"""What the driver's frames look like, and what a failed answer means.

Frames are queries, IDENTIFY, reads, writes, flushes and TRIM. They are written into the
head of an skb; the data of a write and the ranges of a TRIM are its fragments.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

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
from aoe.header import ETH_P_AOE, HEADER, HEADER_LENGTH, VERSION, Command
from initiator.driver.bio import BioVec, Op, UserPages
from initiator.driver.skbuff import Skb

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
"""aflags and opcode; a device that takes 48 bits gets them for every LBA (K35)."""

TAG_COUNTER: Final = 0x7FFFF
"""Bits of a ``user`` tag that count transmissions."""
_TAG_LENGTH: Final = 4
_TAGGED: Final = Struct(f"!{HEADER_LENGTH - _TAG_LENGTH}sI")
"""A header, and the tag at its end."""
_FUA: Final = _LBA48 | _WRITES, int(Opcode.WRITE_DMA_FUA_EXT)
_TRIM: Final = 1
"""The feature of DATA SET MANAGEMENT."""
_RANGE: Final = Struct("<Q")
"""A range to trim: the address in 48 bits, the count of sectors above them."""
_RANGE_SECTORS: Final = 0xFFF8
"""Most sectors of one range: whole blocks of 4096 bytes, lest the seams be kept."""
TRIM_BLOCK: Final = SECTOR // _RANGE.size * _RANGE_SECTORS * SECTOR
"""Bytes of a device that one block of ranges covers."""


def query(src: bytes, address: Address, tag: int) -> Skb:
    """Make a config query, always to the Ethernet broadcast (K10, K12)."""
    skb = Skb(CONFIG_STRING)
    put_header(skb, MAC_BROADCAST, src, address, Command.CONFIG, tag)
    Config().pack_into(skb.head)
    return skb


def put_header(
    skb: Skb, dst: bytes, src: bytes, address: Address, command: int, tag: int
) -> None:
    """Write Ethernet and AoE headers, over those of an earlier transmission (K52)."""
    _TAGGED.pack_into(skb.head, 0, untagged(dst, src, address, command), tag)


@lru_cache(maxsize=256)
def untagged(dst: bytes, src: bytes, address: Address, command: int) -> bytes:
    """Make a header without its tag: each pair of interfaces has but one."""
    shelf, slot = address
    fields = dst, src, ETH_P_AOE, VERSION << 4, 0, shelf, slot, command, 0
    return HEADER.pack(*fields)[:-_TAG_LENGTH]


def put_command(
    skb: Skb, op: Op, lba: int, length: int, *, ext: bool, fua: bool = False
) -> None:
    """Write the registers that move ``length`` bytes at sector ``lba`` (K34-K36)."""
    aflags, opcode = _FUA if fua else _COMMANDS[op, ext]
    if not ext and length:
        # Bits 32 to 47 stay, as in the kernel: nothing looks at them.
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


def everyday_registers(length: int, *, writes: bool) -> bytes:
    """Make aflags, feature, count and opcode of a READ or WRITE EXT (K34, K35)."""
    aflags, opcode = _COMMANDS[Op.WRITE if writes else Op.READ, True]
    return bytes((aflags, 0, length // SECTOR, opcode))


def put_trim(skb: Skb, sector: int, length: int, *, ext: bool) -> None:
    """Write a TRIM of ``length`` bytes, and the blocks of ranges that it carries."""
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
    """Tell whether a reply says no more than that the command was not executed."""
    return status == Status.READY | Status.ERROR and error == AtaError.ABORTED


def failure(address: Address, op: Op | None, status: int, error: int) -> DeviceError:
    """Make the error that a failed reply's registers mean; ``op`` is None for IDENTIFY.

    A FLUSH or TRIM that is aborted, without a fault, is one that the target does not
    know; ggaoed sends the opcode of a FLUSH back as the status.
    """
    aborted = is_aborted(status, error)
    echoed = op is Op.FLUSH and status in (Opcode.FLUSH, Opcode.FLUSH_EXT)
    unknown = echoed or (aborted and op in (Op.FLUSH, Op.DISCARD))
    kind = UnsupportedError if unknown else DeviceError
    return kind(str(address), describe_failure(status, error))


def write_refused(address: Address, status: int, error: int) -> AoEError:
    """Make the error of a write to a disk that takes none (P40)."""
    words = describe_failure(status, error)
    return AccessError(str(address), f"read-only, the target aborts writes: {words}")
