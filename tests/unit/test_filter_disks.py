from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from target.disks.memory import MemoryDisk
from tests.asking import ata, ata_response, response_frame, sector
from tests.filtering import FilterRig, ask

if TYPE_CHECKING:
    from target.disks import Disk

READ, WRITE, FLUSH, TRIM = 0x24, 0x34, 0xEA, 0x06
WRITING = 0x41


def write(lba: int = 0, data: bytes = b"\x77" * 512) -> bytes:
    return ata(WRITE, lba, aflags=WRITING, data=data)


def trim(lba: int = 0, count: int = 1) -> bytes:
    entry = (count << 48 | lba).to_bytes(8, "little")
    return ata(TRIM, aflags=WRITING, feature=1, data=entry.ljust(512, b"\0"))


REQUESTS = {
    "read": ata(READ, 5),
    "write": write(5),
    "flush": ata(FLUSH, count=0),
    "discard": trim(5),
}
ECHOED = {
    "read": (1, 5, 0x40),
    "write": (1, 5, WRITING),
    "flush": (0, 0, 0x40),
    "discard": (1, 0, WRITING),
}
"""Count, LBA and flags, which the response to a failed request echoes."""


def failed(call: str, status: int, error: int) -> bytes:
    count, lba, aflags = ECHOED[call]
    return ata_response(status, error, count=count, lba=lba, aflags=aflags)


@pytest.mark.parametrize("on", REQUESTS)
def test_error_affects_only_the_selected_calls_p41(on: str) -> None:
    target = FilterRig(f"error:on={on}").target()
    for call, request in REQUESTS.items():
        response = ask(target, request)
        if call != on:
            assert response[27] == 0x40
        elif call == "read":
            assert response == failed(call, 0x41, 0x40)
        else:
            assert response == failed(call, 0x61, 0x04)


@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EROFS"])
def test_any_errno_of_a_write_is_device_fault_p41(name: str) -> None:
    target = FilterRig(f"error:on=write,errno={name}").target()
    assert ask(target, write(5)) == failed("write", 0x61, 0x04)
    assert ask(target, ata(READ, 5))[36:] == sector(5)


@pytest.mark.parametrize("name", ["ENODEV", "ENXIO"])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_missing_device_is_aoe_error_3_p41(name: str, request_: bytes) -> None:
    target = FilterRig(f"error:errno={name}").target()
    expected = response_frame(0, request_[24:36], verfl=0x1C, error=3)
    assert ask(target, request_) == expected


def test_count_and_after() -> None:
    target = FilterRig("error:on=read,after=2,count=3").target()
    statuses = [ask(target, ata(READ))[27] for _ in range(8)]
    assert statuses == [0x40, 0x40, 0x41, 0x41, 0x41, 0x40, 0x40, 0x40]


def test_filter_is_enabled_while_its_file_exists() -> None:
    rig = FilterRig("error:on=read,file=/run/fail")
    target = rig.target()
    assert ask(target, ata(READ))[27] == 0x40
    rig.files.add("/run/fail")
    assert ask(target, ata(READ))[27] == 0x41
    rig.files.remove("/run/fail")
    assert ask(target, ata(READ))[27] == 0x40


def test_seed_makes_errors_reproducible() -> None:
    def run(seed: int) -> list[int]:
        target = FilterRig(f"error:probability=0.5,seed={seed}").target()
        return [ask(target, ata(READ))[27] for _ in range(64)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert {0x40, 0x41} == set(run(1))


def bits_between(a: bytes, b: bytes) -> int:
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))


def test_corrupt_read_flips_one_bit_and_leaves_the_disk() -> None:
    disk = MemoryDisk(bytes(1 << 20))
    target = FilterRig("corrupt:seed=1").target(disk)
    responses = {ask(target, ata(READ, 8, 2)) for _ in range(8)}
    assert len(responses) > 1
    for response in responses:
        assert response[:36] == ata_response(0x40, lba=8)[:36]
        assert bits_between(response[36:], bytes(1024)) == 1
    assert disk.data == bytes(1 << 20)


