from __future__ import annotations

import errno
import os
from dataclasses import dataclass

import pytest

from aoe.identify import Identity
from target.disks.memory import MemoryDisk
from tests.asking import (
    SECTORS,
    ask,
    ata,
    ata_response,
    config,
    make_target,
    response_frame,
    sector,
)

pytestmark = pytest.mark.usefixtures("engine")

READ, READ_EXT, WRITE, WRITE_EXT = 0x20, 0x24, 0x30, 0x34
ABORTED = (0x41, 0x04)
NOT_FOUND = (0x41, 0x10)
FAULT = (0x61, 0x04)
UNCORRECTABLE = (0x41, 0x40)


@dataclass
class BadDisk:
    """A disk whose operations fail with an errno, or that only records its flushes."""

    number: int = 0
    size: int = SECTORS * 512
    read_only: bool = False
    flushes: int = 0

    def _fail(self) -> None:
        if self.number:
            raise OSError(self.number, os.strerror(self.number))

    def read_into(self, _offset: int, buffer: memoryview) -> None:
        # The buffer is half filled before the error.
        buffer[: len(buffer) // 2] = b"\xaa" * (len(buffer) // 2)
        self._fail()

    def write_from(self, _offset: int, _data: memoryview) -> None:
        self._fail()

    def discard(self, _offset: int, _length: int) -> None:
        self._fail()

    def flush(self) -> None:
        self._fail()
        self.flushes += 1

    def close(self) -> None:
        pass


@pytest.mark.parametrize("lba", [0, 1, 5, SECTORS - 2])
@pytest.mark.parametrize("count", [1, 2])
def test_read_ext_returns_registers_and_data_p21_p26_p35(lba: int, count: int) -> None:
    data = b"".join(sector(number) for number in range(lba, lba + count))
    response = ask(make_target(), ata(READ_EXT, lba, count))
    assert response == ata_response(0x40, lba=lba, data=data)
    assert len(response) == 36 + 512 * count


def test_read_masks_device_bits_p30() -> None:
    lba = 0xE000_0000 | 5
    response = ask(make_target(), ata(READ, lba, aflags=0))
    assert response == ata_response(0x40, lba=lba, aflags=0, data=sector(5))


def test_read_ignores_lba_bits_above_28_p31() -> None:
    lba = 0xFFFF_E000_0005
    response = ask(make_target(), ata(READ, lba, aflags=0))
    assert response == ata_response(0x40, lba=lba, aflags=0, data=sector(5))


@pytest.mark.parametrize(("opcode", "aflags"), [(READ_EXT, 0), (READ, 0x40)])
def test_opcode_or_flag_selects_48_bit_lba_p31(opcode: int, aflags: int) -> None:
    lba = 0xE000_0005
    response = ask(make_target(), ata(opcode, lba, aflags=aflags))
    assert response == ata_response(*NOT_FOUND, count=1, lba=lba, aflags=aflags)


def test_48_bit_lba_uses_all_six_bytes_p31() -> None:
    lba = 0x0100_0000_0005
    response = ask(make_target(), ata(READ_EXT, lba))
    assert response == ata_response(*NOT_FOUND, count=1, lba=lba)


@pytest.mark.parametrize("opcode", [WRITE, WRITE_EXT])
@pytest.mark.parametrize("count", [1, 2])
def test_write_stores_the_sectors_p34_p35(opcode: int, count: int) -> None:
    disk = MemoryDisk(SECTORS * 512)
    data = bytes(range(256)) * 2 * count
    request = ata(opcode, 7, count, aflags=0x01, data=data + b"trailing junk")
    response = ask(make_target(disk), request)
    assert response == ata_response(0x40, lba=7, aflags=0x01)
    assert len(response) == 60
    expected = bytes(7 * 512) + data
    assert disk.data == expected.ljust(SECTORS * 512, b"\0")


def test_async_flag_is_ignored_and_reserved_flags_are_cleared_p3_p42() -> None:
    request = ata(WRITE_EXT, aflags=0xFF, data=bytes(512))
    assert ask(make_target(), request) == ata_response(0x40, aflags=0x53)


def test_write_without_write_flag_is_aborted_p28() -> None:
    disk = MemoryDisk(SECTORS * 512)
    response = ask(make_target(disk), ata(WRITE_EXT, data=b"\xff" * 512))
    assert response == ata_response(*ABORTED, count=1)
    assert disk.data == bytes(SECTORS * 512)


@pytest.mark.parametrize("opcode", [READ, READ_EXT, 0xEC])
def test_read_with_write_flag_is_aborted_p28(opcode: int) -> None:
    response = ask(make_target(), ata(opcode, aflags=0x41, data=bytes(512)))
    assert response == ata_response(*ABORTED, count=1, aflags=0x41)


@pytest.mark.parametrize("opcode", [READ, READ_EXT, WRITE, WRITE_EXT])
@pytest.mark.parametrize("count", [0, 3, 255])
def test_zero_or_too_many_sectors_are_aborted_p36_p37(opcode: int, count: int) -> None:
    disk = MemoryDisk(SECTORS * 512)
    aflags = 0x41 if opcode in (WRITE, WRITE_EXT) else 0x40
    data = b"\xff" * 512 * count if aflags & 1 else b""
    request = ata(opcode, 0, count, aflags=aflags, data=data)
    response = ask(make_target(disk), request)
    assert response == ata_response(*ABORTED, count=count, aflags=aflags)
    assert disk.data == bytes(SECTORS * 512)


def test_transfer_above_the_advertised_count_is_served_if_it_fits_p22_p37() -> None:
    # At MTU 1560, 3 sectors fit after the Ethernet header, but only 2 by the usual
    # formula, which counts 14 bytes too many.
    target = make_target(mtu=1560)
    assert ask(target, config(0))[28] == 2
    data = sector(0) + sector(1) + sector(2)
    assert ask(target, ata(READ_EXT, 0, 3)) == ata_response(0x40, data=data)
    assert ask(target, ata(READ_EXT, 0, 4)) == ata_response(*ABORTED, count=4)


@pytest.mark.parametrize(("mtu", "sectors"), [(1500, 2), (4200, 8), (9000, 17)])
def test_sectors_per_frame_depend_on_mtu_p22(mtu: int, sectors: int) -> None:
    target = make_target(mtu=mtu)
    assert ask(target, ata(READ_EXT, 0, sectors))[36:] == b"".join(
        sector(number) for number in range(sectors)
    )


def test_sectors_per_frame_are_limited_by_the_count_field_p22() -> None:
    target = make_target(mtu=200_000)
    assert ask(target, config(0))[28] == 255
    assert len(ask(target, ata(READ_EXT, 0, 255))) == 36 + 255 * 512


@pytest.mark.parametrize(
    ("lba", "count"), [(SECTORS, 1), (SECTORS - 1, 2), (1 << 47, 1), ((1 << 48) - 1, 1)]
)
@pytest.mark.parametrize("opcode", [READ_EXT, WRITE_EXT])
def test_transfer_past_the_end_is_idnf_p38(opcode: int, lba: int, count: int) -> None:
    disk = MemoryDisk(SECTORS * 512)
    aflags = 0x41 if opcode == WRITE_EXT else 0x40
    data = b"\xff" * 512 * count if opcode == WRITE_EXT else b""
    request = ata(opcode, lba, count, aflags=aflags, data=data)
    response = ask(make_target(disk), request)
    assert response == ata_response(*NOT_FOUND, count=count, lba=lba, aflags=aflags)
    assert disk.data == bytes(SECTORS * 512)


def test_read_past_the_end_response_bytes_p32() -> None:
    response = ask(make_target(), ata(READ_EXT, 5000))
    assert response[24:36].hex(" ") == "40 10 01 41 88 13 00 00 00 00 00 00"


def test_write_with_too_little_data_does_not_change_the_disk_p39() -> None:
    disk = MemoryDisk(SECTORS * 512)
    for length in (0, 511, 1023):
        request = ata(WRITE_EXT, 0, 2, aflags=0x41, data=b"\xff" * length)
        response = ask(make_target(disk), request)
        assert response == ata_response(*ABORTED, count=2, aflags=0x41)
    assert disk.data == bytes(SECTORS * 512)


def test_write_to_a_read_only_disk_is_aborted_p40() -> None:
    disk = MemoryDisk(SECTORS * 512, read_only=True)
    response = ask(make_target(disk), ata(WRITE_EXT, aflags=0x41, data=b"\xff" * 512))
    assert response == ata_response(*ABORTED, count=1, aflags=0x41)
    assert disk.data == bytes(SECTORS * 512)
    assert ask(make_target(disk), ata(READ_EXT))[27] == 0x40


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.ESTALE])
def test_read_error_is_unc_p41(number: int) -> None:
    # The half that was read is not sent.
    target = make_target(BadDisk(number))
    assert ask(target, ata(READ_EXT, 4, 2)) == ata_response(
        *UNCORRECTABLE, count=2, lba=4
    )
    assert target.statistics().errors == {"uncorrectable": 1}
    assert target.statistics().reads == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_write_error_is_device_fault_p41(number: int) -> None:
    target = make_target(BadDisk(number))
    response = ask(target, ata(WRITE_EXT, 4, aflags=0x41, data=bytes(512)))
    assert response == ata_response(*FAULT, count=1, lba=4, aflags=0x41)
    assert target.statistics().errors == {"device_fault": 1}
    assert target.statistics().writes == 0


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENXIO])
@pytest.mark.parametrize("opcode", [READ_EXT, WRITE_EXT, 0xE7])
def test_missing_device_is_aoe_error_3_p41(number: int, opcode: int) -> None:
    aflags = 0x41 if opcode == WRITE_EXT else 0x40
    request = ata(opcode, 4, 1, aflags=aflags, data=b"\xff" * 512)
    response = ask(make_target(BadDisk(number)), request)
    # The response has the request's registers, and no data.
    assert response == response_frame(0, request[24:36], verfl=0x1C, error=3)


