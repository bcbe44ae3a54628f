"""Files, block devices, pipes and terminals as the source of a copy.

``output.py`` has the destinations, except for streams.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aoe.ata import SECTOR
from aoe.errors import AoEError, UsageError, from_os_error
from initiator.disk.copy import CHUNK, size_changed, split

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from initiator.disk.copy import Chunk


class FileSource:
    """A file or block device as source; holes are preserved.

    Args:
        path: the path.
        pad: pad the last sector with zeroes.
        any_size: the size need not be a multiple of 512.

    Raises:
        UsageError: it is neither a file nor a block device; or its size is not a
            multiple of 512, and neither ``pad`` nor ``any_size`` is set.
        AoEError: it cannot be opened.
    """

    def __init__(
        self, path: Path, *, pad: bool = False, any_size: bool = False
    ) -> None:
        self.path = path
        with translated_errors(str(path)):
            check_is_file(path)
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._state = _FileState(self._fd, str(path))
        self._end = self._state.end
        unit = SECTOR if pad or not any_size else 1
        self.size: int | None = -(-self._end // unit) * unit
        if self.size != self._end and not pad:
            raise not_sectors(str(path), self._end)

    def chunks(self) -> Iterator[tuple[int, int, bool]]:
        """Yield data and holes, as the file system reports them (SEEK_DATA).

        Raises:
            AoEError: the file has been truncated.
        """
        position, end = 0, self.size or 0
        while position < end:
            data = self._seek(position, os.SEEK_DATA, end)
            yield from split(position, data, is_hole=True)
            position = self._seek(data, os.SEEK_HOLE, end) if data < end else end
            yield from split(data, position, is_hole=False)

    def _seek(self, position: int, whence: int, end: int) -> int:
        try:
            found = os.lseek(self._fd, position, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                # There is no data up to the end: a hole, or a truncated file.
                self._state.check_size()
                return end
            # Not supported, as by block devices: no holes.
            return position if whence == os.SEEK_DATA else end
        return end if found >= self._end else found

    def read(self, chunk: Chunk) -> None:
        """Read a chunk; it is done on return.

        Raises:
            AoEError: the file cannot be read, or has been truncated.
        """
        done = 0
        wanted = min(chunk.length, self._end - chunk.offset)
        chunk.view[wanted:] = bytes(chunk.length - wanted)
        while done < wanted:
            view = chunk.view[done:wanted]
            with translated_errors(str(self.path)):
                got = os.preadv(self._fd, [view], chunk.offset + done)
            if got == 0:
                raise self._state.truncated(chunk.offset + done)
            done += got
        chunk.is_done = True

    def run_once(self) -> None:
        """Do nothing: files are read synchronously."""

    def check_unchanged(self) -> None:
        """Check size and modification time.

        Raises:
            AoEError: the file was resized or written to since it was opened.
        """
        self._state.check_unchanged()


class _FileState:
    # Size and modification time of an open file or block device, to detect changes.
    # The time detects a file that was truncated and has its old size again, of which a
    # part was read as zeroes. Block devices have no such time.

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self.end = self._size()
        self._modified = self._modification_time()

    def _size(self) -> int:
        info = os.fstat(self._fd)
        if stat.S_ISREG(info.st_mode):
            return info.st_size
        position = os.lseek(self._fd, 0, os.SEEK_CUR)
        size = os.lseek(self._fd, 0, os.SEEK_END)
        os.lseek(self._fd, position, os.SEEK_SET)
        return size

    def _modification_time(self) -> int:
        info = os.fstat(self._fd)
        return info.st_mtime_ns if stat.S_ISREG(info.st_mode) else 0

    def check_size(self) -> None:
        size = self._size()
        if size != self.end:
            raise size_changed(self._name, self.end, size)

    def check_unchanged(self) -> None:
        self.check_size()
        if self._modification_time() != self._modified:
            raise AoEError(
                self._name,
                "was written to while it was copied",
                "Copy it again when no program writes to it",
            )

    def truncated(self, position: int) -> AoEError:
        # The size may have grown again since the read.
        return size_changed(self._name, self.end, min(self._size(), position))


class StreamEndpoint:
    """A pipe, a terminal or a redirected file, as source or destination.

    Args:
        fd: its file descriptor.
        name: its name in messages.
        pad: pad the last sector with zeroes.
    """

    def __init__(self, fd: int, name: str, *, pad: bool = False) -> None:
        self._fd = fd
        self._pad = pad
        self.name = name
        self.size: int | None = None
        self._ended = False
        mode = os.fstat(fd).st_mode
        is_stored = stat.S_ISREG(mode) or stat.S_ISBLK(mode)
        self._state = _FileState(fd, name) if is_stored else None

    def chunks(self) -> Iterator[tuple[int, int, bool]]:
        """Yield chunks until the end of the stream."""
        offset = 0
        while not self._ended:
            yield offset, CHUNK, False
            offset += CHUNK

    def read(self, chunk: Chunk) -> None:
        """Read a full chunk, or up to the end of the stream."""
        done = 0
        while done < chunk.length:
            with translated_errors(self.name):
                got = os.readv(self._fd, [chunk.view[done:]])
            if got == 0:
                self._ended = True
                break
            done += got
        unit = SECTOR if self._pad else 1
        padded = -(-done // unit) * unit
        chunk.view[done:padded] = bytes(padded - done)
        chunk.length = padded
        chunk.is_done = True

    def check_unchanged(self) -> None:
        """Check a file as ``FileSource`` does; a pipe is complete at its end."""
        if self._state is not None:
            self._state.check_unchanged()

    def prepare(self, size: int | None) -> None:
        """Do nothing: a stream has no size."""

    def write(self, chunk: Chunk) -> int:
        """Write a chunk; it is done on return."""
        chunk.fill_hole()
        view = chunk.view
        while view:
            with translated_errors(self.name):
                view = view[os.write(self._fd, view) :]
        chunk.is_done = True
        return chunk.length

    def run_once(self) -> None:
        """Do nothing: streams are read and written synchronously."""

    def finish(self) -> None:
        """Flush a file or block device; what a pipe's reader does is unknown."""
        if self._state is not None:
            flush_file(self._fd, self.name)

    def commit(self) -> None:
        """Do nothing: the data is where it belongs."""

    def close(self) -> None:
        """Do nothing: the caller owns the descriptor."""


