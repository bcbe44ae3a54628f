"""The epoch in IDENTIFY changes exactly when answered writes may be lost (P84)."""

from __future__ import annotations

import errno
import logging
import os
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec
import pytest

from aoe.address import Address
from aoe.identify import Identity
from target.config.settings import ExportSettings
from target.disks import OpenFlags, epoch
from target.server.opening import open_export
from tests.nbd_servers import FakeServer, exported, simple_reply

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from target.disks import Disk
    from target.protocol.exports import Export


class Rig:
    """Opens exports of an image, and closes them at the end."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._stack = stack

    def open(self, *, previous: Export | None = None, **fields: object) -> Export:
        settings = ExportSettings(
            address=Address(7, 3), interfaces=("eth0",), path=str(self.path)
        )
        wanted = msgspec.structs.replace(settings, **fields)
        return open_export(wanted, self._stack, previous)

    def epoch(self) -> int:
        return epoch_of(self.open(disk=OpenFlags(force=True)))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    with ExitStack() as stack:
        yield Rig(path, stack)


def epoch_of(export: Export) -> int:
    return Identity.unpack(export.identity_page).epoch


def test_p84_epoch_is_in_vendor_words_under_a_correct_checksum() -> None:
    page = Identity(2048, epoch=0x1122334455667788).pack()
    words = struct.unpack("<256H", page)
    mark = struct.pack(">4H", *words[129:133])
    assert mark == b"AoEepoch"
    assert words[133:137] == (0x7788, 0x5566, 0x3344, 0x1122)
    assert sum(page) % 256 == 0
    assert Identity.unpack(page).epoch == 0x1122334455667788


def test_p84_vendor_words_of_others_are_not_an_epoch() -> None:
    page = bytearray(Identity(2048).pack())
    assert not any(page[258:320])
    page[258:320] = os.urandom(62)
    assert Identity.unpack(page).epoch == 0


def test_p84_restart_of_the_process_keeps_the_epoch(rig: Rig) -> None:
    assert rig.epoch() == rig.epoch() != 0


def test_p84_another_boot_has_another_epoch(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rig.epoch()
    monkeypatch.setattr(epoch, "this_boot", lambda: "another")
    assert rig.epoch() != before
    # Without a boot ID, every start may be one of the host.
    monkeypatch.setattr(epoch, "this_boot", lambda: "")
    assert rig.epoch() != rig.epoch()


def test_p84_another_file_at_the_path_has_another_epoch(rig: Rig) -> None:
    before = rig.epoch()
    other = rig.path.with_name("other")
    other.write_bytes(bytes(1 << 20))
    other.rename(rig.path)
    assert rig.epoch() != before


def test_p84_with_sync_no_boot_changes_the_epoch(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = OpenFlags(sync=True, force=True)
    before = epoch_of(rig.open(disk=flags))
    monkeypatch.setattr(epoch, "this_boot", lambda: "another")
    assert epoch_of(rig.open(disk=flags)) == before


class Failing:
    """A disk whose flush fails."""

    def __init__(self, disk: Disk) -> None:
        self.size, self.read_only = disk.size, disk.read_only

    def flush(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("keep_state", [False, True])
def test_p84_failed_flush_and_reopening_change_the_epoch(
    rig: Rig, caplog: pytest.LogCaptureFixture, *, keep_state: bool
) -> None:
    flags = OpenFlags(force=True)
    export = rig.open(disk=flags, keep_state=keep_state)
    epochs = [epoch_of(export)]
    export.disk = Failing(export.disk)  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="Input"):
        export.flush()
    with pytest.raises(OSError, match="an earlier flush failed"):
        export.flush()
    message = "e7.3: a flush failed: input/output error; all flushes fail until the "
    assert caplog.messages == [f"{message}disk is reopened. Run: aoe-target reload"]
    epochs.append(epoch_of(export))
    again = rig.open(previous=export, disk=flags, keep_state=keep_state)
    assert not again.flush_failed
    epochs.append(epoch_of(again))
    assert len(set(epochs)) == 3
    if keep_state:
        # The same if the process is restarted instead, and only once.
        assert [rig.epoch(), rig.epoch()] == epochs[2:] * 2


def test_p84_every_connection_to_an_nbd_server_has_its_epoch(tmp_path: Path) -> None:
    place = tmp_path / "socket"
    with FakeServer(place, simple_reply), ExitStack() as stack:
        rig = Rig(tmp_path, stack)
        uri = exported(place)
        export = rig.open(path=uri, keep_state=False)
        rig.close()
        assert epoch_of(rig.open(path=uri, keep_state=False)) != epoch_of(export)
        rig.close()
        # It was flushed before it is reopened.
        again = rig.open(previous=export, path=uri, keep_state=False)
        assert epoch_of(again) == epoch_of(export)