@pytest.mark.parametrize(("shelf", "slot"), [(0xFFFF, 3), (7, 0xFF), (0xFFFF, 0xFF)])
def test_broadcast_identify_and_read_are_served_and_write_is_aborted_p44(
    shelf: int, slot: int
) -> None:
    disk = MemoryDisk(SECTORS * 512)
    target = make_target(disk)
    request = ata(WRITE_EXT, aflags=0x41, data=b"\xff" * 512, shelf=shelf, slot=slot)
    assert ask(target, request) == ata_response(*ABORTED, count=1, aflags=0x41)
    assert disk.data == bytes(SECTORS * 512)
    page = ata_response(0x40, data=target.export.identity_page)
    assert ask(target, ata(0xEC, shelf=shelf, slot=slot)) == page
    data = ata_response(0x40, data=bytes(512))
    assert ask(target, ata(READ_EXT, shelf=shelf, slot=slot)) == data


def test_identify_returns_the_identity_page_p45() -> None:
    target = make_target()
    # aoeping and Linux set device bits, WinAoE sets the LBA48 flag.
    for lba, aflags in ((0xA000_0000, 0), (0, 0x40)):
        response = ask(target, ata(0xEC, lba, aflags=aflags))
        page = target.export.identity_page
        assert response == ata_response(0x40, lba=lba, aflags=aflags, data=page)
    identity = Identity.unpack(ask(target, ata(0xEC))[36:])
    assert (identity.sectors, identity.serial) == (SECTORS, "7.3")


