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


def test_p2_p46_failed_flush_is_reported_for_five_seconds() -> None:
    disk = FailingOnceDisk()
    target = make_target(disk)
    disk.failure = errno.EIO
    assert ask(target, FLUSH, now=100) == FAULT
    assert ask(target, FLUSH, now=104.9) == FAULT
    assert ask(target, FLUSH, now=105) == GOOD


@pytest.mark.parametrize("opcode", [0xE0, 0xE2, 0xE6, 0xEA])
def test_p2_p46_other_flushing_commands_report_the_failure(opcode: int) -> None:
    disk = FailingOnceDisk()
    target = make_target(disk)
    disk.failure = errno.EIO
    for now in (100, 104.9):
        assert ask(target, ata(opcode, count=0), now=now) == FAULT
    assert ask(target, ata(opcode, count=0), now=105) == GOOD


def test_p46_failed_fua_write_is_also_reported_to_the_next_flush() -> None:
    # The failed write reports only itself; earlier writes are reported by the flush.
    disk = FailingOnceDisk()
    target = make_target(disk)
    forced = ata(0x3D, 5, aflags=0x41, data=bytes(512))
    disk.failure = errno.EIO
    assert ask(target, forced, now=100)[27] == 0x61
    assert ask(target, forced, now=100)[27] == 0x40
    assert ask(target, FLUSH, now=1000) == FAULT
    assert ask(target, FLUSH, now=1005) == GOOD


def test_p41_unreachable_disk_is_not_reported_later() -> None:
    disk = FailingOnceDisk()
    target = make_target(disk)
    disk.failure = errno.ENODEV
    assert ask(target, FLUSH, now=100)[14:16] == bytes.fromhex("1c03")
    assert ask(target, FLUSH, now=100) == GOOD
