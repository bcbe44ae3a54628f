"""What an overlay file is made of: two headers, two maps, and the clusters.

::

         0  header A     magic, CRC-32, length, JSON; the one with the higher
      8192  header B     sequence counts, so a torn header leaves the other
     16384  stable map   a bit for each cluster, lowest first: its data is stable
         +  recent map   the same for data that may yet be in the page cache
         +  clusters     at the offset that they have in the base

Maps and clusters begin at a page and at a cluster. The file is as long as all of it,
and sparse: what was never written is a hole.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import Final, Literal

import msgspec

from aoe.errors import DecodeError

MAGIC: Final = b"pyaoe overlay 1\n"
HEADER_SLOT: Final = 8192
CLUSTER: Final = 64 << 10
_PAGE: Final = 4096
_HEAD: Final = Struct("<16sII")


class BaseIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What an overlay knows of the disk below it.

    Args:
        path: where it was when it was last used.
        offset: where the window begins, bytes.
        size: how long the window is, bytes.
        mtime_ns: when the file was last written, 0 where that says nothing.
    """

    path: str
    offset: int
    size: int
    mtime_ns: int

    def is_like(self, other: BaseIdentity) -> bool:
        """Compare all but the path: a disk may be moved."""
        return (self.offset, self.size, self.mtime_ns) == (
            other.offset,
            other.size,
            other.mtime_ns,
        )


class OverlayHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an overlay besides its clusters.

    Args:
        base: the disk below.
        cluster: bytes that are copied from the base at once.
        sequence: counts the headers that were written.
        boot: the boot of the system in which the recent map was written.
        state: ``committing`` and ``resetting`` until that is complete.
    """

    base: BaseIdentity
    cluster: int = CLUSTER
    sequence: int = 0
    boot: str = ""
    state: Literal["ready", "committing", "resetting"] = "ready"

    @property
    def clusters(self) -> int:
        """How many there are; the last may be cut short by the end of the disk."""
        return -(-self.base.size // self.cluster)

    @property
    def map_length(self) -> int:
        """Bytes of a map."""
        return -(-self.clusters // 8)

    @property
    def stable_map(self) -> int:
        """Where the stable map begins, bytes."""
        return 2 * HEADER_SLOT

    @property
    def recent_map(self) -> int:
        """Where the recent map begins, bytes."""
        return self.stable_map + _round(self.map_length, _PAGE)

    @property
    def data(self) -> int:
        """Where the first cluster begins, bytes."""
        return _round(self.recent_map + self.map_length, self.cluster)

    @property
    def file_size(self) -> int:
        """Bytes of the file, holes and all."""
        return self.data + self.base.size

    def pack(self) -> tuple[int, bytes]:
        """Return where the header goes, and its bytes.

        Raises:
            ValueError: the path of the base is too long or not text.
        """
        text = msgspec.json.encode(self)
        raw = _HEAD.pack(MAGIC, zlib.crc32(text), len(text)) + text
        if len(raw) > HEADER_SLOT:
            raise ValueError("the path of the base is too long")
        return self.sequence % 2 * HEADER_SLOT, raw.ljust(HEADER_SLOT, b"\0")


def find_header(raw: bytes) -> OverlayHeader:
    """Find the header that counts in the first 16384 bytes of an overlay.

    Raises:
        DecodeError: there is none.
    """
    slots = raw[:HEADER_SLOT], raw[HEADER_SLOT : 2 * HEADER_SLOT]
    found = [header for slot in slots if (header := _unpack(slot)) is not None]
    if not found:
        raise DecodeError("overlay", "no header of an overlay there")
    return max(found, key=lambda header: header.sequence)


def _unpack(slot: bytes) -> OverlayHeader | None:
    if len(slot) < _HEAD.size:
        return None
    magic, checksum, length = _HEAD.unpack_from(slot)
    text = slot[_HEAD.size : _HEAD.size + length]
    if magic != MAGIC or zlib.crc32(text) != checksum:
        return None
    try:
        header = msgspec.json.decode(text, type=OverlayHeader)
    except msgspec.DecodeError:
        return None
    return header if header.cluster > 0 and header.base.size > 0 else None


def _round(length: int, unit: int) -> int:
    return -(-length // unit) * unit
