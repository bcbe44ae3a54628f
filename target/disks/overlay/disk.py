"""Copy on write: a disk that is never written to, and a file with all that changed.

A cluster is copied up when it is first written, and from then on lives in the overlay.

What a map says must never come before the data that it speaks of, or a power failure
would show holes and old rubbish. So there are two maps. The recent one is written with
the data and believed only in the boot of the system that wrote it: then the page cache
that holds both is still there, whatever became of the process. The stable one is
written by a flush, between one that makes the data stable and one for itself, and it is
what counts after a power failure. Each bit speaks for itself, so that a torn map says
nothing wrong. A file system that is torn away from a running system is a power failure
that nobody tells us of: flush, or serve with ``--sync``, what may be unplugged.
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
_SETTLE: Final = 5.0
"""Seconds after which a write flushes by itself: few clients ever ask for it."""


def this_boot() -> str:
    """Return what names this boot of the system, nothing if it is not told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class OverlayDisk:
    """A disk over another one; it closes both, and flushes before.

    Args:
        base: read only ever, but for ``commit``.
        store: the overlay file, ``header.file_size`` long.
        header: what ``find_header`` found in it, state ``ready`` or ``committing``.
        read_only: writing is refused, and the store is not touched.
        sync: a write is stable when it returns.
        boot: this boot of the system; empty if unknown.
        clock: seconds that only grow.

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
        self._dirty: set[int] = set()
        self._map = self._load(boot)
        self._settled = clock()

    def _load(self, boot: str) -> bytearray:
        stable = bytearray(self.header.map_length)
        self._store.read_into(self.header.stable_map, memoryview(stable))
        if boot and self.header.boot == boot:
            recent = bytearray(len(stable))
            self._store.read_into(self.header.recent_map, memoryview(recent))
            self._dirty = {
                block
                for block in range(-(-len(stable) // _MAP_BLOCK))
                if _block(stable, block) != _block(recent, block)
            }
            return recent
        if not self.read_only:
            self._store.write_from(self.header.recent_map, memoryview(stable))
            self.write_header(boot=boot)
        return stable

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from the overlay where it has the cluster, else the base."""
        done = 0
        for cluster, start, length in self._pieces(offset, len(buffer)):
            piece = buffer[done : done + length]
            if self._has(cluster):
                self._store.read_into(self.header.data + start, piece)
            else:
                self._base.read_into(start, piece)
            done += length

    def write_from(self, offset: int, data: memoryview) -> None:
        """Write to the overlay, and copy up what else is in a new cluster."""
        done = 0
        for cluster, start, length in self._pieces(offset, len(data)):
            piece = data[done : done + length]
            if self._has(cluster):
                self._store.write_from(self.header.data + start, piece)
            else:
                self._copy_up(cluster, start, piece)
            done += length
        self._settle()

    def discard(self, offset: int, length: int) -> None:
        """Have a range read as zeros; whole clusters become holes of the overlay."""
        for cluster, start, count in self._pieces(offset, length):
            if self._has(cluster) or count == self._length(cluster):
                self._store.discard(self.header.data + start, count)
                self._mark(cluster)
            else:
                self._copy_up(cluster, start, memoryview(bytes(count)))
        self._settle()

    def flush(self) -> None:
        """Make the data stable, then the map.

        Raises:
            OSError: it failed. It will fail until the overlay is opened again: the
                system has forgotten what it could not write, so that the next success
                would mean nothing.
        """
        if self._failed:
            raise OSError(errno.EIO, "an earlier flush failed")
        self._flush_store()
        if not self._dirty:
            return
        for block in self._dirty:
            at = self.header.stable_map + block * _MAP_BLOCK
            self._store.write_from(at, _block(self._map, block))
        self._flush_store()
        self._dirty.clear()

    def _flush_store(self) -> None:
        if self.read_only:
            return
        try:
            self._store.flush()
        except OSError:
            self._failed = True
            # Nor may the recent map be believed any more.
            with suppress(OSError):
                self._put_header(boot="")
            raise

    def close(self) -> None:
        """Flush, and let go of both.

        Raises:
            OSError: the flush failed.
        """
        try:
            if not self._failed:
                self.flush()
        finally:
            self._store.close()
            self._base.close()

    def used(self) -> Iterator[int]:
        """Yield the numbers of the clusters that the overlay has."""
        for cluster in range(self.header.clusters):
            if self._has(cluster):
                yield cluster

    def used_count(self) -> int:
        """Count the clusters that the overlay has."""
        return int.from_bytes(self._map).bit_count()

    def used_bytes(self) -> int:
        """Count the bytes of the clusters that the overlay has."""
        return sum(self._length(cluster) for cluster in self.used())

    def copy_to(self, disk: Disk, progress: Callable[[int], None]) -> None:
        """Write every cluster of the overlay to a disk as large, and flush that.

        Args:
            disk: where to.
            progress: called with the bytes of each cluster.
        """
        for cluster in self.used():
            start, length = cluster * self.header.cluster, self._length(cluster)
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
        """Change what is given of the header; it is stable when this returns."""
        # First what is in the other slot: one of the two must hold, come what may.
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

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        # A range cut at the clusters: cluster, where the piece begins, its length.
        end = offset + length
        while offset < end:
            cluster, within = divmod(offset, self.header.cluster)
            length = min(self.header.cluster - within, end - offset)
            yield cluster, offset, length
            offset += length

    def _length(self, cluster: int) -> int:
        size = self.header.cluster
        return min(size, self.size - cluster * size)

    def _has(self, cluster: int) -> bool:
        return bool(self._map[cluster >> 3] >> (cluster & 7) & 1)

    def _copy_up(self, cluster: int, start: int, piece: memoryview) -> None:
        first, length = cluster * self.header.cluster, self._length(cluster)
        whole = piece
        if len(piece) < length:
            whole = self._scratch[:length]
            self._base.read_into(first, whole)
            whole[start - first : start - first + len(piece)] = piece
        self._store.write_from(self.header.data + first, whole)
        self._mark(cluster)

    def _mark(self, cluster: int) -> None:
        if self._has(cluster):
            return
        byte = cluster >> 3
        value = self._map[byte] | 1 << (cluster & 7)
        at = self.header.recent_map + byte
        self._store.write_from(at, memoryview(bytes([value])))
        self._map[byte] = value
        self._dirty.add(byte // _MAP_BLOCK)

    def _settle(self) -> None:
        if not self._dirty:
            self._settled = self._clock()
        elif self._sync or self._clock() - self._settled >= _SETTLE:
            self.flush()
            self._settled = self._clock()


def _block(bits: bytearray, number: int) -> memoryview:
    return memoryview(bits)[number * _MAP_BLOCK : (number + 1) * _MAP_BLOCK]
