"""Files, block devices, pipes and terminals as source or destination of a copy."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aoe.ata import SECTOR
from aoe.errors import AoEError, BusyError, UsageError, from_os_error
from initiator.disk.copy import CHUNK, split

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from initiator.disk.copy import Chunk


class FileEndpoint:
    """A file or block device, as source or destination; holes are preserved.

    Args:
        path: the path. As a destination, a file is created or truncated.
        writable: open it as a destination.
        pad: pad the last sector with zeroes.
        any_size: the size need not be a multiple of 512.

    Raises:
        UsageError: it is neither a file nor a block device; or its size is not a
            multiple of 512, and none of ``pad``, ``writable`` and ``any_size`` is set.
        BusyError: it is to be written, but is being served.
        AoEError: it cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        writable: bool = False,
        pad: bool = False,
        any_size: bool = False,
    ) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        with _translated_errors(str(path)):
            _check_is_file(path)
            self._fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
            self._end = os.lseek(self._fd, 0, os.SEEK_END)
            self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
            if writable:
                _lock(path, self._fd)
        unit = SECTOR if pad or not any_size else 1
        self.size: int | None = -(-self._end // unit) * unit
        if self.size != self._end and not (pad or writable):
            raise not_sectors(str(path), self._end)

    def chunks(self) -> Iterator[tuple[int, int, bool]]:
        """Yield data and holes, as the file system reports them (SEEK_DATA)."""
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
            with _translated_errors(str(self.path)):
                got = os.preadv(self._fd, [view], chunk.offset + done)
            if got == 0:
                raise AoEError(str(self.path), "was truncated while it was read")
            done += got
        chunk.is_done = True

    def prepare(self, size: int | None) -> None:
        """Truncate a file to 0 and extend it to ``size``, so that it is one hole.

        Raises:
            UsageError: a block device is too small.
            AoEError: the file cannot be resized.
        """
        if self._is_file:
            with _translated_errors(str(self.path)):
                os.ftruncate(self._fd, 0)
                os.ftruncate(self._fd, size or 0)
        elif size is not None and size > (self.size or 0):
            raise UsageError(str(self.path), f"is too small for {size} bytes")

    def write(self, chunk: Chunk) -> int:
        """Write a chunk, which is done on return; zeroes of files stay holes."""
        runs = list(chunk.data_runs()) if self._is_file else [(0, chunk.length)]
        if not self._is_file:
            chunk.fill_hole()
        for start, end in runs:
            done = start
            while done < end:
                view = chunk.view[done:end]
                with _translated_errors(str(self.path)):
                    done += os.pwritev(self._fd, [view], chunk.offset + done)
        chunk.is_done = True
        return sum(end - start for start, end in runs)

    def run_once(self) -> None:
        """Do nothing: files are read and written synchronously."""

    def finish(self) -> None:
        """Close the file, which may report a delayed write error."""
        with _translated_errors(str(self.path)):
            os.close(self._fd)


class StreamEndpoint:
    """A pipe or terminal, as source or destination.

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
            with _translated_errors(self.name):
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

    def prepare(self, size: int | None) -> None:
        """Do nothing: a stream has no size."""

    def write(self, chunk: Chunk) -> int:
        """Write a chunk; it is done on return."""
        chunk.fill_hole()
        view = chunk.view
        while view:
            with _translated_errors(self.name):
                view = view[os.write(self._fd, view) :]
        chunk.is_done = True
        return chunk.length

    def run_once(self) -> None:
        """Do nothing: streams are read and written synchronously."""

    def finish(self) -> None:
        """Do nothing."""


def open_endpoint(
    path: Path, *, writable: bool = False, pad: bool = False
) -> FileEndpoint | StreamEndpoint:
    """Open a file, block device, pipe or character device of any size.

    Raises:
        AoEError: as ``FileEndpoint``.
    """
    with _translated_errors(str(path)):
        if not path.exists() or not _is_stream(path):
            return FileEndpoint(path, writable=writable, pad=pad, any_size=True)
        flags = os.O_WRONLY if writable else os.O_RDONLY
        return StreamEndpoint(os.open(path, flags | os.O_CLOEXEC), str(path), pad=pad)


def _is_stream(path: Path) -> bool:
    mode = path.stat().st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _check_is_file(path: Path) -> None:
    # Checked before open(), which blocks on a pipe without a writer.
    if path.is_dir():
        raise UsageError(str(path), "is a directory", "Name a file or block device")
    if path.exists() and _is_stream(path):
        fix = "For pipes use: aoe read, aoe write"
        raise UsageError(str(path), "neither a file nor a block device", fix)


def _lock(path: Path, fd: int) -> None:
    # A target locks the files it serves. Without this check, copying a disk to the file
    # that it is served from would truncate the file, and report success.
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BusyError(
                str(path), "served or in use by another program", "Stop it first"
            ) from error
        # The file system does not support locks: go on without.


@contextmanager
def _translated_errors(name: str) -> Iterator[None]:
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
