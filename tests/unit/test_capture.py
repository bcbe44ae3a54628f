from __future__ import annotations

import contextlib
import gzip
import io
import json
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, rdpcap

from aoe.ata import AFlag, Opcode, Registers
from aoe.capture.annotated import (
    CapturedFrame,
    CaptureWriter,
    CapturingLink,
    Direction,
    read_capture,
)
from aoe.capture.pcapng import build_interface, build_packet, build_section, parse
from aoe.errors import AoEError, DecodeError, NotFoundError
from aoe.header import Command, Flag, Header
from aoe.net.base import Link, LinkStatistics
from tests.requirements import need

if TYPE_CHECKING:
    from pathlib import Path

TARGET = bytes.fromhex("525400ae0001")
CLIENT = bytes.fromhex("525400ae0002")
NOW = 1_800_000_000.123456


def request(lba: int) -> bytes:
    frame = bytearray(60)
    Header(TARGET, CLIENT, 0, 0, Command.ATA, 0x8000_0001).pack_into(frame)
    Registers(AFlag.EXTENDED, 0, 2, Opcode.READ_EXT, lba).pack_into(frame)
    return bytes(frame)


def response(lba: int) -> bytes:
    frame = bytearray(36 + 1024)
    Header(
        CLIENT, TARGET, 0, 0, Command.ATA, 0x8000_0001, flags=Flag.RESPONSE
    ).pack_into(frame)
    Registers(AFlag.EXTENDED, 0, 2, 0x40, lba).pack_into(frame)
    return bytes(frame)


class ScriptedLink(Link):
    """A link that receives the given frames and records those that are sent."""

    name, index, mac, mtu, up = "aoe0", 2, CLIENT, 1500, True

    def __init__(self, *incoming: bytes) -> None:
        self.incoming = list(incoming)
        self.sent: list[bytes] = []
        self.flushed = 0
        self.closed = False
        self._slot = memoryview(bytearray(1514))

    def fileno(self) -> int:
        return 99

    def receive(self) -> memoryview | None:
        return memoryview(self.incoming.pop(0)) if self.incoming else None

    def reserve(self) -> memoryview | None:
        return None if len(self.sent) == 3 else self._slot

    def commit(self, length: int) -> None:
        self.sent.append(bytes(self._slot[:length]))

    def flush(self) -> None:
        self.flushed += 1

    def wait(self, timeout: float | None) -> bool:
        self.up = timeout != 0
        return bool(self.incoming)

    def statistics(self) -> LinkStatistics:
        return LinkStatistics(sent=len(self.sent))

    def close(self) -> None:
        self.closed = True


def test_written_frames_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "frames.pcapng"
    frames = [
        CapturedFrame(NOW, request(8), "READ, naïvely", Direction.OUT),
        CapturedFrame(NOW + 0.000_25, response(8), "", Direction.IN),
        CapturedFrame(NOW + 1, b"\x00" * 65_549, "large", Direction.UNKNOWN),
    ]
    with CaptureWriter(path) as writer:
        for frame in frames:
            writer.write(
                frame.data,
                frame.time,
                comment=frame.comment,
                direction=frame.direction,
                interface="aoe0",
            )
    found = list(read_capture(path))
    assert [frame[1:] for frame in found] == [frame[1:] for frame in frames]
    for frame, original in zip(found, frames, strict=True):
        assert frame.time == pytest.approx(original.time, abs=2e-6, rel=0)


def test_an_empty_capture_is_valid(tmp_path: Path) -> None:
    with CaptureWriter(tmp_path / "empty.pcapng") as writer:
        writer.close()
    assert list(read_capture(tmp_path / "empty.pcapng")) == []


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("magic", "order", "fraction"),
    [
        (0xA1B2C3D4, "<", 123_456),
        (0xA1B2C3D4, ">", 123_456),
        (0xA1B23C4D, "<", 123_456_000),
        (0xA1B23C4D, ">", 123_456_000),
    ],
)
def test_pcap_files_are_read(
    tmp_path: Path, magic: int, order: str, fraction: int, *, compressed: bool
) -> None:
    data = struct.pack(f"{order}IHHIIII", magic, 2, 4, 0, 0, 65535, 1)
    data += struct.pack(f"{order}IIII", 1_800_000_000, fraction, 60, 60) + request(8)
    path = tmp_path / "old.pcap"
    path.write_bytes(gzip.compress(data) if compressed else data)
    (frame,) = read_capture(path)
    assert frame.data == request(8)
    assert frame.time == pytest.approx(NOW, abs=2e-6, rel=0)


