"""Rules of the identity page (P45, P80-P82) and of commands other than READ and WRITE.

All features of the identity page are tested byte for byte on a real wire.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from tests.asking import SECTORS, ata, ata_response, sector
from tests.rules import (
    AWAKE,
    BROADCAST,
    DISK,
    NOT_FOUND,
    UNCORRECTABLE,
    VERSION,
    read_back,
    refused,
    trim,
    write,
    write_response,
)
from tests.serving import NO_PROBE, client, serving

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire
    from tests.rules import Clients, Step
    from tests.serving import Client

pytestmark = pytest.mark.netns

READS = (0x20, 0x24, 0xC8, 0x25, 0x40, 0x42)
WRITES = (0x30, 0x34, 0xCA, 0x35, 0x3D)
IDENTIFY, FEATURES, SMART, WRITE_UNCORRECTABLE = 0xEC, 0xEF, 0xB0, 0x45
KEY = 0xC24F00
ONE, ZEROES = b"\xa5" * 512, bytes(512)
TRIMMED = ata_response(0x40, aflags=0x41)


def disk(first: int, count: int) -> Step:
    return read_back(first, DISK[first * 512 : (first + count) * 512])


def mark_uncorrectable(lba: int, count: int, feature: int = 0x55) -> bytes:
    return ata(WRITE_UNCORRECTABLE, lba, count, feature=feature)


def features(feature: int, count: int = 0) -> bytes:
    return ata(FEATURES, count=count, feature=feature)


def smart(feature: int, lba: int = KEY) -> bytes:
    return ata(SMART, lba, 1, feature=feature)


MARKED = (mark_uncorrectable(10, 2), ata_response(0x40, lba=10))
RULES: dict[str, list[Step]] = {
    "trimmed sectors are zeros": [
        (trim((8, 1), (0, 0), (20, 2), (SECTORS - 1, 1)), TRIMMED),
        read_back(7, sector(7) + ZEROES),
        disk(9, 2),
        read_back(19, sector(19) + ZEROES),
        read_back(21, ZEROES + sector(22)),
        read_back(SECTORS - 2, sector(SECTORS - 2) + ZEROES),
        (write(8, ONE), write_response(8)),
        read_back(8, ONE + sector(9)),
    ],
    "overlapping and empty ranges": [
        (trim((8, 1)), TRIMMED),
        (trim((8, 1)), TRIMMED),
        (trim(), TRIMMED),
        read_back(7, sector(7) + ZEROES),
    ],
    "p38 nothing is trimmed if one range is past the end": [
        refused(trim((8, 1), (SECTORS, 1)), NOT_FOUND),
        refused(trim((8, 1), (SECTORS - 1, 2)), NOT_FOUND),
        disk(8, 1),
        disk(SECTORS - 1, 1),
    ],
    "p28 p36 p37 p39 malformed trim": [
        refused(trim((8, 1), aflags=0x40)),
        refused(trim((8, 1), feature=0)),
        refused(ata(0x06, 0, 0, aflags=0x41, feature=1)),
        refused(ata(0x06, 0, 3, aflags=0x41, feature=1, data=bytes(1024))),
        refused(trim((8, 1))[:547]),
        disk(8, 1),
    ],
    "uncorrectable sectors cannot be read": [
        MARKED,
        *(
            refused(ata(opcode, lba, count), UNCORRECTABLE)
            for opcode in READS
            for lba, count in ((10, 1), (11, 1), (9, 2), (11, 2))
        ),
        disk(8, 2),
        disk(12, 2),
    ],
    "uncorrectable sectors can be read after a write or trim": [
        step
        for opcode in WRITES
        for step in (
            MARKED,
            (write(10, ONE, opcode), write_response(10)),
            read_back(10, ONE),
            refused(ata(0x24, 11), UNCORRECTABLE),
            (trim((11, 1)), TRIMMED),
            read_back(10, ONE + ZEROES),
        )
    ],
    "write uncorrectable checks feature and bounds": [
        refused(mark_uncorrectable(10, 2, feature=0)),
        refused(mark_uncorrectable(10, 0)),
        refused(mark_uncorrectable(SECTORS - 1, 2), NOT_FOUND),
        disk(10, 2),
        disk(SECTORS - 1, 1),
    ],
    "idle, standby and sleep leave the disk active": [
        *(
            (ata(opcode, count=count), ata_response(0x40))
            for opcode in (0xE0, 0xE1, 0xE2, 0xE3, 0xE6)
            for count in (0, 241)
        ),
        AWAKE,
        disk(5, 2),
    ],
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(clients: Clients, rule: str) -> None:
    # Clear the uncorrectable sectors of other rules.
    clients.run_steps([(write(10, DISK[5120:6144]), write_response(10))])
    clients.run_steps(RULES[rule])


def swapped(text: str, length: int) -> bytes:
    """Return a string in ATA byte order, with the bytes of each word swapped (P80)."""
    padded = text.encode().ljust(length)
    return bytes(padded[place ^ 1] for place in range(length))


def page(changes: dict[int, int] | None = None) -> bytes:
    """Build the expected identity page, word by word (P82)."""
    words = dict.fromkeys(range(65, 69), 120)
    words |= {0: 0x40, 1: 2, 3: 16, 6: 63, 47: 0x8000, 49: 0x0B00, 50: 0x4000, 53: 7}
    words |= {54: 2, 55: 16, 56: 63, 57: 2 * 16 * 63, 60: SECTORS, 63: 7, 64: 3}
    words |= {69: 0x4020, 80: 0x01F0, 82: 0x69, 83: 0x7400, 84: 0x4100, 85: 0x69}
    words |= {86: 0xB400, 87: 0x4100, 88: 0x407F, 100: SECTORS, 105: 1, 106: 0x6003}
    words |= {108: 0x5000, 109: 0x1234, 110: 0x5678, 111: 0x9ABC}
    words |= {119: 0x4004, 120: 0x4004, 169: 1, 209: 0x4000, 217: 7200, 255: 0xA5}
    words |= changes or {}
    whole = bytearray(struct.pack("<256H", *(words.get(n, 0) for n in range(256))))
    whole[20:40] = swapped("A serial number", 20)
    whole[46:54] = swapped(VERSION, 8)
    whole[54:94] = swapped("A model", 40)
    return sealed(whole)


def sealed(whole: bytearray) -> bytes:
    """Set the checksum byte, so that the sum of all bytes is zero."""
    whole[511] = -sum(whole[:511]) % 256
    return bytes(whole)


OPTIONS = (
    *("--serial", "A serial number", "--model", "A model", "--rotation", 7200),
    *("--wwn", "0x5000123456789abc", "--physical-block", 4096),
)


def shown_epoch(asking: Client) -> dict[int, int]:
    """Return the words of the identity page with the epoch, which is random (P84)."""
    epoch = asking.ask(ata(IDENTIFY))[36 + 2 * 129 : 36 + 2 * 137]
    assert epoch[:8] == swapped("AoEepoch", 8)
    assert any(epoch[8:])
    return dict(enumerate(struct.unpack("<8H", epoch), 129))


@pytest.mark.usefixtures("engine")
def test_p44_p45_p80_p82_p84_identity_page(wire: Wire, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(DISK)
    done = ata_response(0x40)
    with serving(wire, image, NO_PROBE, *OPTIONS), client(wire) as asking:
        epoch = shown_epoch(asking)

        def identity(changes: dict[int, int] | None = None) -> Step:
            return ata(IDENTIFY), ata_response(0x40, data=page(epoch | (changes or {})))

        request, whole = identity()
        for step, response in (
            (request, whole),
            (BROADCAST + request[6:16] + b"\xff\xff\xff" + request[19:], whole),
            (
                ata(IDENTIFY, 0xA000_0000, aflags=0),
                ata_response(0x40, lba=0xA000_0000, aflags=0, data=page(epoch)),
            ),
            (features(0x82), done),
            identity({85: 0x49}),
            (features(0x55), done),
            identity({85: 0x09}),
            (smart(0xD9), ata_response(0x40, lba=KEY)),
            identity({85: 0x08}),
            refused(smart(0xD0)),
            (smart(0xD8), ata_response(0x40, lba=KEY)),
            (features(0x02), done),
            (features(0xAA), done),
            identity(),
            (features(0x03, 0x22), done),
            identity({63: 0x0407, 88: 0x007F}),
            (features(0x03, 0x0C), done),
            identity({88: 0x007F}),
            (features(0x03, 0x46), done),
            refused(features(0x03, 0x47)),
            refused(features(0x05)),
            identity(),
        ):
            assert asking.ask(step) == response


def smart_page(*attributes: tuple[int, int]) -> bytes:
    whole = bytearray(512)
    whole[0:2] = b"\x10\0"
    for place, (number, raw) in enumerate(attributes):
        row = struct.pack("<BHBBQ", number, 0x0032, 100, 100, raw)[:11]
        whole[2 + 12 * place : 2 + 12 * place + 11] = row
    return sealed(whole)


@pytest.mark.usefixtures("engine")
def test_smart_data_counts_transfers(wire: Wire, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(DISK)
    before = smart_page((187, 0), (241, 0), (242, 0))
    after = smart_page((187, 1), (241, 3), (242, 2))
    with serving(wire, image, NO_PROBE), client(wire) as asking:
        for request, response in (
            (smart(0xD0), ata_response(0x40, lba=KEY, data=before)),
            disk(5, 2),
            (write(5, ONE), write_response(5)),
            (write(5, ONE * 2), write_response(5)),
            (mark_uncorrectable(9, 1), ata_response(0x40, lba=9)),
            refused(ata(0x24, 9), UNCORRECTABLE),
            (smart(0xD0), ata_response(0x40, lba=KEY, data=after)),
            (smart(0xDA), ata_response(0x40, lba=KEY)),
            refused(smart(0xD1)),
            refused(smart(0xD0, lba=0)),
        ):
            assert asking.ask(request) == response
