"""Files, block devices, pipes and terminals as ends of a copy."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aoe.ata import SECTOR
from aoe.errors import AoEError, BusyError, UsageError, from_os_error
from initiator.disk.copy import CHUNK, cut

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from initiator.disk.copy import Chunk


class FileEndpoint:
    """A file, to copy from or to; holes stay holes.

    Args:
        path: of a file or block device. To copy to, a file is made or emptied first.
        writable: open it to copy to.
        pad: fill up the last sector with zeroes.
        any_size: it may end within a sector.

    Raises:
        UsageError: neither a file nor a block device; or its size is no multiple of
            512, and neither ``pad``, ``writable`` nor ``any_size`` is set.
        BusyError: to be copied to while somebody serves it.
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
        with _explained(str(path)):
            _see_that_it_is_a_file(path)
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
        """Yield data and holes as the filesystem knows them."""
        position, end = 0, self.size or 0
        while position < end:
            data = self._seek(position, os.SEEK_DATA, end)
            yield from cut(position, data, is_hole=True)
            position = self._seek(data, os.SEEK_HOLE, end) if data < end else end
            yield from cut(data, position, is_hole=False)

    def _seek(self, position: int, whence: int, end: int) -> int:
        try:
            found = os.lseek(self._fd, position, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end
            # Devices and some filesystems know no holes.
            return position if whence == os.SEEK_DATA else end
        return end if found >= self._end else found

    def read(self, chunk: Chunk) -> None:
        """Read the chunk at once.

        Raises:
            AoEError: the file cannot be read, or became shorter.
        """
        done = 0
        wanted = min(chunk.length, self._end - chunk.offset)
        chunk.view[wanted:] = bytes(chunk.length - wanted)
        while done < wanted:
            view = chunk.view[done:wanted]
            with _explained(str(self.path)):
                got = os.preadv(self._fd, [view], chunk.offset + done)
            if got == 0:
                raise AoEError(str(self.path), "became shorter while it was read")
            done += got
        chunk.is_done = True

    def prepare(self, size: int | None) -> None:
        """Empty the file and give it its length: all of it is a hole now.

        Raises:
            UsageError: a device has no room for it.
            AoEError: the file system would not have it.
        """
        if self._is_file:
            with _explained(str(self.path)):
                os.ftruncate(self._fd, 0)
                os.ftruncate(self._fd, size or 0)
        elif size is not None and size > (self.size or 0):
            raise UsageError(str(self.path), f"has no room for {size} bytes")

    def write(self, chunk: Chunk) -> int:
        """Write the chunk at once, of a new file only what is not zero."""
        runs = list(chunk.data_runs()) if self._is_file else [(0, chunk.length)]
        if not self._is_file:
            chunk.fill_hole()
        for start, end in runs:
            done = start
            while done < end:
                view = chunk.view[done:end]
                with _explained(str(self.path)):
                    done += os.pwritev(self._fd, [view], chunk.offset + done)
        chunk.is_done = True
        return sum(end - start for start, end in runs)

    def run_once(self) -> None:
        """Files never keep us waiting."""

    def finish(self) -> None:
        """Write errors that come late come here."""
        with _explained(str(self.path)):
            os.close(self._fd)


class StreamEndpoint:
    """A pipe or terminal, to copy from or to, in order.

    Args:
        fd: its file descriptor.
        name: what messages call it.
        pad: fill up the last sector with zeroes.
    """

    def __init__(self, fd: int, name: str, *, pad: bool = False) -> None:
        self._fd = fd
        self._pad = pad
        self.name = name
        self.size: int | None = None
        self._ended = False

    def chunks(self) -> Iterator[tuple[int, int, bool]]:
        """Yield chunks until the stream has ended."""
        offset = 0
        while not self._ended:
            yield offset, CHUNK, False
            offset += CHUNK

    def read(self, chunk: Chunk) -> None:
        """Read until the chunk is full or the stream ends."""
        done = 0
        while done < chunk.length:
            with _explained(self.name):
                got = os.readv(self._fd, [chunk.view[done:]])
            if got == 0:
                self._ended = True
                break
            done += got
        unit = SECTOR if self._pad else 1
        whole = -(-done // unit) * unit
        chunk.view[done:whole] = bytes(whole - done)
        chunk.length = whole
        chunk.is_done = True

    def prepare(self, size: int | None) -> None:
        """Streams take what comes."""

    def write(self, chunk: Chunk) -> int:
        """Write the chunk at once."""
        chunk.fill_hole()
        view = chunk.view
        while view:
            with _explained(self.name):
                view = view[os.write(self._fd, view) :]
        chunk.is_done = True
        return chunk.length

    def run_once(self) -> None:
        """Streams are waited for when they are read or written."""

    def finish(self) -> None:
        """Nothing is put off."""


def open_endpoint(
    path: Path, *, writable: bool = False, pad: bool = False
) -> FileEndpoint | StreamEndpoint:
    """Open what may be a pipe, a terminal or /dev/null as well as a file; of any size.

    Raises:
        AoEError: as ``FileEnd``.
    """
    with _explained(str(path)):
        if not path.exists() or not _is_stream(path):
            return FileEndpoint(path, writable=writable, pad=pad, any_size=True)
        flags = os.O_WRONLY if writable else os.O_RDONLY
        return StreamEndpoint(os.open(path, flags | os.O_CLOEXEC), str(path), pad=pad)


def _is_stream(path: Path) -> bool:
    mode = path.stat().st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _see_that_it_is_a_file(path: Path) -> None:
    # Looked at before opening: opening a pipe may hang.
    if path.is_dir():
        raise UsageError(str(path), "is a directory", "Name a file or block device")
    if path.exists() and _is_stream(path):
        fix = "For pipes there are: aoe read, aoe write"
        raise UsageError(str(path), "neither a file nor a block device", fix)


def _lock(path: Path, fd: int) -> None:
    # A target holds a lock on what it serves. To empty a disk under it would lose the
    # disk, and to copy the disk onto itself so would report success.
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BusyError(
                str(path), "served or in use by another program", "End that one first"
            ) from error
        # A file system without locks: nothing to hold on to.


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what the system says into one of our errors.

    A reader of our output that went away is not one: ``aoe.common.commandline.run``
    is silent about it.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise from_os_error(name, error) from error


def not_sectors(name: str, size: int) -> UsageError:
    """Say that a size is no whole number of sectors, and which sizes are near."""
    below = size // SECTOR * SECTOR
    return UsageError(
        name,
        f"{size} bytes are not a multiple of {SECTOR}",
        f"Nearest sizes: {below} and {below + SECTOR}; see also --pad",
    )
