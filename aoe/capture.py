"""Captures: pcapng files that say in words what every frame is, and their reading.

scapy is imported when a file is opened: it takes a quarter of a second.
"""

from __future__ import annotations

import gzip
import time
from enum import IntEnum
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, Self, cast

from aoe.abstract import Link
from aoe.describe import describe
from aoe.errors import DecodeError, from_os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from aoe.abstract import LinkStatistics
    from aoe.buffers import ReadBuffer

_ETHERNET: Final = 1


class Direction(IntEnum):
    """Which way a frame went, in the numbers of the pcapng flags."""

    UNKNOWN = 0
    IN = 1
    OUT = 2

    @classmethod
    def _missing_(cls, _value: object) -> Direction:
        return cls.UNKNOWN


class CapturedFrame(NamedTuple):
    """One frame of a capture.

    Args:
        time: seconds since 1970, to the microsecond.
        data: the frame, from its first Ethernet byte.
        comment: what is written beside it; empty where nothing is.
        direction: which way it went, where the file tells.
    """

    time: float
    data: bytes
    comment: str = ""
    direction: Direction = Direction.UNKNOWN


class CaptureWriter:
    """A pcapng file that frames are written to.

    Args:
        path: the file; what it held is lost.

    Raises:
        AoEError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        from scapy.packet import Raw
        from scapy.utils import PcapNgWriter

        class Frame(Raw):  # type: ignore[misc] # scapy ships no types
            """Bytes that scapy does not take apart, nor for what Raw is: IP."""

        self._frame = Frame
        self._path = path
        try:
            self._file = PcapNgWriter(str(path))
        except OSError as error:
            raise from_os_error(str(path), error) from error
        self._file.linktype = _ETHERNET

    def write(
        self,
        frame: ReadBuffer,
        now: float,
        *,
        comment: str = "",
        direction: Direction = Direction.UNKNOWN,
        interface: str | None = None,
    ) -> None:
        """Add a frame that passed at ``now``, in seconds since 1970.

        Raises:
            AoEError: the file system is full or broken.
        """
        packet = self._frame(bytes(frame))
        packet.time = now
        packet.comments = [comment.encode()] if comment else []
        packet.direction = int(direction)
        packet.sniffed_on = interface
        try:
            self._file.write(packet)
        except OSError as error:
            raise from_os_error(str(self._path), error) from error

    def close(self) -> None:
        """Write what is still in memory, and close the file. Safe to call twice."""
        try:
            if not self._file.f.closed:
                self._file.close()
        except OSError as error:
            raise from_os_error(str(self._path), error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_capture(path: Path) -> Iterator[CapturedFrame]:
    """Read a pcap or pcapng file, packed by gzip or not, frame by frame.

    Raises:
        NotFoundError: no such file.
        AoEError: it cannot be read.
        DecodeError: it is no capture of Ethernet frames.
    """
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapReader

    try:
        file = _open(path)
    except OSError as error:
        raise from_os_error(str(path), error) from error
    with file:
        try:
            reader = RawPcapReader(file)
        except (Scapy_Exception, EOFError, OSError) as error:
            raise DecodeError(str(path), "not a capture file") from error
        for data, metadata in reader:
            about = metadata._asdict()
            if about.get("linktype", getattr(reader, "linktype", None)) != _ETHERNET:
                raise DecodeError(str(path), "not a capture of Ethernet frames")
            nanoseconds = getattr(reader, "nano", False)
            yield _captured(data, about, 1e9 if nanoseconds else 1e6)


def _open(path: Path) -> IO[bytes]:
    file = path.open("rb")
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if not packed:
        return file
    file.close()
    return cast("IO[bytes]", gzip.open(path))


def _captured(data: bytes, about: Mapping[str, Any], fractions: float) -> CapturedFrame:
    if "tsresol" not in about:
        return CapturedFrame(about["sec"] + about["usec"] / fractions, data)
    stamp = (about["tshigh"] or 0) << 32 | (about["tslow"] or 0)
    comments = [part.decode(errors="replace") for part in about["comments"] or []]
    return CapturedFrame(
        stamp / about["tsresol"],
        data,
        "\n".join(comments),
        Direction(about["direction"] or 0),
    )


class CapturingLink(Link):
    """A link that records what passes, in both directions, with words beside it.

    Args:
        link: where the frames come from and go to. Closing this closes that; the
            writer stays open, since several links may write to it.
        writer: where they are recorded.
        clock: seconds since 1970.
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
        """Return the link's descriptor."""
        return self._link.fileno()

    def receive(self) -> memoryview | None:
        """Return the next frame, recorded; see ``Link.receive``."""
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
        """Record a frame and have it sent; see ``Link.commit``."""
        if self._slot is not None:
            self._record(self._slot[:length], Direction.OUT)
            self._slot = None
        self._link.commit(length)

    def flush(self) -> None:
        """Hand all committed frames to the kernel; see ``Link.flush``."""
        self._link.flush()
        self.up = self._link.up

    def wait(self, timeout: float | None) -> bool:
        """Wait until a frame is there; see ``Link.wait``."""
        try:
            return self._link.wait(timeout)
        finally:
            self.up = self._link.up

    def statistics(self) -> LinkStatistics:
        """Return the link's counters."""
        return self._link.statistics()

    def close(self) -> None:
        """Close the link."""
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
