"""A short run of scripts/fuzz, what it has found so far, and what it would find."""

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


def test_every_command_is_executed_and_every_way_of_refusing_is_met(
    campaign: fuzz.Campaign,
) -> None:
    table = fuzz.tabulate(campaign.outcomes())
    undone = {name for name, row in table.items() if not row["done"]}
    assert undone == {
        "ATA, other opcodes",
        "ATA, too short",
        "other commands",
        "other versions",
    }
    executed = {outcome.opcode for outcome in campaign.outcomes()}
    assert executed >= set(ata.OPERATIONS)
    met = {answer for row in table.values() for answer in row}
    assert met >= {"done", "aborted", "not_found", "uncorrectable", "device fault"}
    assert met >= {f"error {code}" for code in ErrorCode} | {fuzz.SILENCE}
    assert {*frames.Drop, "unmatched"} <= set(campaign.dropped())


# What broke a rule once, by the words of the rule: the MTU, and the frames.
FINDS: dict[str, tuple[int, list[str]]] = {
    "a write cache goes off although the flush that follows fails": (
        1500,
        ["5254007a26e7525400c11e4788a210000007030000000120408200ef0000000000000000"],
    ),
}


@pytest.mark.parametrize("name", FINDS)
def test_what_was_found_is_no_more(name: str, tmp_path: Path) -> None:
    mtu, frames_ = FINDS[name]
    run_all(tmp_path / "port", mtu, map(bytes.fromhex, frames_))


def test_the_same_seed_makes_the_same_frames() -> None:
    first, second = Mutator(5), Mutator(5)
    assert [next(first) for _ in range(500)] == [next(second) for _ in range(500)]


def test_memory_stays_as_it_is(tmp_path: Path) -> None:
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
    # The first round fills counters, caches and clusters of the overlay.
    assert sizes[2] - sizes[1] < 100_000


# --- would it find anything? --------------------------------------------------------


def no_padding(_reply: memoryview, length: int) -> int:
    return max(length, 60)


def forget_the_end(*arguments: int) -> int:
    _target, _aflags, _count, _opcode, low, high, *_ = arguments
    return (high << 32 | low) * 512


def write_all_there_is(
    target: core.Target, fields: frames.Fields, request: memoryview, _reply: object
) -> tuple[int, int]:
    data = request[36 : len(request) - (len(request) - 36) % 512]
    if fields[7] & 1 and len(data):
        target.export.disk.write_from((fields[11] << 32 | fields[10]) * 512, data)
    return 0, 0


def trip(*_: object) -> int:
    raise KeyError("no such thing")


def answer_twice(port: Port, _link: object, request: memoryview, now: float) -> None:
    link = port.link
    assert link is not None
    for target in port.targets * 2:
        slot = link.reserve()
        if slot is not None and (length := target.handle(request, slot, now)):
            link.commit(length)


def obey_strangers(_target: object, _src: bytes, _asked: object) -> None:
    return None


SABOTAGE: dict[str, tuple[object, str, object]] = {
    "old bytes behind a short reply": (commands, "pad", no_padding),
    "old bytes behind an error": (core, "pad", no_padding),
    "no end of the disk": (transfers, "_byte_offset", forget_the_end),
    "the frame's length instead of the count": (
        ata.OPERATIONS,
        "52",
        write_all_there_is,
    ),
    "an exception": (lists, "_apply_directive", trip),
    "every target twice": (Port, "_serve_broadcast", answer_twice),
    "a reservation that is not set": (lists, "_set_holders", obey_strangers),
    "flush before write": (ata.OPERATIONS, "53", transfers.flush),
    "success for what failed": (ata, "_FAULT", 0x40),
    "trim that trims nothing": (ata.OPERATIONS, "6", transfers.flush),
    "the wrong error": (core, "unknown_command", commands.unknown_version),
}


@pytest.mark.parametrize("how", SABOTAGE)
def test_a_target_that_breaks_a_rule_is_found_out(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where, name, what = SABOTAGE[how]
    if isinstance(where, dict):
        monkeypatch.setitem(where, int(name), what)
    else:
        monkeypatch.setattr(where, name, what)
    with fuzz.Campaign(tmp_path) as campaign:
        campaign.run("mutation", Mutator(1), 8_000)
    assert campaign.find is not None


def test_a_find_is_shortened_and_can_be_replayed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfers, "_byte_offset", forget_the_end)
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
