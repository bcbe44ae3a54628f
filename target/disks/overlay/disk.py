"""Copy-on-write disk: a read-only base and an overlay file with all changed clusters.

A cluster is copied up to the overlay on its first write.

A map bit must never become stable before the data of its cluster, or a power failure
would expose holes and stale blocks. Therefore there are two maps. The recent map is
written together with the data and is valid only in the boot that wrote it: the page
cache holds both, even if the process was killed. The stable map is written by a flush,
after a flush of the data and before a flush of the map, and is valid after a power
failure. Bits are independent, so a torn map write is harmless. Unplugging the file
system's device from a running system has the effect of a power failure but keeps the
boot ID: use ``--sync`` for overlays on removable devices.
"""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from target.disks.overlay.format import BaseIdentity, OverlayHeader
    from target.protocol.disk import Disk

_MAP_BLOCK: Final = 512
_FLUSH_INTERVAL: Final = 5.0
"""Seconds after which a write triggers a flush: few clients send FLUSH CACHE."""


def this_boot() -> str:
    """Return the kernel's boot ID, empty if it is not available."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class OverlayDisk:
    """A copy-on-write disk over a base; closing it flushes and closes both.

    Args:
        base: the base disk; only read, except by ``copy_to``.
        store: the overlay file, of size ``header.file_size``.
        header: the header that ``find_header`` returned, in state ``ready`` or
            ``committing``.
        read_only: writes are refused, and the store is not written.
        sync: True if a write is stable when it returns.
        boot: the boot ID; empty if unknown.
        clock: returns monotonic time in seconds.

    Raises:
        OSError: the maps cannot be read or written.
    """

    def __init__(
        self,
        base: Disk,
        store: Disk,
        header: OverlayHeader,
        *,
        read_only: bool = False,
        sync: bool = False,
        boot: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.size = header.base.size
        self.read_only = read_only
        self.header = header
        self._base = base
        self._store = store
        self._sync = sync
        self._clock = clock
        self._scratch = memoryview(bytearray(header.cluster))
        self._failed = False
        self._dirty_blocks: set[int] = set()
        self._map = self._load(boot)
        self._last_flush = clock()

    def _load(self, boot: str) -> bytearray:
        stable = bytearray(self.header.map_length)
        self._store.read_into(self.header.stable_map, memoryview(stable))
        if boot and self.header.boot == boot:
            recent = bytearray(len(stable))
            self._store.read_into(self.header.recent_map, memoryview(recent))
            self._dirty_blocks = {
                block
                for block in range(-(-len(stable) // _MAP_BLOCK))
                if _map_block(stable, block) != _map_block(recent, block)
            }
            return recent
        if not self.read_only:
            self._store.write_from(self.header.recent_map, memoryview(stable))
            self.write_header(boot=boot)
        return stable

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from the overlay's clusters, and else from the base."""
        done = 0
        for cluster, start, length in self._split(offset, len(buffer)):
            piece = buffer[done : done + length]
            if self._is_allocated(cluster):
                self._store.read_into(self.header.data + start, piece)
            else:
                self._base.read_into(start, piece)
            done += length

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write to the overlay; copy up the rest of a newly allocated cluster."""
        done = 0
        for cluster, start, length in self._split(offset, len(data)):
            piece = data[done : done + length]
            if self._is_allocated(cluster):
                self._store.write_from(self.header.data + start, piece)
            else:
                self._copy_up(cluster, start, piece)
            done += length
        self._flush_if_due()

    def discard(self, offset: int, length: int) -> None:
        """Make a range read as zeros; whole clusters become holes in the overlay."""
        for cluster, start, count in self._split(offset, length):
            if self._is_allocated(cluster) or count == self._cluster_length(cluster):
                self._store.discard(self.header.data + start, count)
                self._mark_allocated(cluster)
            else:
                self._copy_up(cluster, start, memoryview(bytes(count)))
        self._flush_if_due()

    def flush(self) -> None:
        """Flush the data, then write and flush the stable map.

        Raises:
            OSError: the flush failed. All later flushes fail until the overlay is
                opened again: after a write-back error the kernel marks the pages clean,
                so that a later fsync(2) would succeed without the data.
        """
        if self._failed:
            raise OSError(errno.EIO, "an earlier flush failed")
        self._flush_store()
        if not self._dirty_blocks:
            return
        for block in self._dirty_blocks:
            at = self.header.stable_map + block * _MAP_BLOCK
            self._store.write_from(at, _map_block(self._map, block))
        self._flush_store()
        self._dirty_blocks.clear()

    def _flush_store(self) -> None:
        if self.read_only:
            return
        try:
            self._store.flush()
        except OSError:
            self._failed = True
            # The recent map describes data that was lost: invalidate it.
            with suppress(OSError):
                self._put_header(boot="")
            raise

    def find_fault(self) -> str:
        """Return why overlay or base must be opened again; a failed flush is one."""
        failed = "a flush of the overlay failed" if self._failed else ""
        return failed or self._store.find_fault() or self._base.find_fault()

    def close(self) -> None:
        """Flush, and close store and base.

        Raises:
            OSError: the flush failed.
        """
        try:
            if not self._failed:
                self.flush()
        finally:
            self._store.close()
            self._base.close()

    def allocated(self) -> Iterator[int]:
        """Yield the numbers of the allocated clusters."""
        for cluster in range(self.header.clusters):
            if self._is_allocated(cluster):
                yield cluster

    def allocated_count(self) -> int:
        """Return the number of allocated clusters."""
        return int.from_bytes(self._map).bit_count()

    def allocated_bytes(self) -> int:
        """Return the size of all allocated clusters, in bytes."""
        return sum(self._cluster_length(cluster) for cluster in self.allocated())

    def copy_to(self, disk: Disk, progress: Callable[[int], None]) -> None:
        """Copy every allocated cluster to a disk of the same size, and flush it.

        Args:
            disk: the destination.
            progress: called with the length of each cluster.
        """
        for cluster in self.allocated():
            start, length = cluster * self.header.cluster, self._cluster_length(cluster)
            self.read_into(start, self._scratch[:length])
            disk.write_from(start, self._scratch[:length])
            progress(length)
        disk.flush()

    def write_header(
        self,
        *,
        boot: str | None = None,
        base: BaseIdentity | None = None,
        state: str | None = None,
    ) -> None:
        """Change fields of the header; it is stable when this returns."""
        # The header in the other slot must be stable before this one is overwritten.
        self._store.flush()
        self._put_header(boot=boot, base=base, state=state)
        self._store.flush()

    def _put_header(self, **changes: object) -> None:
        chosen = {name: value for name, value in changes.items() if value is not None}
        self.header = msgspec.structs.replace(
            self.header, sequence=self.header.sequence + 1, **chosen
        )
        at, raw = self.header.pack()
        self._store.write_from(at, memoryview(raw))

    def _split(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        # Splits a range at cluster boundaries: cluster, offset, length of each piece.
        end = offset + length
        while offset < end:
            cluster, within = divmod(offset, self.header.cluster)
            length = min(self.header.cluster - within, end - offset)
            yield cluster, offset, length
            offset += length

    def _cluster_length(self, cluster: int) -> int:
        size = self.header.cluster
        return min(size, self.size - cluster * size)

    def _is_allocated(self, cluster: int) -> bool:
        return bool(self._map[cluster >> 3] >> (cluster & 7) & 1)

    def _copy_up(self, cluster: int, start: int, piece: memoryview) -> None:
        first, length = cluster * self.header.cluster, self._cluster_length(cluster)
        whole = piece
        if len(piece) < length:
            whole = self._scratch[:length]
            self._base.read_into(first, whole)
            whole[start - first : start - first + len(piece)] = piece
        self._store.write_from(self.header.data + first, whole)
        self._mark_allocated(cluster)

    def _mark_allocated(self, cluster: int) -> None:
        if self._is_allocated(cluster):
            return
        byte = cluster >> 3
        value = self._map[byte] | 1 << (cluster & 7)
        at = self.header.recent_map + byte
        self._store.write_from(at, memoryview(bytes([value])))
        self._map[byte] = value
        self._dirty_blocks.add(byte // _MAP_BLOCK)

    def _flush_if_due(self) -> None:
        if not self._dirty_blocks:
            self._last_flush = self._clock()
        elif self._sync or self._clock() - self._last_flush >= _FLUSH_INTERVAL:
            self.flush()
            self._last_flush = self._clock()


def _map_block(bits: bytearray, number: int) -> memoryview:
    return memoryview(bits)[number * _MAP_BLOCK : (number + 1) * _MAP_BLOCK]
