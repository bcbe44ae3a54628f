"""The scapy layers, including the errors of ``scapy.contrib.aoe`` that they avoid."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.automaton import ObjectPipe
from scapy.layers.l2 import Ether
from scapy.packet import NoPayload, Packet, Padding, Raw, fuzz
from scapy.sendrecv import sndrcv
from scapy.utils import rdpcap
from scapy.volatile import RandByte, RandMAC

from aoe.ata import Opcode
from aoe.layers import (
    AoE,
    AoEATA,
    AoEConfig,
    AoEDirective,
    AoEMask,
    AoEReserve,
    pad,
)

GOLDEN = Path(__file__).parent.parent / "golden"
BODIES = (AoEATA, AoEConfig, AoEMask, AoEReserve)
PAGE = (GOLDEN / "vblade-25-identify.bin").read_bytes()
MAC = "00:1b:21:aa:bb:cc"


def frame(body: Packet | bytes, **header: object) -> Packet:
    """Stack a frame to or from target 7.3 with tag 0x11223344."""
    fields = {"shelf": 7, "slot": 3, "tag": 0x11223344} | header
    return (
        Ether(dst="52:54:00:ae:00:02", src="52:54:00:ae:00:01") / AoE(**fields) / body
    )


def dissect(packet: Packet) -> Packet:
    return packet.__class__(bytes(packet))


def response(body: Packet | bytes, **header: object) -> Packet:
    """Dissect a response, padded to 60 bytes."""
    return dissect(pad(frame(body, **{"flags": "response", **header})))


# Tests 1 to 8: errors of scapy.contrib.aoe.


def test_1_header_flags_have_the_bits_of_the_specification() -> None:
    """P3: R is 0x08 and E is 0x04, below the version."""
    sent = bytes(frame(AoEConfig(), flags="response+error"))
    assert sent[14] == 0x1C
    flags = Ether(bytes(frame(AoEConfig(), flags=0x8)))[AoE].flags
    assert str(flags) == "response"
    assert flags.response
    assert not flags.error


@pytest.mark.parametrize(
    ("name", "bit"),
    [("extended", 0x40), ("device", 0x10), ("async", 0x02), ("write", 0x01)],
)
def test_2_ata_flags_have_the_bits_of_the_specification(name: str, bit: int) -> None:
    assert bytes(AoEATA(aflags=name))[0] == bit
    assert str(AoEATA(bytes([bit]) + bytes(11)).aflags) == name


def test_3_mask_count_is_one_byte() -> None:
    mask = AoEMask(mcmd="EDIT", directives=[AoEDirective(dcmd="ADD", mac=MAC)] * 2)
    entry = "00 01 001b21aabbcc"
    assert bytes(mask) == bytes.fromhex(f"00 01 00 02 {entry} {entry}")
    assert [d.mac for d in dissect(mask).directives] == [MAC] * 2


def test_4_reserve_count_is_one_byte() -> None:
    reserve = AoEReserve(rcmd="SET", macs=[MAC] * 2)
    assert bytes(reserve) == bytes.fromhex("01 02 001b21aabbcc 001b21aabbcc")
    assert dissect(reserve).macs == [MAC] * 2


@pytest.mark.parametrize(
    ("registers", "rest", "data"),
    [
        # The count is not used: some targets set it to 0 (P35).
        ({"count": 0, "cmd_status": 0x40}, PAGE, PAGE),
        ({"count": 2, "cmd_status": 0x40}, PAGE * 2, PAGE * 2),
        ({"count": 0, "cmd_status": 0x40}, PAGE + b"\0\0\0\0", PAGE),
        ({"count": 1, "cmd_status": 0x40, "aflags": "write"}, b"", b""),
        # The response of a failed command has none (P32, P34).
        ({"count": 1, "cmd_status": 0x41, "err_feature": 0x10}, b"", b""),
        ({"count": 1, "cmd_status": 0x41, "err_feature": 0x10}, PAGE, b""),
        ({"count": 1, "cmd_status": 0x61}, PAGE, b""),
    ],
)
def test_5_response_data_is_the_complete_sectors_that_follow(
    registers: dict[str, object], rest: bytes, data: bytes
) -> None:
    """P21, P32, P34, P35."""
    packet = response(AoEATA(**registers) / Raw(rest))
    assert packet[AoEATA].data == data
    padding = packet[AoEATA].payload
    assert isinstance(padding, Padding | NoPayload)
    assert bytes(padding).startswith(rest[len(data) :])
    assert len(packet) == max(60, 36 + len(rest))


@pytest.mark.parametrize(
    ("registers", "rest", "data"),
    [
        ({"aflags": "write", "count": 1, "cmd_status": 0x30}, PAGE, PAGE),
        # Less data than the count is kept; refusing it is up to the target (P39).
        ({"aflags": "write", "count": 2, "cmd_status": 0x30}, PAGE, PAGE),
        ({"aflags": "write", "count": 1, "cmd_status": 0x30}, PAGE[:9], PAGE[:9]),
        # Padding and path MTU probes (P23) are not data.
        ({"count": 1, "cmd_status": 0xEC}, bytes(24), b""),
        ({"count": 1, "cmd_status": 0x20}, bytes(512), b""),
    ],
)
def test_5_only_a_write_request_has_data(
    registers: dict[str, object], rest: bytes, data: bytes
) -> None:
    """P23, P27, P39."""
    packet = dissect(frame(AoEATA(**registers) / Raw(rest)))
    assert packet[AoEATA].data == data
    assert bytes(packet[AoEATA].payload) == rest[len(data) :]
    assert Raw not in packet


def test_5_an_aoe_error_has_no_data() -> None:
    """P16, P18: the bytes that follow are echoed from the request."""
    echoed = response(
        AoEATA(cmd_status="WRITE", count=1, data=PAGE),
        flags="response+error",
        error="target is reserved",
    )
    assert echoed[AoEATA].data == b""
    assert echoed[Padding].load == PAGE


def test_6_a_response_answers_its_request() -> None:
    """P8-P10."""
    request = frame(AoEATA())
    answer = frame(AoEATA(cmd_status=0x40), flags="response")
    assert answer.answers(request)
    assert answer.hashret() == request.hashret()


@pytest.mark.parametrize(("shelf", "slot"), [(7, 3), (0xFFFF, 3), (7, 0xFF)])
def test_6_a_response_answers_a_broadcast(shelf: int, slot: int) -> None:
    """P8, P9: a response to a broadcast request has the address of the target."""
    request = frame(AoEConfig(), shelf=shelf, slot=slot)
    answer = frame(AoEConfig(), flags="response")
    assert answer.answers(request)
    assert answer.hashret() == request.hashret()


@pytest.mark.parametrize(
    "difference",
    [{"tag": 0}, {"shelf": 8}, {"slot": 4}, {"cmd": 0}, {"flags": 0}, {"shelf": 65535}],
)
def test_6_other_frames_do_not_answer(difference: dict[str, int]) -> None:
    request = frame(AoEConfig())
    answer = frame(AoEConfig(), **{"flags": 8, **difference})
    assert not answer.answers(request)


def test_6_a_response_does_not_answer_a_response() -> None:
    answer = frame(AoEConfig(), flags="response")
    assert not answer.answers(answer)
    assert not answer.answers(Ether(type=0x88A2) / Raw(b"no AoE"))


def test_6_sndrcv_selects_the_response_among_other_frames() -> None:
    wire = ObjectPipe()

    def answer(request: Packet) -> None:
        for other in ({"tag": 1}, {"flags": 0}, {"slot": 9}, {"cmd": 3}, {}):
            fields = {"flags": 8, "tag": request.tag, "cmd": request.cmd} | other
            put(dissect(frame(AoEConfig(string=b"mine"), **fields)))

    put, wire.send = wire.send, answer
    request = frame(AoEConfig(), shelf=0xFFFF)
    answered, unanswered = sndrcv(wire, request, timeout=10, verbose=False)
    assert len(unanswered) == 0
    responses = [
        (response.slot, response.tag, response.string) for _, response in answered
    ]
    assert responses == [(3, 0x11223344, b"mine")]


@pytest.mark.parametrize(("command", "body"), [*enumerate(BODIES)])
def test_7_a_body_stacks_once_and_sets_the_command(
    command: int, body: type[Packet]
) -> None:
    packet = AoE() / body()
    assert len(packet) == 10 + len(body())
    assert bytes(packet)[5] == command
    assert dissect(packet).layers() == [AoE, body]


def test_8_error_codes_are_named_as_in_the_specification() -> None:
    names = AoE.error.i2s
    assert names[5] == "unsupported version"
    assert names[6] == "target is reserved"
    assert bytes(AoE(error="unsupported version"))[1] == 5


def test_8_lba_is_an_integer_sent_least_significant_byte_first() -> None:
    """P30."""
    packet = AoEATA(cmd_status="READ EXT", lba=0x010203040506)
    assert bytes(packet)[4:10] == bytes.fromhex("060504030201")
    assert dissect(packet).lba == 0x010203040506


def test_8_lba28_excludes_the_device_bits() -> None:
    """P30, P31: Linux sets 0xE0 in lba3."""
    packet = AoEATA(cmd_status="READ", lba=0xE0001388)
    assert packet.lba28 == packet.sector == 5000
    packet.lba28 = 5001
    assert packet.lba == 0xE0001389


@pytest.mark.parametrize(
    ("body", "sector"),
    [
        (AoEATA(cmd_status="READ", lba=0xE0000008), 8),
        (AoEATA(cmd_status="READ EXT", lba=0xE0000008), 0xE0000008),
        (AoEATA(aflags="extended", cmd_status=0xB1, lba=1 << 40), 1 << 40),
        (AoEATA(cmd_status="WRITE", lba=1 << 40), 0),
    ],
)
def test_8_sector_follows_the_addressing_mode(body: Packet, sector: int) -> None:
    """P31."""
    assert body.sector == sector


def test_8_the_default_address_is_not_broadcast() -> None:
    assert (AoE().shelf, AoE().slot) == (0, 0)


def test_8_the_default_tag_is_a_user_space_tag() -> None:
    """P11."""
    assert AoE().tag == 0x80000000


def test_8_config_version_defaults_to_1_in_responses_only() -> None:
    """P49, P50."""
    assert bytes(frame(AoEConfig()))[29] == 0x00
    assert bytes(frame(AoEConfig(), flags="response"))[29] == 0x10
    assert bytes(frame(AoEConfig(version=5)))[29] == 0x50


def test_8_pad_extends_frames_to_60_bytes() -> None:
    """P19."""
    packet = frame(AoEConfig())
    assert len(packet) == 32
    assert bytes(pad(packet)) == pad(bytes(packet)) == bytes(packet) + bytes(28)
    assert pad(packet)[Padding].load == bytes(28)
    long = frame(AoEATA(data=PAGE))
    assert pad(long) is long
    assert pad(bytes(long)) == bytes(long)


def test_8_invalid_config_strings_are_detected() -> None:
    """P56."""
    assert AoEConfig(string=bytes(1024)).is_valid
    assert not AoEConfig(string=bytes(1025)).is_valid
    short = dissect(frame(AoEConfig(length=9, string=b"hello")))
    assert (short.length, short.string) == (9, b"hello")
    assert not short[AoEConfig].is_valid
    padded = dissect(pad(frame(AoEConfig(string=b"hello"))))
    assert padded.string == b"hello"
    assert padded[AoEConfig].is_valid


# Test vectors.


@pytest.mark.parametrize(
    ("body", "header", "expected"),
    [
        (
            AoEConfig(buffer_count=16, firmware=0x4019, sector_count=2),
            {},
            "18 00 0007 03 01 11223344 0010 4019 02 10 0000",
        ),
        (
            AoEConfig(
                buffer_count=16,
                firmware=0x4019,
                sector_count=2,
                ccmd="SET",
                string=b"hello",
            ),
            {"flags": "response+error", "error": "config string present"},
            "1c 04 0007 03 01 11223344 0010 4019 02 13 0005 68656c6c6f",
        ),
        (
            AoEATA(
                aflags="extended", err_feature=0x10, count=1, cmd_status=0x41, lba=5000
            ),
            {},
            "18 00 0007 03 00 11223344 40 10 01 41 88 13 00 00 00 00 00 00",
        ),
        (
            AoEATA(aflags="extended+write", count=0, cmd_status=0x40, lba=1),
            {},
            "18 00 0007 03 00 11223344 41 00 00 40 01 00 00 00 00 00 00 00",
        ),
        (
            AoEATA(err_feature=0x04, count=0xCC, cmd_status=0x41),
            {},
            "18 00 0007 03 00 11223344 00 04 cc 41 00 00 00 00 00 00 00 00",
        ),
        (
            AoEATA(cmd_status="READ"),
            {"flags": "response+error", "error": "target is reserved"},
            "1c 06 0007 03 00 11223344 00 00 01 20 00 00 00 00 00 00 00 00",
        ),
        (
            b"what was asked",
            {"flags": "response+error", "error": 1, "cmd": 0xF0},
            "1c 01 0007 03 f0 11223344" + b"what was asked".hex(),
        ),
    ],
)
def test_vectors(
    body: Packet | bytes, header: dict[str, object], expected: str
) -> None:
    packet = frame(body, **({"flags": "response"} | header))
    assert bytes(packet)[14:] == bytes.fromhex(expected)
    assert bytes(pad(dissect(packet))) == bytes(packet).ljust(60, b"\0")


@pytest.mark.parametrize("name", ["04-read-4k-lba8", "06-write-4k-lba8"])
@pytest.mark.parametrize("mtu", [1500, 9000])
def test_captures_of_linux_and_vblade(name: str, mtu: int) -> None:
    """Linux 6.1 and vblade 25: each response answers one request; all data is found."""
    packets = rdpcap(str(GOLDEN / f"linux-6.1-{name}-mtu{mtu}.pcap.gz"))
    requests = [p for p in packets if not p[AoE].flags.response]
    responses = [p for p in packets if p[AoE].flags.response]
    data = {"READ EXT": 0, "WRITE EXT": 0, "IDENTIFY": 0}
    for answer in responses:
        (request,) = [p for p in requests if answer.answers(p)]
        if AoEATA in request:
            opcode = Opcode(request.cmd_status).name.replace("_", " ")
            data[opcode] += len(request[AoEATA].data) + len(answer[AoEATA].data)
    assert len(responses) == len(requests)
    assert not any(Raw in p for p in packets)
    read = "read" in name
    assert data == {
        "READ EXT": 4096 * read,
        "WRITE EXT": 4096 * (not read),
        "IDENTIFY": 512,
    }


# Malformed frames and summaries.


@pytest.mark.parametrize("length", range(10))
def test_a_short_header_is_raw(length: int) -> None:
    """P17."""
    packet = Ether(bytes(frame(AoEConfig()))[: 14 + length])
    assert AoE not in packet
    assert (Raw in packet) == (length > 0)


@pytest.mark.parametrize("body", BODIES)
def test_a_short_body_is_raw(body: type[Packet]) -> None:
    """P17."""
    for length in range(1, len(body())):
        packet = dissect(frame(bytes(body())[:length], cmd=BODIES.index(body)))
        assert packet.layers() == [Ether, AoE, Raw]
        assert type(body(bytes(length))) is Raw


def test_a_truncated_list_keeps_its_complete_entries() -> None:
    """P69, P75: the count exceeds the entries in the frame."""
    mask = AoEMask(count=3, directives=[AoEDirective(mac=MAC)] * 2) / Raw(b"cut")
    reserve = AoEReserve(count=3, macs=[MAC] * 2) / Raw(b"cut")
    for packet in (dissect(frame(mask)), dissect(frame(reserve))):
        assert packet[AoE].payload.count == 3
        assert packet[Padding].load == b"cut"
    assert len(dissect(frame(mask)).directives) == 2
    assert dissect(frame(reserve)).macs == [MAC] * 2


@pytest.mark.parametrize(
    "body",
    [
        AoEATA(count=RandByte()),
        AoEConfig(length=RandByte()),
        AoEMask(count=RandByte(), directives=[AoEDirective()] * 3),
        AoEReserve(count=RandByte(), macs=[RandMAC()] * 3),
    ],
)
def test_fuzzed_frames_round_trip(body: Packet) -> None:
    """Each build gives another frame, which can be dissected, rebuilt and shown."""
    fuzzy = fuzz(frame(body))
    frames = {bytes(fuzzy) for _ in range(50)}
    assert len(frames) == 50
    for raw in frames:
        packet = Ether(raw)
        packet.clear_cache()
        assert bytes(packet) == raw
        assert packet.summary()
        assert packet.show(dump=True)
    assert fuzzy.summary()
    assert fuzzy.show(dump=True)


def test_counts_and_lengths_are_computed_unless_given() -> None:
    assert bytes(AoEATA(data=bytes(1024)))[2] == 2
    assert bytes(AoEATA(data=bytes(1025)))[2] == 3
    assert bytes(AoEATA(data=bytes(512 * 300)))[2] == 255
    assert bytes(AoEATA())[2] == 1
    assert bytes(AoEATA(count=7, data=bytes(1024)))[2] == 7
    assert bytes(AoEConfig(string=b"abc"))[6:8] == b"\0\3"
    assert bytes(AoEConfig(length=9, string=b"abc"))[6:8] == b"\0\x09"


def test_field_names_do_not_collide_with_attributes_of_packet() -> None:
    """A field with the name of an attribute of Packet would be inaccessible."""
    for layer in (AoE, *BODIES, AoEDirective):
        own = {field.name for field in layer.fields_desc}
        assert own.isdisjoint(dir(Packet))


@pytest.mark.parametrize(
    ("packet", "line"),
    [
        (
            frame(AoEATA(aflags="extended", cmd_status="READ EXT", lba=8, count=2)),
            "READ EXT lba 8 x2",
        ),
        (
            frame(AoEATA(aflags=1, cmd_status="WRITE", lba=0xE0000008, data=PAGE)),
            "WRITE lba 8 x1",
        ),
        (frame(AoEATA()), "IDENTIFY"),
        (frame(AoEATA(cmd_status=0xB1)), "ATA 0xb1"),
        (
            frame(AoEATA(cmd_status=0x40, lba=8, data=PAGE), flags="response"),
            "ATA response lba 8 x1",
        ),
        (
            frame(AoEATA(cmd_status=0x41, err_feature=0x10), flags="response"),
            "ATA response sector not found (status 0x41, error 0x10)",
        ),
        (
            frame(AoEATA(), flags="response+error", error=6),
            "ata error: target is reserved",
        ),
        (frame(AoEConfig(ccmd="SET", string=b"me")), "config set b'me'"),
        (frame(AoEConfig(ccmd=9)), "config 0x09"),
        (
            frame(AoEConfig(buffer_count=16, sector_count=2), flags="response"),
            "config response buffers 16 sectors 2",
        ),
        (frame(AoEMask(mcmd="EDIT", directives=[AoEDirective()])), "mask edit x1"),
        (
            frame(AoEMask(merror="FULL"), flags="response"),
            "mask response error: full",
        ),
        (frame(AoEReserve(rcmd="FORCE", macs=[MAC])), "reserve force x1"),
        (frame(AoEReserve(macs=[MAC]), flags="response"), "reserve response x1"),
    ],
)
def test_summary(packet: Packet, line: str) -> None:
    expected = f"Ether / AoE e7.3 {line} tag 0x11223344"
    assert packet.summary() == expected
    assert dissect(packet).summary() == expected


def test_summary_without_a_body_or_a_header() -> None:
    packet = frame(b"?", cmd=0xF0)
    assert packet.summary() == "Ether / AoE e7.3 command 0xf0 tag 0x11223344 / Raw"
    assert AoEATA().summary() == "IDENTIFY"


def test_show_names_the_bits_of_a_response() -> None:
    shown = response(AoEATA(cmd_status=0x41, err_feature=0x14)).show(dump=True)
    assert "0x41 ready+error" in shown
    assert "0x14 not_found+aborted" in shown
    assert "= IDENTIFY" in frame(AoEATA()).show(dump=True)
