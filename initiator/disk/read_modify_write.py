"""Read and write any bytes of a device of sectors, by read-modify-write.

If a request begins or ends within a sector, the rest of that sector is needed::

    bytes    ........|=========================|......
    sectors  |-------------|-------------|-------------|
    read     one bio: the bytes outside are read into a scratch sector
    write    first and last sector are read, then everything is written in one bio

A write to the same sectors between the read and the write would be lost. Therefore a
partial write holds an exclusive lock of its sectors, whereas writes of whole sectors
share their locks. No I/O here: bios are passed to a ``submit`` function.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, TypeAlias

from aoe.ata import SECTOR
from initiator.driver.bio import Bio, Op, UserPages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aoe.buffers import WriteBuffer
    from aoe.errors import AoEError

    Done: TypeAlias = Callable[[AoEError | None], None]

_PIECE: Final = 1 << 20
"""Zeroes are written in pieces of this many bytes, so that other writes are not blocked
for long."""
_ZEROES: Final = memoryview(bytes(_PIECE))


@dataclass(slots=True, eq=False)
class SectorLock:
    """A lock of the sectors from ``first`` to before ``end``.

    Args:
        first: the first sector.
        end: the sector after the last.
        exclusive: conflicts with every overlapping lock, otherwise only with exclusive
            ones.
        granted: called once when the lock is granted.
    """

    first: int
    end: int
    exclusive: bool
    granted: Callable[[], None]

    def conflicts_with(self, other: SectorLock) -> bool:
        """Return True if the two cannot be held at the same time."""
        return (
            (self.exclusive or other.exclusive)
            and self.first < other.end
            and other.first < self.end
        )


class SectorLocks:
    """Sector locks; conflicting ones are granted in the order of requests."""

    def __init__(self) -> None:
        self._held: dict[SectorLock, None] = {}
        self._queued: list[SectorLock] = []
        self._released: list[SectorLock] = []
        self._exclusive = 0
        self._granting = False

    def acquire(self, lock: SectorLock) -> None:
        """Grant a lock, now or when the locks that it conflicts with are released."""
        free = not lock.exclusive and not self._exclusive
        self._exclusive += lock.exclusive
        if free or self._is_free(lock, len(self._queued)):
            self._held[lock] = None
            lock.granted()
        else:
            self._queued.append(lock)

    def release(self, lock: SectorLock) -> None:
        """Release a lock, and grant queued locks that it blocked."""
        del self._held[lock]
        self._exclusive -= lock.exclusive
        if self._queued:
            self._released.append(lock)
        if self._granting:
            return
        # granted() may release its lock before it returns: no recursion.
        self._granting = True
        while self._released:
            freed = self._released.pop()
            # Locks that do not overlap the freed one are blocked by another.
            for each in [w for w in self._queued if w.conflicts_with(freed)]:
                ahead = self._queued.index(each)
                if self._is_free(each, ahead):
                    del self._queued[ahead]
                    self._held[each] = None
                    each.granted()
        self._granting = False

    def _is_free(self, lock: SectorLock, ahead: int) -> bool:
        before = chain(self._held, islice(self._queued, ahead))
        return not any(lock.conflicts_with(other) for other in before)


class ReadModifyWriteView:
    """A view of a device at byte granularity; sends bios of whole sectors.

    ``done`` is called exactly once, possibly before the method returns, with the error
    or None. Until then, buffers must not be changed.

    Args:
        submit: accepts a bio for the device; ends it with an error if it is invalid.
    """

    def __init__(self, submit: Callable[[Bio], None]) -> None:
        self.submit = submit
        self.locks = SectorLocks()

    def read(self, offset: int, buffer: WriteBuffer, done: Done) -> None:
        """Fill ``buffer`` from byte ``offset``."""
        self.readv(offset, [buffer], done)

    def readv(self, offset: int, buffers: Sequence[WriteBuffer], done: Done) -> None:
        """Fill ``buffers`` in order from byte ``offset``."""
        sector, before = divmod(offset, SECTOR)
        bio = Bio(Op.READ, sector, lambda bio: done(bio.error))
        pages = [UserPages(buffer) for buffer in buffers]
        length = _length(pages)
        if length:
            after = -(offset + length) % SECTOR
            scratch = UserPages(bytearray(SECTOR if before or after else 0))
            _add(bio, scratch, before)
            for page in pages:
                _add(bio, page, len(page.data))
            _add(bio, scratch, after)
        self.submit(bio)

    def write(
        self,
        offset: int,
        data: WriteBuffer | bytes,
        done: Done,
        *,
        fua: bool = False,
    ) -> None:
        """Write ``data`` at byte ``offset``.

        Args:
            offset: in bytes.
            data: the data.
            done: called with the error or None.
            fua: the data must be on stable storage when ``done`` is called.
        """
        self.writev(offset, [data], done, fua=fua)

    def writev(
        self,
        offset: int,
        pieces: Sequence[WriteBuffer | bytes],
        done: Done,
        *,
        fua: bool = False,
    ) -> None:
        """Write ``pieces`` in order, as ``write`` does."""
        pages = [UserPages(piece) for piece in pieces]
        if _length(pages):
            _Write(self, offset, pages, done, fua=fua)
        else:
            done(None)

    def write_zeroes(
        self, offset: int, length: int, done: Done, *, fua: bool = False
    ) -> None:
        """Write ``length`` zeroes at byte ``offset``, in pieces of 1 MiB."""
        _Zeroing(self, offset, length, done, fua=fua).run()

    def punch(self, offset: int, length: int, done: Done, *, fua: bool = False) -> None:
        """Zero ``length`` bytes: trim whole sectors, write zeroes to partial ones.

        Only for disks on which trimmed sectors read as zeroes.
        """
        first, end = _whole_sectors(offset, length)
        if first >= end:
            self.write_zeroes(offset, length, done, fua=fua)
            return
        left = 3
        failure: AoEError | None = None

        def part_done(error: AoEError | None) -> None:
            nonlocal left, failure
            left -= 1
            failure = failure or error
            if left:
                return
            if fua and failure is None:
                self.flush(done)
            else:
                done(failure)

        tail = end * SECTOR
        self.write_zeroes(offset, first * SECTOR - offset, part_done)
        self.trim(first * SECTOR, tail - first * SECTOR, part_done)
        self.write_zeroes(tail, offset + length - tail, part_done)

    def trim(self, offset: int, length: int, done: Done) -> None:
        """Trim the whole sectors within ``length`` bytes.

        It waits for outstanding writes to these sectors, and later ones wait for it.
        """
        first, end = _whole_sectors(offset, length)
        if first >= end:
            done(None)
            return

        def granted() -> None:
            self.submit(Bio(Op.DISCARD, first, trimmed, length=(end - first) * SECTOR))

        def trimmed(bio: Bio) -> None:
            self.locks.release(lock)
            done(bio.error)

        lock = SectorLock(first, end, exclusive=True, granted=granted)
        self.locks.acquire(lock)

    def flush(self, done: Done) -> None:
        """Make all completed writes durable."""
        self.submit(Bio(Op.FLUSH, 0, lambda bio: done(bio.error)))


class _Write:
    # A write in progress, from its lock request to its end.

    def __init__(
        self,
        view: ReadModifyWriteView,
        offset: int,
        pages: Sequence[UserPages],
        done: Done,
        *,
        fua: bool,
    ) -> None:
        self._view = view
        self._pages = pages
        self._done = done
        self._fua = fua
        self._sector, self._before = divmod(offset, SECTOR)
        length = _length(pages)
        self._after = -(offset + length) % SECTOR
        end = (offset + length + self._after) // SECTOR
        self._head = self._tail = UserPages(b"")
        self._unread = 0
        self._error: AoEError | None = None
        partial = bool(self._before or self._after)
        self._lock = SectorLock(self._sector, end, partial, self._begin)
        view.locks.acquire(self._lock)

    def _begin(self) -> None:
        if not self._lock.exclusive:
            self._write()
            return
        first, last = self._lock.first, self._lock.end - 1
        edges = {first} if self._before else set()
        edges |= {last} if self._after else set()
        pages = {sector: UserPages(bytearray(SECTOR)) for sector in sorted(edges)}
        self._head = pages.get(first, self._head)
        self._tail = pages.get(last, self._tail)
        self._unread = len(pages)
        for sector, page in pages.items():
            bio = Bio(Op.READ, sector, self._read)
            bio.add_page(page, SECTOR)
            self._view.submit(bio)

    def _read(self, bio: Bio) -> None:
        self._unread -= 1
        self._error = self._error or bio.error
        if self._unread:
            return
        if self._error is None:
            self._write()
        else:
            self._end(self._error)

    def _write(self) -> None:
        bio = Bio(Op.WRITE, self._sector, self._written, fua=self._fua)
        _add(bio, self._head, self._before)
        for page in self._pages:
            _add(bio, page, len(page.data))
        _add(bio, self._tail, self._after, SECTOR - self._after)
        self._view.submit(bio)

    def _written(self, bio: Bio) -> None:
        self._end(bio.error)

    def _end(self, error: AoEError | None) -> None:
        self._view.locks.release(self._lock)
        self._done(error)


class _Zeroing:
    # A write of zeroes in progress; pieces end at sector boundaries.

    def __init__(
        self,
        view: ReadModifyWriteView,
        offset: int,
        length: int,
        done: Done,
        *,
        fua: bool,
    ) -> None:
        self._view = view
        self._offset = offset
        self._end = offset + length
        self._done = done
        self._fua = fua
        self._running = False
        self._is_idle = True

    def run(self) -> None:
        # A loop instead of recursion: a piece may end before write() returns.
        self._running = True
        while self._is_idle and self._offset < self._end:
            self._is_idle = False
            start = self._offset
            self._offset = min(self._end, (start // _PIECE + 1) * _PIECE)
            piece = _ZEROES[: self._offset - start]
            self._view.write(start, piece, self._piece_done, fua=self._fua)
        self._running = False
        if self._is_idle:
            self._done(None)

    def _piece_done(self, error: AoEError | None) -> None:
        if error is not None:
            self._done(error)
            return
        self._is_idle = True
        if not self._running:
            self.run()


def _whole_sectors(offset: int, length: int) -> tuple[int, int]:
    """Return the first sector that is wholly within the bytes, and the end of them."""
    return -(-offset // SECTOR), (offset + length) // SECTOR


def _length(pages: Sequence[UserPages]) -> int:
    return sum(len(page.data) for page in pages)


def _add(bio: Bio, page: UserPages, length: int, offset: int = 0) -> None:
    if length:
        bio.add_page(page, length, offset)
