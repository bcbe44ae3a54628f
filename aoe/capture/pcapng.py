"""Capture file formats: encode pcapng blocks, parse pcapng and pcap files.

::

    0      4        8                                       total - 4
    +------+--------+----------------------------+---------+--------+
    |type  |total   |body of the block type,     |options  |total   |
    |      |length  |padded to 4 bytes           |         |length  |
    +------+--------+----------------------------+---------+--------+

Blocks are those of draft-ietf-opsawg-pcapng: one section header block, an interface
description block per interface and an enhanced packet block per frame. They need no
index or trailer, so that a file is valid after every block.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from aoe.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe.buffers import ReadBuffer

ETHERNET: Final = 1

_SECTION: Final = 0x0A0D_0D0A
_INTERFACE: Final = 1
_SIMPLE_PACKET: Final = 3
_ENHANCED_PACKET: Final = 6
_ORDER: Final = 0x1A2B_3C4D
_MICROSECONDS: Final = 0xA1B2_C3D4
_NANOSECONDS: Final = 0xA1B2_3C4D
_BLOCK_LIMIT: Final = 1 << 24
"""Maximum length of a block or frame; a larger one is treated as the end of file."""

_END: Final = 0
_COMMENT: Final = 1
_INTERFACE_NAME: Final = 2
_PACKET_FLAGS: Final = 2
_TIME_RESOLUTION: Final = 9


class Direction(IntEnum):
    """Direction of a frame, as encoded in the epb_flags option."""

    UNKNOWN = 0
    IN = 1
    OUT = 2


class CapturedFrame(NamedTuple):
    """A frame of a capture.

    Args:
        time: seconds since the epoch.
        data: the frame, beginning with the Ethernet header.
        comment: the comment options, one per line; empty if there are none.
        direction: the direction, if recorded.
    """

    time: float
    data: bytes
    comment: str = ""
    direction: Direction = Direction.UNKNOWN


def build_section() -> bytes:
    """Build the section header block, the first block of a file."""
    return _block(_SECTION, struct.pack("=IHHq", _ORDER, 1, 0, -1))


def build_interface(name: str) -> bytes:
    """Build an interface description block; the first one in a file has number 0."""
    options = _option(_INTERFACE_NAME, name.encode()) + _option(_TIME_RESOLUTION, b"\t")
    return _block(
        _INTERFACE, struct.pack("=HHI", ETHERNET, 0, 0) + options + _option(_END, b"")
    )


def build_packet(
    interface: int,
    now: float,
    frame: ReadBuffer,
    comment: str = "",
    direction: Direction = Direction.UNKNOWN,
) -> bytes:
    """Build an enhanced packet block; ``now`` is in seconds since the epoch."""
    ticks, length = round(now * 1e9), len(frame)
    body = struct.pack(
        "=IIIII", interface, ticks >> 32, ticks & 0xFFFF_FFFF, length, length
    )
    options = _option(_COMMENT, comment.encode()) if comment else b""
    options += _option(_PACKET_FLAGS, struct.pack("=I", direction))
    return _block(
        _ENHANCED_PACKET, body + _padded(bytes(frame)) + options + _option(_END, b"")
    )


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("=I", 12 + len(body))
    return struct.pack("=I", kind) + length + body + length


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + _padded(value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def parse(file: IO[bytes]) -> Iterator[CapturedFrame]:
    """Yield the frames of a pcap or pcapng file up to the first incomplete block.

    Raises:
        DecodeError: the file is not a capture, or not one of Ethernet frames.
    """
    magic = file.read(4)
    for order in "<>":
        number = struct.unpack(f"{order}I", magic)[0] if len(magic) == 4 else None
        if number in (_MICROSECONDS, _NANOSECONDS):
            return _parse_pcap(file, order, 1e9 if number == _NANOSECONDS else 1e6)
        if number == _SECTION:
            return _parse_pcapng(file)
    raise DecodeError("capture", "not a capture file")


def _parse_pcap(
    file: IO[bytes], order: str, resolution: float
) -> Iterator[CapturedFrame]:
    head = file.read(20)
    if len(head) < 20:
        raise DecodeError("capture", "not a capture file")
    _check_link_type(struct.unpack(f"{order}I", head[16:])[0] & 0xFFFF)
    while len(head := file.read(16)) == 16:
        seconds, fraction, length, _ = struct.unpack(f"{order}IIII", head)
        data = file.read(min(length, _BLOCK_LIMIT))
        if len(data) < length:
            return
        yield CapturedFrame(seconds + fraction / resolution, data)


def _check_link_type(link_type: int) -> None:
    if link_type != ETHERNET:
        raise DecodeError("capture", "not a capture of Ethernet frames")


@dataclass
class _Section:
    """State of a section: its byte order and the time resolution per interface."""

    order: str = "<"
    resolutions: list[float] = field(default_factory=list)


def _parse_pcapng(file: IO[bytes]) -> Iterator[CapturedFrame]:
    section = _Section()
    kind: int | None = _SECTION
    while kind is not None:
        if kind == _SECTION:
            # The byte-order magic follows the block length that it applies to.
            start = file.read(8)
            magic = struct.pack("<I", _ORDER)
            section = _Section("<" if start[4:] == magic else ">")
            body = _read_body(file, section.order, start[:4], 4)
        else:
            body = _read_body(file, section.order, file.read(4), 0)
        if body is None:
            return
        if kind == _INTERFACE:
            _add_interface(section, body)
        elif kind in (_ENHANCED_PACKET, _SIMPLE_PACKET):
            yield _packet(section, kind, body)
        word = file.read(4)
        kind = struct.unpack(f"{section.order}I", word)[0] if len(word) == 4 else None


def _read_body(file: IO[bytes], order: str, word: bytes, consumed: int) -> bytes | None:
    """Read the rest of a block body; ``word`` holds the length of the block."""
    if len(word) < 4:
        return None
    length = struct.unpack(f"{order}I", word)[0] - 8 - consumed
    if not 4 <= length <= _BLOCK_LIMIT:
        return None
    body = file.read(length)
    return body[:-4] if len(body) == length else None


def _add_interface(section: _Section, body: bytes) -> None:
    if len(body) < 8:
        raise DecodeError("capture", "corrupt interface description block")
    _check_link_type(struct.unpack_from(f"{section.order}H", body)[0])
    exponent = 6
    for code, value in _options(section.order, body[8:]):
        if code == _TIME_RESOLUTION and value:
            exponent = value[0]
    binary = exponent & 0x80
    section.resolutions.append(2.0 ** (exponent & 0x7F) if binary else 10.0**exponent)


def _packet(section: _Section, kind: int, body: bytes) -> CapturedFrame:
    order = section.order
    if kind == _SIMPLE_PACKET:
        # A simple packet block has neither time nor options.
        length = int.from_bytes(body[:4], "little" if order == "<" else "big")
        return CapturedFrame(0.0, body[4 : 4 + length])
    head = body[:20].ljust(20, b"\xff")
    interface, high, low, length, _ = struct.unpack(f"{order}IIIII", head)
    if interface >= len(section.resolutions) or length > len(body) - 20:
        raise DecodeError("capture", "corrupt packet block")
    comments, direction = [], Direction.UNKNOWN
    for code, value in _options(order, body[20 + length + -length % 4 :]):
        if code == _COMMENT:
            comments.append(value.decode(errors="replace"))
        elif code == _PACKET_FLAGS and len(value) == 4:
            flag = struct.unpack(f"{order}I", value)[0] & 3
            direction = Direction(flag) if flag < 3 else Direction.UNKNOWN
    time = (high << 32 | low) / section.resolutions[interface]
    return CapturedFrame(time, body[20 : 20 + length], "\n".join(comments), direction)


def _options(order: str, data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(data):
        code, length = struct.unpack_from(f"{order}HH", data, position)
        if code == _END:
            return
        position += 4
        yield code, data[position : position + length]
        position += length + -length % 4