@pytest.mark.parametrize("count", [0, 2, 255])
def test_identify_with_another_count_is_aborted_p45(count: int) -> None:
    response = ask(make_target(), ata(0xEC, count=count))
    assert response == ata_response(*ABORTED, count=count)


@pytest.mark.parametrize("opcode", [0xE7, 0xEA])
@pytest.mark.parametrize("count", [0, 1])
def test_flush_flushes_the_disk_before_the_response_p46(
    opcode: int, count: int
) -> None:
    disk = BadDisk()
    assert ask(make_target(disk), ata(opcode, count=count)) == ata_response(0x40)
    assert disk.flushes == 1


@pytest.mark.parametrize("opcode", [0xE7, 0xEA])
def test_failed_flush_is_device_fault_p46(opcode: int) -> None:
    target = make_target(BadDisk(errno.EIO))
    assert ask(target, ata(opcode, count=0)) == ata_response(*FAULT)
    assert target.statistics().flushes == 0


@pytest.mark.parametrize("count", [0, 1])
def test_check_power_mode_returns_active_p47(count: int) -> None:
    response = ask(make_target(), ata(0xE5, count=count, aflags=0))
    assert response == ata_response(0x40, count=0xFF, aflags=0)


@pytest.mark.parametrize(
    "opcode", [0x00, 0x06, 0x2F, 0x3D, 0x45, 0x60, 0xB0, 0xB1, 0xC4, 0xCE, 0xEF, 0xFF]
)
def test_unknown_opcode_is_aborted_without_aoe_error_p14_p43(opcode: int) -> None:
    request = ata(opcode, 0x4F, 9, feature=0xD0, data=b"\xff" * 512)
    assert ask(make_target(), request) == ata_response(*ABORTED, count=9, lba=0x4F)
