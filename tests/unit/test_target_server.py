from __future__ import annotations

import pytest

from aoe.address import Address
from target.disks.memory import MemoryDisk
from target.protocol.exports import Export
from target.protocol.target import Target
from tests.asking import (
    CLIENT,
    SECTORS,
    TARGET,
    ask,
    ata,
    ata_response,
    config,
    config_response,
    frame,
    make_target,
    response_frame,
    sector,
)

IDENTIFY = 0xEC


@pytest.mark.parametrize(
    ("shelf", "slot"), [(7, 3), (0xFFFF, 3), (7, 0xFF), (0xFFFF, 0xFF)]
)
def test_shelf_and_slot_can_be_broadcast_p8_p9(shelf: int, slot: int) -> None:
    # The response has the target's own address.
    request = frame(1, bytes(8), shelf=shelf, slot=slot)
    assert ask(make_target(), request) == config_response(0)


@pytest.mark.parametrize(
    ("shelf", "slot"),
    [(8, 3), (7, 4), (0xFFFF, 4), (8, 0xFF), (0x0700, 3), (0xFF07, 3), (0, 0)],
)
def test_frame_to_another_address_is_dropped_p8(shelf: int, slot: int) -> None:
    target = make_target()
    assert ask(target, frame(1, bytes(8), shelf=shelf, slot=slot)) == b""
    assert target.statistics().dropped == {"other_address": 1}
    assert target.statistics().requests == 0


@pytest.mark.parametrize("dst", [b"\xff" * 6, b"\x01" * 6, TARGET])
def test_destination_mac_is_ignored_p8_p12(dst: bytes) -> None:
    # The source of the response is always the interface's address.
    response = ask(make_target(), frame(1, bytes(8), dst=dst))
    assert response == config_response(0)
    assert response[:12] == CLIENT + TARGET


@pytest.mark.parametrize("tag", [0, 1, 0x8000_0000, 0xFFFF_FFFF, 0x0102_0304])
@pytest.mark.parametrize("command", [0, 1, 9])
def test_tag_is_copied_p10(tag: int, command: int) -> None:
    argument = bytes((0, 0, 0, 0xE5)) + bytes(8)
    response = ask(make_target(), frame(command, argument, tag=tag))
    assert response[20:24] == tag.to_bytes(4, "big")


@pytest.mark.parametrize("verfl", [0x18, 0x1C, 0x1F, 0x08, 0x28])
def test_response_frame_is_dropped_p7(verfl: int) -> None:
    target = make_target()
    assert ask(target, frame(1, bytes(8), verfl=verfl)) == b""
    assert target.statistics().dropped == {"response": 1}


@pytest.mark.parametrize("version", [0, 2, 3, 15])
@pytest.mark.parametrize("command", [0, 1, 2, 9])
def test_unknown_version_is_refused_in_version_1_p6(version: int, command: int) -> None:
    target = make_target()
    argument = bytes(range(1, 60))
    response = ask(target, frame(command, argument, verfl=version << 4))
    assert response == response_frame(command, argument, verfl=0x1C, error=5)
    assert target.statistics().errors == {"bad_version": 1}


@pytest.mark.parametrize("flags", [0x1, 0x2, 0x3])
@pytest.mark.parametrize("command", [0, 1, 9])
def test_reserved_flags_are_ignored_and_not_echoed_p3_p4(
    flags: int, command: int
) -> None:
    argument = bytes((0, 0, 0, 0xE5)) + bytes(8)
    plain = ask(make_target(), frame(command, argument))
    assert ask(make_target(), frame(command, argument, verfl=0x10 | flags)) == plain


@pytest.mark.parametrize("command", [0, 1])
def test_error_field_of_a_request_is_ignored_p13(command: int) -> None:
    argument = bytes((0, 0, 0, 0xE5)) + bytes(8)
    response = ask(make_target(), frame(command, argument, verfl=0x14, error=9))
    assert response[14:16] == b"\x18\0"
    assert response == ask(make_target(), frame(command, argument))


@pytest.mark.parametrize("command", [4, 5, 0x7F, 0xF0, 0xFF])
def test_unknown_command_is_echoed_p16_p18(command: int) -> None:
    target = make_target()
    argument = bytes(range(200))
    response = ask(target, frame(command, argument))
    assert response == response_frame(command, argument, verfl=0x1C, error=1)
    assert target.statistics().errors == {"bad_command": 1}


