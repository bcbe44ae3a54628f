"""Differential tests of the struct codecs and the scapy layers.

Both encode the same messages to the same bytes and decode any bytes to the same fields,
for ten thousand examples in each direction. An example contains a message of each
command, because generating it takes longer than testing it.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.config import conf
from scapy.layers.l2 import Ether
from scapy.packet import NoPayload, Packet, Raw

from aoe.address import format_mac, parse_mac
from aoe.ata import ATA_DATA, SECTOR, Registers
from aoe.config import Config
from aoe.errors import DecodeError
from aoe.header import ETHERNET_LENGTH, HEADER_LENGTH, Command, Header
from aoe.layers import AoE, AoEATA, AoEConfig, AoEDirective, AoEMask, AoEReserve
from aoe.macmask import Directive, MaskList
from aoe.reserve import Reserve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aoe.buffers import ReadBuffer, WriteBuffer

EXHAUSTIVE = settings(max_examples=10_000, deadline=None, database=None)
ETHERNET = bytes.fromhex("525400ae0002 525400ae0001 88a2")


class Message(Protocol):
    """The interface that the codecs of the four commands share."""

    @classmethod
    def unpack_from(cls, buffer: ReadBuffer, offset: int = ...) -> Self: ...

    def pack_into(self, buffer: WriteBuffer, offset: int = ...) -> int: ...


M = TypeVar("M", bound=Message)


@pytest.fixture(scope="module", autouse=True)
def raise_dissector_errors() -> Iterator[None]:
    """Propagate exceptions of layers, which scapy replaces with Raw by default."""
    conf.debug_dissector = True
    yield
    conf.debug_dissector = False


def split_macs(blob: bytes) -> list[bytes]:
    return [blob[i : i + 6] for i in range(0, len(blob) - 5, 6)]


# Encoding. All fields are taken from one block of bytes, because Hypothesis takes ten
# times as long to draw them one by one.

HEADER_FIELDS = Struct("!6s6sHBIBBB")
CONFIG_FIELDS = Struct("!HHBBH")


def header_from(blob: bytes, command: int) -> Header:
    dst, src, shelf, slot, tag, error, flags, version = HEADER_FIELDS.unpack(blob)
    return Header(dst, src, shelf, slot, command, tag, flags & 15, error, version & 15)


def packed(header: Header, message: Message | None = None) -> bytes:
    buffer = bytearray(4096)
    end = header.pack_into(buffer)
    if message is not None:
        end += message.pack_into(buffer)
    return bytes(buffer[:end])


def packed_aoe(header: Header, message: Message) -> bytes:
    return packed(header, message)[ETHERNET_LENGTH:]


def built(header: Header, body: Packet | None = None) -> bytes:
    """Build the AoE layers, without Ethernet, which has its own test."""
    packet = AoE(
        version=header.version,
        flags=header.flags,
        error=header.error,
        shelf=header.shelf,
        slot=header.slot,
        cmd=header.command,
        tag=header.tag,
    )
    if body is not None:
        # The / operator copies both operands.
        packet.add_payload(body)
    for layer in packet.iterpayloads():
        # No field has multiple values, so that scapy need not expand the packet.
        layer.explicit = 1
    return bytes(packet)


def ata_pair(blob: bytes) -> tuple[Registers, Packet]:
    aflags, feature, count, command = blob[:4]
    lba = int.from_bytes(blob[4:10], "big")
    return Registers(aflags, feature, count, command, lba), AoEATA(
        aflags=aflags, err_feature=feature, count=count, cmd_status=command, lba=lba
    )


def config_pair(blob: bytes, string: bytes, *, mismatch: bool) -> tuple[Config, Packet]:
    buffers, firmware, sectors, nibbles, number = CONFIG_FIELDS.unpack(blob[:8])
    length = number if mismatch else None
    version, ccmd = nibbles >> 4, nibbles & 15
    return Config(ccmd, string, buffers, firmware, sectors, version, length), AoEConfig(
        buffer_count=buffers,
        firmware=firmware,
        sector_count=sectors,
        version=version,
        ccmd=ccmd,
        length=length,
        string=string,
    )


def mask_pair(
    blob: bytes, macs: list[bytes], *, mismatch: bool
) -> tuple[MaskList, Packet]:
    mcmd, merror, number, *dcmds = blob
    count = number if mismatch else None
    entries = list(zip(dcmds, macs, strict=False))
    return MaskList(
        mcmd, tuple(Directive(dcmd, mac) for dcmd, mac in entries), merror, count
    ), AoEMask(
        mcmd=mcmd,
        merror=merror,
        count=count,
        directives=[AoEDirective(dcmd=dcmd, mac=mac) for dcmd, mac in entries],
    )


def reserve_pair(
    blob: bytes, macs: list[bytes], *, mismatch: bool
) -> tuple[Reserve, Packet]:
    rcmd, number = blob[:2]
    count = number if mismatch else None
    reserve = Reserve(rcmd, tuple(macs), count)
    return reserve, AoEReserve(rcmd=rcmd, count=count, macs=macs)


@EXHAUSTIVE
@given(st.binary(min_size=HEADER_FIELDS.size + 10, max_size=HEADER_FIELDS.size + 28))
def test_codecs_and_layers_encode_messages_alike(block: bytes) -> None:
    fields, rest = block[: HEADER_FIELDS.size], block[HEADER_FIELDS.size :]
    blob, tail = rest[:10], rest[10:]
    mismatch = bool(fields[0] & 1)
    macs = split_macs(tail)
    registers, ata = ata_pair(blob)
    config, config_layer = config_pair(blob, tail, mismatch=mismatch)
    mask, mask_layer = mask_pair(blob, macs, mismatch=mismatch)
    reserve, reserve_layer = reserve_pair(blob, macs, mismatch=mismatch)

    header = header_from(fields, Command.ATA)
    assert packed_aoe(header, registers) == built(header, ata)
    header = header_from(fields, Command.CONFIG)
    assert packed_aoe(header, config) == built(header, config_layer)
    header = header_from(fields, Command.MASK)
    assert packed_aoe(header, mask) == built(header, mask_layer)
    header = header_from(fields, Command.RESERVE)
    assert packed_aoe(header, reserve) == built(header, reserve_layer)


@given(
    st.binary(min_size=HEADER_FIELDS.size, max_size=HEADER_FIELDS.size),
    st.integers(0, 255),
)
def test_codec_and_layer_encode_headers_alike(fields: bytes, command: int) -> None:
    header = header_from(fields, command)
    link = Ether(dst=format_mac(header.dst), src=format_mac(header.src), type=0x88A2)
    assert packed(header) == bytes(link) + built(header)
    assert packed(header) == bytes(link / AoE(built(header)))


@pytest.mark.parametrize("count", [0, 1, 100, 101, 255])
def test_codecs_and_layers_agree_on_the_longest_lists(count: int) -> None:
    """P61, P76: up to 255 entries; the lists of scapy stop at 100 by default."""
    macs = [number.to_bytes(6, "big") for number in range(count)]
    header = Header(b"aaaaaa", b"bbbbbb", 0, 0, Command.MASK, 1)
    mask, layer = mask_pair(bytes(3) + bytes([1]) * count, macs, mismatch=False)
    frame = packed(header, mask)
    assert built(header, layer) == frame[ETHERNET_LENGTH:]
    assert read_mask(frame) == mask

    header = Header(b"aaaaaa", b"bbbbbb", 0, 0, Command.RESERVE, 1)
    reserve, layer = reserve_pair(bytes(2), macs, mismatch=False)
    frame = packed(header, reserve)
    assert built(header, layer) == frame[ETHERNET_LENGTH:]
    assert read_reserve(frame) == reserve


# Decoding.


def assert_same_header(layer: Packet, frame: bytes) -> None:
    header = Header.unpack_from(frame)
    assert header == Header(
        dst=frame[:6],
        src=frame[6:12],
        shelf=layer.shelf,
        slot=layer.slot,
        command=layer.cmd,
        tag=layer.tag,
        flags=int(layer.flags),
        error=layer.error,
        version=layer.version,
    )


def assert_raw(payload: Packet, content: bytes) -> None:
    assert type(payload) is (Raw if content else NoPayload)
    assert bytes(payload) == content


def read_body(
    frame: bytes, layer: type[Packet], codec: type[M]
) -> tuple[Packet, M] | None:
    """Decode a body with layer and codec; return None if both find it too short."""
    packet = AoE(frame[ETHERNET_LENGTH:])
    if len(frame) < HEADER_LENGTH:
        with pytest.raises(DecodeError):
            Header.unpack_from(frame)
        assert type(packet) is Raw or frame == ETHERNET
        return None
    assert_same_header(packet, frame)
    body = packet.payload
    try:
        message = codec.unpack_from(frame)
    except DecodeError:
        assert_raw(body, frame[HEADER_LENGTH:])
        return None
    assert type(body) is layer
    # Without its cache, the packet is rebuilt from its fields.
    packet.clear_cache()
    assert bytes(packet) == frame[ETHERNET_LENGTH:], "the layer loses bytes"
    return body, message


def repacked(frame: bytes, message: Message) -> bytes:
    """Encode the decoded message into a copy of its frame."""
    buffer = bytearray(frame)
    Header.unpack_from(frame).pack_into(buffer)
    message.pack_into(buffer)
    return bytes(buffer)


def read_ata(frame: bytes) -> Registers | None:
    if (read := read_body(frame, AoEATA, Registers)) is None:
        return None
    layer, registers = read
    assert registers == Registers(
        aflags=int(layer.aflags),
        feature=layer.err_feature,
        count=layer.count,
        command=layer.cmd_status,
        lba=layer.lba,
    )
    assert layer.data + bytes(layer.payload) == frame[ATA_DATA:]
    assert layer.reserved or repacked(frame, registers) == frame
    return registers


def read_config(frame: bytes) -> Config | None:
    if (read := read_body(frame, AoEConfig, Config)) is None:
        return None
    layer, config = read
    assert config == Config(
        ccmd=layer.ccmd,
        string=layer.string,
        buffer_count=layer.buffer_count,
        firmware=layer.firmware,
        sector_count=layer.sector_count,
        version=layer.version,
        declared=None if layer.length == len(layer.string) else layer.length,
    )
    assert config.is_valid == layer.is_valid
    assert repacked(frame, config) == frame
    return config


def read_mask(frame: bytes) -> MaskList | None:
    if (read := read_body(frame, AoEMask, MaskList)) is None:
        return None
    layer, mask = read
    entries = layer.directives
    assert mask == MaskList(
        mcmd=layer.mcmd,
        directives=tuple(Directive(e.dcmd, parse_mac(e.mac)) for e in entries),
        merror=layer.merror,
        declared=None if layer.count == len(entries) else layer.count,
    )
    reserved = [layer.reserved, *(entry.reserved for entry in entries)]
    assert any(reserved) or repacked(frame, mask) == frame
    return mask


def read_reserve(frame: bytes) -> Reserve | None:
    if (read := read_body(frame, AoEReserve, Reserve)) is None:
        return None
    layer, reserve = read
    assert reserve == Reserve(
        rcmd=layer.rcmd,
        macs=tuple(parse_mac(mac) for mac in layer.macs),
        declared=None if layer.count == len(layer.macs) else layer.count,
    )
    assert repacked(frame, reserve) == frame
    return reserve


def frame_of(command: Command, content: bytes, **patches: int) -> bytes:
    """Return a frame of this command with bytes at other offsets set (``at26=3``)."""
    frame = bytearray(ETHERNET + content)
    for key, value in {"at19": command, **patches}.items():
        if int(key[2:]) < len(frame):
            frame[int(key[2:])] = value
    return bytes(frame)


@EXHAUSTIVE
@given(st.binary(min_size=48, max_size=48))
def test_codecs_and_layers_decode_any_bytes_alike(block: bytes) -> None:
    # Shorten half of the examples; by default most would be too short for a message.
    content = block[2:]
    if block[0] < 128:
        content = content[: block[0] % 46]
    read_ata(frame_of(Command.ATA, content))
    # Random counts and lengths would nearly always exceed the frame.
    short_count = block[1] % 6
    if short_count == 5:
        read_config(frame_of(Command.CONFIG, content))
        read_mask(frame_of(Command.MASK, content))
        read_reserve(frame_of(Command.RESERVE, content))
    else:
        read_config(frame_of(Command.CONFIG, content, at30=0, at31=short_count * 5))
        read_mask(frame_of(Command.MASK, content, at24=0, at27=short_count))
        read_reserve(frame_of(Command.RESERVE, content, at25=short_count))


@given(
    st.binary(min_size=22, max_size=22),
    st.sampled_from([1, SECTOR - 1, SECTOR, SECTOR + 3, 2 * SECTOR]),
)
def test_codec_and_layer_decode_any_data_alike(
    content: bytes, data_length: int
) -> None:
    assert read_ata(frame_of(Command.ATA, content + bytes(data_length))) is not None


@given(st.integers(0, 30).map(bytes), st.sampled_from([0x88A1, 0x88A3, 0xA288]))
def test_other_ethertypes_are_refused(content: bytes, ethertype: int) -> None:
    frame = ETHERNET[:12] + ethertype.to_bytes(2, "big") + content
    assert AoE not in Ether(frame)
    with pytest.raises(DecodeError):
        Header.unpack_from(frame)


@given(st.binary(min_size=10, max_size=40))
def test_aoe_is_dissected_after_ethernet(content: bytes) -> None:
    packet = Ether(ETHERNET + content)
    assert_same_header(packet[AoE], ETHERNET + content)
    assert parse_mac(packet.dst) + parse_mac(packet.src) == ETHERNET[:12]


@pytest.mark.parametrize("length", range(HEADER_LENGTH + 13))
@pytest.mark.parametrize("command", Command)
def test_short_frames_are_refused(command: Command, length: int) -> None:
    """P17: shorter than 36, 32, 28 and 26 bytes, a frame holds no message."""
    needed = {
        Command.ATA: 36,
        Command.CONFIG: 32,
        Command.MASK: 28,
        Command.RESERVE: 26,
    }
    codec: dict[Command, type[Message]] = {
        Command.ATA: Registers,
        Command.CONFIG: Config,
        Command.MASK: MaskList,
        Command.RESERVE: Reserve,
    }
    frame = frame_of(command, bytes(23))[:length]
    if length < needed[command]:
        with pytest.raises(DecodeError):
            codec[command].unpack_from(frame)
    else:
        codec[command].unpack_from(frame)
    if length < HEADER_LENGTH:
        with pytest.raises(DecodeError):
            Header.unpack_from(frame)
