"""Copying between disks, files and streams, several chunks at a time.

A copy is a line: chunks are read in order, as many at once as there are buffers, and
written in the order in which they were read. Zeroes are not written to where zeroes are
already.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from aoe.common.sizes import format_size
from aoe.errors import AoEError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from initiator.disk.disk import Disk

CHUNK: Final = 1 << 20
DEPTH: Final = 8
_BLOCK: Final = 4096
"""Zeroes are looked for in blocks of this many bytes, as filesystems allocate."""
_ZEROES: Final = bytes(_BLOCK)


@dataclass(slots=True, eq=False)
class Chunk:
    """A piece of the copy: ``length`` bytes at ``offset``, counted from its start."""

    offset: int
    length: int
    data: bytearray = field(repr=False)
    is_hole: bool = False
    is_done: bool = False
    error: AoEError | None = None

    def ended(self, error: AoEError | None) -> None:
        """Take over how reading or writing it went."""
        self.error = error
        self.is_done = True

    @property
    def view(self) -> memoryview:
        """The bytes of it."""
        return memoryview(self.data)[: self.length]

    def fill_hole(self) -> None:
        """Put the zeroes in that a hole stands for."""
        if self.is_hole:
            self.view[:] = bytes(self.length)

    def data_runs(self) -> Iterator[tuple[int, int]]:
        """Yield start and end, within the chunk, of what is not zero."""
        start = None
        view = self.view
        for at in range(0, 0 if self.is_hole else self.length, _BLOCK):
            # Most of what is not begins with it.
            is_zero = not view[at] and _ZEROES.startswith(bytes(view[at : at + _BLOCK]))
            if is_zero and start is not None:
                yield start, at
                start = None
            elif not is_zero and start is None:
                start = at
        if start is not None:
            yield start, self.length


class Source(Protocol):
    """Where a copy comes from."""

    @property
    def size(self) -> int | None:
        """Bytes to copy; None where only the end will tell."""

    def chunks(self) -> Iterator[tuple[int, int, bool]]:
        """Yield offset, length and whether it is a hole, in order."""

    def read(self, chunk: Chunk) -> None:
        """Start to fill the chunk; it says itself when it is done."""

    def run_once(self) -> None:
        """Let time pass until something may have happened."""


class Destination(Protocol):
    """Where a copy goes."""

    def prepare(self, size: int | None) -> None:
        """Make room for ``size`` bytes; raise if there is none."""

    def write(self, chunk: Chunk) -> int:
        """Start to write the chunk; it says itself when it is done.

        Returns:
            Bytes that had to be written; zeroes may be there already.
        """

    def run_once(self) -> None:
        """Let time pass until something may have happened."""

    def finish(self) -> None:
        """Make good what was put off."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a copy did, in bytes; what was not written was zero there already."""

    copied: int
    written: int


def cut(start: int, end: int, *, is_hole: bool) -> Iterator[tuple[int, int, bool]]:
    """Yield offset, length and ``is_hole`` of each chunk from ``start`` to ``end``."""
    for offset in range(start, end, CHUNK):
        yield offset, min(CHUNK, end - offset), is_hole


