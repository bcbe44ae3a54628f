"""The data that a response guarantees is on stable storage before it is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scripts import killtest
from target.disks import open_disk
from target.disks.memory import MemoryDisk
from target.disks.overlay.disk import OverlayDisk
from target.disks.overlay.format import find_header
from tests.asking import ata
from tests.durable_contents import (
    CACHE_OFF,
    CACHE_ON,
    FLUSHES,
    FLUSHING_OPCODES,
    FUA,
    SECTOR,
    SET_FEATURES,
    Requests,
    changes,
    durable_contents,
    missing,
)
from tests.serving import client
from tests.tracing import StableFile, calls_in, traced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns

SECTORS = 1024
ORIGINAL = bytes(range(256)) * (SECTORS * 2)
MODES: dict[str, tuple[str, ...]] = {
    "page cache": (),
    "sync": ("--sync",),
    "direct": ("--direct",),
    "sync direct": ("--sync", "--direct"),
    "overlay": ("--overlay",),
    "overlay sync": ("--sync", "--overlay"),
}


def requests() -> list[bytes]:
    """Return requests, to be sent one after the other."""
    sequence = Requests()
    for place, opcode in enumerate(FLUSHING_OPCODES):
        sequence.write(3)
        sequence.write(200 * place + 7, 2)
        sequence.trim(200 * place + 8, 3)
        sequence.put(opcode)
    sequence.write(3)
    sequence.write(1000, 2, FUA)
    sequence.write(4)
    sequence.put(SET_FEATURES, feature=CACHE_OFF)
    sequence.write(900)
    sequence.trim(3, 1)
    sequence.put(SET_FEATURES, feature=CACHE_ON)
    sequence.write(5)
    sequence.write(600, 2, FUA)
    sequence.write(601)
    return sequence.frames


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("mode", MODES)
def test_p46_guaranteed_contents_survive_a_power_failure_at_each_response(
    wire: Wire, tmp_path: Path, mode: str
) -> None:
    image, overlay, log = (tmp_path / name for name in ("disk", "overlay", "calls"))
    image.write_bytes(ORIGINAL)
    options: list[object] = ["--plain", "--no-state", *MODES[mode]]
    written = image
    if "--overlay" in options:
        open_disk(image, overlay=str(overlay)).close()
        options.append(overlay)
        written = overlay
    file = StableFile(written, written.read_bytes())
    sequence, is_sync = requests(), "--sync" in options
    send_all(wire, log, sequence, image, *options)
    guaranteed = dict(enumerate(durable_contents(sequence, is_sync=is_sync), 1))
    unsafe = 0
    for tag in response_tags(log, file):
        disk = surviving(file, is_overlay=written is overlay)
        assert missing(guaranteed.pop(tag), disk) == [], tag
        unsafe += bool(missing(changes(sequence[tag - 1]), disk))
    assert not guaranteed
    # The trace distinguishes both cases: without --sync, and without a command that
    # requires it, a write is answered before it is stable.
    assert bool(unsafe) is not is_sync
    assert file.is_direct is ("--direct" in options)
    assert written is image or image.read_bytes() == ORIGINAL


def send_all(wire: Wire, log: Path, sequence: list[bytes], *words: object) -> None:
    """Send requests one after the other, with the target under strace; all succeed."""
    with client(wire) as asking, traced(wire, log, *words):
        assert asking.receive()[19:20] == b"\x01"
        for request in sequence:
            response = asking.ask(request)
            assert response[14:24] == b"\x18\0" + request[16:24]
            assert response[27] == 0x40


def response_tags(log: Path, file: StableFile) -> Iterator[int]:
    """Replay a trace, and yield the tag at each response to an ATA command."""
    for call in calls_in(log):
        file.replay(call)
        if call.name == "send" and call.data[14:20] == b"\x18\0\0\x07\x03\0":
            yield int.from_bytes(call.data[20:24], "big")


def surviving(file: StableFile, *, is_overlay: bool) -> bytes:
    """Return the contents of the disk after a power failure."""
    stable = bytes(file.stable)
    if not is_overlay:
        return stable
    base, store = MemoryDisk(ORIGINAL, read_only=True), MemoryDisk(stable)
    disk = OverlayDisk(base, store, find_header(stable), boot="next")
    content = memoryview(bytearray(disk.size))
    disk.read_into(0, content)
    return bytes(content)


@pytest.mark.usefixtures("engine")
def test_p46_fdatasync_precedes_the_response_with_rings(
    wire: Wire, tmp_path: Path
) -> None:
    image, log = tmp_path / "disk", tmp_path / "calls"
    image.write_bytes(bytes(SECTORS * SECTOR))
    sequence = [requests()[0], *(ata(opcode) for opcode in FLUSHES)]
    send_all(wire, log, sequence, image, "--no-state")
    names = [
        call.name
        for call in calls_in(log)
        if call.path == str(image) or (call.name == "send" and not call.data)
    ]
    begin = names.index("write")
    assert names[begin : begin + 6] == ["write", "send", "sync", "send", "sync", "send"]


def test_killed_target_loses_no_completed_write(tmp_path: Path, wire: Wire) -> None:
    del wire  # Skips if namespaces cannot be created.
    results = list(killtest.run_all(8, seed=3, directory=tmp_path))
    assert [result.faults for result in results] == [[]] * 8
    assert {result.plan.mode for result in results} == set(killtest.MODES)
    # When killed, the targets had completed some requests, and not others.
    assert sum(result.ledger.promised for result in results)
    assert sum(len(result.ledger.in_flight) for result in results)