def test_captures_of_other_link_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wireless.pcap"
    head = struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 105)
    path.write_bytes(head + struct.pack("<IIII", 0, 0, 60, 60) + bytes(60))
    with pytest.raises(DecodeError, match="not a capture of Ethernet frames"):
        list(read_capture(path))


@pytest.mark.parametrize("content", [b"", b"x", b"no capture at all", b"\x1f\x8bxxxx"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DecodeError) as caught:
        list(read_capture(path))
    assert str(caught.value) == f"{path}: not a capture file"


def test_a_truncated_capture_yields_its_complete_frames(tmp_path: Path) -> None:
    path = tmp_path / "cut.pcapng"
    with CaptureWriter(path) as writer:
        for lba in range(3):
            writer.write(request(lba), NOW, comment="a frame")
    path.write_bytes(path.read_bytes()[:-20])
    assert [frame.data for frame in read_capture(path)] == [request(0), request(1)]


def test_errors_name_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file or directory"):
        list(read_capture(tmp_path / "nothing"))
    with pytest.raises(NotFoundError, match="no such file or directory"):
        CaptureWriter(tmp_path / "no" / "folder")
    with pytest.raises(AoEError, match="is a directory"):
        CaptureWriter(tmp_path)


def test_a_full_file_system_is_reported_as_an_aoe_error(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with pytest.raises(AoEError) as caught:
        CaptureWriter(full)
    assert str(caught.value) == f"{full}: no space left on device"


def test_a_link_captures_both_directions_with_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "both.pcapng"
    timestamps = iter([NOW, NOW + 1, NOW + 2])
    with CaptureWriter(path) as writer:
        link = CapturingLink(
            ScriptedLink(response(8)), writer, lambda: next(timestamps)
        )
        assert link.send(request(8))
        frame = link.receive()
        assert frame is not None
        assert bytes(frame) == response(8)
        assert link.receive() is None
        slot = link.reserve()
        assert slot is not None
        slot[:60] = request(9)
        link.commit(60)
        link.flush()
    assert [frame[1:] for frame in read_capture(path)] == [
        (request(8), "READ EXT e0.0 lba 8 x2 tag 0x80000001", Direction.OUT),
        (
            response(8),
            "response ok e0.0 lba 8 x2, 1024 bytes tag 0x80000001",
            Direction.IN,
        ),
        (request(9), "READ EXT e0.0 lba 9 x2 tag 0x80000001", Direction.OUT),
    ]


def test_other_operations_are_forwarded_to_the_link(tmp_path: Path) -> None:
    inner = ScriptedLink()
    with CaptureWriter(tmp_path / "file") as writer:
        link = CapturingLink(inner, writer)
        assert (link.name, link.index, link.mac, link.mtu) == ("aoe0", 2, CLIENT, 1500)
        assert link.fileno() == 99
        for _ in range(3):
            assert link.send(request(8))
        assert not link.send(request(8))
        assert len(inner.sent) == inner.flushed == link.statistics().sent == 3
        assert not link.wait(0)
        assert not link.up
        assert not link.wait(1)
        assert link.up
        link.close()
        assert inner.closed
        link.close()
    assert len(list(read_capture(tmp_path / "file"))) == 3


def test_tshark_shows_comment_time_direction_and_interface(tmp_path: Path) -> None:
    need("tshark")
    path = tmp_path / "shown.pcapng"
    with CaptureWriter(path) as writer:
        link = CapturingLink(ScriptedLink(), writer, lambda: NOW)
        link.send(request(8))
    fields = ["frame.comment", "frame.time_epoch", "frame.interface_name"]
    fields += ["frame.packet_flags_direction", "aoe.lba"]
    command = ["tshark", "-r", str(path), "-T", "json"]
    for field in fields:
        command += ["-e", field]
    shown = subprocess.run(command, capture_output=True, check=True)
    (frame,) = json.loads(shown.stdout)
    layers = frame["_source"]["layers"]
    assert layers["frame.comment"] == ["READ EXT e0.0 lba 8 x2 tag 0x80000001"]
    assert layers["frame.interface_name"] == ["aoe0"]
    assert layers["frame.packet_flags_direction"] == ["0x00000002"]
    assert layers["frame.time_epoch"][0].startswith(("1800000000.12345", "2027-01-15T"))
    assert "aoe.lba" in layers


def test_scapy_reads_our_captures(tmp_path: Path) -> None:
    path = tmp_path / "ours.pcapng"
    with CaptureWriter(path) as writer:
        writer.write(request(8), NOW, comment="words", direction=Direction.OUT)
        writer.write(response(8), NOW + 1, interface="eth1")
    first, second = rdpcap(str(path))
    assert (bytes(first), bytes(second)) == (request(8), response(8))
    assert first.comment == b"words"
    assert first.direction == Direction.OUT
    assert float(first.time) == pytest.approx(NOW, abs=1e-6, rel=0)
    assert second.sniffed_on == "eth1"


def test_captures_of_scapy_are_read(tmp_path: Path) -> None:
    packet = Ether(request(8))
    packet.time = NOW
    packet.comment = "zwölf".encode()
    packet.direction = 1
    path = tmp_path / "theirs.pcapng"
    with PcapNgWriter(str(path)) as writer:
        writer.write(packet)
    writer.close()
    (frame,) = read_capture(path)
    assert frame[1:] == (request(8), "zwölf", Direction.IN)
    assert frame.time == pytest.approx(NOW, abs=2e-6, rel=0)


@pytest.mark.parametrize("order", ["<", ">"])
def test_byte_orders_block_types_resolutions_and_options_are_read(
    tmp_path: Path, order: str
) -> None:
    def block(kind: int, body: bytes) -> bytes:
        length = struct.pack(f"{order}I", 12 + len(body))
        return struct.pack(f"{order}I", kind) + length + body + length

    def option(code: int, value: bytes) -> bytes:
        padding = bytes(-len(value) % 4)
        return struct.pack(f"{order}HH", code, len(value)) + value + padding

    def packet(interface: int, ticks: int, options: bytes = b"") -> bytes:
        head = struct.pack(
            f"{order}IIIII", interface, ticks >> 32, ticks & 0xFFFFFFFF, 60, 60
        )
        return block(6, head + request(8) + options)

    section = block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))
    plain = block(1, struct.pack(f"{order}HHI", 1, 0, 0))
    binary = option(9, bytes([0x80 | 10])) + option(0, b"")
    options = [
        *(option(1, b"one"), option(1, "zwölf".encode())),
        *(option(2, struct.pack(f"{order}I", 1)), option(0, b"")),
    ]
    path = tmp_path / "others.pcapng"
    path.write_bytes(
        section
        + plain
        + block(1, struct.pack(f"{order}HHI", 1, 0, 0) + binary)
        + block(5, bytes(12))
        + packet(0, 1_800_000_000_500_000, b"".join(options))
        + packet(1, 1_800_000_000 << 10 | 512)
        + block(3, struct.pack(f"{order}I", 58) + request(8))
        + section
        + plain
        + packet(0, 0)
    )
    frames = list(read_capture(path))
    assert [frame.time for frame in frames] == [1_800_000_000.5] * 2 + [0, 0]
    assert [len(frame.data) for frame in frames] == [60, 60, 58, 60]
    assert (frames[0].comment, frames[0].direction) == ("one\nzwölf", Direction.IN)
    assert (frames[1].comment, frames[1].direction) == ("", Direction.UNKNOWN)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_corrupt_captures_raise_only_decode_errors(junk: bytes, at: int) -> None:
    intact = build_section() + build_interface("aoe0")
    intact += build_packet(0, NOW, request(8), "words", Direction.IN)
    for content in (junk, intact[:at] + junk, intact[:at] + junk + intact[at:]):
        with contextlib.suppress(DecodeError):
            list(parse(io.BytesIO(content)))


def test_importing_capture_does_not_import_scapy() -> None:
    code = "import sys, aoe.capture; print('scapy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
