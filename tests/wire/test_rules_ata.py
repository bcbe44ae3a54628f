"""Rules of ATA commands (P26-P40, P42-P47), byte for byte on a real wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.asking import SECTORS, ata, ata_response, sector
from tests.rules import (
    ABORTED,
    AWAKE,
    BROADCAST,
    DISK,
    NOT_FOUND,
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

pytestmark = pytest.mark.netns

READS, VERIFIES = (0x20, 0x24, 0xC8, 0x25), (0x40, 0x42)
SHORT_WRITES, LONG_WRITES = (0x30, 0xCA), (0x34, 0x35, 0x3D)
WRITES = SHORT_WRITES + LONG_WRITES
TRIM, WRITE_UNCORRECTABLE, IDENTIFY, POWER = 0x06, 0x45, 0xEC, 0xE5
KNOWN = {*READS, *VERIFIES, *WRITES, TRIM, WRITE_UNCORRECTABLE, IDENTIFY, POWER}
KNOWN |= {0xB0, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6, 0xE7, 0xEA, 0xEF}
ONE, TWO = b"\xa5" * 512, bytes(range(256)) * 4
LAST = SECTORS - 1
HALVES = ((0xFFFF, 3), (7, 0xFF), (0xFFFF, 0xFF))
UNTOUCHED = read_back(5, DISK[2560:3584])


def to_all(request: bytes, shelf: int, slot: int) -> bytes:
    address = shelf.to_bytes(2, "big") + bytes((slot,))
    return BROADCAST + request[6:16] + address + request[19:]


RULES: dict[str, list[Step]] = {
    "p26 p27 data goes in one direction": [
        (write(9, ONE), write_response(9)),
        (ata(0x24, 9), ata_response(0x40, lba=9, data=ONE)),
        AWAKE,
    ],
    "p28 write flag must match the direction": [
        *(refused(ata(opcode, 5, data=ONE)) for opcode in WRITES),
        *(refused(ata(opcode, 5, aflags=0x41)) for opcode in READS + VERIFIES),
        *(refused(ata(opcode, 5, aflags=0x41, data=ONE)) for opcode in READS),
        refused(ata(IDENTIFY, aflags=0x41, data=ONE)),
        UNTOUCHED,
    ],
    "p29 a command is in one frame": [
        *(
            (ata(opcode, 5, 2), ata_response(0x40, lba=5, data=DISK[2560:3584]))
            for opcode in READS
        ),
        *(refused(ata(opcode, 5, 3)) for opcode in READS),
        *(refused(ata(opcode, 5, 3, aflags=0x41, data=TWO)) for opcode in WRITES),
        UNTOUCHED,
    ],
    "p30 lba0 is the lowest byte, and lba3 has device bits": [
        *(
            (
                ata(opcode, device << 24 | 0x0102, aflags=aflags),
                ata_response(
                    0x40, lba=device << 24 | 0x0102, aflags=aflags, data=sector(0x102)
                ),
            )
            for opcode in (0x20, 0xC8)
            for device in (0x00, 0xA0, 0xE0, 0xF0)
            for aflags in (0x00, 0x10)
        ),
    ],
    "p30 28-bit writes": [
        step
        for place, opcode in enumerate(SHORT_WRITES)
        for lba in [0xE000_0000 | place]
        for step in (
            (write(lba, ONE, opcode, 0x01), write_response(lba, 0x01)),
            read_back(place, ONE),
        )
    ],
    "p31 opcode or flag selects 48-bit lba": [
        *(
            refused(ata(opcode, 0xE000_0005, aflags=0), NOT_FOUND)
            for opcode in (0x24, 0x25, 0x42)
        ),
        *(
            refused(ata(opcode, 0xE000_0005, aflags=0x40), NOT_FOUND)
            for opcode in (0x20, 0xC8, 0x40)
        ),
        *(
            refused(write(0xE000_0005, ONE, opcode, 0x01), NOT_FOUND)
            for opcode in LONG_WRITES
        ),
        *(refused(ata(opcode, 0x0100_0000_0005), NOT_FOUND) for opcode in READS),
        (
            ata(0x20, 0xFFFF_E000_0005, aflags=0),
            ata_response(0x40, lba=0xFFFF_E000_0005, aflags=0, data=sector(5)),
        ),
        UNTOUCHED,
    ],
    "p32 p33 failure has status, error and no data": [
        refused(ata(0x24, SECTORS, 2), NOT_FOUND),
        refused(write(SECTORS, TWO), NOT_FOUND),
        refused(ata(0x24, 5, 9), ABORTED),
        refused(ata(0x99, 0x0605_0403_0201, 7), ABORTED),
    ],
    "p33 p35 success has status, count 0 and the lba": [
        *(
            (ata(opcode, 5, 2), ata_response(0x40, lba=5, data=DISK[2560:3584]))
            for opcode in READS
        ),
        *(
            (ata(opcode, 5, count), ata_response(0x40, lba=5))
            for opcode in VERIFIES
            for count in (1, 2, 3, 255)
        ),
        *((write(5, TWO, opcode), write_response(5)) for opcode in WRITES),
        read_back(5, TWO),
    ],
    "p34 response to a write has no data": [
        (write(5, ONE), ata_response(0x40, lba=5, aflags=0x41)[:60]),
        (ata(0xE7, count=0, data=ONE), ata_response(0x40)),
    ],
    "p36 count 0 does not mean 256": [
        *(refused(ata(opcode, 5, 0)) for opcode in READS + VERIFIES),
        *(refused(ata(opcode, 5, 0, aflags=0x41, data=TWO)) for opcode in WRITES),
        *((ata(op, count=0), ata_response(0x40)) for op in (0xE7, 0xEA, 0xE1, 0xE3)),
        AWAKE,
        UNTOUCHED,
    ],
    "p37 more sectors than fit in a frame": [
        *(refused(ata(opcode, 5, n)) for opcode in READS for n in (3, 127, 255)),
        *(
            refused(ata(opcode, 5, count, aflags=0x41, data=TWO))
            for opcode in WRITES
            for count in (3, 127, 255)
        ),
        UNTOUCHED,
    ],
    "p38 past the end, also in part": [
        *(
            refused(ata(opcode, lba, count), NOT_FOUND)
            for opcode in (0x24, 0x25, 0x42)
            for lba, count in ((SECTORS, 1), (LAST, 2), (1 << 47, 1), (2**48 - 1, 1))
        ),
        *(
            refused(ata(opcode, lba, count, aflags=0), NOT_FOUND)
            for opcode in (0x20, 0xC8, 0x40)
            for lba, count in ((SECTORS, 1), (LAST, 2), (0x0FFF_FFFF, 1))
        ),
        *(
            refused(write(lba, data, opcode), NOT_FOUND)
            for opcode in WRITES
            for lba, data in ((SECTORS, ONE), (LAST, TWO), (2**48 - 1, ONE))
        ),
        read_back(LAST, sector(LAST)),
    ],
    "p39 write with too little data": [
        *(
            refused(ata(opcode, 5, count, aflags=0x41, data=TWO[:length]))
            for opcode in WRITES
            for count, length in ((1, 0), (1, 24), (1, 511), (2, 512), (2, 1023))
        ),
        UNTOUCHED,
    ],
    "p42 async flag is copied and ignored": [
        (write(5, ONE, aflags=0x43), write_response(5, aflags=0x43)),
        (ata(0x24, 5, aflags=0x42), ata_response(0x40, lba=5, aflags=0x42, data=ONE)),
        (ata(0xE7, count=0, aflags=0x42), ata_response(0x40, aflags=0x42)),
    ],
    "p43 unknown opcodes are aborted": [
        refused(ata(opcode, 0x4F, 9, feature=0xD0, data=ONE))
        for opcode in range(256)
        if opcode not in KNOWN
    ],
    "p44 broadcast writes are aborted": [
        *(
            refused(to_all(request, *address))
            for address in HALVES
            for request in (
                *(write(5, TWO, opcode) for opcode in WRITES),
                trim((5, 2)),
                ata(WRITE_UNCORRECTABLE, 5, 2, feature=0x55),
            )
        ),
        UNTOUCHED,
    ],
    "p44 broadcast read, flush and power mode are served": [
        (to_all(request, *address), response)
        for address in HALVES
        for request, response in (
            UNTOUCHED,
            AWAKE,
            (ata(0xE7, count=0), ata_response(0x40)),
        )
    ],
    "p44 a broadcast mac address is not a broadcast address": [
        (BROADCAST + write(5, TWO)[6:], write_response(5)),
        read_back(5, TWO),
    ],
    "p45 identity page is one sector": [
        refused(ata(IDENTIFY, count=count, aflags=aflags))
        for count in (0, 2, 255)
        for aflags in (0, 0x40)
    ],
    "p46 flushes": [
        (ata(opcode, count=count, aflags=aflags), ata_response(0x40, aflags=aflags))
        for opcode in (0xE7, 0xEA)
        for count in (0, 1)
        for aflags in (0x00, 0x40)
    ],
    "p47 power mode is active": [
        (ata(POWER, count=n, aflags=0), ata_response(0x40, count=0xFF, aflags=0))
        for n in (0, 1, 255)
    ],
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(clients: Clients, rule: str) -> None:
    clients.run_steps(RULES[rule])


@pytest.mark.usefixtures("engine")
def test_p40_read_only_disk(wire: Wire, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(DISK)
    with serving(wire, image, NO_PROBE, "--read-only"), client(wire) as asking:
        for request, response in (
            *(refused(write(5, TWO, opcode)) for opcode in WRITES),
            refused(trim((5, 2))),
            refused(ata(WRITE_UNCORRECTABLE, 5, 2, feature=0x55)),
            UNTOUCHED,
            (ata(0xE7, count=0), ata_response(0x40)),
        ):
            assert asking.ask(request) == response
    assert image.read_bytes() == DISK
