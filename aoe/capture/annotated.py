"""Capture files: a pcapng writer, a pcap and pcapng reader, a link that captures."""

from __future__ import annotations

import gzip
import time
import zlib
from typing import IO, TYPE_CHECKING, Final, Self, cast

from aoe.capture.pcapng import (
    CapturedFrame,
    Direction,
    build_interface,
    build_packet,
    build_section,
    parse,
)
from aoe.describe import describe
from aoe.errors import DecodeError, UsageError, from_os_error
from aoe.net.base import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader
    from pathlib import Path

    from aoe.buffers import ReadBuffer
    from aoe.net.base import LinkStatistics

__all__ = [
    "CaptureWriter",
    "CapturedFrame",
    "CapturingLink",
    "Direction",
    "parse_capture",
    "read_capture",
]


_MAGIC: Final = build_section()[:4]


class CaptureWriter:
    """An unbuffered writer of a pcapng file.

    Args:
        path: the file; an existing capture is truncated.

    Raises:
        UsageError: the file has other contents, such as a disk image named by mistake.
        AoEError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._interfaces: dict[str, int] = {}
        try:
            if not _is_replaceable(path):
                why = "exists and is not a pcapng file"
                raise UsageError(str(path), why, "Remove it, or choose another name")
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise from_os_error(str(path), error) from error
        self._append(build_section())

    def write(
        self,
        frame: ReadBuffer,
        now: float,
        *,
        comment: str = "",
        direction: Direction = Direction.UNKNOWN,
        interface: str = "",
    ) -> None:
        """Append a frame captured at ``now``, in seconds since the epoch.

        Raises:
            AoEError: the write failed, for example because the file system is full.
        """
        if interface not in self._interfaces:
            self._interfaces[interface] = len(self._interfaces)
            self._append(build_interface(interface))
        number = self._interfaces[interface]
        self._append(build_packet(number, now, frame, comment, direction))

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, block: bytes) -> None:
        view = memoryview(block)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            self._file.close()
            raise from_os_error(str(self._path), error) from error


def _is_replaceable(path: Path) -> bool:
    # A pipe or terminal has no contents.
    if not (path.is_file() or path.is_block_device()):
        return True
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) in (b"", _MAGIC)


def read_capture(path: Path) -> Iterator[CapturedFrame]:
    """Yield the frames of a pcap or pcapng file, which may be compressed by gzip.

    A truncated file yields its complete frames.

    Raises:
        NotFoundError: no such file.
        AoEError: the file cannot be read.
        DecodeError: the file is not a capture of Ethernet frames, or is corrupt.
    """
    try:
        with path.open("rb") as file:
            yield from parse_capture(file, str(path))
    except OSError as error:
        raise from_os_error(str(path), error) from error


def parse_capture(file: BufferedReader, name: str) -> Iterator[CapturedFrame]:
    """Yield the frames of an open capture as they arrive; works on pipes.

    Args:
        file: the capture.
        name: the name of the file in errors.

    Raises:
        AoEError, DecodeError: as ``read_capture``.
    """
    is_gzip = file.peek(2)[:2] == b"\x1f\x8b"
    stream = cast("IO[bytes]", gzip.GzipFile(fileobj=file) if is_gzip else file)
    try:
        yield from parse(stream)
    except DecodeError as error:
        raise DecodeError(name, error.why) from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DecodeError(name, "not a capture file") from error
    except OSError as error:
        raise from_os_error(name, error) from error


class CapturingLink(Link):
    """A link that captures the frames of another link, in both directions.

    Args:
        link: the captured link. It is closed together with this one; the writer is
            not, because several links may share it.
        writer: the capture file.
        clock: returns seconds since the epoch.
    """

    def __init__(
        self,
        link: Link,
        writer: CaptureWriter,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._link = link
        self._writer = writer
        self._clock = clock
        self.name, self.index, self.mac = link.name, link.index, link.mac
        self.mtu, self.up = link.mtu, link.up
        self._slot: memoryview | None = None

    def fileno(self) -> int:
        """Return the file descriptor of the link."""
        return self._link.fileno()

    def receive(self) -> memoryview | None:
        """Capture and return the next frame; see ``Link.receive``."""
        frame = self._link.receive()
        self.up = self._link.up
        if frame is not None:
            self._record(frame, Direction.IN)
        return frame

    def reserve(self) -> memoryview | None:
        """Return memory for one outgoing frame; see ``Link.reserve``."""
        self._slot = self._link.reserve()
        return self._slot

    def commit(self, length: int) -> None:
        """Capture and queue a frame; see ``Link.commit``."""
        if self._slot is not None:
            self._record(self._slot[:length], Direction.OUT)
            self._slot = None
        self._link.commit(length)

    def flush(self) -> None:
        """Send all committed frames; see ``Link.flush``."""
        self._link.flush()
        self.up = self._link.up

    def wait(self, timeout: float | None) -> bool:
        """Wait for a frame; see ``Link.wait``."""
        try:
            return self._link.wait(timeout)
        finally:
            self.up = self._link.up

    def statistics(self) -> LinkStatistics:
        """Return the counters of the link."""
        return self._link.statistics()

    def close(self) -> None:
        """Close the link; the writer stays open."""
        self._slot = None
        self._link.close()

    def _record(self, frame: memoryview, direction: Direction) -> None:
        self._writer.write(
            frame,
            self._clock(),
            comment=describe(frame),
            direction=direction,
            interface=self.name,
        )