def test_echo_is_truncated_to_the_mtu_p16() -> None:
    argument = bytes(range(250)) * 8
    response = ask(make_target(), frame(9, argument))
    assert response == response_frame(9, argument[: 1500 - 10], verfl=0x1C, error=1)
    assert len(response) == 1514


def test_unknown_command_without_argument_is_answered_and_padded_p16_p19() -> None:
    assert ask(make_target(), frame(9)) == response_frame(9, b"", verfl=0x1C, error=1)


@pytest.mark.parametrize(
    "request_",
    [
        *(ata(0xE5)[:length] for length in (24, 30, 35)),
        *(config(0)[:length] for length in (24, 31)),
    ],
)
def test_frame_without_the_fixed_part_is_dropped_p17(request_: bytes) -> None:
    target = make_target()
    assert ask(target, request_) == b""
    assert target.statistics().dropped == {"short": 1}


@pytest.mark.parametrize("length", [0, 1, 13, 14, 15, 16, 19, 23])
def test_frame_without_a_header_is_dropped_p17(length: int) -> None:
    target = make_target()
    assert ask(target, config(0)[:length]) == b""
    assert target.statistics().dropped == {"short": 1}


@pytest.mark.parametrize("ethertype", [0x0800, 0x8100, 0xA288, 0x88A3])
def test_other_ethertype_is_dropped(ethertype: int) -> None:
    target = make_target()
    assert ask(target, frame(1, bytes(8), ethertype=ethertype)) == b""
    assert target.statistics().dropped == {"foreign_ethertype": 1}


@pytest.mark.parametrize("junk", [b"", b"\xee" * 10, b"\xee" * 1000])
def test_bytes_after_a_message_are_ignored_p20_p23(junk: bytes) -> None:
    # aoe-sancheck and the Linux driver send such frames to probe the path MTU.
    for request in (config(0), ata(IDENTIFY), ata(0x24, lba=5), ata(0xE7, count=0)):
        plain = ask(make_target(), request)
        assert ask(make_target(), request + junk) == plain


def test_announcement_p48() -> None:
    target = make_target(mtu=9000)
    slot = memoryview(bytearray(b"\xdb" * target.frame_limit))
    length = target.announce(slot)
    frame_ = bytes(slot[:length])
    assert frame_[:6] == b"\xff" * 6
    assert frame_[6:12] == TARGET
    assert frame_[20:24] == bytes(4)
    expected = config_response(0, sectors=17)
    assert frame_[12:20] == expected[12:20]
    assert frame_[24:] == expected[24:]


def test_interfaces_share_the_client_state_of_an_export() -> None:
    export = Export(Address(7, 3), MemoryDisk(bytes(SECTORS * 512)), buffer_count=16)
    here, there = (Target(export, mac * 6, 1500) for mac in (b"\x02", b"\x04"))
    ask(here, config(4, b"owner"))
    ask(here, ata(0x34, aflags=0x41, data=sector(9)))
    assert ask(there, config(1, b"owner"))[32:37] == b"owner"
    assert ask(there, ata(0x24))[36:] == sector(9)
    assert here.statistics().writes == 1
    assert there.statistics().writes == 0


def test_config_string_is_truncated_to_the_mtu() -> None:
    target = make_target(mtu=600)
    target.export.force(bytes(range(256)) * 4)
    response = ask(target, config(0))
    string = (bytes(range(256)) * 4)[: 600 - 18]
    assert response == config_response(0, string, sectors=1)
    assert len(response) == 614


def test_statistics() -> None:
    target = make_target()
    ask(target, ata(0x24, count=2), now=1.0)
    ask(target, ata(0x34, aflags=0x41, data=bytes(512)), now=2.0)
    ask(target, ata(0xE7, count=0), now=3.0)
    ask(target, ata(0x24, lba=SECTORS), now=4.0)
    ask(target, ata(0x00), now=5.0)
    ask(target, b"", now=6.0)
    counted = target.statistics()
    assert (counted.requests, counted.reads, counted.writes) == (5, 1, 1)
    assert (counted.read_bytes, counted.written_bytes) == (1024, 512)
    assert counted.flushes == 1
    assert counted.errors == {"not_found": 1, "aborted": 1}
    assert counted.dropped == {"short": 1}
    assert counted.last_request == 5.0


def test_too_small_mtu_is_refused() -> None:
    with pytest.raises(ValueError, match="an MTU of 547 has no room for a sector"):
        make_target(mtu=547)
    assert ask(make_target(mtu=548), ata(0x24)) == ata_response(0x40, data=sector(0))