class DiskEndpoint:
    """A window of an AoE disk, to copy from or to.

    Args:
        disk: the disk.
        start: where the copy begins on it, in bytes.
        length: bytes to copy; as much as there is, if None.
        is_zero: all that is written to holds zeroes already.

    Raises:
        UsageError: the window is not on the disk.
    """

    def __init__(
        self,
        disk: Disk,
        start: int = 0,
        length: int | None = None,
        *,
        is_zero: bool = False,
    ) -> None:
        if length is None:
            length = max(0, disk.size - start)
        # Now, before anything is emptied for a copy that cannot succeed.
        if not 0 <= start < disk.size or start + length > disk.size:
            raise UsageError(
                str(disk.address),
                f"{length} bytes at {start} are not on the disk",
                f"It has {format_size(disk.size)}",
            )
        self.disk = disk
        self.start = start
        self.size: int | None = length
        self.is_zero = is_zero

    def chunks(self) -> Iterator[tuple[int, int, bool]]:
        """Yield everything: AoE cannot ask for holes."""
        return cut(0, self.size or 0, is_hole=False)

    def read(self, chunk: Chunk) -> None:
        """Start to read."""
        self.disk.start_read(self.start + chunk.offset, [chunk.view], chunk.ended)

    def prepare(self, size: int | None) -> None:
        """See that the disk is large enough.

        Raises:
            UsageError: it is not.
        """
        room = self.disk.size - self.start
        if size is not None and size > room:
            raise UsageError(
                str(self.disk.address),
                f"{size} bytes do not fit into the {room} bytes from {self.start} on",
            )

    def write(self, chunk: Chunk) -> int:
        """Start to write, zeroes too unless they are there already."""
        if self.is_zero and not any(True for _ in chunk.data_runs()):
            chunk.is_done = True
            return 0
        chunk.fill_hole()
        self.disk.start_write(self.start + chunk.offset, [chunk.view], chunk.ended)
        return chunk.length

    def run_once(self) -> None:
        """Let the host send and receive."""
        self.disk.host.run_once()

    def finish(self) -> None:
        """Nothing was put off; flushing is the caller's decision."""


def copy(
    source: Source,
    destination: Destination,
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Copy everything.

    Args:
        source: where from.
        destination: where to.
        progress: called with the number of bytes of each chunk that is written.

    Raises:
        AoEError: reading or writing failed; what was copied till then stays.
    """
    destination.prepare(source.size)
    free = [bytearray(CHUNK) for _ in range(DEPTH)]
    reading: deque[Chunk] = deque()
    writing: deque[Chunk] = deque()
    todo = source.chunks()
    copied = written = 0
    more = True
    while more or reading or writing:
        while more and free:
            following = next(todo, None)
            if following is None:
                more = False
                break
            offset, length, is_hole = following
            chunk = Chunk(offset, length, free.pop(), is_hole, is_done=is_hole)
            reading.append(chunk)
            if not is_hole:
                source.read(chunk)
        while reading and reading[0].is_done:
            chunk = _take(reading)
            chunk.is_done = False
            writing.append(chunk)
            written += destination.write(chunk)
        if reading and not reading[0].is_done:
            source.run_once()
        elif writing and not writing[0].is_done:
            destination.run_once()
        while writing and writing[0].is_done:
            chunk = _take(writing)
            copied += chunk.length
            free.append(chunk.data)
            progress(chunk.length)
    destination.finish()
    return Outcome(copied, written)


def _take(chunks: deque[Chunk]) -> Chunk:
    chunk = chunks.popleft()
    if chunk.error is not None:
        raise chunk.error
    return chunk


def verify(
    source: Source,
    copied: Source,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Read both again and compare.

    Raises:
        AoEError: they differ; says where first.
    """
    comparison = _Comparison(copied)
    copy(source, comparison, progress)


class _Comparison:
    """A destination that compares what it is given with what is there."""

    def __init__(self, there: Source) -> None:
        self._there = there

    def prepare(self, size: int | None) -> None:
        """Nothing to make room for."""

    def write(self, chunk: Chunk) -> int:
        """Read the same place and compare.

        Raises:
            AoEError: it could not be read, or differs.
        """
        other = Chunk(chunk.offset, chunk.length, bytearray(CHUNK))
        self._there.read(other)
        while not other.is_done:
            self._there.run_once()
        if other.error is not None:
            raise other.error
        chunk.fill_hole()
        ours, theirs = bytes(chunk.view), bytes(other.view)
        if ours != theirs:
            at = next(
                i
                for i, pair in enumerate(zip(ours, theirs, strict=True))
                if pair[0] != pair[1]
            )
            raise AoEError("verify", f"first difference at byte {chunk.offset + at}")
        chunk.is_done = True
        return 0

    def run_once(self) -> None:
        """It has waited already."""

    def finish(self) -> None:
        """Nothing is put off."""