def test_corrupt_write_flips_one_bit_on_the_disk() -> None:
    disk = MemoryDisk(bytes(1 << 20))
    target = FilterRig("corrupt:on=write,count=1").target(disk)
    data = b"\x5a" * 512
    assert ask(target, write(3, data)) == ata_response(0x40, lba=3, aflags=WRITING)
    stored = ask(target, ata(READ, 3))[36:]
    assert bits_between(stored, data) == 1
    ask(target, write(3, data))
    assert ask(target, ata(READ, 3))[36:] == data


def test_readonly_refuses_changes_and_serves_reads_p40() -> None:
    target = FilterRig("readonly").target()
    assert ask(target, write(5)) == failed("write", 0x41, 0x04)
    assert ask(target, trim(5)) == failed("discard", 0x41, 0x04)
    assert ask(target, REQUESTS["flush"])[27] == 0x40
    assert ask(target, ata(READ, 5))[36:] == sector(5)


def test_readonly_follows_its_trigger_file_p40() -> None:
    rig = FilterRig("readonly:file=/run/ro")
    target = rig.target()
    assert ask(target, write(5))[27] == 0x40
    rig.files.add("/run/ro")
    assert ask(target, write(5))[27] == 0x41
    rig.files.clear()
    assert ask(target, write(5))[27] == 0x40


def test_read_only_disk_stays_read_only() -> None:
    disk = MemoryDisk(1 << 20, read_only=True)
    assert FilterRig("readonly:file=/run/ro", "error").filters.wrap_disk(disk).read_only


def test_log_has_a_key_value_line_for_each_disk_call() -> None:
    rig = FilterRig("log:where=disk", "error:on=write,errno=ENOSPC")
    target = rig.target()
    for request in REQUESTS.values():
        ask(target, request)
    assert rig.lines == [
        "disk=read offset=2560 length=512 result=ok",
        "disk=write offset=2560 length=512 result=ENOSPC",
        "disk=flush result=ok",
        "disk=discard offset=2560 length=512 result=ok",
    ]


def test_first_filter_is_the_outermost() -> None:
    # Filters inside the failing one are not called.
    rig = FilterRig("error:on=read", "log:where=disk")
    ask(rig.target(), ata(READ))
    assert rig.lines == []


def test_log_can_select_calls() -> None:
    rig = FilterRig("log:where=disk,on=flush")
    target = rig.target()
    for request in REQUESTS.values():
        ask(target, request)
    assert rig.lines == ["disk=flush result=ok"]


class GrowingDisk(MemoryDisk):
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


ALL = ("error:probability=0", "corrupt:probability=0", "log:where=disk")


def test_filtered_disk_follows_size_and_close() -> None:
    inside = GrowingDisk(1 << 20)
    disk: Disk = FilterRig(*ALL, "readonly:file=/nowhere").filters.wrap_disk(inside)
    assert (disk.size, disk.read_only) == (1 << 20, False)
    inside.size = 2 << 20
    inside.read_only = True
    assert (disk.size, disk.read_only) == (2 << 20, True)
    disk.close()
    assert inside.is_closed


def test_wire_filters_do_not_wrap_the_disk() -> None:
    disk = MemoryDisk(1 << 20)
    assert (
        FilterRig("drop", "corrupt:where=wire", "log").filters.wrap_disk(disk) is disk
    )


def test_trigger_counts() -> None:
    rig = FilterRig("error:on=read,count=2", "drop:on=write", "readonly")
    target = rig.target()
    for _ in range(3):
        ask(target, ata(READ))
    ask(target, write())
    assert rig.filters.trigger_counts() == [
        ("error:count=2,on=read", 2),
        ("drop:on=write", 1),
        ("readonly", None),
    ]


def test_error_raises_oserror_with_the_configured_errno() -> None:
    disk = FilterRig("error:errno=ESTALE").filters.wrap_disk(MemoryDisk(512))
    with pytest.raises(OSError, match="injected error") as caught:
        disk.flush()
    assert caught.value.errno == errno.ESTALE
