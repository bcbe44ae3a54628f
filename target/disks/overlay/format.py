"""The overlay file format: two headers, two maps, and the clusters.

::

         0  header A     magic, CRC-32, length, JSON; the header with the higher
      8192  header B     sequence is current, so a torn write leaves the other
     16384  stable map   a bit for each cluster, LSB first: its data is stable
         +  recent map   the same for data that may still be in the page cache
         +  clusters     in the order of the base, relative to this offset

Maps are aligned to pages, the clusters to the cluster size. The file has its full size
and is sparse: clusters that were never written are holes.
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
    """The identity of an overlay's base.

    Args:
        path: its path when it was last used.
        offset: start of the window, bytes.
        size: length of the window, bytes.
        mtime_ns: modification time of the file, 0 for a device.
    """

    path: str
    offset: int
    size: int
    mtime_ns: int

    def is_like(self, other: BaseIdentity) -> bool:
        """Return True if all but the path is equal: an image may be moved."""
        return (self.offset, self.size, self.mtime_ns) == (
            other.offset,
            other.size,
            other.mtime_ns,
        )


class OverlayHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The header of an overlay file.

    Args:
        base: the identity of the base.
        cluster: the cluster size in bytes, the unit of copy-up.
        sequence: incremented with each header that is written.
        boot: the boot ID of the system that wrote the recent map.
        state: ``committing`` or ``resetting`` until the operation is complete.
    """

    base: BaseIdentity
    cluster: int = CLUSTER
    sequence: int = 0
    boot: str = ""
    state: Literal["ready", "committing", "resetting"] = "ready"

    @property
    def clusters(self) -> int:
        """Number of clusters; the last may be partial."""
        return -(-self.base.size // self.cluster)

    @property
    def map_length(self) -> int:
        """Length of a map, bytes."""
        return -(-self.clusters // 8)

    @property
    def stable_map(self) -> int:
        """Offset of the stable map, bytes."""
        return 2 * HEADER_SLOT

    @property
    def recent_map(self) -> int:
        """Offset of the recent map, bytes."""
        return self.stable_map + _round(self.map_length, _PAGE)

    @property
    def data(self) -> int:
        """Offset of the first cluster, bytes."""
        return _round(self.recent_map + self.map_length, self.cluster)

    @property
    def file_size(self) -> int:
        """Size of the file in bytes, holes included."""
        return self.data + self.base.size

    def pack(self) -> tuple[int, bytes]:
        """Return the offset of the header in the file, and its bytes.

        Raises:
            ValueError: the path of the base is too long or not text.
        """
        text = msgspec.json.encode(self)
        raw = _HEAD.pack(MAGIC, zlib.crc32(text), len(text)) + text
        if len(raw) > HEADER_SLOT:
            raise ValueError("the path of the base is too long")
        return self.sequence % 2 * HEADER_SLOT, raw.ljust(HEADER_SLOT, b"\0")


def find_header(raw: bytes) -> OverlayHeader:
    """Return the current header from the first 16384 bytes of an overlay.

    Raises:
        DecodeError: there is no valid header.
    """
    slots = raw[:HEADER_SLOT], raw[HEADER_SLOT : 2 * HEADER_SLOT]
    found = [header for slot in slots if (header := _unpack(slot)) is not None]
    if not found:
        raise DecodeError("overlay", "no valid header")
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
