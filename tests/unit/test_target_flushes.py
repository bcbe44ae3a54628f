"""How long, and to which clients, a failed flush is reported."""

from __future__ import annotations

import errno

import pytest

from target.disks.memory import MemoryDisk
from tests.asking import ask, ata, ata_response, make_target

pytestmark = pytest.mark.usefixtures("engine")


class FailingOnceDisk(MemoryDisk):
    """A disk that reports a write-back error only once, as the kernel does."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.failure = 0

    def flush(self) -> None:
        if self.failure:
            number, self.failure = self.failure, 0
            raise OSError(number, "failed")


FLUSH = ata(0xE7, count=0)
GOOD, FAULT = ata_response(0x40), ata_response(0x61, 0x04)


def test_p2_p46_failed_flush_is_reported_until_the_disk_is_reopened() -> None:
    disk = FailingOnceDisk()
    target = make_target(disk)
    disk.failure = errno.EIO
    for now in (100, 105, 100_000):
        assert ask(target, FLUSH, now=now) == FAULT
    assert ask(make_target(disk), FLUSH) == GOOD


@pytest.mark.parametrize("opcode", [0xE0, 0xE2, 0xE6, 0xEA])
def test_p2_p46_other_flushing_commands_report_the_failure(opcode: int) -> None:
    disk = FailingOnceDisk()
    target = make_target(disk)
    disk.failure = errno.EIO
    for now in (100, 105, 100_000):
        assert ask(target, ata(opcode, count=0), now=now) == FAULT


def test_p46_failed_flush_of_a_fua_write_also_fails_later_flushes() -> None:
    # The system may regard other lost writes as written now, too.
    disk = FailingOnceDisk()
    target = make_target(disk)
    forced = ata(0x3D, 5, aflags=0x41, data=bytes(512))
    disk.failure = errno.EIO
    assert ask(target, forced, now=100)[27] == 0x61
    assert ask(target, forced, now=100)[27] == 0x61
    assert ask(target, FLUSH, now=1000) == FAULT
    assert ask(target, ata(0x34, 5, aflags=0x41, data=bytes(512)))[27] == 0x40


def test_p41_unreachable_disk_is_not_reported_later() -> None:
    disk = FailingOnceDisk()
    target = make_target(disk)
    disk.failure = errno.ENODEV
    assert ask(target, FLUSH, now=100)[14:16] == bytes.fromhex("1c03")
    assert ask(target, FLUSH, now=100) == GOOD
