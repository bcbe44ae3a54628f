"""A short run of scripts/fuzz, its earlier finds, and defects that it must detect."""

from __future__ import annotations

import gc
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from aoe.header import ErrorCode
from scripts import fuzz
from target.protocol import ata, commands, frames, lists, transfers
from target.protocol import target as core
from target.server.ports import Port
from tests.fuzz_frames import Mutator
from tests.fuzz_port import FuzzedPort, run_all

if TYPE_CHECKING:
    from pathlib import Path

FRAMES = 40_000


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Campaign:
    with fuzz.Campaign(tmp_path_factory.mktemp("fuzz")) as campaign:
        fuzz.run_campaign(campaign, FRAMES, seed=2)
        for port in campaign.ports:
            if campaign.find is None:
                port.verify()
    return campaign


def test_no_frame_breaks_a_rule(campaign: fuzz.Campaign) -> None:
    assert campaign.find is None
    assert campaign.frames == FRAMES


def test_every_command_succeeds_and_every_error_occurs(
    campaign: fuzz.Campaign,
) -> None:
    table = fuzz.tabulate(campaign.outcomes())
    never_done = {name for name, row in table.items() if not row["done"]}
    assert never_done == {
        "ATA, other opcodes",
        "ATA, too short",
        "other commands",
        "other versions",
    }
    executed = {outcome.opcode for outcome in campaign.outcomes()}
    assert executed >= set(ata.OPERATIONS)
    responses = {response for row in table.values() for response in row}
    assert responses >= {
        "done",
        "aborted",
        "not_found",
        "uncorrectable",
        "device fault",
    }
    assert responses >= {f"error {code}" for code in ErrorCode} | {fuzz.NO_RESPONSE}
    assert {*frames.Drop, "no_target"} <= set(campaign.dropped())


# Frames that once broke a rule: a description of the defect, the MTU, and the frames.
FINDS: dict[str, tuple[int, list[str]]] = {
    "disabling the write cache takes effect although the flush fails": (
        1500,
        ["5254007a26e7525400c11e4788a210000007030000000120408200ef0000000000000000"],
    ),
}


@pytest.mark.parametrize("name", FINDS)
def test_earlier_find_is_fixed(name: str, tmp_path: Path) -> None:
    mtu, frames_ = FINDS[name]
    run_all(tmp_path / "port", mtu, map(bytes.fromhex, frames_))


def test_same_seed_gives_the_same_frames() -> None:
    first, second = Mutator(5), Mutator(5)
    assert [next(first) for _ in range(500)] == [next(second) for _ in range(500)]


def test_memory_does_not_grow(tmp_path: Path) -> None:
    port, source = FuzzedPort(tmp_path / "port", 1500), Mutator(3)
    tracemalloc.start()
    try:
        sizes = []
        for _ in range(3):
            for _ in range(2048):
                port.run(next(source))
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
        port.close()
    # The first round fills counters, caches and the clusters of the overlay.
    assert sizes[2] - sizes[1] < 100_000


# --- defects that must be detected --------------------------------------------------


def no_padding(_response: memoryview, length: int) -> int:
    return max(length, 60)


def no_bounds_check(*arguments: int) -> int:
    _target, _aflags, _count, _opcode, low, high, *_ = arguments
    return (high << 32 | low) * 512


def write_all_data(
    target: core.Target, fields: frames.Fields, request: memoryview, _response: object
) -> tuple[int, int]:
    data = request[36 : len(request) - (len(request) - 36) % 512]
    if fields[7] & 1 and len(data):
        target.export.disk.write_from((fields[11] << 32 | fields[10]) * 512, data)
    return 0, 0


def raise_key_error(*_: object) -> int:
    raise KeyError("no such thing")


def respond_twice(port: Port, _link: object, request: memoryview, now: float) -> None:
    link = port.link
    assert link is not None
    for target in port.targets * 2:
        slot = link.reserve()
        if slot is not None and (length := target.handle(request, slot, now)):
            link.commit(length)


def ignore_reservation(_target: object, _src: bytes, _request: object) -> None:
    return None


DEFECTS: dict[str, tuple[object, str, object]] = {
    "old bytes after a short response": (commands, "pad", no_padding),
    "old bytes after an error": (core, "pad", no_padding),
    "no bounds check": (transfers, "_byte_offset", no_bounds_check),
    "length of the frame instead of the sector count": (
        ata.OPERATIONS,
        "52",
        write_all_data,
    ),
    "an exception": (lists, "_apply_directive", raise_key_error),
    "two responses of each target": (Port, "_serve_broadcast", respond_twice),
    "a reservation that is not set": (lists, "_set_holders", ignore_reservation),
    "FLUSH instead of WRITE": (ata.OPERATIONS, "53", transfers.flush),
    "success instead of device fault": (ata, "_FAULT", 0x40),
    "TRIM without an effect": (ata.OPERATIONS, "6", transfers.flush),
    "a wrong AoE error": (core, "unknown_command", commands.unknown_version),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_is_detected(
    defect: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    owner, name, replacement = DEFECTS[defect]
    if isinstance(owner, dict):
        monkeypatch.setitem(owner, int(name), replacement)
    else:
        monkeypatch.setattr(owner, name, replacement)
    with fuzz.Campaign(tmp_path) as campaign:
        campaign.run("mutation", Mutator(1), 8_000)
    assert campaign.find is not None


def test_find_is_shortened_and_replayed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfers, "_byte_offset", no_bounds_check)
    with fuzz.Campaign(tmp_path) as campaign:
        campaign.run("mutation", Mutator(1), 8_000)
    assert campaign.find is not None
    find = fuzz.shorten(campaign.find)
    (frame,) = find.frames
    assert len(frame) <= len(campaign.find.frames[-1])
    words = ["--replay", frame.hex(), "--mtu", str(find.mtu)]
    assert fuzz.main(words) == 1
    monkeypatch.undo()
    assert fuzz.main(words) == 0
    assert capsys.readouterr().out == f"{find.why}\nno rule broken\n"
