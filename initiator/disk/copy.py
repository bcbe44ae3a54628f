"""Copy between disks, files and streams, with several chunks outstanding.

Chunks are read in order, as many at a time as there are buffers, and written in the
same order. Zeroes are skipped if the destination is known to be zero there.
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
"""Block size of the search for zeroes: that of most file systems."""
_ZEROES: Final = bytes(_BLOCK)


@dataclass(slots=True, eq=False)
class Chunk:
    """A part of a copy: ``length`` bytes at ``offset`` from the start of the copy."""

    offset: int
    length: int
    data: bytearray = field(repr=False)
    is_hole: bool = False
    is_done: bool = False
    error: AoEError | None = None

    def complete(self, error: AoEError | None) -> None:
        """Record that reading or writing it has ended, with the error or None."""
        self.error = error
        self.is_done = True

    @property
    def view(self) -> memoryview:
        """The chunk's data."""
        return memoryview(self.data)[: self.length]

    def fill_hole(self) -> None:
        """Fill the buffer of a hole with zeroes."""
        if self.is_hole:
            self.view[:] = bytes(self.length)

    def data_runs(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of each run of nonzero blocks, relative to the chunk."""
        start = None
        view = self.view
        for at in range(0, 0 if self.is_hole else self.length, _BLOCK):
            # Checking the first byte first avoids most comparisons.
            is_zero = not view[at] and _ZEROES.startswith(bytes(view[at : at + _BLOCK]))
            if is_zero and start is not None:
                yield start, at
                start = None
            elif not is_zero and start is None:
                start = at
        if start is not None:
            yield start, self.length


class Source(Protocol):
    """The source of a copy."""

    @property
    def size(self) -> int | None:
        """Bytes to copy; None if unknown, as of a pipe."""

    def chunks(self) -> Iterator[tuple[int, int, bool]]:
        """Yield offset, length and ``is_hole`` of each chunk, in order."""

    def read(self, chunk: Chunk) -> None:
        """Start to read a chunk; ``chunk.is_done`` is set when it has ended."""

    def run_once(self) -> None:
        """Wait for an event; outstanding reads may end."""

    def check_unchanged(self) -> None:
        """Raise an error if the source was changed so that the copy is not its copy.

        Called when everything was read. A copy that succeeds is as long as its source.
        """


class Destination(Protocol):
    """The destination of a copy."""

    def prepare(self, size: int | None) -> None:
        """Prepare for ``size`` bytes; raise UsageError if they do not fit."""

    def write(self, chunk: Chunk) -> int:
        """Start to write a chunk; ``chunk.is_done`` is set when it has ended.

        Returns:
            The number of bytes written, without skipped zeroes.
        """

    def run_once(self) -> None:
        """Wait for an event; outstanding writes may end."""

    def finish(self) -> None:
        """Make the data stable; raise an error if it cannot be."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The numbers of bytes that were copied, and written without skipped zeroes."""

    copied: int
    written: int


def split(start: int, end: int, *, is_hole: bool) -> Iterator[tuple[int, int, bool]]:
    """Yield offset, length and ``is_hole`` of each chunk from ``start`` to ``end``."""
    for offset in range(start, end, CHUNK):
        yield offset, min(CHUNK, end - offset), is_hole


class DiskEndpoint:
    """A region of an AoE disk, as source or destination.

    Args:
        disk: the disk.
        start: start of the region, in bytes.
        length: bytes of the region; None means up to the end of the disk.
        is_zero: the region reads as zeroes.

    Raises:
        UsageError: the region is not within the disk.
    """

    def __init__(
        self,
        disk: Disk,
        start: int = 0,
        length: int | None = None,
        *,
        is_zero: bool = False,
    ) -> None:
        self._extends_to_end = length is None
        if length is None:
            length = max(0, disk.size - start)
        # Checked here, before prepare() truncates a destination file.
        if not 0 <= start < disk.size or start + length > disk.size:
            raise UsageError(
                str(disk.address),
                f"{length} bytes at {start} are not within the disk",
                f"Its size is {format_size(disk.size)}",
            )
        self.disk = disk
        self.start = start
        self.size: int | None = length
        self.is_zero = is_zero
        self._disk_size = disk.size

    def chunks(self) -> Iterator[tuple[int, int, bool]]:
        """Yield the region as data: AoE has no query for holes."""
        return split(0, self.size or 0, is_hole=False)

    def check_unchanged(self) -> None:
        """Check the size of the disk.

        Raises:
            AoEError: the region is no longer within the disk, or it was to extend up to
                the end and the disk has grown.
        """
        size = self.disk.size
        is_beyond = size < self.start + (self.size or 0)
        if is_beyond or (self._extends_to_end and size != self._disk_size):
            raise size_changed(str(self.disk.address), self._disk_size, size)

    def _check_end(self, chunk: Chunk) -> None:
        # A UsageError of the disk would blame the command line.
        if self.start + chunk.offset + chunk.length > self.disk.size < self._disk_size:
            raise size_changed(str(self.disk.address), self._disk_size, self.disk.size)

    def read(self, chunk: Chunk) -> None:
        """Start to read a chunk.

        Raises:
            AoEError: it is beyond the end of a disk that has shrunk.
        """
        self._check_end(chunk)
        self.disk.start_read(self.start + chunk.offset, [chunk.view], chunk.complete)

    def prepare(self, size: int | None) -> None:
        """Check that the disk is large enough.

        Raises:
            UsageError: it is not.
        """
        space = self.disk.size - self.start
        if size is not None and size > space:
            raise UsageError(
                str(self.disk.address),
                f"{size} bytes do not fit into the {space} bytes from {self.start} on",
            )

    def write(self, chunk: Chunk) -> int:
        """Start to write a chunk; skip zeroes if the region is zero.

        Raises:
            AoEError: as ``read``.
        """
        self._check_end(chunk)
        if self.is_zero and not any(True for _ in chunk.data_runs()):
            chunk.is_done = True
            return 0
        chunk.fill_hole()
        self.disk.start_write(self.start + chunk.offset, [chunk.view], chunk.complete)
        return chunk.length

    def run_once(self) -> None:
        """Run the host once: send, receive, or wait."""
        self.disk.host.run_once()

    def finish(self) -> None:
        """Do nothing; flushing is left to the caller."""


def size_changed(name: str, before: int, now: int) -> AoEError:
    """Return the error for a source or destination that was resized during a copy."""
    verb = "shrunk" if now < before else "grown"
    sizes = f"from {format_size(before)} to {format_size(now)}"
    fix = "Copy it again when its size does not change"
    return AoEError(name, f"has {verb} {sizes} while it was copied", fix)


def copy(
    source: Source,
    destination: Destination,
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Copy a source to a destination.

    Args:
        source: the source.
        destination: the destination.
        progress: called with the number of bytes of each chunk that was written.

    Raises:
        AoEError: reading or writing failed, the source changed meanwhile, or the data
            did not reach the destination; the destination is incomplete.
    """
    destination.prepare(source.size)
    free = [bytearray(CHUNK) for _ in range(DEPTH)]
    reading: deque[Chunk] = deque()
    writing: deque[Chunk] = deque()
    chunks = source.chunks()
    copied = written = 0
    more = True
    while more or reading or writing:
        while more and free:
            following = next(chunks, None)
            if following is None:
                more = False
                break
            offset, length, is_hole = following
            chunk = Chunk(offset, length, free.pop(), is_hole, is_done=is_hole)
            reading.append(chunk)
            if not is_hole:
                source.read(chunk)
        while reading and reading[0].is_done:
            chunk = _pop(reading)
            chunk.is_done = False
            writing.append(chunk)
            written += destination.write(chunk)
        if reading and not reading[0].is_done:
            source.run_once()
        elif writing and not writing[0].is_done:
            destination.run_once()
        while writing and writing[0].is_done:
            chunk = _pop(writing)
            copied += chunk.length
            free.append(chunk.data)
            progress(chunk.length)
    source.check_unchanged()
    destination.finish()
    return Outcome(copied, written)


def _pop(chunks: deque[Chunk]) -> Chunk:
    chunk = chunks.popleft()
    if chunk.error is not None:
        raise chunk.error
    return chunk


def verify(
    source: Source,
    copied: Source,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Read the source and the copy again, and compare them.

    Raises:
        AoEError: they differ, with the offset of the first difference, or reading
            failed.
    """
    comparison = _Comparison(copied)
    copy(source, comparison, progress)


class _Comparison:
    """A destination that compares chunks with those of another source."""

    def __init__(self, reference: Source) -> None:
        self._reference = reference

    def prepare(self, size: int | None) -> None:
        """Do nothing."""

    def write(self, chunk: Chunk) -> int:
        """Read the same chunk of the other source and compare.

        Raises:
            AoEError: reading failed, or the chunks differ.
        """
        other = Chunk(chunk.offset, chunk.length, bytearray(CHUNK))
        self._reference.read(other)
        while not other.is_done:
            self._reference.run_once()
        if other.error is not None:
            raise other.error
        chunk.fill_hole()
        expected, actual = bytes(chunk.view), bytes(other.view)
        if expected != actual:
            at = next(
                i
                for i, pair in enumerate(zip(expected, actual, strict=True))
                if pair[0] != pair[1]
            )
            raise AoEError("verify", f"first difference at byte {chunk.offset + at}")
        chunk.is_done = True
        return 0

    def run_once(self) -> None:
        """Do nothing: ``write`` has waited."""

    def finish(self) -> None:
        """Do nothing."""