def open_source(path: Path, *, pad: bool = False) -> FileSource | StreamEndpoint:
    """Open a file, block device, pipe or character device of any size.

    Raises:
        AoEError: as ``FileSource``.
    """
    with translated_errors(str(path)):
        if not path.exists() or not is_stream(path):
            return FileSource(path, pad=pad, any_size=True)
        return StreamEndpoint(
            os.open(path, os.O_RDONLY | os.O_CLOEXEC), str(path), pad=pad
        )


def is_stream(path: Path) -> bool:
    """Return True if an existing path is a pipe or a character device."""
    mode = path.stat().st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def check_is_file(path: Path) -> None:
    """Check the type before open(), which blocks on a pipe without a writer.

    Raises:
        UsageError: it exists and is neither a file nor a block device.
    """
    if path.is_dir():
        raise UsageError(str(path), "is a directory", "Name a file or block device")
    if path.exists() and is_stream(path):
        fix = "For pipes use: aoe read, aoe write"
        raise UsageError(str(path), "neither a file nor a block device", fix)


def flush_file(fd: int, name: str) -> None:
    """Make what was written stable (fsync).

    The kernel writes to the disk after write() has succeeded; only fsync() reports an
    error of that, such as a thin volume that is full or a disk that fails.

    Raises:
        AoEError: part of the data did not reach the disk.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        failed = from_os_error(name, error)
        why = f"written, but not flushed: {failed.why}"
        raise AoEError(name, why, "Part of the data is lost; copy it again") from error


@contextmanager
def translated_errors(name: str) -> Iterator[None]:
    """Translate OSError to AoEError.

    BrokenPipeError is not translated: ``aoe.common.commandline.run`` exits quietly on
    it.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise from_os_error(name, error) from error


def not_sectors(name: str, size: int) -> UsageError:
    """Return the error for a size that is not a multiple of 512."""
    below = size // SECTOR * SECTOR
    return UsageError(
        name,
        f"{size} bytes are not a multiple of {SECTOR}",
        f"Nearest sizes: {below} and {below + SECTOR}; see also --pad",
    )
