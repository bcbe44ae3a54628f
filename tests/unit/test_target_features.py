"""ATA commands other than READ and WRITE: all features of the identity page."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from aoe.address import Address
from aoe.errors import UsageError
from aoe.identify import FeatureSet, Identity
from target.disks.memory import MemoryDisk
from target.protocol.exports import ClientState, Export
from tests.asking import (
    SECTORS,
    ask,
    ata,
    ata_response,
    make_target,
    sector,
    serve,
)

if TYPE_CHECKING:
    from target.protocol.engine import Engine

pytestmark = pytest.mark.usefixtures("engine")

TRIM, VERIFY, VERIFY_EXT, WRITE_UNCORRECTABLE, SMART, FEATURES = (
    0x06,
    0x40,
    0x42,
    0x45,
    0xB0,
    0xEF,
)
KEY = 0xC24F00
ABORTED, NOT_FOUND = (0x41, 0x04), (0x41, 0x10)
UNCORRECTABLE, FAULT = (0x41, 0x40), (0x61, 0x04)
DATA = b"\xa5" * 512


@dataclass
class RecordingDisk:
    """A disk that records its calls in order, some of which may fail."""

    size: int = SECTORS * 512
    read_only: bool = False
    failing: str = ""
    calls: list[str] = field(default_factory=list)

    def _record(self, name: str) -> None:
        if name == self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.calls.append(name)

    def read_into(self, _offset: int, buffer: memoryview) -> None:
        self._record("read")
        buffer[:] = bytes(len(buffer))

    def write_from(self, _offset: int, _data: memoryview) -> None:
        self._record("write")

    def flush(self) -> None:
        self._record("flush")

    def discard(self, _offset: int, _length: int) -> None:
        self._record("discard")

    def close(self) -> None:
        pass


def target_of(
    disk: RecordingDisk | None = None, state: ClientState | None = None, *, sync: bool
) -> Engine:
    export = Export(Address(7, 3), disk or RecordingDisk(), state=state, sync=sync)
    return serve(export)


def identity(target: Engine) -> Identity:
    return Identity.unpack(ask(target, ata(0xEC))[36:])


def words(target: Engine) -> tuple[int, ...]:
    return struct.unpack("<256H", ask(target, ata(0xEC))[36:])


def features(target: Engine, feature: int, count: int = 0) -> bytes:
    return ask(target, ata(FEATURES, count=count, feature=feature))


def smart(target: Engine, feature: int, lba: int = KEY) -> bytes:
    return ask(target, ata(SMART, lba, 1, feature=feature))


def ranges(*those: tuple[int, int]) -> bytes:
    block = b"".join(struct.pack("<Q", lba | count << 48) for lba, count in those)
    return block.ljust(512, b"\0")


# Other ways to read and write.


@pytest.mark.parametrize(("opcode", "aflags"), [(0xC8, 0), (0x25, 0x40), (0x25, 0)])
def test_read_dma(opcode: int, aflags: int) -> None:
    response = ask(make_target(), ata(opcode, 5, 2, aflags=aflags))
    data = sector(5) + sector(6)
    assert response == ata_response(0x40, lba=5, aflags=aflags, data=data)


def test_only_ext_opcodes_imply_48_bit_lba_p31() -> None:
    lba = 0xE000_0005
    response = ask(make_target(), ata(0xC8, lba, aflags=0))
    assert response == ata_response(0x40, lba=lba, aflags=0, data=sector(5))
    response = ask(make_target(), ata(0x25, lba, aflags=0))
    assert response == ata_response(*NOT_FOUND, count=1, lba=lba, aflags=0)


@pytest.mark.parametrize("opcode", [0xCA, 0x35, 0x3D])
def test_write_dma(opcode: int) -> None:
    target = make_target()
    response = ask(target, ata(opcode, 7, aflags=0x01, data=DATA))
    assert response == ata_response(0x40, lba=7, aflags=0x01)
    assert ask(target, ata(0x24, 7))[36:] == DATA


def test_fua_write_is_flushed_before_the_response() -> None:
    disk = RecordingDisk()
    ask(target_of(disk, sync=False), ata(0x35, aflags=0x41, data=DATA))
    assert disk.calls == ["write"]
    ask(target_of(disk, sync=False), ata(0x3D, aflags=0x41, data=DATA))
    assert disk.calls == ["write", "write", "flush"]


def test_fua_write_with_failed_flush_is_device_fault() -> None:
    target = target_of(RecordingDisk(failing="flush"), sync=False)
    response = ask(target, ata(0x3D, aflags=0x41, data=DATA))
    assert response == ata_response(*FAULT, count=1, aflags=0x41)


def test_fua_write_does_not_flush_a_sync_disk() -> None:
    disk = RecordingDisk()
    target = target_of(disk, ClientState(write_cache=False), sync=True)
    ask(target, ata(0x3D, aflags=0x41, data=DATA))
    ask(target, ata(0x34, aflags=0x41, data=DATA))
    assert disk.calls == ["write", "write"]


@pytest.mark.parametrize("opcode", [VERIFY, VERIFY_EXT])
@pytest.mark.parametrize("count", [1, 3, 255])
def test_verify_reads_and_returns_no_data(opcode: int, count: int) -> None:
    disk = RecordingDisk()
    response = ask(target_of(disk, sync=False), ata(opcode, 4, count))
    assert response == ata_response(0x40, lba=4)
    assert disk.calls == ["read"]


@pytest.mark.parametrize("opcode", [VERIFY, VERIFY_EXT])
def test_verify_reports_unreadable_sectors_p38_p41(opcode: int) -> None:
    target = target_of(RecordingDisk(failing="read"), sync=False)
    assert ask(target, ata(opcode, 4)) == ata_response(*UNCORRECTABLE, count=1, lba=4)
    last = SECTORS - 1
    beyond = ata_response(*NOT_FOUND, count=2, lba=last)
    assert ask(target, ata(opcode, last, 2)) == beyond
    assert ask(target, ata(opcode, count=0)) == ata_response(*ABORTED)


# Sectors that cannot be read.


@pytest.mark.parametrize("opcode", [0x20, 0x24, 0xC8, 0x25, VERIFY, VERIFY_EXT])
def test_uncorrectable_sectors_fail_until_they_are_written(opcode: int) -> None:
    target = make_target()
    response = ask(target, ata(WRITE_UNCORRECTABLE, 10, 2, feature=0x55))
    assert response == ata_response(0x40, lba=10)
    for lba, count in ((10, 1), (11, 1), (9, 2), (11, 2)):
        failed = ata_response(*UNCORRECTABLE, count=count, lba=lba)
        assert ask(target, ata(opcode, lba, count)) == failed
    assert ask(target, ata(opcode, 9))[27] == 0x40
    assert ask(target, ata(opcode, 12))[27] == 0x40
    ask(target, ata(0x34, 11, aflags=0x41, data=DATA))
    assert ask(target, ata(opcode, 11))[27] == 0x40
    assert ask(target, ata(opcode, 10))[24:28] == b"\x40\x40\x01\x41"


@pytest.mark.parametrize("feature", [0, 1, 0xFF])
def test_write_uncorrectable_with_unknown_feature_is_aborted(feature: int) -> None:
    response = ask(make_target(), ata(WRITE_UNCORRECTABLE, feature=feature))
    assert response == ata_response(*ABORTED, count=1)


def test_write_uncorrectable_checks_bounds_and_limit() -> None:
    target = make_target(RecordingDisk(size=1 << 30))
    end = (1 << 30) // 512
    assert (
        ask(target, ata(WRITE_UNCORRECTABLE, end, feature=0x55))[25:28]
        == b"\x10\x01\x41"
    )
    for lba in range(0, 257 * 255, 255):
        assert ask(target, ata(WRITE_UNCORRECTABLE, lba, 255, feature=0x55))[27] == 0x40
    assert ask(target, ata(WRITE_UNCORRECTABLE, 1 << 18, 255, feature=0x55))[27] == 0x41
    assert len(target.export.uncorrectable) == 257 * 255


# TRIM.


def test_trimmed_sectors_read_as_zeros() -> None:
    target = make_target()
    payload = ranges((3, 2), (0, 0), (100, 60), (SECTORS - 1, 1))
    request = ata(TRIM, aflags=0x41, feature=1, data=payload)
    assert ask(target, request) == ata_response(0x40, aflags=0x41)
    gone = {3, 4, *range(100, 160), SECTORS - 1}
    for number in range(SECTORS):
        expected = bytes(512) if number in gone else sector(number)
        assert ask(target, ata(0x24, number))[36:] == expected


def test_trim_with_several_blocks() -> None:
    target = make_target()
    payload = ranges((3, 1)) + ranges((5, 1))
    ask(target, ata(TRIM, count=2, aflags=0x41, feature=1, data=payload))
    assert ask(target, ata(0x24, 5))[36:] == bytes(512)


@pytest.mark.parametrize("beyond", [(SECTORS, 1), (SECTORS - 1, 2), (2**48 - 1, 65535)])
def test_trim_past_the_end_trims_nothing_p38(beyond: tuple[int, int]) -> None:
    disk = RecordingDisk()
    payload = ranges((0, 8), beyond)
    request = ata(TRIM, aflags=0x41, feature=1, data=payload)
    response = ask(target_of(disk, sync=False), request)
    assert response == ata_response(*NOT_FOUND, count=1, aflags=0x41)
    assert disk.calls == []


@pytest.mark.parametrize(
    "request_",
    [
        ata(TRIM, aflags=0x40, feature=1, data=ranges((0, 8))),
        ata(TRIM, aflags=0x41, feature=0, data=ranges((0, 8))),
        ata(TRIM, aflags=0x41, feature=1, data=ranges((0, 8))[:511]),
        ata(TRIM, count=0, aflags=0x41, feature=1, data=ranges((0, 8))),
        ata(TRIM, count=3, aflags=0x41, feature=1, data=ranges((0, 8)) * 3),
    ],
)
def test_malformed_trim_is_aborted(request_: bytes) -> None:
    disk = RecordingDisk()
    assert ask(target_of(disk, sync=False), request_)[25:28:2] == b"\x04\x41"
    assert disk.calls == []


def test_failed_trim_is_device_fault_p41() -> None:
    target = target_of(RecordingDisk(failing="discard"), sync=False)
    request = ata(TRIM, aflags=0x41, feature=1, data=ranges((0, 8)))
    assert ask(target, request) == ata_response(*FAULT, count=1, aflags=0x41)


def test_trim_clears_uncorrectable_sectors() -> None:
    target = make_target()
    ask(target, ata(WRITE_UNCORRECTABLE, 3, 2, feature=0x55))
    ask(target, ata(TRIM, aflags=0x41, feature=1, data=ranges((4, 1))))
    assert ask(target, ata(0x24, 4))[36:] == bytes(512)
    assert ask(target, ata(0x24, 3))[25] == 0x40


@pytest.mark.parametrize("address", [{}, {"shelf": 0xFFFF}, {"slot": 0xFF}])
@pytest.mark.parametrize("opcode", [TRIM, WRITE_UNCORRECTABLE, 0x3D, 0x35, 0xCA])
def test_changes_of_a_read_only_disk_or_by_broadcast_are_aborted_p40_p44(
    opcode: int, address: dict[str, int]
) -> None:
    disk = MemoryDisk(SECTORS * 512, read_only=not address)
    target = make_target(disk)
    feature = 0x55 if opcode == WRITE_UNCORRECTABLE else 1
    data = ranges((0, 8))
    request = ata(opcode, aflags=0x41, feature=feature, data=data, **address)
    assert ask(target, request) == ata_response(*ABORTED, count=1, aflags=0x41)
    assert disk.data == bytes(SECTORS * 512)
    assert not target.export.uncorrectable


# SET FEATURES and power.


def test_write_cache_is_enabled_by_default() -> None:
    disk = RecordingDisk()
    target = target_of(disk, sync=False)
    assert FeatureSet.WRITE_CACHE in identity(target).enabled
    ask(target, ata(0x34, aflags=0x41, data=DATA))
    assert disk.calls == ["write"]


def test_disabling_the_write_cache_flushes_and_makes_writes_stable() -> None:
    disk = RecordingDisk()
    target = target_of(disk, sync=False)
    assert features(target, 0x82) == ata_response(0x40)
    assert disk.calls == ["flush"]
    assert words(target)[82] & 0x20
    assert not words(target)[85] & 0x20
    ask(target, ata(0x34, aflags=0x41, data=DATA))
    ask(target, ata(TRIM, aflags=0x41, feature=1, data=ranges((0, 1))))
    assert disk.calls[1:] == ["write", "flush", "discard", "flush"]
    assert features(target, 0x02) == ata_response(0x40)
    assert words(target)[85] & 0x20
    ask(target, ata(0x34, aflags=0x41, data=DATA))
    assert disk.calls[5:] == ["write"]


def test_uncached_write_with_failed_flush_is_device_fault() -> None:
    state = ClientState(write_cache=False)
    target = target_of(RecordingDisk(failing="flush"), state, sync=False)
    response = ask(target, ata(0x34, aflags=0x41, data=DATA))
    assert response == ata_response(*FAULT, count=1, aflags=0x41)
    assert target.statistics().writes == 0


def test_write_cache_setting_is_persistent() -> None:
    target = target_of(sync=False)
    saved: list[ClientState] = []
    target.export.on_change = saved.append
    features(target, 0x82)
    again = target_of(state=saved[-1], sync=False)
    assert FeatureSet.WRITE_CACHE not in identity(again).enabled


@pytest.mark.parametrize(("feature", "enabled"), [(None, False), (0x02, True)])
def test_sync_disk_reports_a_write_cache_only_if_a_client_enables_it(
    feature: int | None, *, enabled: bool
) -> None:
    disk = RecordingDisk()
    target = target_of(disk, sync=True)
    if feature:
        features(target, feature)
    assert (FeatureSet.WRITE_CACHE in identity(target).enabled) is enabled
    ask(target, ata(0x34, aflags=0x41, data=DATA))
    assert disk.calls == ["write"]


def test_look_ahead_can_be_disabled_and_enabled() -> None:
    target = make_target()
    for feature, bit in ((0x55, 0), (0xAA, 0x40)):
        assert features(target, feature) == ata_response(0x40)
        assert words(target)[82] & 0x40
        assert words(target)[85] & 0x40 == bit


@pytest.mark.parametrize(
    ("mode", "multiword", "ultra"),
    [(0x46, 0, 0x40), (0x40, 0, 0x01), (0x22, 4, 0), (0x0C, 0, 0), (0x00, 0, 0)],
)
def test_a_transfer_mode_can_be_selected(mode: int, multiword: int, ultra: int) -> None:
    target = make_target()
    assert words(target)[88] == 0x407F
    assert features(target, 0x03, count=mode) == ata_response(0x40)
    assert words(target)[63] == multiword << 8 | 0x07
    assert words(target)[88] == ultra << 8 | 0x7F


@pytest.mark.parametrize(
    ("feature", "count"), [(0x03, 0x47), (0x03, 0x23), (0x03, 0x10), (0x05, 0), (0, 0)]
)
def test_unknown_features_are_aborted(feature: int, count: int) -> None:
    target = make_target()
    before = target.export.identity_page
    assert features(target, feature, count) == ata_response(*ABORTED, count=count)
    assert target.export.identity_page == before


@pytest.mark.parametrize("opcode", [0xE0, 0xE2, 0xE6])
@pytest.mark.parametrize("count", [0, 241])
def test_standby_and_sleep_flush_the_disk(opcode: int, count: int) -> None:
    disk = RecordingDisk()
    target = target_of(disk, sync=False)
    assert ask(target, ata(opcode, count=count)) == ata_response(0x40)
    assert disk.calls == ["flush"]
    assert ask(target, ata(0x24))[27] == 0x40
    assert ask(target, ata(0xE5, count=0)) == ata_response(0x40, count=0xFF)


@pytest.mark.parametrize("opcode", [0xE1, 0xE3])
def test_idle_does_nothing(opcode: int) -> None:
    assert ask(make_target(), ata(opcode, count=9)) == ata_response(0x40)


# SMART.


def attributes(page: bytes) -> dict[int, int]:
    rows = struct.iter_unpack("<BHBB6sx", page[2:362])
    return {row[0]: int.from_bytes(row[4], "little") for row in rows if row[0]}


def test_smart_data_has_the_counters_of_the_interface() -> None:
    target = make_target()
    ask(target, ata(0x24, 0, 2))
    ask(target, ata(0x34, aflags=0x41, data=DATA))
    ask(target, ata(WRITE_UNCORRECTABLE, 9, feature=0x55))
    ask(target, ata(0x24, 9))
    response = smart(target, 0xD0)
    assert response == ata_response(0x40, lba=KEY, data=response[36:])
    assert attributes(response[36:]) == {187: 1, 241: 1, 242: 2}
    assert len(response) == 548
    assert sum(response[36:]) % 256 == 0


def test_smart_status_is_good_p26() -> None:
    response = smart(make_target(), 0xDA)
    assert response == ata_response(0x40, lba=KEY)
    assert response[29:31] == b"\x4f\xc2"


def test_smart_can_be_disabled_and_enabled() -> None:
    target = make_target()
    assert smart(target, 0xD9) == ata_response(0x40, lba=KEY)
    assert words(target)[82] & 1
    assert not words(target)[85] & 1
    for feature in (0xD0, 0xDA, 0xD9):
        assert smart(target, feature) == ata_response(*ABORTED, count=1, lba=KEY)
    assert smart(target, 0xD8) == ata_response(0x40, lba=KEY)
    assert words(target)[85] & 1
    assert smart(target, 0xDA)[27] == 0x40


@pytest.mark.parametrize("feature", [0x00, 0xD1, 0xD4, 0xD5, 0xD6])
def test_unknown_smart_features_are_aborted(feature: int) -> None:
    response = smart(make_target(), feature)
    assert response == ata_response(*ABORTED, count=1, lba=KEY)


@pytest.mark.parametrize("lba", [0, 0x4FC200, 0xC200, 0x4F00])
def test_smart_without_its_key_is_aborted(lba: int) -> None:
    response = smart(make_target(), 0xD0, lba)
    assert response == ata_response(*ABORTED, count=1, lba=lba)


# The identity page.


def test_p82_reported_feature_sets_are_supported_and_enabled() -> None:
    page = identity(make_target())
    everything = FeatureSet(0)
    for feature_set in FeatureSet:
        everything |= feature_set
    assert page.feature_sets == everything
    assert page.enabled == everything & ~(FeatureSet.DMA | FeatureSet.TRIM)


def test_p82_read_only_disk_reports_no_write_commands() -> None:
    page = identity(make_target(MemoryDisk(512, read_only=True)))
    assert not page.feature_sets & (FeatureSet.TRIM | FeatureSet.UNCORRECTABLE)
    assert not page.enabled & FeatureSet.UNCORRECTABLE


def test_p82_identity_page_words() -> None:
    found = words(make_target())
    expected = {49: 0x0B00, 53: 7, 63: 7, 64: 3, 65: 120, 68: 120, 69: 0x4020}
    expected |= {82: 0x69, 83: 0x7400, 84: 0x4100, 85: 0x69, 86: 0xB400, 87: 0x4100}
    expected |= {88: 0x407F, 105: 1, 106: 0, 119: 0x4004, 120: 0x4004, 169: 1, 217: 1}
    assert {index: found[index] for index in expected} == expected


def test_p82_wwn_is_unique_and_stable() -> None:
    def name(slot: int, serial: str, wwn: int = 0) -> int:
        given = Identity(0, serial=serial, wwn=wwn)
        return Export(Address(7, slot), RecordingDisk(), identity=given).identity.wwn

    assert name(3, "S1") == name(3, "S1")
    assert len({name(3, "S1"), name(4, "S1"), name(3, "S2")}) == 3
    assert name(3, "S1") >> 60 == 3
    assert name(3, "S1", wwn=0x5000_1234) == 0x5000_1234


def test_client_state_limits() -> None:
    with pytest.raises(UsageError, match="config string: 1025 bytes are too long"):
        ClientState(bytes(1025))
